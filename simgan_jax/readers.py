"""The trained reader of an arm of a study, in the folder of its part (io)."""

from typing import cast

import jax

from simgan_jax import arms, classifier, classify, parts, reading, rounds
from simgan_jax.config import Config
from simgan_jax.session import Run
from simgan_jax.studies import Arm

# What readings are called there: those of the arm, and those that were decided by drawing.
ARM, DECIDED = "arm", "final"


def restore(run: Run, arm: Arm) -> classifier.Params:
    """Parameters of an arm whose part is done; its stages, all finished, look at no data."""
    some = classifier.init(jax.random.key(0), run.config.captcha, config=run.config.classifier)
    nothing, (stage, steps) = cast(classify.Pool, None), last_training(arm, run.config)
    if arm.self_trained:
        return rounds.adapt_stage(run, nothing, some, reading.Readings(**run.workdir.load(f"readings.{ARM}")))
    return arms.classify_stage(run, stage.partition("/")[2], nothing, some, total=steps)


def last_training(arm: Arm, config: Config) -> tuple[str, int]:
    """The stage that the arm's parameters are from, and its steps."""
    if arm.self_trained:
        return "adapt", config.adapt.steps
    if arm.training == "rounds":
        last = config.fit.rounds - 1
        return f"classify/fitted{last}", config.fit.steps[last]
    return f"classify/{ARM}", config.classify.steps


def ends(arm: Arm, config: Config) -> tuple[str, str]:
    """The stage that ends an arm, and the file of its readings."""
    if arm.decided:
        return f"rescore/{DECIDED}", f"readings.rescored.{DECIDED}"
    name = parts.shifted(config) if arm.shifted else ARM
    return f"predict/{name}", f"readings.{name}"


def read(run: Run, arm: Arm, params: classifier.Params) -> reading.Readings:
    """What these parameters read of the target, at shifts too where the arm does."""
    plain = arms.read_arm(run, ARM, params)
    return arms.read_arm(run, parts.shifted(run.config), params, first=plain) if arm.shifted else plain
