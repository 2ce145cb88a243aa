"""Frozen, checked configuration of a run; presets.py has named ones.

Every field can be overridden on the command line as `--config.GROUP.FIELD=VALUE`.
"""

import dataclasses
import string
from typing import Any

PSIS = ("identity", "gradients", "blur", "mean")
LAWS = ("seed", "wide")
REPRESENTATIONS = ("soft", "binary")
BACKGROUNDS = ("quantile", "average")
CLASSIFIERS = ("slots", "seed")
ADVERSARIES = ("local", "global")


class ConfigError(ValueError):
    """A configuration value that cannot work; the message names the field and the remedy."""


def _require(condition: bool, field: str, value: Any, remedy: str) -> None:
    if not condition:
        raise ConfigError(f"config.{field}={value!r}: {remedy}")


def _one_of(field: str, value: str, choices: tuple[str, ...]) -> None:
    _require(value in choices, field, value, f"choose one of {', '.join(choices)}")


def _positive(group: str, config: Any, *fields: str) -> None:
    for field in fields:
        value = getattr(config, field)
        _require(value > 0, f"{group}.{field}", value, "must be above 0")


def _not_negative(group: str, config: Any, *fields: str) -> None:
    for field in fields:
        value = getattr(config, field)
        _require(value >= 0, f"{group}.{field}", value, "must not be negative")


@dataclasses.dataclass(frozen=True)
class CaptchaConfig:
    """What a captcha is: pixels, number of characters, and the characters that occur."""

    height: int = 50
    width: int = 100
    length: int = 4
    alphabet: str = string.ascii_lowercase + string.digits

    def __post_init__(self) -> None:
        _positive("captcha", self, "height", "width", "length")
        _require(len(self.alphabet) > 1, "captcha.alphabet", self.alphabet, "give at least two characters")
        _require(
            len(set(self.alphabet)) == len(self.alphabet),
            "captcha.alphabet",
            self.alphabet,
            "each character may occur once",
        )


@dataclasses.dataclass(frozen=True)
class TargetConfig:
    """How real images become ink: background removed from the stack, or the seed's threshold."""

    representation: str = "soft"
    threshold: int = 200
    background: str = "quantile"
    background_quantile: float = 0.3
    line_level: float = 0.6
    background_images: int = 2000

    def __post_init__(self) -> None:
        _one_of("target.representation", self.representation, REPRESENTATIONS)
        _one_of("target.background", self.background, BACKGROUNDS)
        _require(0 < self.threshold < 255, "target.threshold", self.threshold, "must lie between 0 and 255")
        _require(
            0 < self.background_quantile < 1,
            "target.background_quantile",
            self.background_quantile,
            "must lie between 0 and 1",
        )
        _require(0 < self.line_level <= 1, "target.line_level", self.line_level, "must lie in (0, 1]")
        _positive("target", self, "background_images")


@dataclasses.dataclass(frozen=True)
class SynthesizerConfig:
    """The layout law and its ranges; lengths in units of the image height, angles in degrees."""

    law: str = "wide"
    fonts: tuple[str, ...] = ()
    sizes: tuple[float, ...] = (0.4, 0.46, 0.52, 0.58)
    strokes: tuple[int, ...] = (0, 1)
    rotation: float = 32.0
    jitter_x: float = 0.22
    jitter_y: float = 0.3
    scale: float = 0.1
    shear: float = 0.1
    codec: bool = True
    fitted_shift: float = 0.06
    fitted_turn: float = 5.0
    fitted_scale: float = 0.05
    pool: int = 40_000

    def __post_init__(self) -> None:
        _one_of("synthesizer.law", self.law, LAWS)
        _require(self.sizes != () and min(self.sizes) > 0, "synthesizer.sizes", self.sizes, "give sizes above 0")
        _require(
            self.strokes != () and min(self.strokes) >= 0, "synthesizer.strokes", self.strokes, "give strokes from 0 on"
        )
        _not_negative("synthesizer", self, "rotation", "jitter_x", "jitter_y", "scale", "shear")
        _not_negative("synthesizer", self, "fitted_shift", "fitted_turn", "fitted_scale")
        _positive("synthesizer", self, "pool")


