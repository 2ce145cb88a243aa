"""Downloads unlabelled captchas from a contest.

    python -m experiments.download --url=http://127.0.0.1:8000/u/alice --count=10 --folder=runs/challenges

Writes `challenge-0`, `challenge-1`, ... into the folder, each checked and whole; started again after a break it
fetches what is missing. A thousand captchas take some 2.5 MB. Exits 2 with one line if something is wrong.
"""

import logging
import sys

from absl import app, flags

from simgan_jax import atomic, challenge, contest_client

_URL = flags.DEFINE_string("url", None, "Address of a user's contest, http://HOST/u/USER.", required=True)
_COUNT = flags.DEFINE_integer("count", 10, "Batches to download; a batch is usually 1,000 captchas.", lower_bound=1)
_FOLDER = flags.DEFINE_string("folder", None, "Folder for the batches; made if it is missing.", required=True)
_WORKERS = flags.DEFINE_integer("workers", 4, "Downloads at a time.", lower_bound=1)


def main(argv: list[str]) -> int:
    if argv[1:]:
        raise app.UsageError(f"unknown argument {argv[1]!r}")
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    try:
        files = contest_client.download(_URL.value, _COUNT.value, _FOLDER.value, workers=_WORKERS.value)
    except (challenge.ChallengeError, atomic.WriteError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{len(files)} batches in {_FOLDER.value}")
    return 0


if __name__ == "__main__":
    app.run(main)
