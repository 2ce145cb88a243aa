"""The reader of captchas: character logits for every slot, and where it saw the character.

Two kinds behind one interface: the seed's network, and one attention map for each slot over a
convolutional trunk, which trains many times faster.
"""

import functools
import math
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from simgan_jax.config import CaptchaConfig, ClassifierConfig
from simgan_jax.convolution import Conv

Params = Any


class Reading(NamedTuple):
    """logits: `[B, L, V]`; poses: `[B, L, 3]` (y, x in pixels, radians), zeros where the network has no attention."""

    logits: jax.Array
    poses: jax.Array


class _SeedClassifier(nn.Module):
    """Conv 32, four times conv 128 and max-pool, dense 128, one softmax for each slot; no padding, as in the seed."""

    config: ClassifierConfig
    length: int
    vocabulary: int

    @nn.compact
    def __call__(self, images: jax.Array, dropout_keys: jax.Array | None) -> Reading:
        config = self.config
        x = nn.relu(Conv(config.widths[0], (3, 3), padding="VALID")(images))
        for width in config.widths[1:]:
            x = nn.relu(Conv(width, (3, 3), padding="VALID")(x))
            x = _max_pool(x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2])
        x = dropout(dropout_keys, x, rate=0.25, layer=0)
        x = nn.relu(nn.Dense(config.hidden)(x.reshape(x.shape[0], -1)))
        x = dropout(dropout_keys, x, rate=0.5, layer=1)
        logits = nn.Dense(self.length * self.vocabulary)(x).reshape(-1, self.length, self.vocabulary)
        return Reading(logits, jnp.zeros((*logits.shape[:2], 3)))


def group_size(channels: int) -> int:
    """Channels that are normalised together: 16, or as many as both 16 and a wider layer can be divided by."""
    return channels if channels <= 16 else math.gcd(channels, 16)


