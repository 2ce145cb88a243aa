import dataclasses

import pytest

from simgan_jax import presets
from simgan_jax.config import ConfigError


def test_override():
    changed = presets.override(
        presets.SMOKE,
        {
            "refine.steps": 9,
            "synthesizer.sizes": (0.4, 1),
            "synthesizer.fonts": ("a.ttf",),
            "synthesizer.scale": 0,
            "refiner.residual": False,
        },
    )
    assert (changed.refine.steps, changed.synthesizer.sizes, changed.synthesizer.fonts) == (9, (0.4, 1), ("a.ttf",))
    assert changed.refine == dataclasses.replace(presets.SMOKE.refine, steps=9)
    assert changed.classify == presets.SMOKE.classify


def test_values_that_need_each_other_come_in_any_order():
    values = {"fit.rounds": 3, "fit.steps": (1, 2, 3), "refine.batch_size": 64, "refine.history_size": 64}
    forth, back = (presets.override(presets.SMOKE, dict(pairs)) for pairs in (values.items(), [*values.items()][::-1]))
    assert forth == back
    assert (forth.fit.rounds, forth.fit.steps, forth.refine.batch_size) == (3, (1, 2, 3), 64)


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("nose.steps", 1, "no such field"),
        ("refine.nose", 1, "no such field"),
        ("refine", 1, "no such field"),
        ("refine.steps", -1, "must not be negative"),
        ("refine.steps", 1.5, "type int"),
        ("refine.steps", True, "type int"),
        ("refiner.residual", 1, "type bool"),
        ("refine.steps", (1, 2), "one value of type int"),
        ("fit.steps", 3, "several values of type int"),
        ("synthesizer.fonts", (3,), "several values of type str"),
        ("synthesizer.sizes", ("large",), "several values of type float"),
    ],
)
def test_override_refuses(path, value, named):
    with pytest.raises(ConfigError, match=f"config.{path}.*{named}"):
        presets.override(presets.SMOKE, {path: value})


def test_seed_is_the_notebooks():
    # Its delta of 1e-4 weighs the sum over a batch of 512; its adversarial loss is a mean over 512 * 325 patches.
    # Over sums of one image that is 1e-4 * 512 * 325.
    seed = presets.SEED
    assert seed.refine.lambda_reg == pytest.approx(1e-4 * 512 * 13 * 25, rel=0.01)
    assert (seed.refiner.width, seed.refiner.blocks, seed.refine.k_g, seed.refine.k_d) == (64, 4, 4, 1)
    assert (seed.classify.batch_size, seed.classifier.kind, seed.synthesizer.law) == (128, "seed", "seed")


def test_paper_is_the_papers():
    paper = presets.PAPER.refine
    assert (paper.batch_size, paper.k_g, paper.k_d, paper.optimizer, paper.refiner_lr) == (512, 2, 1, "sgd", 1e-3)
    assert (paper.refiner_pretrain_steps, paper.discriminator_pretrain_steps) == (1000, 200)
