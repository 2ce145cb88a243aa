"""Keyed synthesis of labelled captchas on the device.

`key -> (ink, labels, poses)`: every image is a pure function of its own key, so an image is the same alone or
in a batch. A law (`layout.py`) draws where glyphs stand; what comes after is deterministic. `draw` is the fast way,
in whole numbers; `render` draws the same in float32 and has gradients, to fit glyphs and poses to a target.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from simgan_jax import backend, blocks, images, target
from simgan_jax.config import Config
from simgan_jax.layout import Layout

# Glyph coordinates are whole numbers of 2^-14 pixels, of which 8 bits weigh neighbouring pixels.
FRACTION_BITS, WEIGHT_BITS = 14, 8


class Synthetic(NamedTuple):
    """A drawn batch. ink: uint8 `[B, H, W]`; labels: int32 `[B, L]`; poses: float32 `[B, L, 3]` (y, x, radians)."""

    ink: jax.Array
    labels: jax.Array
    poses: jax.Array


def cell_size(height: int, sizes: tuple[float, ...]) -> int:
    """Side of a glyph cell that holds the largest glyph at any rotation, pixels."""
    return 2 * round(0.75 * max(sizes) * height + 2)


def pack(atlas: jax.Array) -> jax.Array:
    """Uint32 `[K, V, S, S]` of an atlas in [0, 1]: each pixel with its right, lower and lower right neighbours.

    A byte each, so that one look-up gives all that a bilinear sample needs.
    """
    levels = jnp.pad(jnp.round(atlas * 255.0).astype(jnp.uint32), ((0, 0), (0, 0), (0, 1), (0, 1)))
    upper, lower = levels[:, :, :-1], levels[:, :, 1:]
    return upper[..., :-1] | upper[..., 1:] << 8 | lower[..., :-1] << 16 | lower[..., 1:] << 24


def draw(packed: jax.Array, layout: Layout, *, height: int, width: int) -> jax.Array:
    """Coverage in [0, 1], `[B, H, W]`: glyphs `[B, L]` laid opaque over each other, as `render` within 2/255.

    Args:
      packed: uint32 `[K, V, S, S]` from `pack`.
      layout: leaves with a leading `[B, L]`.
    """
    size = packed.shape[-1]
    inverse, offset, page = _glyph_frame(layout, packed.shape)
    # Half a weight more, for the weights are cut, not rounded.
    frame = _fixed(inverse), _fixed(offset + 0.5**WEIGHT_BITS / 2)
    matrix, shift, page = jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), (*frame, page))
    rows, columns = (jnp.asarray(index.reshape(1, -1)) for index in np.indices((height, width), np.int32))
    limit = jnp.uint32((size - 1) << FRACTION_BITS)

    def cell(matrix: jax.Array, shift: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        y, x = (
            matrix[:, axis, 0, None] * rows + matrix[:, axis, 1, None] * columns + shift[:, axis, None]
            for axis in (0, 1)
        )
        return y, x, (y.astype(jnp.uint32) < limit) & (x.astype(jnp.uint32) < limit)

    def place(matrix: jax.Array, shift: jax.Array, page: jax.Array) -> jax.Array:
        y, x, inside = cell(matrix, shift)
        return page[:, None] + jnp.where(inside, (y >> FRACTION_BITS) * size + (x >> FRACTION_BITS), 0)

    def lay(bare: jax.Array, glyph: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        matrix, shift, taps = glyph
        y, x, inside = cell(matrix, shift)
        level = jnp.where(inside, _interpolate(taps, _weight(y), _weight(x)), 0)
        scale = 1.0 / (255 << 2 * WEIGHT_BITS)
        return bare * (1.0 - level.astype(jnp.int32).astype(jnp.float32) * scale), None

    taps = _look_up(packed.reshape(-1), jax.vmap(place)(matrix, shift, page))
    # A loop over the slots, not a row of them: XLA would draw anew for each use of the image in what follows.
    bare, _ = jax.lax.scan(lay, jnp.ones((page.shape[1], height * width)), (matrix, shift, taps))
    return (1.0 - bare).reshape(-1, height, width)


def _fixed(x: jax.Array) -> jax.Array:
    return jnp.round(x * 2.0**FRACTION_BITS).astype(jnp.int32)


def _weight(x: jax.Array) -> jax.Array:
    return (x.astype(jnp.uint32) >> (FRACTION_BITS - WEIGHT_BITS)) & (2**WEIGHT_BITS - 1)


def _interpolate(taps: jax.Array, fy: jax.Array, fx: jax.Array) -> jax.Array:
    """255 * 2^16 times the bilinear sample: both rows of two pixels at once, in the halves of 32 bits."""
    one, halves = 2**WEIGHT_BITS, 0x00FF00FF
    both = (taps & halves) * (one - fx) + ((taps >> 8) & halves) * fx
    return (both & 0xFFFF) * (one - fy) + (both >> 16) * fy


def render(atlas: jax.Array, layout: Layout, *, height: int, width: int) -> jax.Array:
    """Coverage in [0, 1], `[B, H, W]`: glyphs `[B, L]` laid opaque over each other; differentiable.

    Gradients reach the atlas and the layout's centre and matrix. A glyph is looked for in S columns about its centre.

    Args:
      atlas: `[K, V, S, S]` in [0, 1], or the same packed: 8 bits a pixel, no gradient, and one look-up instead of four.
      layout: leaves with a leading `[B, L]`.
    """
    size = atlas.shape[-1]
    inverse, offset, page = _glyph_frame(layout, atlas.shape)
    corner = jnp.floor(layout.centre[..., 1]) - size // 2
    offset = offset + inverse[..., 1] * corner[..., None]
    rows, columns = (jnp.asarray(index.reshape(1, -1)) for index in np.indices((height, size)).astype(np.float32))

    def cell(slot: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        y, x = (
            inverse[:, slot, axis, 0, None] * rows
            + inverse[:, slot, axis, 1, None] * columns
            + offset[:, slot, axis, None]
            for axis in (0, 1)
        )
        return y, x, (y >= 0) & (y < size - 1) & (x >= 0) & (x < size - 1)

    def place(slot: int) -> jax.Array:
        y, x, inside = cell(slot)
        return page[:, slot, None] + jnp.where(inside, y.astype(jnp.int32) * size + x.astype(jnp.int32), 0)

    slots = range(page.shape[1])
    look_up = _packed_taps if atlas.dtype == jnp.uint32 else _taps
    bare = jnp.ones((page.shape[0], height, width))
    for slot, taps in zip(slots, look_up(atlas, [place(slot) for slot in slots]), strict=True):
        y, x, inside = cell(slot)
        a, b, c, d = (jnp.where(inside, tap, 0.0) for tap in taps)
        fy, fx = y - y.astype(jnp.int32), x - x.astype(jnp.int32)
        upper, lower = a + (b - a) * fx, c + (d - c) * fx
        strip = (upper + (lower - upper) * fy).reshape(-1, height, size)
        columns_at = _placement(corner[:, slot], size, width)
        bare = bare * (1.0 - jnp.einsum("bhs,bws->bhw", strip, columns_at, precision="highest"))
    return 1.0 - bare


def _taps(atlas: jax.Array, places: list[jax.Array]) -> list[list[jax.Array]]:
    """For each of L arrays of places in an atlas the pixels there, their right, lower and lower right neighbours."""
    size = atlas.shape[-1]
    # Four shifted atlases and one index, not four indices: the index, and in the gradient its scatter, is slow to make.
    neighbours = [jnp.roll(atlas.reshape(-1), -step) for step in (0, 1, size, size + 1)]
    return [[pixels.at[place].get(mode="promise_in_bounds") for pixels in neighbours] for place in places]


def _packed_taps(packed: jax.Array, places: list[jax.Array]) -> list[list[jax.Array]]:
    """The same of a packed atlas."""
    fours = _look_up(packed.reshape(-1), jnp.stack(places))
    return [[((four >> bits) & 0xFF).astype(jnp.int32) * (1.0 / 255.0) for bits in (0, 8, 16, 24)] for four in fours]


def _look_up(pixels: jax.Array, places: jax.Array) -> jax.Array:
    """Pixels `[...]` at places `[L, B, ...]`.

    A loop, out of which XLA fuses nothing: what makes places and what is made of pixels would not be vectorised in one
    program with a gather.
    """
    return jax.lax.map(lambda place: pixels.at[place].get(mode="promise_in_bounds"), places)


def _placement(corner: jax.Array, size: int, extent: int) -> jax.Array:
    """0/1 matrices `[B, extent, size]` that put strips at whole corners `[B]`; what leaves the image is cut."""
    where = corner[:, None, None] + jnp.arange(size, dtype=jnp.float32)[None, None, :]
    return (where == jnp.arange(extent, dtype=jnp.float32)[None, :, None]).astype(jnp.float32)


def _glyph_frame(layout: Layout, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What takes an image point p to its glyph's cell, `inverse @ p + offset`, and the cell's place in the atlas.

    Returns inverse `[B, L, 2, 2]`, offset `[B, L, 2]`, page int32 `[B, L]`.
    """
    _, vocabulary, size, _ = shape
    a, b, c, d = (layout.matrix[..., i, j] for i in (0, 1) for j in (0, 1))
    adjugate = jnp.stack([jnp.stack([d, -b], -1), jnp.stack([-c, a], -1)], -2)
    inverse = adjugate / (a * d - b * c)[..., None, None]
    y, x = layout.centre[..., 0, None], layout.centre[..., 1, None]
    offset = size // 2 - (inverse[..., 0] * y + inverse[..., 1] * x)
    return inverse, offset, (layout.style * vocabulary + layout.labels) * (size * size)


