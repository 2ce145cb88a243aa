"""Decides between readings of a captcha by drawing them: analysis by synthesis.

A reader that is not sure leaves several texts. Each is drawn with the glyphs that were found in the target, its poses
settle where the drawing is nearest to the captcha, and what then remains of the difference is evidence for the text.
"""

import functools
from collections.abc import Iterator
from concurrent import futures
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from simgan_jax import backend, fit, reading, synthesizer
from simgan_jax.config import CaptchaConfig, Config, RescoreConfig

# Surest readings that tell what a drawing leaves of a captcha.
SURE = 500
# Characters of each slot that texts are made of.
CHOICES = 4
# Rounds that start from where the reader and the best text stand; later ones start beside them.
STILL = 2


class Glyphs(NamedTuple):
    """What captchas are drawn with. atlas: packed `[K, V, S, S]`; known: float32 `[H, W]` 1 where ink is seen."""

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
    number, length, choices = likely.shape
    # The likeliest character of a slot is one of its choices however unsure it is.
    allowed = (chance >= config.least) | (np.arange(choices) == 0)
    log = np.where(allowed, np.log(np.maximum(chance, 1e-9)), -np.inf)
    row = np.arange(number)[:, None]
    labels, prior = np.empty((number, 1, 0), np.int32), np.zeros((number, 1))
    for slot in range(length):
        # The likeliest texts begin with the likeliest beginnings.
        longer = (prior[:, :, None] + log[:, slot, None, :]).reshape(number, -1)
        best = np.argsort(-longer, axis=1, kind="stable")[:, : config.texts]
        beginning, choice = np.divmod(best, choices)
        prior = longer[row, best]
        labels = np.concatenate([labels[row, beginning], likely[row, slot, choice][..., None]], axis=-1)
    poses = np.repeat(readings.poses[:, None], prior.shape[1], axis=1)
    return Hypotheses(labels.astype(np.int32), prior, poses, np.full(prior.shape, np.inf))


def undrawn(readings: reading.Readings, *, config: RescoreConfig) -> np.ndarray:
    """Probability `[N]` of the texts that `propose` leaves out where a reading is not sure, and 0 where it is."""
    unsure = reading.certainty(readings.probabilities) < config.sure
    found = propose(reading.Readings(*(part[unsure] for part in readings)), config=config)
    left = np.zeros(len(unsure))
    left[unsure] = np.maximum(1.0 - np.exp(found.prior).sum(axis=1), 0.0)
    return left


def make_noise(key: jax.Array, captcha: CaptchaConfig, *, config: RescoreConfig) -> np.ndarray:
    """Float32 `[rounds, T, L, 3]` by which the starts of each round are moved; the first two rounds stand still.

    All images have the same, so that what is decided of one does not depend on the others. The key is consumed.
    """
    unit = np.asarray([config.shift * captcha.height] * 2 + [np.deg2rad(config.turn)])
    noise = np.asarray(jax.random.normal(key, (config.rounds, config.texts, captcha.length, 3))) * unit
    noise[:STILL] = 0.0
    return noise.astype(np.float32)


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
        each = _residual(glyphs, poses, ink, labels)
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


def _residual(glyphs: Glyphs, poses: jax.Array, ink: jax.Array, labels: jax.Array) -> jax.Array:
    return fit.residual(glyphs.atlas, poses, ink, labels, glyphs.known)


