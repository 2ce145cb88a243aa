"""Fits the simulator to the unlabelled target: glyph shapes and poses by analysis through synthesis.

A reader that was trained on simulated images alone guesses characters and poses of the target's captchas. Drawing
those guesses and comparing with the real ink gives a gradient for the glyph shapes that all captchas share and
for the pose of each glyph; the average over hundreds of sights of each character corrects wrong guesses.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from simgan_jax import layout, synthesizer
from simgan_jax.config import CaptchaConfig, FitConfig

# Shares of the image height that a glyph is tried to either side of where it stands: about the stems of an m.
ASIDE = (0.0, -0.06, 0.06, -0.12, 0.12, -0.18, 0.18)
# What the left edge of a cell counts of the right one when it is looked for.
TILT = 0.6


class FitState(NamedTuple):
    """atlas: `[K, V, S, S]` in [0, 1]; opt_state: of the atlas; poses: `[M, L, 3]`; first, second: their moments.

    Image i is drawn with style i mod K. Each style sees images of its own, so that their errors differ, and a
    classifier can't learn a character by a speck that only its fitted glyph has.
    """

    atlas: jax.Array
    opt_state: optax.OptState
    poses: jax.Array
    first: jax.Array
    second: jax.Array
    step: jax.Array


class Evidence(NamedTuple):
    """ink: uint8 `[M, H, W]`; labels: int32 `[M, L]` that a reader guessed; known: `[H, W]` 1 where ink is seen."""

    ink: jax.Array
    labels: jax.Array
    known: jax.Array


def choose(probabilities: np.ndarray, *, config: FitConfig) -> np.ndarray:
    """Indices of the images to fit on, from readings `[N, L, V]`: the surest sights of every character.

    An image is as sure as its least sure character. Each character ranks the images that it is read in, an image
    counts by the best of its ranks, and the best `config.images`, but no more than `config.share` of all, are taken:
    otherwise characters that are hard to read would hardly be seen.
    """
    certainty = probabilities.max(axis=-1).min(axis=-1)
    read = probabilities.argmax(axis=-1)
    best = np.full(len(read), len(read))
    for character in range(probabilities.shape[-1]):
        images = np.flatnonzero((read == character).any(axis=-1))
        ranked = images[np.argsort(-certainty[images], kind="stable")]
        best[ranked] = np.minimum(best[ranked], np.arange(len(ranked)))
    count = max(1, min(config.images, round(config.share * len(read))))
    return np.sort(np.lexsort((-certainty, best))[:count])


def init(atlas: jax.Array, poses: jax.Array, *, config: FitConfig) -> FitState:
    """State at an atlas `[K, V, S, S]`, whose styles are averaged, and poses `[M, L, 3]`."""
    start = jnp.repeat(jnp.mean(atlas, axis=0, keepdims=True), config.styles, axis=0)
    zeros = jnp.zeros_like(poses)
    opt_state = _optimizer(config).init(start)
    return FitState(start, opt_state, jnp.array(poses), zeros, jnp.copy(zeros), jnp.zeros((), jnp.int32))


def _optimizer(config: FitConfig) -> optax.GradientTransformation:
    # The large epsilon keeps pixels still whose gradient is noise.
    return optax.adam(1.0, eps=1e-2)


def clean(atlas: jax.Array, *, config: FitConfig) -> jax.Array:
    """The atlas without specks: pixels fainter than `config.faintest` are background."""
    return jnp.where(atlas < config.faintest, 0.0, atlas)


def residual(atlas: jax.Array, poses: jax.Array, ink: jax.Array, labels: jax.Array, known: jax.Array) -> jax.Array:
    """Squared difference of drawn and real ink, summed over known pixels: `[B]`; image i has style i mod K."""
    return jnp.sum(jnp.square(_difference(atlas, poses, ink, labels)) * known[None], axis=(1, 2))


def left_over(
    atlas: jax.Array, poses: jax.Array, ink: jax.Array, labels: jax.Array, known: jax.Array, *, config: FitConfig
) -> jax.Array:
    """Real less drawn ink, int8 `[B, H, W]` in 127ths; 0 where unknown or fainter than `config.faintest`."""
    difference = _difference(atlas, poses, ink, labels) * known[None]
    return jnp.round(127.0 * jnp.where(jnp.abs(difference) < config.faintest, 0.0, difference)).astype(jnp.int8)


def _difference(atlas: jax.Array, poses: jax.Array, ink: jax.Array, labels: jax.Array) -> jax.Array:
    return ink.astype(jnp.float32) / 255.0 - _drawn(atlas, poses, labels, ink.shape[1:])


def _drawn(atlas: jax.Array, poses: jax.Array, labels: jax.Array, size: tuple[int, ...]) -> jax.Array:
    height, width = size
    rotation = poses[..., 2]
    matrix = layout.affine(rotation, jnp.ones_like(rotation), jnp.zeros_like(rotation))
    style = jnp.broadcast_to(jnp.arange(labels.shape[0])[:, None] % atlas.shape[0], labels.shape)
    laid = layout.Layout(labels, style, poses[..., :2], matrix, rotation)
    return synthesizer.render(atlas, laid, height=height, width=width)


def pose_unit(captcha: CaptchaConfig, *, config: FitConfig) -> jax.Array:
    """`[3]` what an update moves a pose by at first: y and x in pixels, and radians."""
    return jnp.asarray([config.shift_lr * captcha.height] * 2 + [config.turn_lr])


def move_poses(
    poses: jax.Array, gradient: jax.Array, first: jax.Array, second: jax.Array, count: jax.Array, *, unit: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Update number `count` of Adam for poses `[B, L, 3]`, with a short memory; poses and both moments."""
    first = 0.8 * first + 0.2 * gradient
    second = 0.95 * second + 0.05 * jnp.square(gradient)
    unbiased = first / (1.0 - 0.8**count), second / (1.0 - 0.95**count)
    return poses - unit[None, None] * unbiased[0] / (jnp.sqrt(unbiased[1]) + 1e-4), first, second