def develop(coverage: jax.Array, scene: target.Scene, *, config: Config) -> jax.Array:
    """Uint8 ink `[B, H, W]` of coverage `[B, H, W]`: painted on the scene, coded, and read back as a real image is."""
    background = jnp.asarray(scene.background)[None]
    gray = jnp.round(background + coverage * (scene.level - background))
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
    left: jax.Array | None = None,
) -> Synthetic:
    """Captchas of keys `[B]`, each a function of its own key alone.

    Args:
      keys: typed keys `[B]`; consumed.
      atlas: `[K, V, S, S]` in [0, 1], or the same packed, which saves packing a large one in every call.
      scene: what the target's images share.
      law: key -> layout of one image (leaves `[L, ...]`).
      left: int8 `[M, H, W]` in 127ths, what drawings left of real captchas; one, drawn at random, is added to each.
    """

    def place(key: jax.Array) -> tuple[Layout, jax.Array | None]:
        if left is None:
            return law(key), None
        own, other = jax.random.split(key)
        return law(own), jax.random.randint(other, (), 0, len(left))

    packed = atlas if atlas.dtype == jnp.uint32 else pack(atlas)

    def make(placed: tuple[Layout, jax.Array | None]) -> jax.Array:
        layout, other = placed
        coverage = draw(packed, layout, height=config.captcha.height, width=config.captcha.width)
        if left is not None:
            coverage = jnp.clip(coverage + left[other].astype(jnp.float32) / 127.0, 0.0, 1.0)
        return develop(coverage, scene, config=config)

    layout, other = jax.vmap(place)(keys)
    ink = blocks.map_blocks((layout, other), make, block=backend.drawings())
    return Synthetic(ink, layout.labels, jnp.concatenate([layout.centre, layout.rotation[..., None]], -1))
