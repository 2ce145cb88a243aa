"""Opening the run that the flags ask for: its target, a folder or the embedded contest, and its workdir."""

import contextlib
import functools
import hashlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from absl import flags

from experiments import _flags
from simgan_jax import contest, contest_client, devices, glyphs, hosts, metrics, session
from simgan_jax.config import Config, ConfigError

_TARGET = flags.DEFINE_string(
    "target", None, "Folder of unlabelled captchas (contest JSON or PNG/JPEG files), or `embedded`.", required=True
)
_USER = flags.DEFINE_string("user", "alice", "User of the embedded contest; decides its stripes and lines.")
_IMAGES = flags.DEFINE_integer("embedded_images", 4000, "Captchas of the embedded contest.", lower_bound=1)
BATCH = 1000


class Opened(NamedTuple):
    """A run, what makes it this run and no other, and, if the target is embedded, its contest's address and size."""

    run: session.Run
    identity: dict[str, Any]
    url: str | None
    size: int


@contextlib.contextmanager
def open_run() -> Iterator[Opened]:
    """The run of the flags in its workdir; an embedded contest is served as long as the context lasts.

    All scripts that open a workdir with the same flags work on the same run, each from where the last one stopped.
    """
    config, workdir, captchas, url = _flags.chosen_config(), _flags.workdir(), pathlib.Path(_TARGET.value), None
    seed = _flags.SEED.value
    # Before the workdir is made: it would be bound to what cannot be used.
    count = _flags.device_count(config)
    devices.check_batches(config, count)
    for font in config.synthesizer.fonts:
        glyphs.load_font(font, config.captcha.height)
    identity = {"preset": _flags.PRESET.value, "seed": seed, "target": _TARGET.value}
    with contextlib.ExitStack() as stack:
        if _TARGET.value == "embedded":
            identity |= {"user": _USER.value, "embedded_images": _IMAGES.value}
            game = _contest(config)
            url = stack.enter_context(contest.serve(game))
            # Each contest has a folder of its own: files that are there already are not asked for again.
            look = hashlib.sha256(repr(game.config).encode()).hexdigest()[:8]
            folder = f"{_USER.value}-{seed}-{_IMAGES.value}-{look}"
            captchas = workdir.with_name(f"{workdir.name}.challenges") / folder
            batches = game.size // game.batch_size
            hosts.in_turn(functools.partial(contest_client.download, url, batches, captchas, progress=False))
        opened = session.open_run(workdir, captchas, config=config, identity=identity, seed=seed, devices=count)
        run = stack.enter_context(opened)
        yield Opened(run, identity, url, _IMAGES.value)


def _contest(config: Config) -> contest.Contest:
    size = _IMAGES.value
    batch = min(BATCH, size)
    if size % batch:
        raise ConfigError(f"--embedded_images={size}: give at most {BATCH} or a multiple of it")
    look = contest.ContestConfig(captcha=config.captcha)
    return contest.Contest(_USER.value, seed=_flags.SEED.value, size=size, batch_size=batch, config=look)


def print_last_metrics(run: session.Run, *stages: str) -> None:
    """Prints one JSON line: the last logged row of each stage."""
    last = {row["stage"]: row for row in metrics.read_metrics(run.workdir.path)}
    print(json.dumps({stage: last[stage] for stage in stages if stage in last}))
