"""The image contract: float32 `[B, H, W, 1]` in [-1, 1] on the device, uint8 `[N, H, W]` at rest.

Background is -1 (0), ink is +1 (255). Real and simulated images become ink by the same functions.
"""

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 8


def to_unit(images: jax.Array) -> jax.Array:
    """Float32 `[B, H, W, 1]` in [-1, 1] of uint8 `[B, H, W]`."""
    # XLA multiplies by a rounded 1 / 127.5, which alone would take 255 to 1.0000001.
    return jnp.minimum(images.astype(jnp.float32) / 127.5 - 1.0, 1.0)[..., None]


def to_uint8(images: jax.Array) -> jax.Array:
    """Uint8 `[B, H, W]` of `[B, H, W, 1]` in [-1, 1], rounded to the nearest level."""
    return jnp.clip(jnp.round((images[..., 0] + 1.0) * 127.5), 0, 255).astype(jnp.uint8)


def binarise(gray: jax.Array, *, threshold: int) -> jax.Array:
    """Uint8 0 or 255 of gray `[..., H, W]`: ink is above the threshold or exactly 0 (the seed's rule).

    Idempotent up to the seed's own special case: pure black counts as ink only in an image that was
    never binarised, so an already binary image (values 0 and 255 alone) comes back unchanged.
    """
    gray = jnp.asarray(gray)
    binary = jnp.all((gray == 0) | (gray == 255), axis=(-2, -1), keepdims=True)
    ink = (gray > threshold) | ((gray == 0) & ~binary)
    return jnp.where(ink, 255, 0).astype(jnp.uint8)


def extract_ink(
    gray: jax.Array, background: np.ndarray, mask: np.ndarray, *, level: float, rounds: int = 3
) -> jax.Array:
    """Ink in [0, 1] of gray `[B, H, W]`: the share of the way from the background to the ink level.

    Args:
      gray: `[B, H, W]` 0 to 255.
      background: `[H, W]` gray of the empty captcha.
      mask: `[H, W]` bool, pixels whose background is as bright as ink; they are filled from their neighbours.
      level: gray of full ink, above or below the background.
      rounds: rings of masked pixels that are filled.
    """
    contrast = np.where(mask, 1.0, level - background).astype(np.float32)
    ink = (gray.astype(jnp.float32) - jnp.asarray(background)[None]) / jnp.asarray(contrast)[None]
    return inpaint(jnp.clip(ink, 0.0, 1.0), mask, rounds=rounds)


def inpaint(ink: jax.Array, mask: np.ndarray, *, rounds: int = 3) -> jax.Array:
    """Fills masked pixels of `[B, H, W]` with the mean of their known 3x3 neighbours, ring by ring, the rest with 0.

    Args:
      ink: `[B, H, W]`; what it holds under the mask is not looked at.
      mask: `[H, W]` bool; an array of NumPy, as it decides what is computed.
      rounds: rings that are filled.
    """
    source, rings = _rings(np.asarray(mask), rounds)
    known = ink.reshape(ink.shape[0], -1)
    for neighbours, weights in rings:
        filled = sum(
            _take(known, index) * jnp.asarray(share)[None] for index, share in zip(neighbours, weights, strict=True)
        )
        known = jnp.concatenate([known, filled], axis=1)
    known = jnp.concatenate([known, jnp.zeros_like(known[:, :1])], axis=1)
    return _take(known, source).reshape(ink.shape)


