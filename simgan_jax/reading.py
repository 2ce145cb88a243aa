"""Reading captchas with trained classifiers: probabilities, answers, and their certainty."""

from collections.abc import Sequence
from concurrent import futures
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from simgan_jax import alphabet, backend, classifier, images
from simgan_jax.config import CaptchaConfig, ClassifierConfig


class Readings(NamedTuple):
    """probabilities: float32 `[N, L, V]`; poses: float32 `[N, L, 3]` (y, x in pixels, radians)."""

    probabilities: np.ndarray
    poses: np.ndarray


class Reader:
    """A compiled reader of uint8 ink `[N, H, W]` for one kind of network; memory stays one batch.

    batch_size: images at a time; the number that suits the backend if None.
    """

    def __init__(self, captcha: CaptchaConfig, *, config: ClassifierConfig, batch_size: int | None = None) -> None:
        self._batch_size = backend.images_at_once() if batch_size is None else batch_size

        def read(params: classifier.Params, ink: jax.Array, shift: jax.Array) -> tuple[jax.Array, jax.Array]:
            moved = jnp.roll(ink, shift, axis=(1, 2))
            reading = classifier.apply(params, images.to_unit(moved), captcha, config=config)
            return jax.nn.softmax(reading.logits, axis=-1), reading.poses

        self._read = jax.jit(read)

    def __call__(self, params: classifier.Params, ink: np.ndarray, *, shift: tuple[int, int] = (0, 0)) -> Readings:
        """Reads all images with one set of parameters, each moved by (dy, dx) pixels."""

        def read(start: int) -> list[np.ndarray]:
            batch = ink[start : start + self._batch_size]
            padded = jnp.asarray(np.pad(batch, ((0, self._batch_size - len(batch)), (0, 0), (0, 0))))
            return [np.asarray(part)[: len(batch)] for part in self._read(params, padded, jnp.asarray(shift))]

        with futures.ThreadPoolExecutor(backend.programs_at_once()) as programs:
            parts = list(programs.map(read, range(0, len(ink), self._batch_size)))
        return Readings(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    def again(
        self,
        params: classifier.Params,
        ink: np.ndarray,
        readings: Readings,
        *,
        shifts: Sequence[tuple[int, int]],
        sure: float,
    ) -> Readings:
        """Readings in which those less certain than `sure` are averaged with what is read at each shift (dy, dx)."""
        unsure = np.flatnonzero(certainty(readings.probabilities) < sure)
        if not len(unsure):
            return readings
        looks = [self(params, ink[unsure], shift=shift).probabilities for shift in shifts]
        probabilities = readings.probabilities.copy()
        probabilities[unsure] = np.mean([probabilities[unsure], *looks], axis=0)
        return readings._replace(probabilities=probabilities)


def certainty(probabilities: np.ndarray) -> np.ndarray:
    """Probability `[N]` of the likeliest text of each image, of `[N, L, V]` as the product over its characters."""
    return probabilities.max(axis=-1).prod(axis=-1)


def answers(probabilities: np.ndarray, captcha: CaptchaConfig) -> tuple[list[str], np.ndarray]:
    """Texts, and the certainty `[N]` of each."""
    return alphabet.decode(probabilities.argmax(axis=-1), captcha.alphabet), certainty(probabilities)
