"""Readers of the target, each trained on a pool of labelled captchas (io)."""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from simgan_jax import alarms, challenge, classifier, classify, estimate, reading, reporting, stages
from simgan_jax.session import Run, train_stage

# What is not read surely is read a pixel to each side as well, and averaged, for the final answers.
SHIFTS = ((0, 1), (1, 0), (0, -1), (-1, 0))


class Arm(NamedTuple):
    """A trained reader and what it read.

    figures: what there is to see of the way to it; glyphs: the atlas `[K, V, S, S]` of the last fit, if there was any.
    """

    name: str
    params: classifier.Params
    readings: reading.Readings
    figures: list[reporting.Figure]
    glyphs: np.ndarray | None = None


def simulated_pool(run: Run) -> classify.Pool:
    """The labelled captchas of the simulator as it is before it has seen what readers find in the target."""
    simulator = stages.configured_simulator(run.config)
    count = run.config.synthesizer.pool
    return timed_pool(
        run,
        "synthetic",
        lambda: stages.draw_pool(run.keys["pool"], simulator, run.target.scene, count=count, config=run.config),
    )


def timed_pool(run: Run, name: str, make: Callable[[], classify.Pool]) -> classify.Pool:
    """A pool, which is made anew in each process, and in the stages the seconds of the first time."""
    begin = time.monotonic()
    pool = jax.block_until_ready(make())
    if not run.workdir.done(f"pool/{name}"):
        run.workdir.finish(f"pool/{name}", time.monotonic() - begin, images=len(pool.ink))
    return pool


def classify_stage(
    run: Run, arm: str, pool: classify.Pool, params: classifier.Params | None, *, total: int
) -> classifier.Params:
    """Trains one arm, from scratch or from another arm's parameters; its averaged parameters."""
    settings = run.config.classify

    def start() -> classify.ClassifierState:
        first = (
            classifier.init(run.keys["classifier"], run.config.captcha, config=run.config.classifier)
            if params is None
            else params
        )
        return classify.start_state(first, config=settings)

    trained = train_stage(
        run,
        f"classify/{arm}",
        run.keys["classify"],
        start,
        stages.classify_step(run.config, total),
        pool,
        total=total,
        checkpoint_every=settings.checkpoint_every,
        log_every=settings.log_every,
        watch=alarms.check,
    )
    return trained.average


def first_classifier(run: Run, pool: classify.Pool) -> classifier.Params:
    """The classifier of the arm `synthetic`, which reads simulated captchas as they are drawn."""
    return classify_stage(run, "synthetic", pool, None, total=run.config.classify.steps)


def read_arm(
    run: Run, arm: str, params: classifier.Params, *, first: reading.Readings | None = None
) -> reading.Readings:
    """Reads the whole target with one arm and writes `predictions.<arm>.csv`; read once, loaded afterwards.

    Args:
      first: what the same parameters read before; those that are less sure than `rescore.sure` are read at shifts too.
    """
    stage = f"predict/{arm}"
    name = f"readings.{arm}"
    if run.workdir.done(stage):
        return reading.Readings(**run.workdir.load(name))
    begin = time.monotonic()
    reader, ink = reading.Reader(run.config.captcha, config=run.config.classifier), run.target.ink
    if first is None:
        readings = reader(params, ink)
    else:
        readings = reader.again(params, ink, first, shifts=SHIFTS, sure=run.config.rescore.sure)
    run.workdir.save(name, **readings._asdict())
    texts, confidences = reading.answers(readings.probabilities, run.config.captcha)
    challenge.write_predictions(run.workdir.path / f"predictions.{arm}.csv", run.target.names, texts, confidences)
    run.workdir.finish(
        stage,
        time.monotonic() - begin,
        images=len(texts),
        confidence=float(confidences.mean()),
        estimate=estimate.accuracy(readings.probabilities).estimate,
    )
    # What was written, so that processes on unlike hosts go on with the same numbers.
    return reading.Readings(**run.workdir.load(name))