def _rings(mask: np.ndarray, rounds: int) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """How to fill a mask: where each pixel `[H * W]` lies in a list of all pixels, the filled ones, and a zero.

    Each ring has the neighbours `[8, M]` of its M pixels as places in that list, and their weights `[8, M]`.
    """
    height, width = mask.shape
    place = np.pad(np.where(mask, -1, np.arange(mask.size).reshape(mask.shape)), 1, constant_values=-1)
    inner = place[1:-1, 1:-1]
    steps = [(dy, dx) for dy in range(3) for dx in range(3) if (dy, dx) != (1, 1)]
    end, rings = mask.size, []
    for _ in range(rounds):
        around = np.stack([place[dy : dy + height, dx : dx + width] for dy, dx in steps])
        ring = (inner < 0) & (around >= 0).any(axis=0)
        neighbours = around[:, ring]
        weights = (neighbours >= 0) / np.maximum((neighbours >= 0).sum(axis=0), 1)
        rings.append((np.maximum(neighbours, 0), weights.astype(np.float32)))
        inner[ring] = end + np.arange(ring.sum())
        end += int(ring.sum())
    return np.where(inner < 0, end, inner).reshape(-1), rings


def codec(gray: jax.Array, table: jax.Array) -> jax.Array:
    """Gray `[B, H, W]` after one generation of JPEG luma coding with a quantisation table `[8, 8]`.

    Blocks of 8x8, orthonormal DCT-II, coefficients rounded to multiples of the table, edges replicated
    (ITU-T T.81, A.3). Gray is in whole levels, 0 to 255.
    """
    height, width = gray.shape[-2:]
    into, back = _block_order(height, width)
    # One 64x64 matrix for both directions of a block: one large product instead of many tiny ones. Its entries are
    # multiples of 2^-13, so that sums of whole numbers are exact in float32, in any order and in a batch of any size.
    dct = dct_matrix()
    basis = jnp.asarray((np.round(np.kron(dct, dct) * 2.0**13) * 2.0**-13).astype(np.float32))
    steps = table.astype(jnp.float32).reshape(1, -1)
    blocks = _take(gray.reshape(gray.shape[0], -1), into).reshape(-1, BLOCK * BLOCK) - 128.0
    coefficients = jnp.dot(blocks, basis.T, precision="highest")
    # Encoders keep eighths of a coefficient.
    quantised = _round_away(jnp.round(8.0 * coefficients) / (8.0 * steps)) * steps
    decoded = jnp.dot(quantised, basis, precision="highest")
    levels = jnp.clip(jnp.round(decoded + 128.0), 0.0, 255.0)
    return _take(levels.reshape(gray.shape[0], -1), back).reshape(gray.shape)


def _round_away(x: jax.Array) -> jax.Array:
    """Nearest whole numbers, halves away from 0 as encoders round them."""
    return jnp.trunc(x + jnp.where(x < 0, -0.5, 0.5))


def _block_order(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels in the order of 8x8 blocks, edges replicated, as places in the image `[H * W]`; and the way back."""
    rows, columns = -(-height // BLOCK), -(-width // BLOCK)

    def tiled(image: np.ndarray) -> np.ndarray:
        return image.reshape(rows, BLOCK, columns, BLOCK).swapaxes(1, 2)

    y = np.minimum(np.arange(rows * BLOCK), height - 1)[:, None]
    x = np.minimum(np.arange(columns * BLOCK), width - 1)[None, :]
    into = tiled(y * width + x).reshape(-1)
    place = np.arange(into.size).reshape(rows, columns, BLOCK, BLOCK).swapaxes(1, 2)
    return into, place.reshape(rows * BLOCK, columns * BLOCK)[:height, :width].reshape(-1)


def _take(rows: jax.Array, index: np.ndarray) -> jax.Array:
    """Columns `[B, M]` of rows `[B, N]`."""
    return rows.at[:, index.astype(np.int32)].get(mode="promise_in_bounds")


def dct_matrix() -> np.ndarray:
    """Orthonormal DCT-II matrix float64 `[8, 8]`; row u holds the u-th cosine."""
    u, x = np.arange(BLOCK)[:, None], np.arange(BLOCK)[None, :]
    matrix = np.sqrt(2.0 / BLOCK) * np.cos((2 * x + 1) * u * np.pi / (2 * BLOCK))
    matrix[0] /= np.sqrt(2.0)
    return matrix