class GroupNorm(nn.Module):
    """Group normalisation of `[B, H, W, C]`, as Flax has it (parameters, epsilon), with cheaper passes on a CPU.

    Channels are summed singly, which runs along the vectors, and each entry takes one product and one sum.
    """

    group_size: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        B, C = x.shape[0], x.shape[-1]
        scale = self.param("scale", nn.initializers.ones_init(), (C,))
        bias = self.param("bias", nn.initializers.zeros_init(), (C,))

        def mean(x: jax.Array) -> jax.Array:
            """`[B, C]`, the same for all channels of a group."""
            groups = x.mean(axis=(1, 2)).reshape(B, C // self.group_size, self.group_size)
            return jnp.broadcast_to(groups.mean(axis=-1, keepdims=True), groups.shape).reshape(B, C)

        centre = mean(x)
        variance = jnp.maximum(mean(x * x) - centre * centre, 0.0)
        factor = scale[None] * jax.lax.rsqrt(variance + 1e-6)
        return x * factor[:, None, None] + (bias[None] - centre * factor)[:, None, None]


class _SlotClassifier(nn.Module):
    """Trunk at a quarter of the resolution, an attention map for each slot, heads shared by the slots."""

    config: ClassifierConfig
    length: int
    vocabulary: int

    @nn.compact
    def __call__(self, images: jax.Array, dropout_keys: jax.Array | None) -> Reading:
        config = self.config
        height, width = images.shape[1:3]
        x = _space_to_depth(images)
        for i, features in enumerate(config.widths):
            y = Conv(features, (3, 3), use_bias=False)(x)
            y = nn.relu(GroupNorm(group_size(features))(y))
            x = x + y if x.shape == y.shape else y
            if i == 0:
                x = _max_pool(x)
        rows, columns = x.shape[1:3]
        scores = Conv(self.length, (1, 1))(x)
        position = self.param("position", _reading_order, (rows, columns, self.length))
        attention = nn.softmax((scores + position[None]).reshape(-1, rows * columns, self.length), axis=1)
        slots = jnp.einsum("bpl,bpc->blc", attention, x.reshape(-1, rows * columns, x.shape[-1]))
        slots = dropout(dropout_keys, slots, rate=config.dropout, layer=0)
        hidden = nn.relu(nn.Dense(config.hidden)(slots))
        logits = nn.Dense(self.vocabulary)(hidden)
        scale = jnp.asarray([height / rows, width / columns])
        cells = jnp.stack(jnp.meshgrid(jnp.arange(rows), jnp.arange(columns), indexing="ij"), -1) + 0.5
        seen = jnp.einsum("bpl,pd->bld", attention, (cells * scale[None, None]).reshape(-1, 2))
        correction = nn.Dense(3)(hidden) * jnp.append(scale, 1.0)[None, None]
        poses = jnp.concatenate([seen, jnp.zeros((*seen.shape[:2], 1))], -1) + correction
        return Reading(logits, poses)


def _space_to_depth(images: jax.Array) -> jax.Array:
    """`[B, H, W, 1]` to `[B, H/2, W/2, 4]`, odd sides padded: the first convolution at a quarter of the cost."""
    B, H, W, C = images.shape
    x = jnp.pad(images, ((0, 0), (0, H % 2), (0, W % 2), (0, 0)), constant_values=-1.0)
    x = x.reshape(B, (H + 1) // 2, 2, (W + 1) // 2, 2, C).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(B, (H + 1) // 2, (W + 1) // 2, 4 * C)


def _max_pool(x: jax.Array) -> jax.Array:
    """2x2 max-pool with stride 2 of `[B, H, W, C]`, as maxima of halves: their gradient is cheap on a CPU.

    The last row or column of an odd side stands alone.
    """
    B, H, W, C = x.shape
    x = jnp.pad(x, ((0, 0), (0, H % 2), (0, W % 2), (0, 0)), constant_values=-jnp.inf)
    # Pairs of rows, then of columns, as axes of their own: slices with a step would be put back by a scatter.
    x = x.reshape(B, (H + 1) // 2, 2, W + W % 2, C)
    x = jnp.maximum(x[:, :, 0], x[:, :, 1])
    x = x.reshape(B, (H + 1) // 2, (W + 1) // 2, 2, C)
    return jnp.maximum(x[:, :, :, 0], x[:, :, :, 1])


def _reading_order(key: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """Initial attention bias `[rows, columns, L]`: slot l looks at the l-th of L equal columns first."""
    del key
    _, columns, length = shape
    x = (jnp.arange(columns)[:, None] + 0.5) * length / columns
    bias = -2.0 * (x - (jnp.arange(length)[None, :] + 0.5)) ** 2
    # Of a firm type, as what an update makes of it: a weak one would have the step compiled twice.
    return jnp.broadcast_to(bias[None], shape).astype(jnp.float32)


def _module(captcha: CaptchaConfig, config: ClassifierConfig) -> nn.Module:
    kind = _SlotClassifier if config.kind == "slots" else _SeedClassifier
    return kind(config, captcha.length, len(captcha.alphabet))


@functools.partial(jax.jit, static_argnames=("captcha", "config"))
def init(key: jax.Array, captcha: CaptchaConfig, *, config: ClassifierConfig) -> Params:
    """Parameters for images `[B, H, W, 1]`, by one program, not one for each operation. The key is consumed."""
    example = jnp.zeros((1, captcha.height, captcha.width, 1))
    return _module(captcha, config).init(key, example, None)["params"]


def apply(
    params: Params,
    images: jax.Array,
    captcha: CaptchaConfig,
    *,
    config: ClassifierConfig,
    dropout_keys: jax.Array | None = None,
) -> Reading:
    """Reads images `[B, H, W, 1]` in [-1, 1]; with keys `[B]` (consumed) dropout is on, as in training."""
    return cast(Reading, _module(captcha, config).apply({"params": params}, images, dropout_keys))


def dropout(keys: jax.Array | None, x: jax.Array, *, rate: float, layer: int) -> jax.Array:
    """`[B, ...]` with each entry 0 at that rate or divided by the rate of the others; without keys, as it is.

    Keys `[B]`, one an image and not one a batch, so that what an image loses does not depend on how a batch is divided.
    Each layer has its number; the keys are consumed for it alone.
    """
    if keys is None:
        return x

    def kept(key: jax.Array) -> jax.Array:
        return jax.random.bernoulli(jax.random.fold_in(key, layer), 1.0 - rate, x.shape[1:])

    return jnp.where(jax.vmap(kept)(keys), x / (1.0 - rate), 0.0)
