"""Layout laws: where glyphs stand, how they turn, which style they have. One key, one image.

`wide_law` covers more than any target shows; `seed_law` is the notebook's; `fitted_law` draws poses that were
found in the unlabelled target. Lengths are shares of the image height, so that a law fits any size of captcha.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from simgan_jax.config import CaptchaConfig, SynthesizerConfig

# The notebook's law, in shares of its image height: text drawn at the top left of a tile, which is turned about its
# middle with expansion and pasted at whole pixels, x at i * pitch + U(0, spread), y from a range for each way of
# turning. SEED_GLYPH is where Pillow so puts the middle of a glyph of 0.52 of the height, on average over the faces of
# glyphs.py. Runs narrower than SEED_RUN are no character.
SEED_TILE = 0.8
SEED_GLYPH = (0.36, 0.14)
SEED_PITCH, SEED_SPREAD = 0.4, 0.5
SEED_LEFT_Y, SEED_RIGHT_Y = (-0.1, 0.5), (0.0, 0.4)
SEED_ROTATION = 20.0
SEED_RUN = 0.16


class Layout(NamedTuple):
    """Where and how glyphs stand. labels: `[..., L]`; style: `[..., L]`; centre: `[..., L, 2]` (y, x) pixels;
    matrix: `[..., L, 2, 2]` from glyph to image directions; rotation: `[..., L]` radians."""

    labels: jax.Array
    style: jax.Array
    centre: jax.Array
    matrix: jax.Array
    rotation: jax.Array


def affine(rotation: jax.Array, scale: jax.Array, shear: jax.Array) -> jax.Array:
    """Matrices `[..., 2, 2]` (y, x) of a rotation (radians, counter-clockwise), a scale and a shear."""
    cos, sin = scale * jnp.cos(rotation), scale * jnp.sin(rotation)
    # Written out: a matrix product may round differently in a batch than alone.
    rows = [jnp.stack([cos - sin * shear, -sin], -1), jnp.stack([sin + cos * shear, cos], -1)]
    return jnp.stack(rows, -2)


def wide_law(key: jax.Array, styles: int, *, captcha: CaptchaConfig, config: SynthesizerConfig) -> Layout:
    """Even slots, uniform jitter, rotation, scale and shear; one style for an image. The key is consumed."""
    length, height = captcha.length, captcha.height
    label_key, style_key, x_key, y_key, turn_key, scale_key, shear_key = jax.random.split(key, 7)
    slot = captcha.width * (jnp.arange(length, dtype=jnp.float32) + 0.5) / length
    x = slot + _signed(x_key, (length,)) * config.jitter_x * height
    y = height * (0.5 + _signed(y_key, (length,)) * config.jitter_y)
    rotation = jnp.deg2rad(config.rotation) * _signed(turn_key, (length,))
    scale = 1.0 + config.scale * jnp.broadcast_to(_signed(scale_key, ()), (length,))
    shear = config.shear * jnp.broadcast_to(_signed(shear_key, ()), (length,))
    return Layout(
        labels=jax.random.randint(label_key, (length,), 0, len(captcha.alphabet)),
        style=jnp.broadcast_to(jax.random.randint(style_key, (), 0, styles), (length,)),
        centre=jnp.stack([y, x], -1),
        matrix=affine(rotation, scale, shear),
        rotation=rotation,
    )


def seed_law(key: jax.Array, styles: int, *, captcha: CaptchaConfig) -> Layout:
    """The notebook's law, before its rejection (`separated`). The key is consumed."""
    length, height = captcha.length, float(captcha.height)
    label_key, style_key, x_key, y_key, side_key, turn_key = jax.random.split(key, 6)
    left = jax.random.bernoulli(side_key, 0.5, (length,))
    size = jnp.deg2rad(SEED_ROTATION) * jax.random.uniform(turn_key, (length,))
    rotation = jnp.where(left, size, -size)
    share = jax.random.uniform(y_key, (length,))
    low = jnp.where(left, SEED_LEFT_Y[0], SEED_RIGHT_Y[0])
    high = jnp.where(left, SEED_LEFT_Y[1], SEED_RIGHT_Y[1])
    paste_y = height * (low + (high - low) * share)
    paste_x = height * (SEED_PITCH * jnp.arange(length) + SEED_SPREAD * jax.random.uniform(x_key, (length,)))
    matrix = affine(rotation, jnp.ones((length,)), jnp.zeros((length,)))
    y, x = (height * (place - SEED_TILE / 2) for place in SEED_GLYPH)
    middle = jnp.ceil(height * SEED_TILE / 2 * (jnp.abs(jnp.cos(rotation)) + jnp.abs(jnp.sin(rotation))))
    corner = jnp.trunc(jnp.stack([paste_y, paste_x], -1))
    centre = corner + middle[:, None] + (matrix[:, :, 0] * y + matrix[:, :, 1] * x)
    return Layout(
        labels=jax.random.randint(label_key, (length,), 0, len(captcha.alphabet)),
        style=jnp.broadcast_to(jax.random.randint(style_key, (), 0, styles), (length,)),
        centre=centre,
        matrix=matrix,
        rotation=rotation,
    )


def separated(ink: jax.Array, *, length: int) -> jax.Array:
    """Bool `[B]`: ink `[B, H, W]` in [0, 1] shows exactly `length` runs of inked columns (the notebook's rejection)."""
    height, width = ink.shape[1:]
    columns = jnp.sum(ink > 0.5, axis=1)
    blank = columns < columns.min(axis=1, keepdims=True) + 2
    index = jnp.arange(width)[None]
    following = jnp.where(blank, index, width * 2)[:, 1:]
    following = jax.lax.cummin(following, axis=1, reverse=True)
    gap = following - index[:, :-1]
    runs = blank[:, :-1] & (gap >= SEED_RUN * height) & (following < width)
    return runs.sum(axis=1) == length


def fitted_law(
    key: jax.Array, styles: int, poses: jax.Array, *, captcha: CaptchaConfig, config: SynthesizerConfig
) -> Layout:
    """Poses drawn from those found in the target, slots independent, with a little jitter. The key is consumed.

    Args:
      styles: number of styles in the atlas.
      poses: `[M, L, 3]` (y, x in pixels, radians) of target images.
    """
    length = captcha.length
    label_key, style_key, row_key, jitter_key, scale_key, shear_key = jax.random.split(key, 6)
    row = jax.random.randint(row_key, (length,), 0, poses.shape[0])
    spread = jnp.asarray([config.fitted_shift * captcha.height] * 2 + [jnp.deg2rad(config.fitted_turn)])
    pose = poses[row, jnp.arange(length)] + _signed(jitter_key, (length, 3)) * spread[None]
    rotation = pose[:, 2]
    scale = 1.0 + config.fitted_scale * _signed(scale_key, (length,))
    shear = config.fitted_scale * _signed(shear_key, (length,))
    return Layout(
        labels=jax.random.randint(label_key, (length,), 0, len(captcha.alphabet)),
        style=jnp.broadcast_to(jax.random.randint(style_key, (), 0, styles), (length,)),
        centre=pose[:, :2],
        matrix=affine(rotation, scale, shear),
        rotation=rotation,
    )


def _signed(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)
