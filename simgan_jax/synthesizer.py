"""Keyed synthesis of labelled captchas on the device.

`key -> (images, labels, poses)`: every image is a pure function of its own key, so an image is the same
alone or in a batch. A law (`layout.py`) draws where glyphs stand; `render` and `develop` are deterministic.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from simgan_jax import images, target
from simgan_jax.config import Config
from simgan_jax.layout import Layout


class Synthetic(NamedTuple):
    """A drawn batch. ink: uint8 `[B, H, W]`; labels: int32 `[B, L]`; poses: float32 `[B, L, 3]` (y, x, radians)."""

    ink: jax.Array
    labels: jax.Array
    poses: jax.Array


def cell_size(height: int, sizes: tuple[float, ...]) -> int:
    """Side of a glyph cell that holds the largest glyph at any rotation, pixels."""
    return 2 * round(0.75 * max(sizes) * height + 2)


def render(atlas: jax.Array, layout: Layout, *, height: int, width: int) -> jax.Array:
    """Coverage in [0, 1], `[B, H, W]`: glyphs `[B, L]` laid opaque over each other.

    Args:
      atlas: `[K, V, S, S]` in [0, 1].
      layout: leaves with a leading `[B, L]`.
    """
    cells = _warp(atlas, layout)
    size = atlas.shape[-1]
    corner = jnp.floor(layout.centre) - size // 2
    rows = _placement(corner[..., 0], size, height)
    columns = _placement(corner[..., 1], size, width)
    planes = jnp.einsum("blhs,blst,blwt->blhw", rows, cells, columns)
    return 1.0 - jnp.prod(1.0 - jnp.clip(planes, 0.0, 1.0), axis=1)


def _placement(corner: jax.Array, size: int, extent: int) -> jax.Array:
    """0/1 matrices `[B, L, extent, size]` that put a cell at an integer corner; what leaves the image is cut."""
    where = corner[..., None, None] + jnp.arange(size, dtype=jnp.float32)[None, None, None, :]
    return (where == jnp.arange(extent, dtype=jnp.float32)[None, None, :, None]).astype(jnp.float32)


def _warp(atlas: jax.Array, layout: Layout) -> jax.Array:
    """Cells `[B, L, S, S]` under each glyph's matrix and sub-pixel shift, bilinear."""
    _, vocabulary, size, _ = atlas.shape
    middle = size // 2
    offset = jnp.arange(size, dtype=jnp.float32) - middle
    grid = jnp.stack(jnp.meshgrid(offset, offset, indexing="ij"), -1)
    fraction = layout.centre - jnp.floor(layout.centre)
    inverse = _inverse(layout.matrix)
    moved = grid[None, None] - fraction[:, :, None, None, :]
    source = (
        inverse[:, :, None, None, :, 0] * moved[..., 0:1]
        + inverse[:, :, None, None, :, 1] * moved[..., 1:2]
        + float(middle)
    )
    y, x = source[..., 0], source[..., 1]
    y0, x0 = jnp.floor(y), jnp.floor(x)
    fy, fx = y - y0, x - x0
    base = ((layout.style * vocabulary + layout.labels) * (size * size))[:, :, None, None]
    flat = atlas.reshape(-1)
    yi, xi = y0.astype(jnp.int32), x0.astype(jnp.int32)

    def tap(dy: int, dx: int) -> jax.Array:
        row, column = yi + dy, xi + dx
        inside = (row >= 0) & (row < size) & (column >= 0) & (column < size)
        return jnp.where(inside, flat[jnp.where(inside, base + row * size + column, 0)], 0.0)

    top = tap(0, 0) * (1 - fx) + tap(0, 1) * fx
    bottom = tap(1, 0) * (1 - fx) + tap(1, 1) * fx
    return top * (1 - fy) + bottom * fy


def _inverse(matrix: jax.Array) -> jax.Array:
    a, b, c, d = matrix[..., 0, 0], matrix[..., 0, 1], matrix[..., 1, 0], matrix[..., 1, 1]
    adjugate = jnp.stack([jnp.stack([d, -b], -1), jnp.stack([-c, a], -1)], -2)
    return adjugate / (a * d - b * c)[..., None, None]


def develop(coverage: jax.Array, scene: target.Scene, *, config: Config) -> jax.Array:
    """Uint8 ink `[B, H, W]` of coverage `[B, H, W]`: painted on the scene, coded, and read back as a real image is."""
    background = jnp.asarray(scene.background)
    gray = background + coverage * (scene.level - background)
    if scene.table is not None and config.synthesizer.codec:
        gray = images.codec(gray, jnp.asarray(scene.table))
    return target.to_ink(gray, scene, config=config.target)


def synthesize(
    keys: jax.Array,
    atlas: jax.Array,
    scene: target.Scene,
    *,
    law: Callable[[jax.Array], Layout],
    config: Config,
) -> Synthetic:
    """Captchas of keys `[B]`, each a function of its own key alone.

    Args:
      keys: typed keys `[B]`; consumed.
      atlas: `[K, V, S, S]` in [0, 1].
      scene: what the target's images share.
      law: key -> layout of one image (leaves `[L, ...]`).
    """
    layout = jax.vmap(law)(keys)
    coverage = render(atlas, layout, height=config.captcha.height, width=config.captcha.width)
    poses = jnp.concatenate([layout.centre, layout.rotation[..., None]], -1)
    return Synthetic(develop(coverage, scene, config=config), layout.labels, poses)
