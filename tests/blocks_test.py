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


@pytest.mark.skipif(jax.device_count() < 2, reason="a mesh takes two devices")
def test_a_divided_batch_stays_whole():
    def size(part):
        return jnp.asarray(part.shape[0])

    with jax.set_mesh(devices.mesh(2)):
        got = jax.jit(lambda x: blocks.over_blocks(devices.spread(x), size, block=2))(jnp.ones((8, 3)))
    assert got == 8
    with jax.set_mesh(devices.mesh(1)):
        assert jax.jit(lambda x: blocks.over_blocks(x, size, block=2))(jnp.ones((8,))) == 2
