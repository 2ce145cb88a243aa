"""Text and integer labels."""

from collections.abc import Iterable

import numpy as np


def encode(texts: Iterable[str], alphabet: str) -> np.ndarray:
    """Labels int32 `[N, L]` of equally long texts.

    Raises:
      ValueError: a character outside the alphabet, or texts of different lengths.
    """
    index = {character: i for i, character in enumerate(alphabet)}
    rows = []
    for text in texts:
        unknown = [character for character in text if character not in index]
        if unknown:
            raise ValueError(f"text {text!r}: character {unknown[0]!r} is not in the alphabet {alphabet!r}")
        rows.append([index[character] for character in text])
    if len({len(row) for row in rows}) > 1:
        raise ValueError("texts of different lengths cannot share one label array")
    return np.asarray(rows, np.int32)


def decode(labels: np.ndarray, alphabet: str) -> list[str]:
    """Texts of labels `[N, L]`, each value an index into the alphabet."""
    return ["".join(alphabet[i] for i in row) for row in np.asarray(labels)]
