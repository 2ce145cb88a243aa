"""What a refiner does to simulated captchas: are they still what their labels say, and do they pass as real.

Symbols: `N` captchas `[H, W]` of `L` glyphs. Nothing here needs a label of a real captcha.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from simgan_jax import discriminator, evaluate, images, losses, train
from simgan_jax.config import DiscriminatorConfig

CRITIC = DiscriminatorConfig(adversary="global", widths=(32, 32, 32, 32), spectral_norm=False, noise=0.0)
CRITIC_STEPS = 200
CRITIC_BATCH = 32
CRITIC_LR = 1e-3


class Preservation(NamedTuple):
    """How much of the labels a refiner keeps, shares in [0, 1], lengths in pixels.

    agreement, agreement_per_char: share of captchas, and of characters, that a classifier which never saw a refined
      image reads alike before and after; accuracy_before, accuracy_after: share that it reads right;
    shift, shift_high: mean and 95th percentile of how far a glyph's ink moved; lost: share of glyphs without ink after;
    change: mean |R(x) - x| per pixel, images in [-1, 1].
    """

    agreement: float
    agreement_per_char: float
    accuracy_before: float
    accuracy_after: float
    shift: float
    shift_high: float
    lost: float
    change: float


class CriticState(NamedTuple):
    """params and opt_state of the critic; step: `[]` int32."""

    params: discriminator.Params
    opt_state: optax.OptState
    step: jax.Array


def ink_centroids(ink: np.ndarray, poses: np.ndarray, *, radius: float) -> np.ndarray:
    """Centroid (y, x) of each glyph's ink in pixels, `[N, L, 2]`; NaN for a glyph without ink.

    Ink belongs to the glyph whose centre is nearest, if that is within the radius.

    Args:
      ink: uint8 `[N, H, W]`; poses: `[N, L, 3]`, of which y and x are used; radius: pixels.
    """
    height, width = ink.shape[1:]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    distance = np.square(y - poses[..., 0, None, None]) + np.square(x - poses[..., 1, None, None])
    nearest = distance.argmin(axis=1)[:, None] == np.arange(poses.shape[1])[None, :, None, None]
    weight = np.where(nearest & (distance <= radius * radius), ink[:, None].astype(np.float64), 0.0)
    total = weight.sum(axis=(2, 3))
    sums = np.stack([(weight * axis).sum(axis=(2, 3)) for axis in (y, x)], axis=-1)
    return np.where(total[..., None] > 0, sums / np.maximum(total, 1e-9)[..., None], np.nan)


def centroid_shift(before: np.ndarray, after: np.ndarray, poses: np.ndarray, *, radius: float) -> np.ndarray:
    """How far each glyph's ink centroid moved between two versions of images, pixels `[N, L]`; NaN where one has none.

    Args: as `ink_centroids`.
    """
    moved = ink_centroids(after, poses, radius=radius) - ink_centroids(before, poses, radius=radius)
    return np.sqrt(np.square(moved).sum(axis=-1))


def preservation(
    before: np.ndarray,
    after: np.ndarray,
    poses: np.ndarray,
    labels: np.ndarray,
    read_before: np.ndarray,
    read_after: np.ndarray,
    *,
    radius: float,
) -> Preservation:
    """Label preservation of a refiner on captchas that it did not train on.

    Args:
      before, after: uint8 `[N, H, W]`; poses: `[N, L, 3]`; labels: `[N, L]` that the simulator drew.
      read_before, read_after: `[N, L]`, what an independent classifier read in either.
    """
    present = np.isfinite(ink_centroids(before, poses, radius=radius)).all(axis=-1)
    shift = centroid_shift(before, after, poses, radius=radius)
    lost = present & np.isnan(shift)
    kept = shift[present & ~lost]
    return Preservation(
        agreement=float((read_before == read_after).all(axis=-1).mean()),
        agreement_per_char=float((read_before == read_after).mean()),
        accuracy_before=float((read_before == labels).all(axis=-1).mean()),
        accuracy_after=float((read_after == labels).all(axis=-1).mean()),
        shift=float(kept.mean()) if kept.size else float("nan"),
        shift_high=float(np.quantile(kept, 0.95)) if kept.size else float("nan"),
        lost=float(lost.sum() / max(1, present.sum())),
        change=float(np.abs(after.astype(np.float64) - before).mean() / 127.5),
    )


def critic_step(
    state: CriticState, key: jax.Array, data: tuple[jax.Array, jax.Array], *, config: DiscriminatorConfig
) -> tuple[CriticState, dict[str, jax.Array]]:
    """One Adam update of the critic on equal numbers of real and simulated captchas. The key is consumed.

    Args:
      data: real and simulated, uint8 `[N, H, W]` each; CRITIC_BATCH of each are drawn.
    """
    keys = jax.random.split(key, 2)
    real, fake = (
        images.to_unit(stack[jax.random.randint(k, (CRITIC_BATCH,), 0, stack.shape[0])])
        for k, stack in zip(keys, data, strict=True)
    )

    def objective(params: discriminator.Params) -> jax.Array:
        logits = discriminator.apply(params, jnp.concatenate([fake, real]), config=config)
        fake_logits, real_logits = jnp.split(logits, 2)
        return losses.discriminator_loss(fake_logits, real_logits).mean()

    loss, gradient = jax.value_and_grad(objective)(state.params)
    updates, opt_state = optax.adam(CRITIC_LR).update(gradient, state.opt_state)
    return CriticState(optax.apply_updates(state.params, updates), opt_state, state.step + 1), {"loss": loss}


def turing_auc(
    key: jax.Array,
    real: np.ndarray,
    fake: np.ndarray,
    *,
    steps: int = CRITIC_STEPS,
    config: DiscriminatorConfig = CRITIC,
) -> float:
    """AUC of a fresh critic that tells real captchas from others: 0.5 if it cannot, 1 if it always can.

    It is trained on the first half of either stack and scored on the second. The key is consumed.

    Args:
      real, fake: uint8 `[N, H, W]` and `[M, H, W]`, at least two each, in no order that means anything.

    Raises:
      EvaluationError: fewer.
    """
    if min(len(real), len(fake)) < 2:
        raise evaluate.EvaluationError(f"{len(real)} real and {len(fake)} other captchas: a critic needs two of each")
    init_key, train_key = jax.random.split(key)
    params = discriminator.init(init_key, config=config)
    state = CriticState(params, optax.adam(CRITIC_LR).init(params), jnp.zeros((), jnp.int32))
    halves = jnp.asarray(real[: len(real) // 2]), jnp.asarray(fake[: len(fake) // 2])

    def step(state: CriticState, key: jax.Array, data: Any) -> tuple[CriticState, dict[str, jax.Array]]:
        return critic_step(state, key, data, config=config)

    state = train.fit(state, train_key, step, halves, steps=steps, chunk=max(1, steps))

    @jax.jit
    def judge(params: discriminator.Params, batch: jax.Array) -> jax.Array:
        logits = discriminator.apply(params, images.to_unit(batch), config=config).mean(axis=(1, 2))
        return logits[:, losses.REAL] - logits[:, losses.REFINED]

    scores = [np.asarray(judge(state.params, jnp.asarray(stack[len(stack) // 2 :]))) for stack in (real, fake)]
    return evaluate.auc(scores[0], scores[1])


def turing_sheet(key: jax.Array, real: np.ndarray, fake: np.ndarray) -> tuple[np.ndarray, dict[str, str]]:
    """As many captchas of both kinds in a random order `[M, H, W]` for a human test, and what each number is.

    Numbers begin at 1. The key is consumed.
    """
    count = min(len(real), len(fake))
    order = np.asarray(jax.random.permutation(key, 2 * count))
    tiles = np.concatenate([real[:count], fake[:count]])[order]
    return tiles, {str(number): "real" if i < count else "refined" for number, i in enumerate(order, start=1)}
