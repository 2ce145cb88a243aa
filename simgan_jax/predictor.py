"""Reads new images as a finished run read its own (io)."""

import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from simgan_jax import (
    arms,
    challenge,
    checkpoints,
    classifier,
    classify,
    reading,
    rescore,
    rounds,
    session,
    stages,
    target,
    workdir,
)
from simgan_jax.config import Config

BATCH = 500


class Predictor(NamedTuple):
    """A trained reader and the scene of the captchas that it was trained for.

    judge: decides unsure readings, where the run did so; usual: its measure of residuals.
    """

    config: Config
    scene: target.Scene
    params: classifier.Params
    reader: reading.Reader
    judge: rescore.Rescorer | None = None
    usual: float = 0.0


def load(path: str | os.PathLike[str]) -> Predictor:
    """The reader of a finished run.

    Raises:
      WorkdirError: no finished run there. CheckpointError: its checkpoint is broken.
    """
    folder = pathlib.Path(path)
    identity = workdir.read_json(file) if (file := folder / workdir.CONFIG_FILE).exists() else {}
    if "config" not in identity:
        raise workdir.WorkdirError(f"{folder}: no run of experiments.run: check --workdir")
    config = workdir.config_from(identity["config"])
    if not (folder / "summary.json").exists():
        raise workdir.WorkdirError(f"{folder}: its run has not ended: run it again, and it goes on where it stopped")
    best = workdir.read_json(folder / "summary.json")["best"]
    scene = session.scene_from(workdir.load_arrays(folder / "scene.npz"))
    adapted = rounds.adapted_arms(config)
    if best in adapted:
        stage, settings = adapted[best], stages.adapt_settings(config)
    else:
        stage, settings = f"classify/{best}", config.classify
    params = classifier.init(jax.random.key(0), config.captcha, config=config.classifier)
    with checkpoints.Checkpoints(session.checkpoint_folder(folder, stage)) as saved:
        state = saved.restore(classify.start_state(params, config=settings))
    reader = reading.Reader(config.captcha, config=config.classifier)
    if not (folder / "rescore.final.npz").exists():
        return Predictor(config, scene, state.average, reader)
    found = workdir.load_arrays(folder / "rescore.final.npz")
    judge = rescore.Rescorer(found["atlas"], scene.mask, found["noise"], config=config)
    return Predictor(config, scene, state.average, reader, judge, float(found["usual"]))


def predict(
    predictor: Predictor, paths: Sequence[str | os.PathLike[str]]
) -> Iterator[tuple[tuple[str, ...], list[str], np.ndarray]]:
    """Names, texts and confidences of images in files and folders, a batch at a time.

    Raises:
      ChallengeError: unusable input.
    """
    captcha = predictor.config.captcha
    for records in challenge.iterate(paths, BATCH, height=captcha.height, width=captcha.width):
        gray = np.pad(records.gray, ((0, BATCH - len(records.gray)), (0, 0), (0, 0)))
        padded = target.to_ink(jnp.asarray(gray), predictor.scene, config=predictor.config.target)
        ink = np.asarray(padded)[: len(records.gray)]
        readings = predictor.reader(predictor.params, ink)
        readings = predictor.reader.again(
            predictor.params, ink, readings, shifts=arms.SHIFTS, sure=predictor.config.rescore.sure
        )
        if predictor.judge is not None:
            readings = predictor.judge(ink, readings, usual=predictor.usual)
        yield records.names, *reading.answers(readings.probabilities, captcha)
