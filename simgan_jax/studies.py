"""Ablation studies: which arms are compared, each a recipe for one classifier.

An arm is read like a sentence: draw captchas with a simulator, refine them or not, train the classifier of the
configuration on them for so many steps, and perhaps go on by self-training on the unlabelled target.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from simgan_jax import presets
from simgan_jax.config import Config, ConfigError, SynthesizerConfig

SIMULATORS = ("seed", "wide", "fitted")
IMAGES = ("raw", "refined", "both")
TRAININGS = ("scratch", "rounds")

# Lambda in the paper's units (sum of pixels against sum of patches), three a decade.
LAMBDAS = (0.005, 0.015, 0.05, 0.15, 0.5, 1.5, 5.0)
PSIS = ("identity", "gradients", "blur", "mean")
LABELS = (0.0, 10.0, 100.0)
HELD_OUT = 5


@dataclasses.dataclass(frozen=True)
class Arm:
    """The recipe of one classifier.

    name: of the arm in tables and files.
    simulator: `seed`, the notebook's; `wide`, that of the configuration; `fitted`, fitted to the unlabelled target.
    images: simulated ones, `raw`; as the refiner gives them, `refined`; or `both`, half and half.
    training: `scratch`, from fresh parameters for `classify.steps`; `rounds`, as the main job trains in its rounds of
      fitting: on from the wide simulator's classifier, on the fitted one's images and a share of refined wide ones.
    self_trained: whether a round of self-training on the target follows.
    oracle: no simulator at all, but four fifths of the real labels, for as many steps as the longest route;
    augmented: the oracle's images in several augmented copies, as self-training augments.
    shifted: whether captchas that are not read surely are read at four shifts as well, as the main job does for its
      answers;
    decided: whether what is then not sure is decided by drawing it with the fitted glyphs, which is the main job's end.
    share: of the pool of captchas that the classifier sees; the refiner sees all.
    overrides: `group.field` of the configuration.
    """

    name: str
    simulator: str = "wide"
    images: str = "raw"
    training: str = "scratch"
    self_trained: bool = False
    oracle: bool = False
    augmented: bool = False
    shifted: bool = False
    decided: bool = False
    share: float = 1.0
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for field, choices in (("simulator", SIMULATORS), ("images", IMAGES), ("training", TRAININGS)):
            if getattr(self, field) not in choices:
                raise ConfigError(f"arm {self.name!r}: {field}={getattr(self, field)!r}: choose one of {choices}")
        if self.training == "rounds" and self.simulator != "fitted":
            raise ConfigError(f"arm {self.name!r}: rounds of fitting need simulator='fitted'")
        if self.decided and self.training != "rounds":
            raise ConfigError(f"arm {self.name!r}: decided: there are no fitted glyphs: needs training='rounds'")
        if not 0 < self.share <= 1:
            raise ConfigError(f"arm {self.name!r}: share={self.share}: must lie in (0, 1]")

    @property
    def refines(self) -> bool:
        """Whether the arm's own images go through a refiner of its simulator."""
        return self.images != "raw" and self.training == "scratch" and not self.oracle


@dataclasses.dataclass(frozen=True)
class Study:
    """An ordered comparison: each arm is tested against the one before it."""

    name: str
    question: str
    arms: tuple[Arm, ...]

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise ConfigError(f"study {self.name!r}: two arms of one name")


def study(name: str, *, config: Config) -> Study:
    """The study of this name; sizes such as 'a tenth of the history' are relative to the configuration.

    Raises:
      ConfigError: no such study.
    """
    if name not in STUDIES:
        raise ConfigError(f"study {name!r}: choose one of {', '.join(STUDIES)}")
    return STUDIES[name](config)


def only(study: Study, names: Sequence[str]) -> Study:
    """The study with these arms alone, in its own order.

    Raises:
      ConfigError: no such arm.
    """
    known = [arm.name for arm in study.arms]
    for name in names:
        if name not in known:
            raise ConfigError(f"study {study.name!r} has no arm {name!r}: choose among {', '.join(known)}")
    return dataclasses.replace(study, arms=tuple(arm for arm in study.arms if arm.name in names))


def arm_config(arm: Arm, config: Config) -> Config:
    """The configuration of an arm: the synthesizer of its simulator with the pool of `config`, and its overrides.

    Raises:
      ConfigError: a value that cannot work, or not with this arm.
    """
    if arm.simulator == "fitted" and not arm.oracle and not config.fit.rounds:
        raise ConfigError(f"config.fit.rounds=0: arm {arm.name!r} needs at least one, or choose other --arms")
    if arm.decided and not config.rescore.rounds:
        raise ConfigError(f"config.rescore.rounds=0: arm {arm.name!r} needs at least one, or choose other --arms")
    if arm.simulator == "seed":
        synthesizer = dataclasses.replace(presets.SEED.synthesizer, pool=config.synthesizer.pool)
        config = dataclasses.replace(config, synthesizer=synthesizer)
    elif config.synthesizer.law != "wide":
        config = dataclasses.replace(config, synthesizer=SynthesizerConfig(pool=config.synthesizer.pool))
    return presets.override(config, dict(arm.overrides))


def route_steps(config: Config) -> int:
    """Classifier updates of the whole route, one stage on the other: what the oracle is given."""
    return config.classify.steps + sum(config.fit.steps[: config.fit.rounds]) + config.adapt.steps


