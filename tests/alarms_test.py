import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simgan_jax import alarms, state, steps, train
from simgan_jax.config import CaptchaConfig, Config, DiscriminatorConfig, RefineConfig, RefinerConfig

HEALTHY = {
    "refiner_adversarial": 0.7,
    "refiner_reg": 0.04,
    "refiner_grad_norm": 3.0,
    "discriminator_loss": 0.6,
    "accuracy_real": 0.7,
    "accuracy_refined": 0.6,
    "dead_logits": 0.0,
    "discriminator_grad_norm": 2.0,
    "history_size": 100.0,
}


def rows(count=alarms.WINDOW, **values):
    return [HEALTHY | values for _ in range(count)]


def test_a_healthy_run_is_quiet():
    assert alarms.messages([]) == [] == alarms.messages(rows(50))
    alarms.check(rows(50))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"accuracy_real": 1.0, "accuracy_refined": 0.999}, "without a doubt"),
        ({"discriminator_loss": 1e-5}, "without a doubt"),
        ({"dead_logits": 0.9}, "dead"),
        ({"refiner_reg": 0.8}, "redraws"),
        ({"refiner_reg": 0.0}, "returns its input"),
        ({"refiner_grad_norm": 0.0, "refiner_reg": 0.0}, "no gradient"),
    ],
)
def test_a_fault_must_last_for_the_window(values, words):
    (message,) = alarms.messages(rows(3) + rows(**values))
    assert words in message
    assert alarms.messages(rows(alarms.WINDOW - 1, **values)) == []
    assert alarms.messages(rows(**values) + rows(1) + rows(alarms.WINDOW - 1, **values)) == []
    with pytest.raises(alarms.CollapseError, match=words):
        alarms.check(rows(**values))


def test_one_half_alone_may_be_told_well():
    assert alarms.messages(rows(accuracy_real=1.0)) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_counts_at_once(value):
    (message,) = alarms.messages(rows(1) + rows(1, refiner_grad_norm=value))
    assert message.startswith("refiner_grad_norm is ")


def test_pretraining_may_end_in_what_would_be_a_collapse_later():
    """A refiner that is the identity from the start, a discriminator that beats one that stands still."""
    identity = {"refiner_reg": 0.0, "refiner_grad_norm": 0.0}
    beaten = {"discriminator_loss": 1e-4, "accuracy_real": 1.0, "accuracy_refined": 1.0, "dead_logits": 0.0}
    for row in (identity, beaten):
        assert alarms.messages([row] * alarms.WINDOW) == []
        broken = {name: float("nan") for name in row}
        assert len(alarms.messages([row, broken])) == len(row)


def test_several_faults_are_one_line():
    with pytest.raises(alarms.CollapseError) as caught:
        alarms.check(rows(dead_logits=1.0, refiner_reg=0.9))
    assert "dead" in str(caught.value) and "redraws" in str(caught.value) and "\n" not in str(caught.value)


def bars(level, ground=0):
    images = np.full((20, 8, 12), ground, np.uint8)
    for i, image in enumerate(images):
        image[2:7, i % 10 : i % 10 + 2] = level
    return images


def test_ranges_that_differ_are_refused():
    alarms.check_ranges(bars(255), bars(220, ground=10))
    # The seed's fault: one domain in [-1, 1], the other in [0, 1].
    with pytest.raises(alarms.CollapseError, match="background is 0 in synthetic and 128 in real"):
        alarms.check_ranges(bars(255), bars(255, ground=128))
    with pytest.raises(alarms.CollapseError, match="ink is 255 in synthetic and 90 in real"):
        alarms.check_ranges(bars(255), bars(90))
    # A hundredth of the ink, of the same level.
    sparse = np.where(np.arange(8 * 12).reshape(8, 12) == 30, bars(255), 0).astype(np.uint8)
    sparse[:, 0, 0] = 250
    alarms.check_ranges(bars(255), sparse)


class Pool(NamedTuple):
    ink: jax.Array
    labels: jax.Array


def test_a_run_with_different_ranges_ends_with_a_collapse():
    """The seed's run in small: a refiner tied to its input against a discriminator that sees another background."""
    config = Config(
        captcha=CaptchaConfig(height=8, width=12),
        refiner=RefinerConfig(width=2, blocks=1, residual=True),
        discriminator=DiscriminatorConfig(widths=(4, 4, 4, 4), spectral_norm=False),
        refine=RefineConfig(batch_size=8, history_size=16, lambda_reg=20.0, discriminator_lr=1e-2),
    )
    data = (Pool(jnp.asarray(bars(255)), jnp.zeros((20, 1), jnp.int32)), jnp.asarray(bars(255, ground=128)))
    seen = []

    def watch(step, current, metrics):
        seen.append(metrics)
        alarms.check(seen)

    with pytest.raises(alarms.CollapseError, match="without a doubt"):
        train.fit(
            state.init(jax.random.key(0), config=config),
            jax.random.key(1),
            functools.partial(steps.simgan_step, config=config),
            data,
            steps=300,
            chunk=10,
            hooks=[watch],
        )
    assert len(seen) < 30
