"""The unlabelled target: what its stack of images tells without one label."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from simgan_jax import images
from simgan_jax.config import ConfigError, TargetConfig

# Gray levels; images of one stack that differ by less are the same but for noise.
LEAST_CONTRAST = 8


@dataclasses.dataclass(frozen=True)
class Scene:
    """What all captchas of a target share.

    background: float32 `[H, W]` gray of the empty captcha; mask: bool `[H, W]` line pixels;
    level: gray of full ink; table: float32 `[8, 8]` luma quantisation of the files, or None.
    """

    background: np.ndarray
    mask: np.ndarray
    level: float
    table: np.ndarray | None


def estimate_scene(gray: np.ndarray, *, table: np.ndarray | None, config: TargetConfig) -> Scene:
    """The scene of a stack of gray images uint8 `[N, H, W]`.

    Ink covers a pixel in few of the images, so a quantile of the stack on the side away from the ink is the empty
    captcha; or its average, as in the seed, which keeps a shadow of the ink. Bright or dark ink is told by the longer
    tail of the deviations from the median.

    Raises:
      ConfigError: the images do not differ, so that nothing in them can be told to be ink.
    """
    stack = gray[:: max(1, len(gray) // config.background_images)]
    low, median, high = np.quantile(stack, (0.02, 0.5, 0.98), axis=0)
    if (high - low).max() < LEAST_CONTRAST:
        raise ConfigError(f"target: its {len(gray)} image(s) look alike: give more images, of different captchas")
    bright = (high - median).mean() >= (median - low).mean()
    if config.background == "average":
        background = average(stack)
    else:
        quantile = config.background_quantile if bright else 1.0 - config.background_quantile
        background = np.quantile(stack, quantile, axis=0).astype(np.float32)
    level = float(np.quantile(stack, 0.995 if bright else 0.005))
    contrast = (level - background) / (level - np.median(background))
    mask = contrast <= 1.0 - config.line_level
    return Scene(background, mask, level, None if table is None else np.asarray(table, np.float32))


def average(gray: np.ndarray) -> np.ndarray:
    """The mean image float32 `[H, W]` of a stack `[N, H, W]`."""
    return gray.mean(axis=0, dtype=np.float64).astype(np.float32)


def to_ink(gray: jax.Array, scene: Scene, *, config: TargetConfig) -> jax.Array:
    """Uint8 ink `[B, H, W]` of gray `[B, H, W]`; the one way of real and simulated images alike."""
    if config.representation == "binary":
        dark = scene.level < np.median(scene.background)
        seen, ground = (255 - gray, 255 - scene.background) if dark else (gray, scene.background)
        # Black counts as ink (the seed's rule), but not where the empty captcha itself is black.
        empty = (seen == 0) & jnp.asarray(ground < LEAST_CONTRAST)[None]
        binary = jnp.where(empty, jnp.uint8(0), images.binarise(seen, threshold=config.threshold))
        return jnp.where(jnp.asarray(scene.mask)[None], jnp.uint8(255), binary)
    ink = images.extract_ink(gray, scene.background, scene.mask, level=scene.level)
    return jnp.round(ink * 255.0).astype(jnp.uint8)


def prepare(gray: np.ndarray, scene: Scene, *, config: TargetConfig, batch_size: int = 1000) -> np.ndarray:
    """Uint8 ink `[N, H, W]` of a stack of gray images, in batches; the stack is left as it is."""
    convert = jax.jit(lambda batch: to_ink(batch, scene, config=config))
    out = np.empty(gray.shape, np.uint8)
    for start in range(0, len(gray), batch_size):
        batch = gray[start : start + batch_size]
        padded = np.pad(batch, ((0, batch_size - len(batch)), (0, 0), (0, 0))) if len(gray) > batch_size else batch
        out[start : start + len(batch)] = np.asarray(convert(jnp.asarray(padded)))[: len(batch)]
    return out