def held_out(names: Sequence[str]) -> list[bool]:
    """Which captchas the oracle may not see: the fifth whose names have the smallest digests, at least one.

    The same in every run, and unrelated to the order and the content of the images.
    """
    order = sorted(range(len(names)), key=lambda i: hashlib.sha256(names[i].encode()).digest())
    chosen = set(order[: max(1, len(names) // HELD_OUT)])
    return [i in chosen for i in range(len(names))]


def _route(config: Config) -> Study:
    del config
    arms = []
    for simulator in ("seed", "wide"):
        arms += [Arm(f"{simulator} {images}", simulator, images) for images in IMAGES]
        arms.append(Arm(f"{simulator} both self-trained", simulator, "both", self_trained=True))
    arms += [Arm(f"fitted {images}", "fitted", images) for images in IMAGES]
    last = [
        Arm("fitted in rounds", "fitted", "both", training="rounds"),
        Arm("fitted in rounds self-trained", "fitted", "both", training="rounds", self_trained=True),
    ]
    arms += last
    arms += [dataclasses.replace(arm, name=f"{arm.name} shifted", shifted=True) for arm in last]
    arms += [dataclasses.replace(arm, name=f"{arm.name} decided", decided=True) for arm in last]
    arms.append(Arm("oracle", oracle=True, shifted=True))
    arms.append(Arm("oracle augmented", oracle=True, augmented=True, shifted=True))
    return Study("route", "What does each part of the route add, and how far is it from real labels?", tuple(arms))


def _refiners(name: str, question: str, variants: Mapping[str, Mapping[str, Any]]) -> Study:
    """Variants of the refiner on the notebook's simulator, where it has most to do, after the raw images."""
    rows = [Arm("raw", "seed")] + [Arm(key, "seed", "refined", overrides=value) for key, value in variants.items()]
    return Study(name, question, tuple(rows))


def _history(config: Config) -> Study:
    full = config.refine.history_size
    tenth = max(config.refine.batch_size, full // 10)
    sizes = {"no history": 0, "history 1/10": tenth, "history full": full}
    variants = {name: {"refine.history_size": size} for name, size in sizes.items()}
    return _refiners("history", "Does the history of refined images help (paper 2.3)?", variants)


def _adversary(config: Config) -> Study:
    del config
    variants = {name: {"discriminator.adversary": name} for name in ("local", "global")}
    return _refiners("adversary", "Patches or whole images for the discriminator (paper 2.2)?", variants)


def _lambda(config: Config) -> Study:
    del config
    variants = {f"lambda {value:g}": {"refine.lambda_reg": value} for value in LAMBDAS}
    return _refiners("lambda", "How strongly should refined images be held to simulated ones (paper Eq 1)?", variants)


def _labels(config: Config) -> Study:
    del config
    arms = []
    for simulator in ("seed", "wide"):
        arms.append(Arm(f"{simulator} raw", simulator))
        for weight in LABELS:
            overrides = {"refine.lambda_label": weight}
            arms.append(Arm(f"{simulator} labels {weight:g}", simulator, "refined", overrides=overrides))
    question = "Should a classifier of the simulated captchas go on reading the refined ones?"
    return Study("labels", question, tuple(arms))


def _psi(config: Config) -> Study:
    del config
    variants = {f"psi {name}": {"refine.psi": name} for name in PSIS}
    return _refiners("psi", "In which features should they be held (paper 2.1)?", variants)


def _pretraining(config: Config) -> Study:
    refiner, critic = config.refine.refiner_pretrain_steps, config.refine.discriminator_pretrain_steps
    variants = {
        f"pretraining {name}": {
            "refine.refiner_pretrain_steps": factor * refiner,
            "refine.discriminator_pretrain_steps": factor * critic,
        }
        for name, factor in (("none", 0), ("short", 1), ("long", 4))
    }
    return _refiners("pretraining", "How long should both networks be trained before they meet (paper 3.1)?", variants)


def _k_g(config: Config) -> Study:
    del config
    variants = {f"k_g {count}": {"refine.k_g": count} for count in (1, 2, 4)}
    return _refiners("k_g", "How many refiner updates a round (paper Algorithm 1)?", variants)


def _paper(config: Config) -> Study:
    del config
    arms = [
        Arm(f"{'4x ' if share == 1.0 else ''}{name}", "seed", images, share=share)
        for name, images in (("synthetic", "raw"), ("refined", "refined"))
        for share in (0.25, 1.0)
    ]
    return Study("paper", "More simulated images, or better ones (paper, Table 2)?", tuple(arms))


def _texture(config: Config) -> Study:
    """A refiner without latents, as in the paper, can add no noise; what the codec adds can be drawn instead."""
    del config
    codec, latents = {"synthesizer.codec": True}, {"refiner.latents": 1}
    arms = (
        Arm("raw", "seed"),
        Arm("raw codec", "seed", overrides=codec),
        Arm("refined", "seed", "refined"),
        Arm("both", "seed", "both"),
        Arm("refined latents", "seed", "refined", overrides=latents),
        Arm("both latents", "seed", "both", overrides=latents),
    )
    return Study("texture", "How much of what a simulator lacks is texture, and how much of it is refined?", arms)


def _smoke(config: Config) -> Study:
    del config
    return Study("smoke", "Does the runner run?", (Arm("raw"), Arm("refined", images="refined")))


STUDIES: dict[str, Callable[[Config], Study]] = {
    "route": _route,
    "history": _history,
    "adversary": _adversary,
    "lambda": _lambda,
    "labels": _labels,
    "psi": _psi,
    "pretraining": _pretraining,
    "k_g": _k_g,
    "paper": _paper,
    "texture": _texture,
    "smoke": _smoke,
}
