"""The main job: unlabelled captchas in, every one of them read (io).

Stages in order, each resumable, none of which can see a label: target -> simulator -> classify -> pretrain, refine ->
classify -> fit and classify again, in rounds -> rescore -> adapt, in rounds as well -> predict -> rescore.
"""

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from simgan_jax import (
    adapt,
    alarms,
    challenge,
    classifier,
    classify,
    deciding,
    estimate,
    figures,
    finish,
    reading,
    refiner,
    reporting,
    stages,
    state,
    steps,
)
from simgan_jax.config import Config
from simgan_jax.session import Run, train_stage

# What is not read surely is read a pixel to each side as well, and averaged, for the final answers.
SHIFTS = ((0, 1), (1, 0), (0, -1), (-1, 0))


def simulated_pool(run: Run) -> classify.Pool:
    """The labelled captchas of the simulator as it is before it has seen what readers find in the target."""
    simulator = stages.configured_simulator(run.config)
    count = run.config.synthesizer.pool
    return _timed_pool(
        run,
        "synthetic",
        lambda: stages.draw_pool(run.keys["pool"], simulator, run.target.scene, count=count, config=run.config),
    )


def _timed_pool(run: Run, name: str, make: Callable[[], classify.Pool]) -> classify.Pool:
    """A pool, which is made anew in each process, and in the stages the seconds of the first time."""
    begin = time.monotonic()
    pool = jax.block_until_ready(make())
    if not run.workdir.done(f"pool/{name}"):
        run.workdir.finish(f"pool/{name}", time.monotonic() - begin, images=len(pool.ink))
    return pool


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


def fit_stage(run: Run, number: int, readings: reading.Readings, simulator: stages.Simulator) -> stages.Simulator:
    """One round of fitting the simulator to the target, by what a reader saw there."""
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
    return stages.fitted_simulator(run.config, **run.workdir.load(f"fit.{number}"))


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
        key = jax.random.fold_in(run.keys["fitted"], number)
        scene, count = run.target.scene, config.fit.pool
        draw = functools.partial(stages.draw_pool, key, simulator, scene, count=count, config=config)
        arm = f"fitted{number}"
        drawn = _timed_pool(run, arm, draw)
        mixed = stages.mix_pools(drawn, stages.take(refined, round(config.fit.wide_share * count)))
        params = classify_stage(run, arm, mixed, params, total=config.fit.steps[number])
        belief = read_arm(run, arm, params)
        yield Round(arm, simulator, drawn, mixed, params, belief)


class Arm(NamedTuple):
    """A trained reader and what it read; figures: what there is to see of the way to it."""

    name: str
    params: classifier.Params
    readings: reading.Readings
    figures: list[reporting.Figure]


def arm_names(config: Config) -> tuple[str, ...]:
    """The arms of a run in the order of training; of those of self-training the last ones may not be needed."""
    rounds = tuple(f"fitted{number}" for number in range(config.fit.rounds))
    return *deciding.BEFORE_FIT, *rounds, *adapted_arms(config)


def adapted_arms(config: Config) -> dict[str, str]:
    """The stage that trains each arm of self-training."""
    rounds = range(config.adapt.rounds if config.adapt.steps else 0)
    return {f"adapted{number or ''}": adapt_stage_name(number) for number in rounds}


def adapt_stage_name(number: int) -> str:
    """The stage of a round of self-training."""
    return f"adapt/{number}" if number else "adapt"


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
    refined = _timed_pool(run, "refined", lambda: stages.refine_pool(run.keys["latents"], params, pool, config=config))
    latest = classify_stage(run, "refined", refined, None, total=config.classify.steps)
    second = read_arm(run, "refined", latest)
    yield Arm("refined", latest, second, [figures.of_refinement(run, pool, refined)])
    belief, mixed = mean_readings(first, second), refined
    for number, fitted in enumerate(fit_rounds(run, belief, latest, refined)):
        figure = figures.of_simulator(run, number, fitted.simulator, fitted.drawn)
        yield Arm(fitted.arm, fitted.params, fitted.readings, [figure])
        belief, latest, mixed = fitted.readings, fitted.params, fitted.mixed
    yield from adapt_rounds(run, {"synthetic": first, "refined": second, "fitted": belief}, latest, mixed)


def adapt_rounds(
    run: Run, seen: dict[str, reading.Readings], params: classifier.Params, pool: classify.Pool
) -> Iterator[Arm]:
    """Rounds of self-training, each on what the arm before it read, its unsure readings decided by drawing.

    They end with an arm that is believed to read the share `adapt.enough`, or no more than the one before it.

    Args:
      seen: what the arms so far read, the latest last; params: the classifier that goes on.
      pool: the captchas that it was trained on.
    """
    believed = estimate.accuracy(next(reversed(seen.values())).probabilities).estimate
    atlas = deciding.last_glyphs(run) if run.config.fit.rounds else None
    for number, name in enumerate(adapted_arms(run.config)):
        params = adapt_stage(run, pool, params, deciding.decided_belief(run, seen, atlas), number=number)
        seen = seen | {name: read_arm(run, name, params)}
        yield Arm(name, params, seen[name], [])
        before, believed = believed, estimate.accuracy(seen[name].probabilities).estimate
        if believed >= run.config.adapt.enough or believed <= before:
            return


def run_all(run: Run, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The whole run: trains, reads, chooses, and writes answers, summary and report; returns the summary."""
    trained = {arm.name: arm for arm in train_arms(run)}
    arms = {name: arm.readings for name, arm in trained.items()}
    best = deciding.choose_arm(arms)
    final = undecided = read_arm(run, "final", trained[best].params, first=arms[best])
    # Where an arm from before the fit is the best, the fit has failed, and its glyphs decide nothing.
    if best not in deciding.BEFORE_FIT:
        final = deciding.rescore_stage(run, "final", final, deciding.last_glyphs(run))
    begin = time.monotonic()
    texts, confidences = finish.write_answers(run, final)
    summary = finish.write_summary(run, identity, arms, best, final, undecided)
    shown = [figure for arm in trained.values() for figure in arm.figures]
    finish.write_report(run, summary, texts, confidences, shown)
    run.workdir.finish("report", time.monotonic() - begin)
    return summary
