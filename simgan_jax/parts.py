"""The parts that the arms of a study are made of, and on what each of them depends.

Arms that need the same part share it: a part's folder follows from all that can change its outcome, and nothing else.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from simgan_jax.config import Config
from simgan_jax.studies import Arm

# Configuration groups: of a simulator, a refiner, a classifier, and of all until the simulator is fitted.
BASE = ("captcha", "target", "synthesizer")
REFINER = ("refiner", "discriminator", "refine")
READER = ("classifier", "classify")
ROUTE = (*BASE, *REFINER, *READER, "fit")


@dataclasses.dataclass(frozen=True)
class Part:
    """Work that arms may share. groups: of the configuration that it depends on; needs: parts that come before."""

    kind: str
    groups: tuple[str, ...]
    recipe: Mapping[str, Any]
    needs: tuple["Part", ...] = ()


def refiner(simulator: str, config: Config) -> Part:
    """Pretraining and adversarial training on a simulator's captchas, held to their labels where that is asked."""
    groups, needs = ((*BASE, *REFINER), ()) if simulator != "fitted" else (ROUTE, (rounds(config),))
    if config.refine.lambda_label:
        groups = tuple(dict.fromkeys((*groups, *READER)))
        needs = (*needs, classifier(simulator, "raw", 1.0, config))
    return Part("refiner", groups, {"simulator": simulator}, needs)


def classifier(simulator: str, images: str, share: float, config: Config) -> Part:
    """A classifier from scratch on a share of a simulator's captchas: raw, refined, or both."""
    needs = (rounds(config),) if simulator == "fitted" else ()
    groups: tuple[str, ...] = ROUTE if simulator == "fitted" else (*BASE, *READER)
    if images != "raw":
        needs = (*needs, refiner(simulator, config))
        groups = tuple(dict.fromkeys((*groups, *REFINER)))
    return Part("classifier", groups, {"simulator": simulator, "images": images, "share": share}, needs)


def rounds(config: Config) -> Part:
    """The rounds of fitting of the main job, which begin with its two arms on the wide simulator."""
    start = tuple(classifier("wide", images, 1.0, config) for images in ("raw", "refined"))
    return Part("rounds", ROUTE, {"simulator": "fitted"}, (refiner("wide", config), *start))


def of_arm(arm: Arm, config: Config) -> Part:
    """The part whose readings are those of an arm without labels, under the arm's own configuration."""
    in_rounds = arm.training == "rounds"
    base = rounds(config) if in_rounds else classifier(arm.simulator, arm.images, arm.share, config)
    if arm.self_trained:
        # The rounds' readings are decided before they are learned from.
        decided = ("rescore",) if in_rounds else ()
        base = Part("adapted", (*base.groups, *decided, "adapt"), {"of": base.kind, **base.recipe}, (base,))
    if arm.decided:
        groups = tuple(dict.fromkeys((*base.groups, "rescore")))
        base = Part("decided", groups, {**base.recipe, "of": base.kind}, (base,))
    return base


def shifted(config: Config) -> str:
    """The name of what is read at shifts too, in the folder of the part that was read: which captchas depends on it."""
    return f"shifted-{config.rescore.sure:g}"


def measure(simulator: str, config: Config) -> str:
    """The stage, in the folder of a refiner, that measures it by the reader of its simulator's raw captchas."""
    return f"measure/{folder(classifier(simulator, 'raw', 1.0, config), config=config).rpartition('-')[2]}"


def closure(part: Part) -> list[Part]:
    """A part and all that it builds on; what two of them need stands twice."""
    return [part] + [piece for need in part.needs for piece in closure(need)]


def depends(part: Part, *, config: Config) -> dict[str, Any]:
    """The recipe and the configuration on which the outcome of a part depends, beside target and seed."""
    return {**part.recipe, **{group: dataclasses.asdict(getattr(config, group)) for group in part.groups}}


def folder(part: Part, *, config: Config) -> str:
    """Name of a part's folder: words for a reader, and a digest of `depends`."""
    content = json.dumps({"part": part.kind, **depends(part, config=config)}, sort_keys=True)
    words = [part.kind, *(str(part.recipe[word]) for word in ("simulator", "images") if word in part.recipe)]
    return "-".join([*words, hashlib.sha256(content.encode()).hexdigest()[:10]])
