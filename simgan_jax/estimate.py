"""How accurate a reader is, believed without a label."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Z95 = 1.959964


class Belief(NamedTuple):
    """Share of images read right, and the interval that should hold it, all in [0, 1]."""

    estimate: float
    estimate_low: float
    estimate_high: float


def accuracy(probabilities: np.ndarray, others: Sequence[np.ndarray] = ()) -> Belief:
    """Believed exact match of readings `[N, L, V]`: the mean probability that the whole text is right.

    The interval is that of a sum of independent trials, widened by half the difference between this mean and the
    share of images whose text the closest of the other readers `[N, L, V]` shares: confidence and agreement are two
    views of one quantity.
    """
    certainty = probabilities.max(axis=-1).prod(axis=-1)
    mean = float(certainty.mean())
    spread = Z95 * float(np.sqrt((certainty * (1.0 - certainty)).sum())) / len(certainty)
    texts = probabilities.argmax(axis=-1)
    agreements = [
        float((other.argmax(axis=-1) == texts).all(axis=-1).mean())
        for other in others
        if not np.array_equal(other, probabilities)
    ]
    if agreements:
        spread += abs(max(agreements) - mean) / 2.0
    return Belief(mean, max(0.0, mean - spread), min(1.0, mean + spread))
