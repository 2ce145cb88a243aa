"""What is chosen by backend; the choices for accelerators run here on the CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simgan_jax import backend, convolution


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="what a CPU is given")
def test_a_cpu_computes_in_single_precision_and_few_images_at_a_time():
    assert backend.compute_dtype() == jnp.float32
    assert backend.block_size() == 4


@pytest.mark.parametrize("size", [1, 3])
def test_half_precision_keeps_single_precision_outside(size):
    draws = np.random.default_rng(0)
    x = jnp.asarray(draws.normal(size=(2, 5, 6, 3)), jnp.float32)
    kernel = jnp.asarray(draws.normal(size=(size, size, 3, 4)), jnp.float32)

    def loss(x: jax.Array, kernel: jax.Array, dtype: jnp.dtype | None) -> tuple[jax.Array, jax.Array]:
        y = convolution.conv(x, kernel, dtype=dtype)
        return jnp.sum(jnp.sin(y)), y

    both = []
    for dtype in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)):
        (_, y), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(x, kernel, dtype)
        both.append((y, *gradients))
    half, single = both
    assert [leaf.dtype for leaf in half] == [jnp.float32] * 3
    for rough, exact in zip(half, single, strict=True):
        # Eight bits of a number: some half a per cent of the largest, and no exact agreement.
        error = np.abs(np.asarray(rough) - np.asarray(exact)).max()
        assert 0 < error < 0.03 * np.abs(np.asarray(exact)).max()
