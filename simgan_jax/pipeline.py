"""The main job: unlabelled captchas in, every one of them read (io).

Stages in order, each resumable, none of which can see a label: target -> simulator -> classify -> pretrain, refine ->
classify -> fit and classify again, in rounds -> rescore -> adapt, in rounds as well -> predict -> rescore.
"""

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from simgan_jax import alarms, classifier, classify, deciding, figures, finish, refiner, stages, state, steps
from simgan_jax.arms import Arm, classify_stage, first_classifier, read_arm, simulated_pool, timed_pool
from simgan_jax.config import Config
from simgan_jax.rounds import adapt_rounds, adapted_arms, fit_rounds, mean_readings
from simgan_jax.session import Run, train_stage


def pretrain_stages(run: Run, pool: classify.Pool) -> state.SimGANState:
    """Pretrains the refiner (self-regularisation alone), then the discriminator against it (paper, Algorithm 1).

    Raises:
      CollapseError: the pool and the target differ in their value ranges, or the training broke down.
    """
    if not run.workdir.done("pretrain/refiner"):
        alarms.check_ranges(np.asarray(pool.ink), run.target.ink)
    settings = run.config.refine
    refiner_state = _adversarial_stage(
        run,
        "pretrain/refiner",
        run.keys["pretrain"],
        lambda: state.init(run.keys["gan"], config=run.config),
        steps.refiner_pretrain_step,
        pool,
        total=settings.refiner_pretrain_steps,
        watch=alarms.check,
    )
    return _adversarial_stage(
        run,
        "pretrain/discriminator",
        run.keys["pretrain"],
        lambda: state.restart(refiner_state),
        steps.discriminator_pretrain_step,
        pool,
        total=settings.discriminator_pretrain_steps,
        watch=alarms.check,
    )


def refine_stages(run: Run, pool: classify.Pool, reader: classifier.Params | None) -> refiner.Params:
    """Pretrains and trains refiner and discriminator on the pool and the target; the refiner's averaged parameters.

    Args:
      reader: the classifier of simulated captchas that should read refined ones alike; needed if `refine.lambda_label`
        is above 0 and the stage is not done.

    Raises:
      CollapseError: the adversarial training broke down; the run ends.
    """
    pretrained = pretrain_stages(run, pool)
    trained = _adversarial_stage(
        run,
        "refine",
        run.keys["refine"],
        lambda: state.restart(pretrained),
        functools.partial(steps.simgan_step, label_loss_fn=stages.label_loss(reader, run.config)),
        pool,
        total=run.config.refine.steps,
        watch=alarms.check,
    )
    return trained.average


def _adversarial_stage(
    run: Run,
    stage: str,
    key: jax.Array,
    start: Callable[[], state.SimGANState],
    step_fn: Callable[..., tuple[state.SimGANState, dict[str, jax.Array]]],
    pool: classify.Pool,
    *,
    total: int,
    watch: Callable[[list[dict[str, float]]], None] | None = None,
) -> state.SimGANState:
    return train_stage(
        run,
        stage,
        key,
        start,
        functools.partial(step_fn, config=run.config),
        (pool, jax.device_put(run.target.ink)),
        total=total,
        checkpoint_every=run.config.refine.checkpoint_every,
        log_every=run.config.refine.log_every,
        watch=watch,
    )


def arm_names(config: Config) -> tuple[str, ...]:
    """The arms of a run in the order of training; of those of self-training the last ones may not be needed."""
    rounds = tuple(f"fitted{number}" for number in range(config.fit.rounds))
    return *deciding.BEFORE_FIT, *rounds, *adapted_arms(config)


def train_arms(run: Run) -> Iterator[Arm]:
    """Every stage after the target: each arm trained, and the target read with it, when the iterator comes to it.

    The arms `synthetic` and `refined` have the same classifier, start, budget and labels, and differ in the refiner
    alone. Each round of fitting starts from what the arms so far read together.
    """
    config = run.config
    pool = simulated_pool(run)
    raw = first_classifier(run, pool)
    first = read_arm(run, "synthetic", raw)
    yield Arm("synthetic", raw, first, [figures.of_target(run)])
    params = refine_stages(run, pool, raw)
    refined = timed_pool(run, "refined", lambda: stages.refine_pool(run.keys["latents"], params, pool, config=config))
    latest = classify_stage(run, "refined", refined, None, total=config.classify.steps)
    second = read_arm(run, "refined", latest)
    yield Arm("refined", latest, second, [figures.of_refinement(run, pool, refined)])
    belief, last, simulator, mixed = mean_readings(first, second), latest, None, refined
    for number, fitted in enumerate(fit_rounds(run, belief, latest, refined)):
        simulator, last, mixed, belief = fitted.simulator, fitted.params, fitted.mixed, fitted.readings
        figure = figures.of_simulator(run, number, simulator, fitted.drawn)
        yield Arm(fitted.arm, last, belief, [figure], np.asarray(simulator.atlas))
    seen = {"synthetic": first, "refined": second, "fitted": belief}
    yield from adapt_rounds(run, seen, last, simulator, mixed, refined)


def run_all(run: Run, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The whole run: trains, reads, chooses, and writes answers, summary and report; returns the summary."""
    trained = {arm.name: arm for arm in train_arms(run)}
    arms = {name: arm.readings for name, arm in trained.items()}
    best = deciding.choose_arm(arms)
    final = undecided = read_arm(run, "final", trained[best].params, first=arms[best])
    # Where an arm from before the fit is the best, the fit has failed, and its glyphs decide nothing.
    if (glyphs := trained[best].glyphs) is not None:
        final = deciding.rescore_stage(run, "final", final, glyphs)
    begin = time.monotonic()
    texts, confidences = finish.write_answers(run, final)
    summary = finish.write_summary(run, identity, arms, best, final, undecided)
    shown = [figure for arm in trained.values() for figure in arm.figures]
    finish.write_report(run, summary, texts, confidences, shown)
    run.workdir.finish("report", time.monotonic() - begin)
    return summary