class Rescorer:
    """A compiled judge of uncertain readings for one fitted simulator; on the device there is one batch at a time.

    Args:
      atlas: `[K, V, S, S]` fitted glyphs, whose styles are averaged; mask: bool `[H, W]` pixels that show no ink.
      noise: `[rounds, T, L, 3]` from `make_noise`.
    """

    def __init__(self, atlas: np.ndarray, mask: np.ndarray, noise: np.ndarray, *, config: Config) -> None:
        packed = synthesizer.pack(jnp.asarray(atlas).mean(axis=0, keepdims=True))
        self._glyphs = Glyphs(packed, jnp.asarray(~mask, jnp.float32))
        self._noise, self._config = noise, config.rescore
        unit = config.rescore.stretch * fit.pose_unit(config.captcha, config=config.fit)
        self._settle = jax.jit(functools.partial(settle, unit=unit, steps=config.rescore.steps))
        self._residual = jax.jit(_residual)

    def usual_residual(self, ink: np.ndarray, readings: reading.Readings) -> float:
        """What a drawing leaves of the captchas `[N, H, W]` that are read most surely, the median."""
        rows = np.argsort(-reading.certainty(readings.probabilities), kind="stable")[:SURE]
        labels = readings.probabilities[rows].argmax(axis=-1).astype(np.int32)
        _, residual = self._settled(ink, rows, labels, readings.poses[rows])
        # Drawings that leave nothing at all would make any difference infinite.
        return max(float(np.median(residual)), 1e-3)

    def __call__(
        self,
        ink: np.ndarray,
        readings: reading.Readings,
        *,
        usual: float,
        sure: float | None = None,
        closed: bool = False,
    ) -> reading.Readings:
        """Readings of ink uint8 `[N, H, W]` in which those that were not sure are weighed by their drawings.

        Args:
          usual: from `usual_residual`; the measure of all residuals.
          sure: the certainty from which a reading stays as it is; the configuration's if None.
          closed: see `decide`.
        """
        sure = self._config.sure if sure is None else sure
        unsure = np.flatnonzero(reading.certainty(readings.probabilities) < sure)
        if not len(unsure):
            return readings
        believed = reading.Readings(*(part[unsure] for part in readings))
        found = propose(believed, config=self._config)
        rows = np.arange(len(unsure))
        for number, noise in enumerate(self._noise):
            # What none of the texts explains after two rounds may be a text that the reader did not think of.
            if number == STILL:
                found = self._widen(ink, unsure, found, believed, self._open(found, usual, explained=False), usual)
            starts = self._starts(found, believed, rows, usual, number)
            starts = starts + noise[None, np.arange(starts.shape[1]) % noise.shape[0]]
            found = self._draw(ink, unsure, found, rows, starts)
            rows = self._open(found, usual)
        return decide(readings, unsure, found, self._score(found, usual), closed=closed)

    def _score(self, found: Hypotheses, usual: float) -> np.ndarray:
        """Log posterior `[N, T]` of each text, up to a constant."""
        return found.prior - self._config.sharpness * misfit(found.residual / usual)

    def _open(self, found: Hypotheses, usual: float, *, explained: bool = True) -> np.ndarray:
        """Images whose best text leaves more than a captcha usually does, or, if `explained`, is not yet sure."""
        chance = _softmax(self._score(found, usual))
        best = chance.argmax(axis=1)
        left = found.residual[np.arange(len(best)), best]
        unsure = (chance.max(axis=1) < self._config.sure) & explained
        return np.flatnonzero(unsure | (left > self._config.unexplained * usual))

    def _widen(
        self,
        ink: np.ndarray,
        unsure: np.ndarray,
        found: Hypotheses,
        believed: reading.Readings,
        rows: np.ndarray,
        usual: float,
    ) -> Hypotheses:
        """What was found, and for the images `rows` new texts, of one character other than the best text's.

        All are looked at where the best text stands; the most promising settle from there and from the reader's poses.
        """
        if not len(rows):
            return found
        score = self._score(found, usual)[rows]
        best = score.argmax(axis=1)
        poses, labels = found.poses[rows, best], found.labels[rows, best]
        length, vocabulary = believed.probabilities.shape[1:]
        log = np.log(np.maximum(believed.probabilities[rows], self._config.least))
        own = np.take_along_axis(log, labels[..., None], axis=-1)
        texts = np.repeat(labels[:, None], length * vocabulary, axis=1)
        slot, character = np.divmod(np.arange(length * vocabulary), vocabulary)
        texts[:, np.arange(len(slot)), slot] = character
        prior = own.sum(axis=(1, 2))[:, None] + (log - own).reshape(len(rows), -1)
        known = (texts[:, :, None] == found.labels[rows][:, None]).all(axis=-1) & np.isfinite(score)[:, None]
        prior[known.any(axis=-1)] = -np.inf
        image, text = np.nonzero(np.isfinite(prior))
        left = np.full(prior.shape, np.inf)
        left[image, text] = self._left(ink, unsure[rows[image]], texts[image, text], poses[image])
        likely = np.argsort(-(prior - self._config.sharpness * misfit(left / usual)), axis=1, kind="stable")
        likely = likely[:, : self._config.texts]
        row = np.arange(len(rows))[:, None]
        shape = (len(unsure), likely.shape[1])
        more = Hypotheses(
            np.zeros((*shape, length), np.int32),
            np.full(shape, -np.inf),
            np.zeros((*shape, *poses.shape[1:]), poses.dtype),
            np.full(shape, np.inf),
        )
        more.labels[rows], more.prior[rows] = texts[row, likely], prior[row, likely]
        for start in (poses, believed.poses[rows]):
            more = self._draw(ink, unsure, more, rows, np.repeat(start[:, None], shape[1], axis=1))
        return Hypotheses(*(np.concatenate(parts, axis=1) for parts in zip(found, more, strict=True)))

    def _starts(
        self, found: Hypotheses, believed: reading.Readings, rows: np.ndarray, usual: float, number: int
    ) -> np.ndarray:
        """Poses `[M, T, L, 3]` to settle from in a round: the reader's and those of the best text, in turn."""
        poses = believed.poses[rows]
        if number % 2:
            poses = found.poses[rows, self._score(found, usual)[rows].argmax(axis=1)]
        return np.repeat(poses[:, None], found.prior.shape[1], axis=1)

    def _draw(
        self, ink: np.ndarray, unsure: np.ndarray, found: Hypotheses, rows: np.ndarray, starts: np.ndarray
    ) -> Hypotheses:
        """What was found, with each text of the images `rows` settled from `starts` where that is nearer."""
        which, text = np.nonzero(np.isfinite(found.prior[rows]))
        image = rows[which]
        poses, residual = self._settled(ink, unsure[image], found.labels[image, text], starts[which, text])
        nearest, least = found.poses.copy(), found.residual.copy()
        better = residual < least[image, text]
        where = image[better], text[better]
        nearest[where], least[where] = poses[better], residual[better]
        return found._replace(poses=nearest, residual=least)

    def _left(self, ink: np.ndarray, rows: np.ndarray, labels: np.ndarray, poses: np.ndarray) -> np.ndarray:
        """Residuals `[M]` of labels drawn at poses, as they stand."""
        left = np.empty(len(poses), np.float32)
        for part, padded in _batches(len(poses)):
            drawn = self._residual(self._glyphs, poses[padded], ink[rows[padded]], labels[padded])
            left[part] = np.asarray(drawn)[: len(part)]
        return left

    def _settled(
        self, ink: np.ndarray, rows: np.ndarray, labels: np.ndarray, poses: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        nearest, residual = np.empty(poses.shape, np.float32), np.empty(len(poses), np.float32)

        def settle(batch: tuple[np.ndarray, np.ndarray]) -> None:
            part, padded = batch
            settled = self._settle(self._glyphs, poses[padded], ink[rows[padded]], labels[padded])
            nearest[part], residual[part] = (np.asarray(x)[: len(part)] for x in settled)

        with futures.ThreadPoolExecutor(backend.programs_at_once()) as programs:
            list(programs.map(settle, _batches(len(poses))))
        return nearest, residual


def misfit(residual: np.ndarray) -> np.ndarray:
    """What counts of residuals in units of the usual one: all up to 1, from there on their logarithm alone.

    What remains beyond is the fault of the glyphs, noise of a variance that is not known, whose likelihood falls with
    the logarithm: a little less of much is no proof of a text.
    """
    return np.minimum(residual, 1.0) + np.log(np.maximum(residual, 1.0))


def decide(
    readings: reading.Readings, unsure: np.ndarray, found: Hypotheses, score: np.ndarray, *, closed: bool = False
) -> reading.Readings:
    """Readings in which the images `unsure` have the posterior of scores `[M, T]`, and the poses of their best text.

    The posterior shares out what the reader gave to the texts that were drawn; the rest stays where it was, as a
    drawing says nothing of texts that were not.

    Args:
      closed: one of the texts that were drawn is taken for the right one, and the posterior shares out everything.
    """
    chance = _softmax(score)
    probabilities, poses = readings.probabilities.copy(), readings.poses.copy()
    slots = np.arange(found.labels.shape[2])
    if closed:
        probabilities[unsure] = 0.0
        moved = chance
    else:
        own = probabilities[unsure[:, None, None], slots, found.labels].prod(axis=-1)
        own = np.where(np.isfinite(found.prior), own, 0.0)
        moved = own.sum(axis=1, keepdims=True) * chance - own
    for text in range(chance.shape[1]):
        for slot in slots:
            probabilities[unsure, slot, found.labels[:, text, slot]] += moved[:, text]
    probabilities[unsure] = np.maximum(probabilities[unsure], 0.0)
    poses[unsure] = found.poses[np.arange(len(unsure)), chance.argmax(axis=1)]
    return reading.Readings(probabilities, poses)


def _batches(count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of each batch, and the same filled up to its full size."""
    size = backend.drawings()
    for start in range(0, count, size):
        part = np.arange(start, min(start + size, count))
        yield part, np.resize(part, size)


def _softmax(score: np.ndarray) -> np.ndarray:
    chance = np.exp(score - score.max(axis=1, keepdims=True))
    return chance / chance.sum(axis=1, keepdims=True)
