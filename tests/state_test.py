import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simgan_jax import state
from simgan_jax.config import CaptchaConfig, Config, DiscriminatorConfig, RefineConfig, RefinerConfig

CONFIG = Config(
    captcha=CaptchaConfig(height=8, width=12),
    refiner=RefinerConfig(width=2, blocks=1),
    discriminator=DiscriminatorConfig(widths=(2, 2, 2, 2)),
    refine=RefineConfig(batch_size=4, history_size=6),
)


init = jax.jit(state.init, static_argnames="config")


@pytest.fixture(scope="module")
def fresh():
    return init(jax.random.key(0), config=CONFIG)


def test_leaves_are_arrays_and_step_is_int32(fresh):
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(fresh))
    assert fresh.step.dtype == jnp.int32 and fresh.step.shape == () and int(fresh.step) == 0
    assert fresh.history.data.shape == (6, 8, 12, 1) and int(fresh.history.size) == 0


def test_no_two_leaves_share_a_buffer(fresh):
    """Otherwise the state could not be donated."""
    for current in (fresh, state.restart(fresh)):
        pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(current) if leaf.size]
        assert len(set(pointers)) == len(pointers)
    jax.jit(lambda s: s, donate_argnums=0)(init(jax.random.key(1), config=CONFIG))


def test_template_has_the_shapes_of_a_state(fresh):
    template = state.template(config=CONFIG)
    assert str(jax.tree.structure(template)) == str(jax.tree.structure(fresh))
    for abstract, leaf in zip(jax.tree.leaves(template), jax.tree.leaves(fresh), strict=True):
        assert (abstract.shape, abstract.dtype, abstract.weak_type) == (leaf.shape, leaf.dtype, False)


def test_the_average_starts_as_the_refiner(fresh):
    jax.tree.map(np.testing.assert_array_equal, fresh.average, fresh.refiner.params)


def test_seeds_differ_everywhere():
    one, other = (init(jax.random.key(seed), config=CONFIG) for seed in (1, 2))
    for a, b in ((one.refiner, other.refiner), (one.discriminator, other.discriminator)):
        for layer, twin in zip(a.params.values(), b.params.values(), strict=True):
            assert not np.array_equal(layer["kernel"], twin["kernel"])


def test_restart_begins_the_next_stage(fresh):
    moved = dataclasses.replace(
        fresh,
        step=jnp.asarray(7, jnp.int32),
        average=jax.tree.map(jnp.zeros_like, fresh.average),
        history=fresh.history.replace(size=jnp.asarray(3, jnp.int32)),
    )
    again = state.restart(moved)
    assert int(again.step) == 0 and int(again.history.size) == 3
    jax.tree.map(np.testing.assert_array_equal, again.average, fresh.refiner.params)


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("sgd", [-0.3, 0.4]),
        # The first step of Adam, whatever its moments, is the learning rate against the sign.
        ("adam", [-0.1, 0.1]),
        # v = 0.1 g^2 after one step with decay 0.9.
        ("rmsprop", [-0.1 / np.sqrt(0.1), 0.1 / np.sqrt(0.1)]),
    ],
)
def test_optimizers(name, want):
    rule = state.optimizer(RefineConfig(optimizer=name), 0.1)
    params = jnp.zeros(2)
    updates, _ = rule.update(jnp.asarray([3.0, -4.0]), rule.init(params), params)
    np.testing.assert_allclose(updates, want, rtol=1e-4)


def test_adam_moments_forget_as_in_the_design():
    """Two steps by hand with b1 = 0.5 and b2 = 0.9."""
    rule = state.optimizer(RefineConfig(), 1.0)
    opt_state = rule.init(jnp.zeros(()))
    for gradient in (1.0, 3.0):
        update, opt_state = rule.update(jnp.asarray(gradient), opt_state, jnp.zeros(()))
    mean = (0.5 * 0.5 * 1.0 + 0.5 * 3.0) / (1 - 0.5**2)
    square = (0.9 * 0.1 * 1.0 + 0.1 * 9.0) / (1 - 0.9**2)
    np.testing.assert_allclose(update, -mean / np.sqrt(square), rtol=1e-5)


def test_clipping_shortens_long_gradients_alone():
    rule = state.optimizer(RefineConfig(optimizer="sgd", clip_norm=1.0), 0.1)
    for gradient, want in (([3.0, -4.0], [-0.06, 0.08]), ([0.3, -0.4], [-0.03, 0.04])):
        updates, _ = rule.update(jnp.asarray(gradient), rule.init(jnp.zeros(2)), jnp.zeros(2))
        np.testing.assert_allclose(updates, want, rtol=1e-5)
