import contextlib
import dataclasses
from typing import Any

import jax
import pytest

from simgan_jax import classifier, config, presets

GROUPS: dict[str, Any] = {field.name: type(field.default) for field in dataclasses.fields(config.Config)}

WRONG: dict[str, Any] = {
    "captcha": {"height": [0], "width": [-1], "length": [0], "alphabet": ["", "a", "aba"]},
    "target": {
        "representation": ["hard"],
        "threshold": [0, 255],
        "background": ["black"],
        "background_quantile": [0.0, 1.0],
        "line_level": [0.0, 1.1],
        "background_images": [0],
    },
    "synthesizer": {
        "law": ["narrow"],
        "sizes": [(), (0.5, 0.0)],
        "strokes": [(), (0, -1)],
        "rotation": [-1.0],
        "jitter_x": [-0.1],
        "jitter_y": [-0.1],
        "scale": [-0.1],
        "shear": [-0.1],
        "fitted_shift": [-0.1],
        "fitted_turn": [-0.1],
        "fitted_scale": [-0.1],
        "pool": [0],
    },
    "refiner": {"width": [0], "blocks": [0], "kernel": [0], "latents": [-1]},
    "discriminator": {
        "adversary": ["none"],
        "widths": [(8, 8, 8), (8, 8, 8, 0)],
        "leak": [-0.1],
        "noise": [-0.1],
    },
    "refine": {
        "batch_size": [0, 7],
        "refiner_pretrain_steps": [-1],
        "discriminator_pretrain_steps": [-1],
        "steps": [-1],
        "k_g": [0],
        "k_d": [0],
        "lambda_reg": [-0.1],
        "psi": ["phi"],
        "lambda_label": [-0.1],
        "optimizer": ["lion"],
        "refiner_lr": [0.0],
        "discriminator_lr": [0.0],
        "average_decay": [-0.1, 1.0],
        "history_size": [-1, 31],
        "checkpoint_every": [0],
        "log_every": [0],
        "clip_norm": [-1.0],
    },
    "classifier": {"kind": ["big"], "widths": [(), (8, 0)], "hidden": [0], "dropout": [-0.1, 1.0]},
    "classify": {
        "batch_size": [0],
        "steps": [-1],
        "lr": [0.0],
        "weight_decay": [-0.1],
        "warmup": [-1],
        "average_decay": [-0.1, 1.0],
        "pose_weight": [-0.1],
        "checkpoint_every": [0],
        "log_every": [0],
    },
    "fit": {
        "rounds": [-1],
        "images": [0],
        "share": [0.0, 1.1],
        "passes": [-1],
        "batch_size": [0],
        "inner": [0],
        "styles": [0],
        "sparsity": [-0.1],
        "faintest": [-0.1],
        "atlas_lr": [0.0],
        "shift_lr": [0.0],
        "turn_lr": [0.0],
        "steps": [(600,), (600, -1)],
        "pool": [0],
        "wide_share": [-0.1, 1.0],
    },
    "adapt": {
        "rounds": [0],
        "sure": [0.0, 1.1],
        "enough": [-0.1, 1.1],
        "steps": [-1],
        "batch_size": [0],
        "pool_batch_size": [0],
        "threshold": [-0.1, 1.0],
        "weight": [-0.1],
        "lr": [0.0],
        "average_decay": [-0.1, 1.0],
        "shift": [-1],
        "boxes": [-1],
        "box": [-0.1],
        "gain": [-0.1],
        "noise": [-0.1],
    },
    "rescore": {
        "rounds": [-1],
        "sure": [0.0, 1.1],
        "texts": [0],
        "least": [0.0, 1.0],
        "steps": [0],
        "stretch": [0.0],
        "sharpness": [0.0],
        "shift": [-0.1],
        "turn": [-0.1],
        "unexplained": [0.0],
    },
}
# Any value of the right type will do.
FREE = {("synthesizer", "fonts"), ("synthesizer", "codec"), ("refiner", "residual"), ("discriminator", "spectral_norm")}


@pytest.mark.parametrize(
    ("group", "field", "value"),
    [(group, field, value) for group, fields in WRONG.items() for field, values in fields.items() for value in values],
)
def test_wrong_values_are_refused_by_name(group, field, value):
    with pytest.raises(config.ConfigError, match=f"config.{group}.{field}=") as caught:
        GROUPS[group](**{field: value})
    assert "\n" not in str(caught.value)


def test_every_field_is_checked():
    fields = {(group, field.name) for group, kind in GROUPS.items() for field in dataclasses.fields(kind)}
    assert fields - FREE == {(group, field) for group, wrong in WRONG.items() for field in wrong}


@pytest.mark.parametrize(
    ("height", "width", "rounds", "named"),
    [(48, 48, 0, ""), (47, 100, 0, "captcha.height=47"), (50, 47, 0, "captcha.width=47"), (50, 100, 1, "fit.rounds=1")],
)
def test_what_the_seeds_classifier_needs(height, width, rounds, named):
    """Four 3x3 convolutions with pools leave one pixel of 46, ((46 - 2) / 2 - 2) / 2 ..., and the first takes two."""
    with pytest.raises(config.ConfigError, match=f"config.{named}") if named else contextlib.nullcontext():
        made = config.Config(
            captcha=config.CaptchaConfig(height, width),
            classifier=config.ClassifierConfig(kind="seed", widths=(4, 8, 8, 8, 8)),
            fit=config.FitConfig(rounds=rounds),
        )
        classifier.init(jax.random.key(0), made.captcha, config=made.classifier)


def test_configurations_are_hashable_and_frozen():
    assert len({presets.CPU, presets.SMOKE, config.Config()}) == 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        presets.CPU.refine.steps = 3  # type: ignore[misc]
