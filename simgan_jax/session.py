"""One run in its workdir: target, keys, metrics, and resumable training (io)."""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from simgan_jax import challenge, checkpoints, devices, hosts, metrics, target, train
from simgan_jax.config import Config
from simgan_jax.workdir import Workdir, WorkdirError

# Images that are looked at at a time for their digest.
DIGESTED = 1000
# Streams of the run's key: one for each use, so that no stage moves when another changes.
STREAMS = ("pool", "gan", "pretrain", "refine", "classifier", "classify", "fitted", "adapt", "rescore", "latents")


@dataclasses.dataclass(frozen=True)
class Target:
    """The unlabelled captchas of a run. names: N; ink: uint8 `[N, H, W]`; gray: as read; scene: what they share."""

    names: tuple[str, ...]
    gray: np.ndarray
    ink: np.ndarray
    scene: target.Scene


@dataclasses.dataclass
class Run:
    """What the stages share: where they write, what they were asked for, and the run's keys by stream.

    devices: those of this process that training is divided over.
    """

    config: Config
    workdir: Workdir
    writer: metrics.MetricsWriter
    keys: Mapping[str, jax.Array]
    target: Target
    devices: int = 1


def stream_keys(seed: int) -> dict[str, jax.Array]:
    """The run's named key streams, all from one seed."""
    return dict(zip(STREAMS, jax.random.split(jax.random.key(seed), len(STREAMS)), strict=True))


def read_target(captchas: str | os.PathLike[str], *, config: Config) -> Target:
    """The captchas of a folder and the scene that they share.

    Raises:
      ChallengeError: unusable input.
    """
    records = challenge.read(captchas, height=config.captcha.height, width=config.captcha.width)
    scene = target.estimate_scene(records.gray, table=records.tables, config=config.target)
    ink = target.prepare(records.gray, scene, config=config.target)
    return Target(records.names, records.gray, ink, scene)


@contextlib.contextmanager
def open_run(
    path: str | os.PathLike[str],
    captchas: str | os.PathLike[str],
    *,
    config: Config,
    identity: Mapping[str, Any],
    seed: int,
    devices: int = 1,
) -> Iterator[Run]:
    """A run in its workdir, its target read and its scene estimated.

    Raises:
      ChallengeError, WorkdirError, MetricsError: unusable input or folder.
      HostsError: so it is for another process of the run.
    """
    start = time.monotonic()
    seen = hosts.agreed(lambda: read_target(captchas, config=config))
    digest = digest_of(seen)
    with (
        Workdir(path, dict(identity) | {"config": dataclasses.asdict(config)}) as workdir,
        hosts.agreed(lambda: _writer(workdir.path)) as writer,
    ):
        if workdir.done("target"):
            before = workdir.load("scene")["background"], workdir.facts("target")["images"]
            # Runs from before there was a digest go on without.
            same = workdir.facts("target").get("digest", digest) == digest
            if not same or before[1] != len(seen.ink) or not np.array_equal(before[0], seen.scene.background):
                raise WorkdirError(
                    f"workdir {workdir.path}: {captchas} held other captchas when this run began ({before[1]} then, "
                    f"{len(seen.ink)} now), or these under other names: restore them, or choose another --workdir"
                )
        else:
            workdir.save("scene", **scene_arrays(seen.scene))
            workdir.finish("target", time.monotonic() - start, images=len(seen.ink), digest=digest)
        yield Run(config, workdir, writer, stream_keys(seed), seen, devices)


def digest_of(seen: Target) -> str:
    """Of names and pixels in their order, in which readings are kept."""
    found = hashlib.sha256("\n".join(seen.names).encode())
    for start in range(0, len(seen.gray), DIGESTED):
        found.update(seen.gray[start : start + DIGESTED].tobytes())
    return found.hexdigest()[:16]


def _writer(folder: pathlib.Path) -> metrics.MetricsWriter:
    return metrics.MetricsWriter(folder) if hosts.is_first() else metrics.NoWriter()


def scene_arrays(scene: target.Scene) -> dict[str, np.ndarray]:
    """A scene as arrays for `Workdir.save`; `scene_from` is its inverse."""
    arrays = {"background": scene.background, "mask": scene.mask, "level": np.asarray(scene.level)}
    return arrays if scene.table is None else arrays | {"table": scene.table}


def scene_from(arrays: Mapping[str, np.ndarray]) -> target.Scene:
    """The scene that `scene_arrays` made arrays of."""
    return target.Scene(arrays["background"], arrays["mask"], float(arrays["level"]), arrays.get("table"))


def checkpoint_folder(workdir: pathlib.Path, stage: str) -> pathlib.Path:
    """Where a stage's checkpoints are."""
    return workdir / "checkpoints" / stage.replace("/", "-")


def _rows_until(folder: pathlib.Path, stage: str, done: int) -> list[dict[str, float]]:
    """The metrics that a stage logged in its first `done` steps."""
    logged = [row for row in metrics.read_metrics(folder) if row["stage"] == stage and row["step"] <= done]
    return [{name: value for name, value in row.items() if name not in metrics.RESERVED} for row in logged]


def train_stage(
    run: Run,
    stage: str,
    key: jax.Array,
    start: Callable[[], Any],
    step_fn: Callable[..., tuple[Any, dict[str, jax.Array]]],
    data: Any,
    *,
    total: int,
    checkpoint_every: int,
    log_every: int,
    watch: Callable[[list[dict[str, float]]], None] | None = None,
) -> Any:
    """Trains to `total` steps from the stage's last checkpoint, or from `start()`; returns the final state.

    A checkpoint is written with the first row of every `checkpoint_every` steps, a row every `log_every`.

    Each batch is divided over the devices of the run. Several processes train together, on the devices of all, and each
    returns the whole state.
    `watch` sees the stage's metric rows, those of earlier processes as well, after each new one and may raise.
    """
    begin = time.monotonic()
    current = start()
    with devices.training(run.devices), checkpoints.Checkpoints(checkpoint_folder(run.workdir.path, stage)) as saved:
        current, data = devices.place((current, data))
        if saved.latest() is not None:
            current = saved.restore(current)
        done = int(current.step)
        if done >= total and run.workdir.done(stage):
            return devices.collect(current)
        run.writer.resume(stage, done)
        rows, last = _rows_until(run.workdir.path, stage, done), done
        with metrics.progress(stage, total, initial=done) as bar:

            def log(step: int, current: Any, values: dict[str, float]) -> None:
                nonlocal last
                rows.append(values)
                run.writer.write(stage, step, values)
                bar.update(step - bar.n)
                if watch is not None:
                    watch(rows)
                if step // checkpoint_every > last // checkpoint_every and step < total:
                    saved.save(step, current)
                last = step

            current = train.fit(current, key, step_fn, data, steps=total, chunk=log_every, hooks=[log])
        saved.save(total, current)
        current = devices.collect(current)
    if not run.workdir.done(stage):
        run.workdir.finish(stage, time.monotonic() - begin, steps=total)
    return current
