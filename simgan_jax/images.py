"""The image contract: float32 `[B, H, W, 1]` in [-1, 1] on the device, uint8 `[N, H, W]` at rest.

Background is -1 (0), ink is +1 (255). Real and simulated images become ink by the same functions.
"""

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 8


def to_unit(images: jax.Array) -> jax.Array:
    """Float32 `[B, H, W, 1]` in [-1, 1] of uint8 `[B, H, W]`."""
    return (images.astype(jnp.float32) / 127.5 - 1.0)[..., None]


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


def extract_ink(gray: jax.Array, background: jax.Array, mask: jax.Array, *, level: jax.Array | float) -> jax.Array:
    """Ink in [0, 1] of gray `[B, H, W]`: the share of the way from the background to the ink level.

    Args:
      gray: `[B, H, W]` 0 to 255.
      background: `[H, W]` gray of the empty captcha.
      mask: `[H, W]` bool, pixels whose background is as bright as ink; they are filled from their neighbours.
      level: gray of full ink, above or below the background.
    """
    contrast = jnp.where(mask, 1.0, level - background)
    ink = jnp.clip((gray.astype(jnp.float32) - background) / contrast, 0.0, 1.0)
    return inpaint(ink, mask)


def inpaint(ink: jax.Array, mask: jax.Array, *, rounds: int = 3) -> jax.Array:
    """Fills masked pixels of `[B, H, W]` with the mean of their known 3x3 neighbours, ring by ring."""
    known = jnp.where(mask, 0.0, 1.0)
    ink = ink * known
    for _ in range(rounds):
        total, count = _box_sum(ink), _box_sum(known[None])
        filled = jnp.where(count > 0, total / jnp.maximum(count, 1.0), 0.0)
        ink = jnp.where(known[None] > 0, ink, filled)
        known = jnp.where(count[0] > 0, 1.0, known)
    return ink


def _box_sum(x: jax.Array) -> jax.Array:
    x = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
    x = x[:, :-2] + x[:, 1:-1] + x[:, 2:]
    x = jnp.pad(x, ((0, 0), (0, 0), (1, 1)))
    return x[..., :-2] + x[..., 1:-1] + x[..., 2:]


def codec(gray: jax.Array, table: jax.Array) -> jax.Array:
    """Gray `[B, H, W]` after one generation of JPEG luma coding with a quantisation table `[8, 8]`.

    Blocks of 8x8, orthonormal DCT-II, coefficients rounded to multiples of the table, edges replicated
    (ITU-T T.81, A.3).
    """
    height, width = gray.shape[-2:]
    pad_h, pad_w = -height % BLOCK, -width % BLOCK
    padded = jnp.pad(gray - 128.0, ((0, 0), (0, pad_h), (0, pad_w)), mode="edge")
    rows, columns = padded.shape[-2] // BLOCK, padded.shape[-1] // BLOCK
    blocks = padded.reshape(-1, rows, BLOCK, columns, BLOCK)
    dct = jnp.asarray(dct_matrix())
    coefficients = jnp.einsum("ui,briaj,vj->bruav", dct, blocks, dct)
    table = table.astype(jnp.float32)[:, None, :]
    quantised = jnp.round(coefficients / table) * table
    decoded = jnp.einsum("ui,bruav,vj->briaj", dct, quantised, dct)
    decoded = decoded.reshape(padded.shape)[:, :height, :width] + 128.0
    return jnp.clip(jnp.round(decoded), 0.0, 255.0)


def dct_matrix() -> np.ndarray:
    """Orthonormal DCT-II matrix `[8, 8]`; row u holds the u-th cosine."""
    u, x = np.arange(BLOCK)[:, None], np.arange(BLOCK)[None, :]
    matrix = np.sqrt(2.0 / BLOCK) * np.cos((2 * x + 1) * u * np.pi / (2 * BLOCK))
    matrix[0] /= np.sqrt(2.0)
    return matrix.astype(np.float32)
