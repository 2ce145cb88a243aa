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
    label, style, x, y, turn, scale, shear = _uniform(key, 7, length)
    slot = captcha.width * (jnp.arange(length, dtype=jnp.float32) + 0.5) / length
    x = slot + config.jitter_x * height * _signed(x)
    y = height * (0.5 + config.jitter_y * _signed(y))
    rotation = jnp.deg2rad(config.rotation) * _signed(turn)
    scale = 1.0 + config.scale * _signed(_shared(scale))
    shear = config.shear * _signed(_shared(shear))
    return Layout(
        labels=_choice(label, len(captcha.alphabet)),
        style=_choice(_shared(style), styles),
        centre=jnp.stack([y, x], -1),
        matrix=affine(rotation, scale, shear),
        rotation=rotation,
    )


def seed_law(key: jax.Array, styles: int, *, captcha: CaptchaConfig) -> Layout:
    """The notebook's law, before its rejection (`separated`). The key is consumed."""
    length, height = captcha.length, float(captcha.height)
    label, style, x, y, side, turn = _uniform(key, 6, length)
    left = side < 0.5
    size = jnp.deg2rad(SEED_ROTATION) * turn
    rotation = jnp.where(left, size, -size)
    low = jnp.where(left, SEED_LEFT_Y[0], SEED_RIGHT_Y[0])
    high = jnp.where(left, SEED_LEFT_Y[1], SEED_RIGHT_Y[1])
    pitch = SEED_PITCH * jnp.arange(length, dtype=jnp.float32)
    corner = jnp.trunc(height * jnp.stack([low + (high - low) * y, pitch + SEED_SPREAD * x], -1))
    matrix = affine(rotation, jnp.ones((length,)), jnp.zeros((length,)))
    middle = jnp.ceil(height * SEED_TILE / 2 * (jnp.abs(jnp.cos(rotation)) + jnp.abs(jnp.sin(rotation))))
    down, right = (height * (place - SEED_TILE / 2) for place in SEED_GLYPH)
    centre = corner + middle[:, None] + (matrix[:, :, 0] * down + matrix[:, :, 1] * right)
    return Layout(
        labels=_choice(label, len(captcha.alphabet)),
        style=_choice(_shared(style), styles),
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
    label, style, row, y, x, turn, scale, shear = _uniform(key, 8, length)
    shift = config.fitted_shift * captcha.height
    jitter = [shift * _signed(y), shift * _signed(x), jnp.deg2rad(config.fitted_turn) * _signed(turn)]
    pose = poses[_choice(row, poses.shape[0]), jnp.arange(length)] + jnp.stack(jitter, -1)
    rotation = pose[:, 2]
    scale = 1.0 + config.fitted_scale * _signed(scale)
    shear = config.fitted_scale * _signed(shear)
    return Layout(
        labels=_choice(label, len(captcha.alphabet)),
        style=_choice(_shared(style), styles),
        centre=pose[:, :2],
        matrix=affine(rotation, scale, shear),
        rotation=rotation,
    )


def _uniform(key: jax.Array, *shape: int) -> jax.Array:
    """All numbers of a layout in one call, which compiles several times as fast as a call for each."""
    return jax.random.uniform(key, shape)


def _signed(share: jax.Array) -> jax.Array:
    return 2.0 * share - 1.0


def _shared(share: jax.Array) -> jax.Array:
    return jnp.broadcast_to(share[0], share.shape)


def _choice(share: jax.Array, count: int) -> jax.Array:
    return (share * count).astype(jnp.int32)
