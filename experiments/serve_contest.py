"""Serves the embedded captcha contest on this machine until it is stopped (Ctrl-C).

    python -m experiments.serve_contest --user=alice --port=8000

Prints the contest's address. `GET ADDRESS/challenge` gives a batch of captchas, `POST ADDRESS/solution` scores
answers; no address gives answers out. The same user and seed make the same contest, also after a restart.
"""

import signal
import sys
import threading
from types import FrameType

from absl import app, flags

from simgan_jax import challenge, contest

_USER = flags.DEFINE_string("user", "alice", "User name; decides colour stripes and lines.")
_PORT = flags.DEFINE_integer("port", 8000, "Port on 127.0.0.1; 0 takes a free one.", lower_bound=0)
_SEED = flags.DEFINE_integer("seed", 0, "Decides the captchas.")
_SIZE = flags.DEFINE_integer("size", 15_000, "Most answers in a submission; two thirds right pass.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 1000, "Captchas in a batch.", lower_bound=1)
_FONT = flags.DEFINE_string("font", "", "Font file to draw with; empty for the contest's own.")


def main(argv: list[str]) -> int:
    if argv[1:]:
        raise app.UsageError(f"unknown argument {argv[1]!r}")
    stop = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    try:
        config = contest.ContestConfig(font=_FONT.value)
        game = contest.Contest(
            _USER.value, seed=_SEED.value, size=_SIZE.value, batch_size=_BATCH_SIZE.value, config=config
        )
        with contest.serve(game, port=_PORT.value) as url:
            print(url, flush=True)
            stop.wait()
    except challenge.ChallengeError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    app.run(main)
