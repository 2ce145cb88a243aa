"""Decides between readings of a captcha by drawing them: analysis by synthesis.

A reader that is not sure leaves several texts. Each is drawn with the glyphs that were found in the target, its poses
settle where the drawing is nearest to the captcha, and what then remains of the difference is evidence for the text.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from simgan_jax import fit, reading
from simgan_jax.config import Config, RescoreConfig

BATCH = 500
# Characters of each slot that texts are made of.
CHOICES = 4


class Glyphs(NamedTuple):
    """What captchas are drawn with. atlas: `[K, V, S, S]` in [0, 1]; known: float32 `[H, W]` 1 where ink is seen."""

    atlas: jax.Array
    known: jax.Array


class Hypotheses(NamedTuple):
    """What captchas may say. labels: int32 `[N, T, L]`; prior: log probability `[N, T]`, -inf for none; poses:
    `[N, T, L, 3]`, the nearest that were found; residual: `[N, T]`, theirs, inf where not drawn yet."""

    labels: np.ndarray
    prior: np.ndarray
    poses: np.ndarray
    residual: np.ndarray


def propose(readings: reading.Readings, *, config: RescoreConfig) -> Hypotheses:
    """The likeliest `config.texts` texts of each reading, made of characters at least `config.least` likely."""
    likely = np.argsort(-readings.probabilities, axis=-1, kind="stable")[..., :CHOICES]
    chance = np.take_along_axis(readings.probabilities, likely, axis=-1)
    length, choices = likely.shape[1:]
    ways = np.indices((choices,) * length).reshape(length, -1)
    slots = np.arange(length)[:, None]
    # The likeliest character of a slot is one of its choices however unsure it is.
    allowed = (chance >= config.least) | (np.arange(choices) == 0)
    log = np.where(allowed, np.log(np.maximum(chance, 1e-9)), -np.inf)
    prior = log[:, slots, ways].sum(axis=1)
    best = np.argsort(-prior, axis=1, kind="stable")[:, : config.texts]
    labels = np.swapaxes(likely[:, slots, ways], 1, 2)[np.arange(len(prior))[:, None], best]
    poses = np.repeat(readings.poses[:, None], best.shape[1], axis=1)
    return Hypotheses(
        labels.astype(np.int32), np.take_along_axis(prior, best, axis=1), poses, np.full(best.shape, np.inf)
    )


def settle(
    glyphs: Glyphs, poses: jax.Array, ink: jax.Array, labels: jax.Array, *, unit: jax.Array, steps: int
) -> tuple[jax.Array, jax.Array]:
    """Moves poses `[B, L, 3]` to where the drawn labels `[B, L]` are nearest to ink `[B, H, W]`.

    Args:
      unit: `[3]` what the first step moves y, x and the angle by; it falls to 0 along a cosine.

    Returns:
      the nearest poses on the way, and their residuals `[B]`.
    """

    def total(poses: jax.Array) -> tuple[jax.Array, jax.Array]:
        each = fit.residual(glyphs.atlas, poses, ink, labels, glyphs.known)
        return each.sum(), each

    def step(carry: tuple[jax.Array, ...], number: jax.Array) -> tuple[tuple[jax.Array, ...], None]:
        poses, first, second, nearest, least = carry
        (_, each), gradient = jax.value_and_grad(total, has_aux=True)(poses)
        nearest = jnp.where((each < least)[:, None, None], poses, nearest)
        rate = 0.5 * (1.0 + jnp.cos(jnp.pi * number / steps))
        moved = fit.move_poses(poses, gradient, first, second, number + 1.0, unit=rate * unit)
        return (*moved, nearest, jnp.minimum(each, least)), None

    zeros = jnp.zeros_like(poses)
    start: tuple[jax.Array, ...] = (poses, zeros, zeros, poses, jnp.full(poses.shape[0], jnp.inf))
    (_, _, _, nearest, least), _ = jax.lax.scan(step, start, jnp.arange(steps, dtype=jnp.float32))
    return nearest, least


class Rescorer:
    """A compiled judge of uncertain readings for one fitted simulator; memory stays one batch.

    Args:
      atlas: `[K, V, S, S]` fitted glyphs, whose styles are averaged; mask: bool `[H, W]` pixels that show no ink.
    """

    def __init__(self, atlas: np.ndarray, mask: np.ndarray, *, config: Config) -> None:
        self._glyphs = Glyphs(jnp.asarray(atlas).mean(axis=0, keepdims=True), jnp.asarray(~mask, jnp.float32))
        self._captcha, self._config = config.captcha, config.rescore
        unit = config.rescore.stretch * fit.pose_unit(config.captcha, config=config.fit)
        self._settle = jax.jit(functools.partial(settle, unit=unit, steps=config.rescore.steps))

    def __call__(self, key: jax.Array, ink: np.ndarray, readings: reading.Readings) -> reading.Readings:
        """Readings of ink uint8 `[N, H, W]` in which those that were not sure are weighed by their drawings.

        The key is consumed.
        """
        config = self._config
        certainty = readings.probabilities.max(axis=-1).prod(axis=-1)
        order = np.argsort(-certainty, kind="stable")
        unsure = np.sort(order[certainty[order] < config.sure])
        if not len(unsure):
            return readings
        seen, believed = ink[unsure], reading.Readings(*(part[unsure] for part in readings))
        usual = self._usual_residual(ink, readings, order[:BATCH])
        found = propose(believed, config=config)
        rows = np.arange(len(unsure))
        for number in range(config.rounds):
            starts = self._starts(jax.random.fold_in(key, number), found, believed, rows, usual, number)
            found = self._draw(seen, found, rows, starts)
            rows = self._open(found, usual)
        return decide(readings, unsure, found, self._score(found, usual))

    def _usual_residual(self, ink: np.ndarray, readings: reading.Readings, rows: np.ndarray) -> float:
        """What is left of captchas that are read surely, the median; the measure of all residuals."""
        labels = readings.probabilities[rows].argmax(axis=-1)
        _, residual = self._settled(ink[rows], labels.astype(np.int32), readings.poses[rows])
        return float(np.median(residual))

    def _score(self, found: Hypotheses, usual: float) -> np.ndarray:
        """Log posterior `[N, T]` of each text, up to a constant."""
        return np.where(
            np.isfinite(found.prior), found.prior - self._config.sharpness * found.residual / usual, -np.inf
        )

    def _open(self, found: Hypotheses, usual: float) -> np.ndarray:
        """Images whose best text is not yet sure, or leaves more than a captcha usually does."""
        chance = _softmax(self._score(found, usual))
        best = chance.argmax(axis=1)
        left = found.residual[np.arange(len(best)), best]
        return np.flatnonzero((chance.max(axis=1) < self._config.sure) | (left > self._config.unexplained * usual))

    def _starts(
        self, key: jax.Array, found: Hypotheses, believed: reading.Readings, rows: np.ndarray, usual: float, number: int
    ) -> np.ndarray:
        """Poses `[M, T, L, 3]` to settle from: the reader's, the best text's, then either with some noise in turn."""
        poses = found.poses[rows]
        if number == 0:
            return poses
        best = self._score(found, usual)[rows].argmax(axis=1)
        origin = poses[np.arange(len(rows)), best] if number % 2 else believed.poses[rows]
        if number == 1:
            return np.broadcast_to(origin[:, None], poses.shape)
        config = self._config
        unit = np.asarray([config.shift * self._captcha.height] * 2 + [np.deg2rad(config.turn)])
        return (origin[:, None] + np.asarray(jax.random.normal(key, poses.shape)) * unit).astype(np.float32)

    def _draw(self, ink: np.ndarray, found: Hypotheses, rows: np.ndarray, starts: np.ndarray) -> Hypotheses:
        """What was found, with each text of the images `rows` settled from `starts` where that is nearer."""
        image, text = np.nonzero(np.isfinite(found.prior[rows]))
        poses, residual = self._settled(ink[rows[image]], found.labels[rows[image], text], starts[image, text])
        out = Hypotheses(found.labels, found.prior, found.poses.copy(), found.residual.copy())
        better = residual < out.residual[rows[image], text]
        where = rows[image][better], text[better]
        out.poses[where], out.residual[where] = poses[better], residual[better]
        return out

    def _settled(self, ink: np.ndarray, labels: np.ndarray, poses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        nearest, residual = np.empty(poses.shape, np.float32), np.empty(len(poses), np.float32)
        for start in range(0, len(poses), BATCH):
            rows = np.arange(start, min(start + BATCH, len(poses)))
            padded = np.resize(rows, BATCH)
            parts = self._settle(self._glyphs, poses[padded], ink[padded], labels[padded])
            nearest[rows], residual[rows] = (np.asarray(part)[: len(rows)] for part in parts)
        return nearest, residual


def _softmax(score: np.ndarray) -> np.ndarray:
    chance = np.exp(score - score.max(axis=1, keepdims=True))
    return chance / chance.sum(axis=1, keepdims=True)


def decide(readings: reading.Readings, unsure: np.ndarray, found: Hypotheses, score: np.ndarray) -> reading.Readings:
    """Readings in which the images `unsure` have the posterior of scores `[M, T]`, and the poses of their best text."""
    chance = _softmax(score)
    probabilities, poses = readings.probabilities.copy(), readings.poses.copy()
    probabilities[unsure] = 0.0
    for text in range(chance.shape[1]):
        for slot in range(found.labels.shape[2]):
            probabilities[unsure, slot, found.labels[:, text, slot]] += chance[:, text]
    best = chance.argmax(axis=1)
    poses[unsure] = found.poses[np.arange(len(unsure)), best]
    return reading.Readings(probabilities, poses)
