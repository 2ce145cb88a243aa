import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simgan_jax import refiner
from simgan_jax.config import RefinerConfig

init = jax.jit(refiner.init, static_argnames="config")
apply = jax.jit(refiner.apply, static_argnames="config")

SEED = RefinerConfig(width=64, blocks=4, kernel=3, residual=False)
SMALL = RefinerConfig(width=3, blocks=2)


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def shapes(config, image_shape):
    """Parameters and output for images of a shape, without computing them."""
    params = jax.eval_shape(lambda: refiner.init(jax.random.key(0), config=config))
    images = jax.ShapeDtypeStruct(image_shape, jnp.float32)
    return params, jax.eval_shape(functools.partial(refiner.apply, config=config), params, images)


def test_parameters_and_output_are_those_of_the_seed():
    params, refined = shapes(SEED, (2, 50, 100, 1))
    # 3x3 from 1 to 64 maps, 2 x 4 times 3x3 from 64 to 64, 1x1 from 64 to 1; each with biases.
    by_hand = (3 * 3 * 1 * 64 + 64) + 8 * (3 * 3 * 64 * 64 + 64) + (64 * 1 + 1)
    assert count(params) == by_hand == 296_129
    assert refined.shape == (2, 50, 100, 1) and refined.dtype == jnp.float32


@pytest.mark.parametrize("residual", [False, True])
def test_width_blocks_and_kernel_come_from_the_config(residual):
    params, refined = shapes(RefinerConfig(width=6, blocks=2, kernel=5, residual=residual), (1, 7, 11, 1))
    assert count(params) == (25 * 6 + 6) + 4 * (25 * 6 * 6 + 6) + (6 + 1)
    assert refined.shape == (1, 7, 11, 1)


def conv(x, layer):
    """ "SAME" convolution of `[H, W, C]` with an odd kernel, by loops."""
    kernel, bias = np.asarray(layer["kernel"], np.float64), np.asarray(layer["bias"], np.float64)
    margin = kernel.shape[0] // 2
    padded = np.pad(x, ((margin, margin), (margin, margin), (0, 0)))
    rows, columns = x.shape[:2]
    return (
        sum(
            padded[i : i + rows, j : j + columns] @ kernel[i, j]
            for i in range(kernel.shape[0])
            for j in range(kernel.shape[1])
        )
        + bias
    )


@pytest.fixture(scope="module")
def params():
    """Parameters of SMALL; made here since compiling the initialiser takes longer than all else."""
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: refiner.init(jax.random.key(0), config=SMALL))
    return jax.tree.map(lambda x: jnp.asarray(generator.normal(scale=0.3, size=x.shape), jnp.float32), shapes)


def test_values_against_loops(params):
    image = np.random.default_rng(0).uniform(-1.0, 1.0, (5, 6, 1))
    layers = [params[f"Conv_{i}"] for i in range(6)]
    x = np.maximum(conv(image, layers[0]), 0.0)
    for first, second in (layers[1:3], layers[3:5]):
        x = np.maximum(x + conv(np.maximum(conv(x, first), 0.0), second), 0.0)
    got = apply(params, jnp.asarray(image, jnp.float32)[None], config=SMALL)[0]
    np.testing.assert_allclose(got, np.tanh(conv(x, layers[5])), atol=1e-5)


def test_residual_refiner_is_the_identity_at_first_and_learns(key):
    config = RefinerConfig(width=2, blocks=1, residual=True)
    params = init(key, config=config)
    images = jnp.asarray(np.random.default_rng(1).choice([-1.0, 1.0, 0.3], (2, 6, 8, 1)), jnp.float32)
    np.testing.assert_array_equal(apply(params, images, config=config), images)

    def loss(params):
        return ((apply(params, images, config=config) - 0.5) ** 2).sum()

    before, gradient = jax.jit(jax.value_and_grad(loss))(params)
    assert float(jnp.abs(gradient["Conv_3"]["kernel"]).max()) > 0.0
    after = loss(jax.tree.map(lambda p, g: p - 1e-4 * g, params, gradient))
    assert after < before


def test_latents_are_further_channels_of_the_input(key):
    config = RefinerConfig(width=3, blocks=1, latents=2)
    images = jnp.zeros((2, 4, 5, 1))
    keys = jax.random.split(key, 2)
    latents = refiner.draw_latents(keys, images, config=config)
    assert latents is not None and latents.shape == (2, 4, 5, 2)
    assert refiner.draw_latents(keys, images, config=SMALL) is None
    params = init(jax.random.clone(key), config=config)
    assert params["Conv_0"]["kernel"].shape == (3, 3, 1 + 2, 3)
    one, other = (apply(params, images, config=config, latents=sign * latents) for sign in (1.0, -1.0))
    assert one.shape == images.shape and not np.allclose(one, other)


def test_bounded_clips_and_its_gradient_never_points_further_out():
    values = jnp.asarray([-1.5, -1.0, 0.2, 1.0, 1.5])
    np.testing.assert_allclose(refiner.bounded(values), [-1.0, -1.0, 0.2, 1.0, 1.0])
    up = jax.vjp(refiner.bounded, values)[1]
    # A descent along a positive gradient lowers the value: outside it may only come back.
    np.testing.assert_array_equal(up(jnp.full(5, 2.0))[0], [0.0, 0.0, 2.0, 2.0, 2.0])
    np.testing.assert_array_equal(up(jnp.full(5, -2.0))[0], [-2.0, -2.0, -2.0, 0.0, 0.0])


def test_pixels_depend_on_a_neighbourhood_that_grows_with_the_blocks(params):
    """One pixel for each 3x3 convolution to each side, 5 here and 9 in the seed; nothing is strided."""
    images = jnp.asarray(np.random.default_rng(2).uniform(-1.0, 1.0, (8, 17, 17, 1)), jnp.float32)
    sensitivity = jax.jit(jax.grad(lambda images: apply(params, images, config=SMALL)[:, 8, 8].sum()))(images)
    rows, columns = np.nonzero(np.asarray(sensitivity).any(axis=(0, 3)))
    assert rows.min() == columns.min() == 8 - 5 and rows.max() == columns.max() == 8 + 5
