"""The refiner: a residual network without stride or pooling, image in, image out (paper 2.1 and 3.1).

Images are float32 `[B, H, W, 1]` in [-1, 1], before and after.
"""

import functools
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from simgan_jax.config import RefinerConfig
from simgan_jax.convolution import Conv

Params = Any


class _Refiner(nn.Module):
    """Convolution, ResNet blocks of two convolutions with the ReLU after the sum, 1 x 1 convolution."""

    config: RefinerConfig

    @nn.compact
    def __call__(self, images: jax.Array, latents: jax.Array | None) -> jax.Array:
        width, size = self.config.width, (self.config.kernel, self.config.kernel)
        seen = images if latents is None else jnp.concatenate([images, latents], -1)
        x = nn.relu(Conv(width, size)(seen))
        for _ in range(self.config.blocks):
            y = nn.relu(Conv(width, size)(x))
            # Scaled down, so that the sum over the blocks does not saturate the tanh of a fresh network.
            y = Conv(width, size, kernel_init=nn.initializers.variance_scaling(0.1, "fan_in", "normal"))(y)
            x = nn.relu(x + y)
        if self.config.residual:
            change = Conv(images.shape[-1], (1, 1), kernel_init=nn.initializers.zeros_init())(x)
            return bounded(images + change)
        return jnp.tanh(Conv(images.shape[-1], (1, 1), kernel_init=nn.initializers.lecun_normal())(x))


@jax.custom_vjp
def bounded(images: jax.Array) -> jax.Array:
    """Values clipped to [-1, 1]; the gradient passes inside, and outside where a descent leads back inside.

    A plain clip has no gradient outside, so that a background pixel that is once pushed below -1 could never be
    made lighter again; a straight-through one would let it drift ever further away.
    """
    return jnp.clip(images, -1.0, 1.0)


def _bounded_forward(images: jax.Array) -> tuple[jax.Array, jax.Array]:
    return bounded(images), images


def _bounded_backward(images: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    outwards = ((images <= -1.0) & (gradient > 0.0)) | ((images >= 1.0) & (gradient < 0.0))
    return (jnp.where(outwards, 0.0, gradient),)


bounded.defvjp(_bounded_forward, _bounded_backward)


@functools.partial(jax.jit, static_argnames="config")
def init(key: jax.Array, *, config: RefinerConfig) -> Params:
    """Parameters for images of any size, by one program, not one for each operation. The key is consumed.

    With `config.residual` the network is exactly the identity at first: its last convolution is zero.
    """
    images = jnp.zeros((1, 8, 8, 1))
    latents = jnp.zeros((1, 8, 8, config.latents)) if config.latents else None
    return _Refiner(config).init(key, images, latents)["params"]


def draw_latents(keys: jax.Array, images: jax.Array, *, config: RefinerConfig) -> jax.Array | None:
    """Standard normal latents `[B, H, W, config.latents]` for images `[B, H, W, 1]`; None if the refiner takes none.

    Keys `[B]`, one an image; consumed.
    """
    if not config.latents:
        return None
    return jax.vmap(lambda key: jax.random.normal(key, (*images.shape[1:3], config.latents)))(keys)


def apply(params: Params, images: jax.Array, *, config: RefinerConfig, latents: jax.Array | None = None) -> jax.Array:
    """Refined images `[B, H, W, 1]` in [-1, 1] of synthetic ones.

    The output is a tanh as in the paper, or with `config.residual` the input plus what the network adds, bounded.

    Args:
      latents: `[B, H, W, config.latents]`, as `draw_latents` gives them.
    """
    return cast(jax.Array, _Refiner(config).apply({"params": params}, images, latents))
