"""Posts the answers of a run to a contest and prints what it says, one JSON object.

    python -m experiments.submit --url=http://127.0.0.1:8000/u/alice --solutions=runs/first/solutions.json

Exits 0 if the contest is passed, 1 if not, 2 with one line if something is wrong.
"""

import json
import logging
import sys

from absl import app, flags

from simgan_jax import challenge, contest_client

_URL = flags.DEFINE_string("url", None, "Address of a user's contest, http://HOST/u/USER.", required=True)
_LIMIT = flags.DEFINE_integer(
    "limit", contest_client.MAX_SOLUTIONS, "Most answers that the contest takes at once.", lower_bound=1
)
_SOLUTIONS = flags.DEFINE_string("solutions", None, "File solutions.json that a run wrote.", required=True)


def main(argv: list[str]) -> int:
    if argv[1:]:
        raise app.UsageError(f"unknown argument {argv[1]!r}")
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    try:
        answer = contest_client.submit(_URL.value, _SOLUTIONS.value, limit=_LIMIT.value)
    except challenge.ChallengeError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(answer))
    return 0 if answer.get("passed") else 1


if __name__ == "__main__":
    app.run(main)
