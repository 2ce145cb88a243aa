import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simgan_jax import discriminator
from simgan_jax.config import DiscriminatorConfig

apply = jax.jit(discriminator.apply, static_argnames="config")
normalize = jax.jit(discriminator.normalize, static_argnames="config")
init_spectral = jax.jit(discriminator.init_spectral, static_argnames="config")

SEED = DiscriminatorConfig(widths=(96, 64, 32, 32), spectral_norm=False, leak=0.0, noise=0.0)
SMALL = DiscriminatorConfig(widths=(6, 5, 4, 3), leak=0.2)


def shapes(config, image_shape):
    """Parameters and logits for images of a shape, without computing them."""
    params = jax.eval_shape(lambda: discriminator.init(jax.random.key(0), config=config))
    images = jax.ShapeDtypeStruct(image_shape, jnp.float32)
    return params, jax.eval_shape(functools.partial(discriminator.apply, config=config), params, images)


@pytest.mark.parametrize(("adversary", "patches"), [("local", (13, 25)), ("global", (1, 1))])
def test_parameters_and_patches_are_those_of_the_seed(adversary, patches):
    params, logits = shapes(dataclasses.replace(SEED, adversary=adversary), (2, 50, 100, 1))
    by_hand = (3 * 3 * 1 * 96 + 96) + (3 * 3 * 96 * 64 + 64) + (3 * 3 * 64 * 32 + 32) + (32 * 32 + 32) + (32 * 2 + 2)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == by_hand == 75_906
    assert logits.shape == (2, *patches, 2)


def test_patches_of_the_paper():
    """9 x 14 for the 35 x 55 eyes of section 3.1."""
    assert shapes(SEED, (1, 35, 55, 1))[1].shape == (1, 9, 14, 2)


@pytest.fixture(scope="module")
def params():
    """Parameters of SMALL; made here since compiling the initialiser takes longer than all else."""
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: discriminator.init(jax.random.key(0), config=SMALL))
    return jax.tree.map(lambda x: jnp.asarray(generator.normal(scale=0.3, size=x.shape), jnp.float32), shapes)


def test_logits_are_linear(params):
    images = jnp.asarray(np.random.default_rng(0).uniform(-1.0, 1.0, (2, 8, 12, 1)), jnp.float32)
    logits = apply(params, images, config=SMALL)
    assert logits.shape == (2, 2, 3, 2)
    last = params["Conv_4"]
    lowered = params | {"Conv_4": last | {"bias": last["bias"] - 100.0}}
    np.testing.assert_allclose(apply(lowered, images, config=SMALL), logits - 100.0, rtol=1e-5)


def test_a_patch_sees_23_pixels(params):
    """The seed's receptive field, at a stride of 4: 3 + 2 (3 - 1) + 4 (3 - 1) + 4 (3 - 1)."""
    # A max-pool passes one of nine on, so that many images are needed to see its whole field.
    images = jnp.asarray(np.random.default_rng(1).uniform(-1.0, 1.0, (40, 60, 60, 1)), jnp.float32)
    gradient = jax.jit(jax.grad(lambda x: apply(params, x, config=SMALL)[:, 7, 7].sum()))(images)
    seen = np.abs(np.asarray(gradient))[..., 0].sum(axis=0)
    rows, columns = np.nonzero(seen)
    assert np.ptp(rows) + 1 <= 23 and np.ptp(columns) + 1 <= 23
    assert np.ptp(rows) + 1 >= 19 and np.ptp(columns) + 1 >= 19


def test_leak_0_is_a_relu(params):
    dead = {name: layer | {"bias": jnp.zeros_like(layer["bias"])} for name, layer in params.items()}
    dead["Conv_0"] = {"kernel": jnp.zeros((3, 3, 1, 6)), "bias": jnp.full(6, -1.0)}
    images = jnp.zeros((1, 8, 8, 1))
    relu = dataclasses.replace(SMALL, leak=0.0)
    np.testing.assert_array_equal(apply(dead, images, config=relu), 0.0)
    assert jnp.abs(apply(dead, images, config=SMALL)).max() > 0.0


def test_global_adversary_judges_the_mean(params):
    """Its last layer is linear, so that the mean of the local logits is the global one."""
    whole = dataclasses.replace(SMALL, adversary="global")
    images = jnp.asarray(np.random.default_rng(2).uniform(-1.0, 1.0, (3, 16, 24, 1)), jnp.float32)
    want = apply(params, images, config=SMALL).mean(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(apply(params, images, config=whole), want, rtol=1e-4, atol=1e-5)


def singular_values(params):
    return [np.linalg.svd(np.asarray(p["kernel"]).reshape(-1, p["kernel"].shape[-1]))[1][0] for p in params.values()]


def test_spectral_norm_brings_the_largest_singular_value_to_1(params):
    spectral = init_spectral(params, jax.random.key(1), config=SMALL)
    assert jax.tree.map(jnp.shape, spectral) == {f"Conv_{i}": (n,) for i, n in enumerate((6, 5, 4, 3, 2))}
    assert max(abs(s - 1.0) for s in singular_values(params)) > 0.2
    for _ in range(20):
        normal, spectral = normalize(params, spectral, config=SMALL)
    np.testing.assert_allclose(singular_values(normal), 1.0, atol=0.02)
    for name, layer in params.items():
        np.testing.assert_array_equal(normal[name]["bias"], layer["bias"])


def test_spectral_norm_takes_the_scale_out_of_the_gradient(params):
    """W / sigma(W) does not change when W grows, so its gradient is orthogonal to W."""
    spectral = init_spectral(params, jax.random.key(1), config=SMALL)
    weights = jnp.asarray(np.random.default_rng(3).normal(size=(3, 3, 6, 5)), jnp.float32)

    def loss(kernel):
        changed = params | {"Conv_1": params["Conv_1"] | {"kernel": kernel}}
        normal, _ = normalize(changed, spectral, config=SMALL)
        return (normal["Conv_1"]["kernel"] * weights).sum()

    kernel = params["Conv_1"]["kernel"]
    gradient = jax.jit(jax.grad(loss))(kernel)
    assert float(jnp.linalg.norm(gradient)) > 0.1
    assert abs(float((gradient * kernel).sum())) < 1e-3


def test_without_spectral_norm_nothing_changes(params):
    assert discriminator.init_spectral(params, jax.random.key(1), config=SEED) == {}
    normal, spectral = discriminator.normalize(params, {}, config=SEED)
    assert normal is params and spectral == {}