def fit_step(
    state: FitState, evidence: Evidence, *, captcha: CaptchaConfig, config: FitConfig
) -> tuple[FitState, jax.Array]:
    """One step on the next batch of images, taken in turn: `config.inner` updates of poses and atlas.

    Each pose has an Adam of its own (it is seen once a pass), the atlas has one for all. Returns the mean residual.
    """
    size = min(config.batch_size, evidence.ink.shape[0])
    batches = evidence.ink.shape[0] // size
    start = (state.step % batches) * size
    visit = (state.step // batches).astype(jnp.float32)

    def rows(x: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, start, size)

    ink, labels = rows(evidence.ink), rows(evidence.labels)
    poses, first, second = rows(state.poses), rows(state.first), rows(state.second)
    rate = 0.5 * (1.0 + jnp.cos(jnp.pi * state.step / (batches * max(config.passes, 1))))
    unit = rate * pose_unit(captcha, config=config)
    atlas, opt_state = state.atlas, state.opt_state
    loss = jnp.zeros(())

    def mean_residual(atlas: jax.Array, poses: jax.Array) -> jax.Array:
        return residual(atlas, poses, ink, labels, evidence.known).mean()

    for inner in range(config.inner):
        loss, (atlas_gradient, pose_gradient) = jax.value_and_grad(mean_residual, argnums=(0, 1))(atlas, poses)
        updates, opt_state = _optimizer(config).update(atlas_gradient, opt_state)
        atlas = jnp.clip(atlas + rate * config.atlas_lr * updates - config.sparsity, 0.0, 1.0)
        count = visit * config.inner + inner + 1.0
        poses, first, second = move_poses(poses, pose_gradient * size, first, second, count, unit=unit)

    def put(x: jax.Array, value: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(x, value, start, 0)

    return FitState(
        atlas, opt_state, put(state.poses, poses), put(state.first, first), put(state.second, second), state.step + 1
    ), loss


def step_aside(atlas: jax.Array, poses: jax.Array, ink: jax.Array, labels: jax.Array, known: jax.Array) -> jax.Array:
    """Poses `[B, L, 3]`, each moved along x to where it leaves least, of its own place and a few to either side.

    Gradients leave strokes that are like each other, such as the stems of an m, on one another: images that settle one
    stem apart make the atlas a glyph with its ghost beside it, which keeps either where it is. Seen through a tilt the
    right one is the plainer, and both go there. Arguments as in `residual`: ink `[B, H, W]`, labels `[B, L]`.
    """
    tilted = atlas * jnp.linspace(TILT, 1.0, atlas.shape[-1])[None, None, None]
    real, slots = ink.astype(jnp.float32) / 255.0, range(labels.shape[1])

    def bare(slot: int, poses: jax.Array) -> jax.Array:
        part = slice(slot, slot + 1)
        return 1.0 - _drawn(tilted, poses[:, part], labels[:, part], ink.shape[1:])

    bares = [bare(slot, poses) for slot in slots]
    for slot in slots:
        others = math.prod((bares[other] for other in slots if other != slot), start=jnp.ones(ink.shape))
        tried = [poses.at[:, slot, 1].add(share * ink.shape[1]) for share in ASIDE]
        seen = [bare(slot, at) for at in tried]
        left = [jnp.sum(jnp.square(1.0 - others * own - real) * known[None], axis=(1, 2)) for own in seen]
        nearest = jnp.argmin(jnp.stack(left), axis=0), jnp.arange(len(poses))
        poses, bares[slot] = jnp.stack(tried)[nearest], jnp.stack(seen)[nearest]
    return poses