@dataclasses.dataclass(frozen=True)
class RefinerConfig:
    """Fully convolutional residual network, no stride (paper 2.1 and Figure 6).

    latents: channels of noise beside the image, none in the paper: what real images show by chance, such as a
      codec's noise, no function of the synthetic image alone can show.
    """

    width: int = 64
    blocks: int = 4
    kernel: int = 3
    residual: bool = False
    latents: int = 0

    def __post_init__(self) -> None:
        _positive("refiner", self, "width", "blocks", "kernel")
        _not_negative("refiner", self, "latents")


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
    """Patch discriminator (paper 3.1); `widths` are the two strided, the 3x3 and the 1x1 convolution."""

    adversary: str = "local"
    widths: tuple[int, int, int, int] = (96, 64, 32, 32)
    spectral_norm: bool = True
    leak: float = 0.2
    noise: float = 0.05

    def __post_init__(self) -> None:
        _one_of("discriminator.adversary", self.adversary, ADVERSARIES)
        _require(
            len(self.widths) == 4 and all(w > 0 for w in self.widths),
            "discriminator.widths",
            self.widths,
            "give four positive widths",
        )
        _not_negative("discriminator", self, "leak", "noise")


@dataclasses.dataclass(frozen=True)
class RefineConfig:
    """Pretraining and Algorithm 1; `lambda_reg` in the paper's units (sum of patches, sum of pixels).

    `lambda_label` weighs how badly the classifier of simulated images reads refined ones, summed over characters.
    """

    batch_size: int = 32
    refiner_pretrain_steps: int = 100
    discriminator_pretrain_steps: int = 50
    steps: int = 600
    k_g: int = 1
    k_d: int = 1
    lambda_reg: float = 0.05
    psi: str = "identity"
    lambda_label: float = 0.0
    optimizer: str = "adam"
    refiner_lr: float = 2e-4
    discriminator_lr: float = 4e-4
    average_decay: float = 0.99
    history_size: int = 3200
    checkpoint_every: int = 100
    log_every: int = 10
    clip_norm: float = 0.0

    def __post_init__(self) -> None:
        _one_of("refine.psi", self.psi, PSIS)
        _one_of("refine.optimizer", self.optimizer, ("adam", "sgd", "rmsprop"))
        _positive("refine", self, "batch_size", "k_g", "k_d", "refiner_lr", "discriminator_lr")
        _positive("refine", self, "checkpoint_every", "log_every")
        _not_negative("refine", self, "steps", "refiner_pretrain_steps", "discriminator_pretrain_steps")
        _not_negative("refine", self, "lambda_reg", "lambda_label", "history_size", "clip_norm")
        _require(
            self.batch_size % 2 == 0, "refine.batch_size", self.batch_size, "must be even: half comes from the history"
        )
        _require(0 <= self.average_decay < 1, "refine.average_decay", self.average_decay, "must lie in [0, 1)")
        _require(
            self.history_size == 0 or self.history_size >= self.batch_size,
            "refine.history_size",
            self.history_size,
            "0 (none) or at least one batch",
        )


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """The reader: the seed's network, or one attention map for each character slot."""

    kind: str = "slots"
    widths: tuple[int, ...] = (32, 64, 128, 128)
    hidden: int = 128
    dropout: float = 0.1

    def __post_init__(self) -> None:
        _one_of("classifier.kind", self.kind, CLASSIFIERS)
        _require(
            len(self.widths) > 0 and all(w > 0 for w in self.widths),
            "classifier.widths",
            self.widths,
            "give at least one positive width",
        )
        _positive("classifier", self, "hidden")
        _require(0 <= self.dropout < 1, "classifier.dropout", self.dropout, "must lie in [0, 1)")


@dataclasses.dataclass(frozen=True)
class ClassifyConfig:
    """Training of one classifier arm."""

    batch_size: int = 64
    steps: int = 1200
    lr: float = 2e-3
    weight_decay: float = 1e-4
    warmup: int = 50
    average_decay: float = 0.995
    pose_weight: float = 0.1
    checkpoint_every: int = 400
    log_every: int = 20

    def __post_init__(self) -> None:
        _positive("classify", self, "batch_size", "lr", "checkpoint_every", "log_every")
        _not_negative("classify", self, "steps", "weight_decay", "warmup", "pose_weight")
        _require(0 <= self.average_decay < 1, "classify.average_decay", self.average_decay, "must lie in [0, 1)")


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """Fitting the simulator to the target: rounds of (read, fit glyphs and poses, train on the fitted simulator).

    wide_share: captchas of the simulator before the fit that are shown as well, in shares of `pool`, at most all.
    """

    rounds: int = 2
    images: int = 4000
    share: float = 0.6
    passes: int = 6
    batch_size: int = 250
    inner: int = 3
    styles: int = 2
    atlas_lr: float = 0.04
    sparsity: float = 0.0002
    faintest: float = 0.1
    shift_lr: float = 0.006
    turn_lr: float = 0.03
    steps: tuple[int, ...] = (600, 1600)
    pool: int = 80_000
    wide_share: float = 0.1

    def __post_init__(self) -> None:
        _not_negative("fit", self, "rounds", "passes")
        _positive("fit", self, "images", "batch_size", "inner", "styles", "pool", "atlas_lr", "shift_lr", "turn_lr")
        _not_negative("fit", self, "sparsity", "faintest")
        _require(0 < self.share <= 1, "fit.share", self.share, "must lie in (0, 1]")
        _require(0 <= self.wide_share < 1, "fit.wide_share", self.wide_share, "must lie in [0, 1)")
        _require(
            len(self.steps) >= self.rounds and min(self.steps, default=0) >= 0,
            "fit.steps",
            self.steps,
            f"give the training steps of each round (fit.rounds={self.rounds})",
        )


