"""How accurate a reader is, believed without a label.

Two things are known without one. A reader's own probabilities say how often it is sure. And captchas draw their
characters uniformly, so that what a reader reads too often, beyond chance, is read wrong.
"""

from typing import NamedTuple

import numpy as np

Z95 = 1.959964


class Belief(NamedTuple):
    """Share of images read right, and the interval that should hold it, all in [0, 1]."""

    estimate: float
    estimate_low: float
    estimate_high: float


def excess(probabilities: np.ndarray) -> float:
    """Share of characters that must be wrong if all are equally frequent: total variation from uniform, less chance.

    Readings `[N, L, V]` are taken as N L draws; the expected distance of so many true uniform draws is subtracted.
    """
    length, vocabulary = probabilities.shape[1:]
    draws = len(probabilities) * length
    counts = np.bincount(probabilities.argmax(axis=-1).ravel(), minlength=vocabulary)
    distance = np.abs(counts / draws - 1.0 / vocabulary).sum() / 2.0
    share = 1.0 / vocabulary
    chance = vocabulary * np.sqrt(2.0 / np.pi * share * (1.0 - share) / draws) / 2.0
    return float(max(0.0, distance - chance))


def accuracy(probabilities: np.ndarray, *, before: np.ndarray | None = None, undrawn: float = 0.0) -> Belief:
    """Believed exact match of readings `[N, L, V]`.

    The mean probability that the whole text is right, times that of no character being in `excess`. The interval is
    that of a sum of independent trials, widened by what the excess took away, and down to the share of texts that are
    the same in the readings `before` these were decided in another way, as each change may have been for the worse, and
    up by what was believed of texts that were `undrawn` then, as each of those may be wrong.
    """
    certainty = probabilities.max(axis=-1).prod(axis=-1)
    kept = (1.0 - excess(probabilities)) ** probabilities.shape[1]
    mean = float(certainty.mean())
    spread = Z95 * float(np.sqrt((certainty * (1.0 - certainty)).sum())) / len(certainty) + mean * (1.0 - kept)
    low = max(0.0, mean * kept - spread)
    if before is not None:
        low = min(low, float((probabilities.argmax(axis=-1) == before.argmax(axis=-1)).all(axis=-1).mean()))
    return Belief(mean * kept, low, min(1.0, mean * kept + spread + undrawn))
