"""How good readings are: exact match with intervals, confusions, calibration, coverage, paired tests.

Pure NumPy. Symbols: `N` readings, `L` character slots. Shares are fractions in [0, 1].
"""

import collections
import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special


class EvaluationError(ValueError):
    """Readings that cannot be scored; the message names what is wrong and the remedy."""


def wilson(correct: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Lowest and highest share that fits `correct` of `n`, by the score interval.

    Source: Wilson (1927), Probable inference, the law of succession, and statistical inference.

    Raises:
      EvaluationError: no trials, more right than trials, or a confidence outside (0, 1).
    """
    if not 0 <= correct <= n or n == 0:
        raise EvaluationError(f"{correct} right of {n}: give 0 <= right <= trials, and at least one trial")
    if not 0 < confidence < 1:
        raise EvaluationError(f"confidence={confidence}: must lie between 0 and 1")
    z = statistics.NormalDist().inv_cdf(0.5 + confidence / 2)
    share, spread = correct / n, z * z / n
    centre = share + spread / 2
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    # At either end the bound is exact; rounding must not push it past the share itself.
    low = 0.0 if correct == 0 else (centre - half) / (1 + spread)
    high = 1.0 if correct == n else (centre + half) / (1 + spread)
    return low, high


def exact_match(predictions: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """Bool `[N]`: which readings are right in every character.

    Raises:
      EvaluationError: different numbers of readings and labels.
    """
    if len(predictions) != len(labels):
        raise EvaluationError(f"{len(predictions)} predictions, {len(labels)} labels: give one label for each")
    return np.array([p == label for p, label in zip(predictions, labels, strict=True)], bool)


def score(predictions: Sequence[str], labels: Sequence[str], *, top: int = 30) -> dict[str, Any]:
    """Readings against labels of one length, which the labels themselves give.

    A reading that is too short or too long is wrong as a whole; its characters count slot by slot, and a slot
    that it lacks is wrong, with the empty text as what was read.

    Args:
      predictions, labels: N texts each.
      top: the number of confusions to name.

    Returns:
      `n`; `exact` with its 95 % Wilson interval `exact_low`, `exact_high`; `per_char`, the share of characters
      that are right; `per_slot`, the same for each of the L slots; `confusions`, the most frequent first, each
      `{"true", "predicted", "count"}`.

    Raises:
      EvaluationError: nothing to score, different numbers, or labels of different lengths.
    """
    right = exact_match(predictions, labels)
    if not labels:
        raise EvaluationError("nothing to score: give at least one label")
    length = len(labels[0])
    odd = next((label for label in labels if len(label) != length or not label), None)
    if odd is not None:
        raise EvaluationError(f"label {odd!r} beside {labels[0]!r}: all labels must have one length, above 0")
    slots = np.zeros(length, np.int64)
    confusions: collections.Counter[tuple[str, str]] = collections.Counter()
    for prediction, label in zip(predictions, labels, strict=True):
        for slot, true in enumerate(label):
            read = prediction[slot : slot + 1]
            slots[slot] += read == true
            if read != true:
                confusions[true, read] += 1
    low, high = wilson(int(right.sum()), len(labels))
    ranked = sorted(confusions.items(), key=lambda item: (-item[1], item[0]))
    return {
        "n": len(labels),
        "exact": float(right.mean()),
        "exact_low": low,
        "exact_high": high,
        "per_char": float(slots.sum() / (length * len(labels))),
        "per_slot": [float(share) for share in slots / len(labels)],
        "confusions": [{"true": t, "predicted": p, "count": count} for (t, p), count in ranked[:top]],
    }


def mcnemar(correct_a: np.ndarray, correct_b: np.ndarray) -> dict[str, float]:
    """Paired comparison of two readers on the same N captchas.

    Source: McNemar (1947), in its exact form: the discordant pairs are tosses of a fair coin if neither is better.

    Args:
      correct_a, correct_b: bool `[N]`, the same captchas in the same order.

    Returns:
      `b`: right in a alone; `c`: right in b alone; `p`: two-sided, 1 without discordant pairs.

    Raises:
      EvaluationError: different shapes.
    """
    a, b = _flags(correct_a), _flags(correct_b)
    if a.shape != b.shape:
        raise EvaluationError(f"{len(a)} and {len(b)} readings: a paired test needs the same captchas")
    return mcnemar_of_counts(int((a & ~b).sum()), int((b & ~a).sum()))


def mcnemar_of_counts(b: int, c: int) -> dict[str, float]:
    """The test of `mcnemar` for counts of discordant pairs."""
    tail = float(special.bdtr(min(b, c), b + c, 0.5))
    return {"b": b, "c": c, "p": min(1.0, 2.0 * tail)}


def calibration(confidences: np.ndarray, correct: np.ndarray, *, bins: int = 15) -> dict[str, Any]:
    """How far confidence is from the share that is right.

    Source: Guo et al. (2017), On calibration of modern neural networks, equation 3.

    Args:
      confidences: float `[N]` in [0, 1]; correct: bool `[N]`.
      bins: bins of equal width, each open below and closed above; 0 belongs to the first.

    Returns:
      `ece`, the expected calibration error; `bins`, for each that is not empty
      `{"low", "high", "count", "confidence", "accuracy"}`.

    Raises:
      EvaluationError: nothing to score, different numbers, or a confidence outside [0, 1].
    """
    confidences, right = _paired(confidences, correct)
    index = np.clip(np.ceil(confidences * bins).astype(int) - 1, 0, bins - 1)
    rows, error = [], 0.0
    for i in np.unique(index):
        inside = index == i
        mean, accuracy = float(confidences[inside].mean()), float(right[inside].mean())
        error += inside.mean() * abs(accuracy - mean)
        row = {"count": int(inside.sum()), "confidence": mean, "accuracy": accuracy}
        rows.append({"low": float(i / bins), "high": float((i + 1) / bins), **row})
    return {"ece": float(error), "bins": rows}


def coverage(
    confidences: np.ndarray, correct: np.ndarray, *, levels: Sequence[float] = (0.9, 0.95, 0.99)
) -> list[dict[str, float]]:
    """Accuracy of a reader that answers only its most confident readings.

    Readings as confident as the last one answered count in proportion, so their order does not matter.

    Args:
      confidences: float `[N]` in [0, 1]; correct: bool `[N]`.
      levels: shares of the readings to answer, each in (0, 1]; rounded up to whole readings.

    Returns:
      For each level `{"coverage", "n", "accuracy", "threshold"}`; the threshold is the lowest confidence answered.

    Raises:
      EvaluationError: as `calibration`, or a level outside (0, 1].
    """
    confidences, right = _paired(confidences, correct)
    ranked = np.sort(confidences)[::-1]
    rows = []
    for level in levels:
        if not 0 < level <= 1:
            raise EvaluationError(f"coverage level {level}: must lie in (0, 1]")
        # 0.55 * 100 is 55.00000000000001 in binary fractions; that must not ask for a 56th reading.
        n = math.ceil(round(level * len(ranked), 9))
        threshold = ranked[n - 1]
        above, tied = confidences > threshold, confidences == threshold
        answered = right[above].sum() + (n - above.sum()) * right[tied].mean()
        rows.append({"coverage": level, "n": n, "accuracy": float(answered / n), "threshold": float(threshold)})
    return rows


def auc(scores_positive: np.ndarray, scores_negative: np.ndarray) -> float:
    """Chance that a positive scores above a negative, ties counted half (Mann-Whitney U over the pairs).

    A critic that cannot tell refined images from real ones has 0.5.

    Args:
      scores_positive: float `[N]`; scores_negative: float `[M]`.

    Raises:
      EvaluationError: a side without scores, or a score that is no number.
    """
    positive = np.asarray(scores_positive, np.float64).ravel()
    negative = np.sort(np.asarray(scores_negative, np.float64).ravel())
    if not len(positive) or not len(negative):
        raise EvaluationError(f"{len(positive)} positive and {len(negative)} negative scores: give both")
    if np.isnan(positive).any() or np.isnan(negative).any():
        raise EvaluationError("a score is not a number: the critic has diverged")
    below = np.searchsorted(negative, positive, side="left")
    up_to = np.searchsorted(negative, positive, side="right")
    return float((below + up_to).mean() / (2 * len(negative)))


def _flags(correct: np.ndarray) -> np.ndarray:
    return np.asarray(correct, bool).ravel()


def _paired(confidences: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    confidences, right = np.asarray(confidences, np.float64).ravel(), _flags(correct)
    if len(confidences) != len(right) or not len(right):
        raise EvaluationError(f"{len(confidences)} confidences, {len(right)} readings: give one for each, at least one")
    if not np.all((confidences >= 0) & (confidences <= 1)):
        raise EvaluationError("a confidence is outside [0, 1]: give probabilities")
    return confidences, right