@dataclasses.dataclass(frozen=True)
class AdaptConfig:
    """Self-training on the unlabelled target; lengths in pixels or shares of the image height.

    sure: the certainty from which a reading is learned from as it is; others are decided by drawing first.
    rounds: at most so many, of `steps` each, from the second on with a fit before. After the second they go on while
      less than the share `enough` is believed to be read right, and the last one is believed to have helped.
    """

    sure: float = 0.95
    rounds: int = 4
    enough: float = 0.9
    steps: int = 600
    batch_size: int = 64
    pool_batch_size: int = 32
    threshold: float = 0.8
    weight: float = 1.0
    lr: float = 1e-3
    average_decay: float = 0.99
    shift: int = 3
    boxes: int = 2
    box: float = 0.16
    gain: float = 0.2
    noise: float = 0.05

    def __post_init__(self) -> None:
        _positive("adapt", self, "rounds", "batch_size", "pool_batch_size", "lr")
        _require(0 < self.sure <= 1, "adapt.sure", self.sure, "must lie in (0, 1]")
        _require(0 <= self.enough <= 1, "adapt.enough", self.enough, "must lie in [0, 1]")
        _not_negative("adapt", self, "steps", "weight", "shift", "boxes", "box", "gain", "noise")
        _require(0 <= self.threshold < 1, "adapt.threshold", self.threshold, "must lie in [0, 1)")
        _require(0 <= self.average_decay < 1, "adapt.average_decay", self.average_decay, "must lie in [0, 1)")


@dataclasses.dataclass(frozen=True)
class RescoreConfig:
    """Deciding between readings that are less than `sure` by drawing `texts` of them; no `rounds`, no deciding.

    Captchas whose first reading is less than `sure` are read at shifts too, before anything is decided.
    sharpness is the log probability that a text loses if its drawing leaves the residual of a sure reading, and
    `unexplained` of them have it drawn again. shift in units of the image height and turn in degrees move its starts;
    stretch is the first step of a pose in units of `fit`'s.
    """

    rounds: int = 5
    sure: float = 0.99
    texts: int = 6
    least: float = 0.002
    steps: int = 40
    stretch: float = 1.5
    sharpness: float = 25.0
    shift: float = 0.06
    turn: float = 8.0
    unexplained: float = 1.5

    def __post_init__(self) -> None:
        _not_negative("rescore", self, "rounds", "shift", "turn")
        _positive("rescore", self, "texts", "steps", "stretch", "sharpness", "unexplained")
        _require(0 < self.sure <= 1, "rescore.sure", self.sure, "must lie in (0, 1]")
        _require(0 < self.least < 1, "rescore.least", self.least, "must lie in (0, 1)")


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run."""

    captcha: CaptchaConfig = CaptchaConfig()
    target: TargetConfig = TargetConfig()
    synthesizer: SynthesizerConfig = SynthesizerConfig()
    refiner: RefinerConfig = RefinerConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    refine: RefineConfig = RefineConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    classify: ClassifyConfig = ClassifyConfig()
    fit: FitConfig = FitConfig()
    adapt: AdaptConfig = AdaptConfig()
    rescore: RescoreConfig = RescoreConfig()

    def __post_init__(self) -> None:
        if self.classifier.kind != "seed":
            return
        # What each unpadded convolution and each pool after it takes, from the last one back.
        least = 1
        for _ in self.classifier.widths[1:]:
            least = 2 * least + 2
        least += 2
        for field in ("height", "width"):
            side = getattr(self.captcha, field)
            _require(side >= least, f"captcha.{field}", side, f"classifier.kind=seed needs {least} pixels: take slots")
        _require(
            self.fit.rounds == 0,
            "fit.rounds",
            self.fit.rounds,
            "classifier.kind=seed does not tell where characters are, which a fit begins with: give 0, or take slots",
        )
