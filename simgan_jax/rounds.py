"""Rounds, in which what was read of the target so far makes the next reader: of fitting, then of self-training (io)."""

import functools
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from simgan_jax import adapt, alarms, classifier, classify, deciding, estimate, figures, reading, stages
from simgan_jax.arms import Arm, classify_stage, read_arm, timed_pool
from simgan_jax.config import Config
from simgan_jax.session import Run, train_stage


def mean_readings(*parts: reading.Readings) -> reading.Readings:
    """The ensemble of several readers: mean probabilities, poses of the surer reader of each character."""
    probabilities = np.mean([part.probabilities for part in parts], axis=0)
    surest = np.argmax([part.probabilities.max(axis=-1) for part in parts], axis=0)
    poses = np.take_along_axis(np.stack([part.poses for part in parts]), surest[None, ..., None], axis=0)[0]
    return reading.Readings(probabilities, poses)


class Round(NamedTuple):
    """A round of fitting. drawn: captchas of the fitted simulator; mixed: those that `params` were trained on."""

    arm: str
    simulator: stages.Simulator
    drawn: classify.Pool
    mixed: classify.Pool
    params: classifier.Params
    readings: reading.Readings


def fit_rounds(
    run: Run, belief: reading.Readings, params: classifier.Params, refined: classify.Pool
) -> Iterator[Round]:
    """Rounds of fitting the simulator to what is believed of the target, training on, and reading again.

    Args:
      belief: what the arms so far read together; params: the classifier that goes on.
      refined: captchas of which a share stays among the fitted ones.
    """
    config = run.config
    simulator = stages.configured_simulator(config)
    for number in range(config.fit.rounds):
        simulator = fit_stage(run, number, belief, simulator)
        arm = f"fitted{number}"
        drawn, mixed = fitted_pools(run, number, arm, simulator, refined)
        params = classify_stage(run, arm, mixed, params, total=config.fit.steps[number])
        belief = read_arm(run, arm, params)
        yield Round(arm, simulator, drawn, mixed, params, belief)


def fit_stage(run: Run, number: int, readings: reading.Readings, simulator: stages.Simulator) -> stages.Simulator:
    """One round of fitting the simulator to the target, by what a reader saw there.

    From the second on, what its drawings leave of the target's captchas is laid over those that it draws. What the
    first leaves tells more of its reader, who had not seen the target's glyphs.
    """
    stage = f"fit/{number}"
    if not run.workdir.done(stage):
        begin = time.monotonic()
        run.writer.resume(stage, 0)
        atlas, poses = stages.fit_simulator(
            run.target.ink,
            readings,
            simulator,
            run.target.scene,
            config=run.config,
            report=lambda step, residual: run.writer.write(stage, step, {"residual": residual}),
        )
        run.workdir.save(f"fit.{number}", atlas=atlas, poses=poses)
        run.workdir.finish(stage, time.monotonic() - begin, images=len(poses))
    found = run.workdir.load(f"fit.{number}")
    fitted = stages.fitted_simulator(run.config, **found)
    if not number:
        return fitted
    seen = run.target
    return fitted._replace(left=stages.left_over(seen.ink, readings, seen.scene, **found, config=run.config))


def fitted_pools(
    run: Run, number: int, arm: str, simulator: stages.Simulator, refined: classify.Pool
) -> tuple[classify.Pool, classify.Pool]:
    """Captchas of fit `number`'s simulator, for an arm; and these with a share of refined ones, to train it on."""
    count = run.config.fit.pool
    key = jax.random.fold_in(run.keys["fitted"], number)
    draw = functools.partial(stages.draw_pool, key, simulator, run.target.scene, count=count, config=run.config)
    drawn = timed_pool(run, arm, draw)
    return drawn, stages.mix_pools(drawn, stages.take(refined, round(run.config.fit.wide_share * count)))


def adapt_rounds(
    run: Run,
    seen: dict[str, reading.Readings],
    params: classifier.Params,
    simulator: stages.Simulator | None,
    pool: classify.Pool,
    refined: classify.Pool,
) -> Iterator[Arm]:
    """Rounds of self-training, each on what the arm before it read, its unsure readings decided by drawing.

    From the second on they end with an arm that is believed to read the share `adapt.enough`, or no more than the one
    before it; and what is read by then is fitted anew first, with what drawings leave of it.

    Args:
      seen: what the arms so far read, the latest last; params: the classifier that goes on.
      simulator: the fitted one, if any; pool: the captchas that the classifier was trained on; refined: a share of it.
    """
    before, glyphs = 0.0, (None if simulator is None else np.asarray(simulator.atlas))
    for number, name in enumerate(adapted_arms(run.config)):
        belief, shown = deciding.decided_belief(run, seen, glyphs), []
        if number and simulator is not None:
            again = run.config.fit.rounds + number - 1
            simulator = fit_stage(run, again, belief, simulator)
            drawn, pool = fitted_pools(run, again, name, simulator, refined)
            glyphs, shown = np.asarray(simulator.atlas), [figures.of_simulator(run, again, simulator, drawn)]
        params = adapt_stage(run, pool, params, belief, number=number)
        seen = seen | {name: read_arm(run, name, params)}
        yield Arm(name, params, seen[name], shown, glyphs)
        believed = estimate.accuracy(seen[name].probabilities).estimate
        if number and (believed >= run.config.adapt.enough or believed <= before):
            return
        before = believed


def adapt_stage(
    run: Run, pool: classify.Pool, params: classifier.Params, readings: reading.Readings, *, number: int = 0
) -> classifier.Params:
    """A round of self-training on what readings say of the target, beside the pool; the averaged parameters."""
    settings = run.config.adapt
    believed = adapt.believe(jax.device_put(run.target.ink), jnp.asarray(readings.probabilities), config=settings)
    trained = train_stage(
        run,
        adapt_stage_name(number),
        jax.random.fold_in(run.keys["adapt"], number) if number else run.keys["adapt"],
        lambda: classify.start_state(params, config=stages.adapt_settings(run.config)),
        stages.adapt_step(run.config),
        (pool, believed),
        total=settings.steps,
        checkpoint_every=run.config.classify.checkpoint_every,
        log_every=run.config.classify.log_every,
        watch=alarms.check,
    )
    return trained.average


def adapted_arms(config: Config) -> dict[str, str]:
    """The stage that trains each arm of self-training."""
    rounds = range(config.adapt.rounds if config.adapt.steps else 0)
    return {f"adapted{number or ''}": adapt_stage_name(number) for number in rounds}


def adapt_stage_name(number: int) -> str:
    """The stage of a round of self-training."""
    return f"adapt/{number}" if number else "adapt"
