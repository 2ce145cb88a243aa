"""Decides, without a label, which arm and which text of unsure captchas to believe (io)."""

import time
from collections.abc import Mapping

import jax
import numpy as np

from simgan_jax import estimate, reading, rescore
from simgan_jax.session import Run

BEFORE_FIT = ("synthetic", "refined")


def last_glyphs(run: Run) -> np.ndarray:
    """The atlas `[K, V, S, S]` of the last fit."""
    return run.workdir.load(f"fit.{run.config.fit.rounds - 1}")["atlas"]


def rescore_stage(
    run: Run, name: str, readings: reading.Readings, atlas: np.ndarray, *, learned: bool = False
) -> reading.Readings:
    """Readings, called `name`, of which those that were not sure are decided by drawing them with fitted glyphs.

    What it takes to decide others alike stands in `rescore.NAME.npz` afterwards.

    Args:
      learned: they are decided to be learned from, not to be believed: fewer of them, and as if the right text were
        always drawn, for a hard captcha, of which others are possible, teaches more than it misleads.
    """
    config = run.config.rescore
    sure = run.config.adapt.sure if learned else config.sure
    if not config.rounds:
        return readings
    if not run.workdir.done(f"rescore/{name}"):
        begin = time.monotonic()
        # The same starts whenever something is decided, so that the same reading is decided alike.
        noise = rescore.make_noise(jax.random.clone(run.keys["rescore"]), run.config.captcha, config=config)
        judge = rescore.Rescorer(atlas, run.target.scene.mask, noise, config=run.config)
        usual = judge.usual_residual(run.target.ink, readings)
        decided = judge(run.target.ink, readings, usual=usual, sure=sure, closed=learned)
        run.workdir.save(f"readings.rescored.{name}", **decided._asdict())
        run.workdir.save(f"rescore.{name}", atlas=atlas, noise=noise, usual=np.asarray(usual))
        unsure = reading.certainty(readings.probabilities) < sure
        run.workdir.finish(f"rescore/{name}", time.monotonic() - begin, images=int(unsure.sum()))
    return reading.Readings(**run.workdir.load(f"readings.rescored.{name}"))


def decided_belief(run: Run, seen: Mapping[str, reading.Readings], atlas: np.ndarray | None) -> reading.Readings:
    """What the last of the arms `seen` read, those less certain than `adapt.sure` decided by drawing with the atlas.

    They stay as they are where nothing was fitted, or an arm from before the fit is believed more: it has failed then.
    """
    name = list(seen)[-1]
    if atlas is None or choose_arm(seen) in BEFORE_FIT:
        return seen[name]
    return rescore_stage(run, name, seen[name], atlas, learned=True)


def choose_arm(arms: Mapping[str, reading.Readings]) -> str:
    """The arm that is believed to be the most accurate, without a label (`estimate.accuracy`)."""
    return max(arms, key=lambda arm: estimate.accuracy(arms[arm].probabilities).estimate)
