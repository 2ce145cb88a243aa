"""The discriminator: two logits (real, refined) for each patch, or for the whole image (paper 2.2 and 3.1).

Images are float32 `[B, H, W, 1]` in [-1, 1]. The logits are linear: with a ReLU on them, as several
implementations have it, both can die at 0 and the loss stays at ln 2.
"""

import functools
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from simgan_jax.config import DiscriminatorConfig
from simgan_jax.convolution import Conv

Params = Any


class _Discriminator(nn.Module):
    """Two strided convolutions, 3 x 3 max-pool, 3 x 3 and 1 x 1 convolution, linear 1 x 1 convolution to 2 logits."""

    config: DiscriminatorConfig

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        first, second, third, fourth = self.config.widths
        x = self._activate(Conv(first, (3, 3), stride=2)(images))
        x = self._activate(Conv(second, (3, 3), stride=2)(x))
        x = _max_pool(x)
        x = self._activate(Conv(third, (3, 3))(x))
        x = self._activate(Conv(fourth, (1, 1))(x))
        if self.config.adversary == "global":
            x = x.mean(axis=(1, 2), keepdims=True)
        return Conv(2, (1, 1), kernel_init=nn.initializers.lecun_normal())(x)

    def _activate(self, x: jax.Array) -> jax.Array:
        return nn.leaky_relu(x, self.config.leak)


def _max_pool(x: jax.Array) -> jax.Array:
    """3 x 3 max-pool with stride 1 of `[B, H, W, C]`, as maxima of slices: their gradient is cheap on a CPU."""
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    x = jnp.maximum(jnp.maximum(x[:, :-2], x[:, 1:-1]), x[:, 2:])
    return jnp.maximum(jnp.maximum(x[:, :, :-2], x[:, :, 1:-1]), x[:, :, 2:])


@functools.partial(jax.jit, static_argnames="config")
def init(key: jax.Array, *, config: DiscriminatorConfig) -> Params:
    """Parameters for images of any size, by one program, not one for each operation. The key is consumed."""
    return _Discriminator(config).init(key, jnp.zeros((1, 8, 8, 1)))["params"]


def init_spectral(params: Params, key: jax.Array, *, config: DiscriminatorConfig) -> Any:
    """Start of the power iterations of `normalize`: a vector `[O]` for each kernel, or no leaf without that norm.

    The key is consumed.
    """
    if not config.spectral_norm:
        return {}
    keys = jax.random.split(key, len(params))
    vectors = {
        name: _unit(jax.random.normal(k, layer["bias"].shape))
        for k, (name, layer) in zip(keys, sorted(params.items()), strict=True)
    }
    return jax.lax.fori_loop(0, 10, lambda _, v: normalize(params, v, config=config)[1], vectors)


def normalize(params: Params, spectral: Any, *, config: DiscriminatorConfig) -> tuple[Params, Any]:
    """Parameters for `apply`, each kernel over its largest singular value, and the vectors of the next call.

    A kernel `[h, w, C, O]` counts as a matrix `[h w C, O]`; one power iteration a call is enough, since kernels
    change slowly (Miyato et al. 2018, Algorithm 1). Parameters and vectors come back as they are where
    `config.spectral_norm` is off.
    """
    if not config.spectral_norm:
        return params, spectral
    normal, vectors = {}, {}
    for name, layer in params.items():
        matrix = layer["kernel"].reshape(-1, layer["kernel"].shape[-1])
        left = _unit(jax.lax.stop_gradient(matrix) @ spectral[name])
        right = _unit(left @ jax.lax.stop_gradient(matrix))
        normal[name] = layer | {"kernel": layer["kernel"] / (left @ matrix @ right)}
        vectors[name] = right
    return normal, vectors


def _unit(vector: jax.Array) -> jax.Array:
    return vector / (jnp.linalg.norm(vector) + 1e-12)


def apply(params: Params, images: jax.Array, *, config: DiscriminatorConfig) -> jax.Array:
    """Logits `[B, h, w, 2]` of images, h and w a quarter of H and W rounded up; `[B, 1, 1, 2]` if global.

    `params` are those that `normalize` gives.
    """
    return cast(jax.Array, _Discriminator(config).apply({"params": params}, images))
