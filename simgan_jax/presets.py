"""Named configurations: `smoke` to see it run, `cpu` and `gpu` to work, `paper` and `seed` with their own numbers."""

import dataclasses
from collections.abc import Mapping

from simgan_jax.config import (
    AdaptConfig,
    ClassifierConfig,
    ClassifyConfig,
    Config,
    ConfigError,
    DiscriminatorConfig,
    FitConfig,
    RefineConfig,
    RefinerConfig,
    RescoreConfig,
    SynthesizerConfig,
    TargetConfig,
)

CPU = Config(
    synthesizer=SynthesizerConfig(pool=20_000),
    refiner=RefinerConfig(width=16, blocks=3, residual=True),
    discriminator=DiscriminatorConfig(widths=(48, 48, 32, 32)),
    refine=RefineConfig(refiner_pretrain_steps=20, discriminator_pretrain_steps=50, steps=150, lambda_label=10.0),
    classifier=ClassifierConfig(widths=(32, 64, 96, 128)),
    classify=ClassifyConfig(steps=500),
    fit=FitConfig(steps=(300, 900)),
    adapt=AdaptConfig(steps=400),
    rescore=RescoreConfig(steps=30),
)

SMOKE = dataclasses.replace(
    CPU,
    synthesizer=SynthesizerConfig(sizes=(0.5,), pool=256),
    refiner=RefinerConfig(width=4, blocks=1, residual=True),
    discriminator=DiscriminatorConfig(widths=(8, 8, 8, 8)),
    refine=RefineConfig(
        batch_size=8,
        refiner_pretrain_steps=2,
        discriminator_pretrain_steps=2,
        steps=4,
        history_size=32,
        checkpoint_every=2,
        log_every=2,
    ),
    classifier=ClassifierConfig(widths=(8, 8, 8), hidden=16),
    classify=ClassifyConfig(batch_size=8, steps=4, checkpoint_every=2, log_every=2),
    fit=FitConfig(rounds=1, images=32, passes=1, batch_size=16, inner=1, steps=(4,), pool=256),
    adapt=AdaptConfig(rounds=1, steps=4, batch_size=8),
    rescore=RescoreConfig(rounds=2, texts=2, steps=2),
)

GPU = Config(
    synthesizer=SynthesizerConfig(pool=200_000),
    refiner=RefinerConfig(residual=True),
    refine=RefineConfig(batch_size=256, steps=4000, history_size=25_600, checkpoint_every=500),
    classifier=ClassifierConfig(widths=(64, 128, 192, 256), hidden=256),
    classify=ClassifyConfig(batch_size=256, steps=8000, checkpoint_every=1000),
    fit=FitConfig(images=8000, passes=12, steps=(4000, 12_000)),
    adapt=AdaptConfig(steps=4000, batch_size=256),
)

# Section 3.1 and the supplementary architecture list; lambda as its author quoted it, the image is the captcha's.
PAPER = Config(
    refiner=RefinerConfig(width=64, blocks=4),
    discriminator=DiscriminatorConfig(spectral_norm=False, leak=0.0, noise=0.0),
    refine=RefineConfig(
        batch_size=512,
        refiner_pretrain_steps=1000,
        discriminator_pretrain_steps=200,
        steps=10_000,
        k_g=2,
        lambda_reg=0.01,
        optimizer="sgd",
        refiner_lr=1e-3,
        discriminator_lr=1e-3,
        # Plain SGD at this rate diverges on sums over patches otherwise.
        clip_norm=10.0,
        average_decay=0.0,
        history_size=25_600,
        checkpoint_every=500,
    ),
    classify=ClassifyConfig(batch_size=512, steps=4000),
)

# The notebook's numbers with its faults repaired (one value range, working history, linear logits): lambda 1e-4 over
# the sum of a batch of 512 against a mean over 325 patches is 16.6 in the paper's units.
SEED = Config(
    target=TargetConfig(representation="binary", background="average"),
    synthesizer=SynthesizerConfig(law="seed", fonts=("dejavu-bold",), sizes=(0.52,), strokes=(0,), codec=False),
    refiner=RefinerConfig(width=64, blocks=4),
    discriminator=DiscriminatorConfig(spectral_norm=False, leak=0.0, noise=0.0),
    refine=RefineConfig(
        batch_size=512,
        refiner_pretrain_steps=100,
        discriminator_pretrain_steps=100,
        steps=1000,
        k_g=4,
        lambda_reg=16.6,
        optimizer="rmsprop",
        refiner_lr=1e-3,
        discriminator_lr=1e-3,
        average_decay=0.0,
        history_size=51_200,
        checkpoint_every=100,
    ),
    classifier=ClassifierConfig(kind="seed", widths=(32, 128, 128, 128, 128)),
    classify=ClassifyConfig(batch_size=128, steps=20_000, lr=1e-3, pose_weight=0.0),
    fit=FitConfig(rounds=0),
    adapt=AdaptConfig(steps=0),
)

PRESETS = {"smoke": SMOKE, "cpu": CPU, "gpu": GPU, "paper": PAPER, "seed": SEED}


def override(config: Config, values: Mapping[str, object]) -> Config:
    """A configuration with fields replaced; keys are `group.field`.

    Raises:
      ConfigError: no such field, or a value that cannot work.
    """
    groups: dict[str, dict[str, object]] = {}
    for path, value in values.items():
        group, _, field = path.partition(".")
        section = getattr(config, group, None)
        if section is None or not hasattr(section, field):
            raise ConfigError(f"config.{path}: no such field")
        _check_type(path, getattr(section, field), value)
        groups.setdefault(group, {})[field] = value
    # All at once: one value may need another.
    changed = {group: dataclasses.replace(getattr(config, group), **fields) for group, fields in groups.items()}
    return dataclasses.replace(config, **changed)


def _check_type(path: str, old: object, new: object) -> None:
    """Raises if `new` is of another type than `old`; the empty tuple stands for one of texts."""
    kinds: tuple[type, ...] = (type(old[0]) if old else str,) if isinstance(old, tuple) else (type(old),)
    if kinds == (float,):
        kinds = (float, int)
    news = new if isinstance(old, tuple) and isinstance(new, tuple) else (new,)
    if isinstance(new, tuple) != isinstance(old, tuple) or not all(type(value) in kinds for value in news):
        many = "several values" if isinstance(old, tuple) else "one value"
        raise ConfigError(f"config.{path}={new!r}: give {many} of type {kinds[0].__name__}")
