import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simgan_jax import blocks, devices


def test_parts_are_the_largest_that_divide_the_batch():
    def sizes(part):
        return {"size": jnp.asarray(part.shape[0], jnp.float32), "mean": part.mean()}

    for count, block, size in ((8, 4, 4), (6, 4, 3), (7, 4, 1), (8, None, 8), (3, 4, 3), (4, 4, 4)):
        got = blocks.over_blocks(jnp.arange(float(count)), sizes, block=block)
        assert got["size"] == size
        np.testing.assert_allclose(got["mean"], (count - 1) / 2, rtol=1e-6)


@pytest.mark.parametrize("count", [3, 4, 8, 9])
def test_what_is_made_of_parts_is_put_together(count):
    sizes = []

    def make(part):
        sizes.append(part["x"].shape[0])
        return part["x"] * 2.0, part["key"]

    keys = jax.random.split(jax.random.key(0), count)
    doubled, same = blocks.map_blocks({"x": jnp.arange(3.0 * count).reshape(count, 3), "key": keys}, make, block=4)
    np.testing.assert_array_equal(doubled, 2.0 * np.arange(3.0 * count).reshape(count, 3))
    np.testing.assert_array_equal(jax.random.key_data(same), jax.random.key_data(keys))
    assert max(sizes) <= 4


@pytest.mark.skipif(jax.device_count() < 2, reason="a mesh takes two devices")
@pytest.mark.parametrize(("count", "block", "size"), [(8, 2, 2), (12, 4, 3), (8, None, 8), (8, 4, 4), (7, 2, 1)])
def test_parts_are_of_what_each_device_has(count, block, size):
    """And the mean is that of the whole batch: of 7 images, which two cannot share, each has all."""

    def found(part, scale):
        return {"size": jnp.asarray(part.shape[0], jnp.float32), "mean": scale * part.mean()}

    def over(x, scale):
        # As a loss has the parameters, which are not of the batch.
        return blocks.over_blocks(devices.spread(x), lambda part: found(part, scale), block=block)

    with jax.set_mesh(devices.mesh(2)):
        got = jax.jit(over)(jnp.arange(float(count)), jnp.asarray(2.0))
    assert got["size"] == size
    np.testing.assert_allclose(got["mean"], count - 1, rtol=1e-6)


@pytest.mark.skipif(jax.device_count() < 2, reason="a mesh takes two devices")
def test_gradients_are_summed_over_devices_once():
    def loss(weight, x):
        return jnp.mean(jnp.square(weight * x))

    def slope(weight, x):
        return blocks.over_blocks(devices.spread(x), lambda part: jax.grad(loss)(weight, part), block=2)

    x, weight = jnp.arange(8.0), jnp.asarray(3.0)
    with jax.set_mesh(devices.mesh(2)):
        got = jax.jit(slope)(weight, x)
    # 2 w x^2, whose mean over 0, 1, ..., 7 is 2 * 3 * 140 / 8.
    np.testing.assert_allclose(got, 105.0, rtol=1e-6)
