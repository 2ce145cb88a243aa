"""Text and labels."""

import string

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from simgan_jax import alphabet

CHARACTERS = string.ascii_lowercase + string.digits


def test_labels_are_places_in_the_alphabet():
    labels = alphabet.encode(["ab", "c0"], CHARACTERS)
    assert labels.dtype == np.int32
    assert labels.tolist() == [[0, 1], [2, 26]]
    assert alphabet.decode(labels, CHARACTERS) == ["ab", "c0"]


@hypothesis.given(
    strategies.lists(strategies.text(CHARACTERS + "äß", min_size=3, max_size=3), min_size=1),
)
def test_round_trip(texts):
    characters = CHARACTERS + "äß"
    assert alphabet.decode(alphabet.encode(texts, characters), characters) == texts


def test_unknown_character_is_named():
    with pytest.raises(ValueError, match=r"'aB'.*'B'"):
        alphabet.encode(["ab", "aB"], CHARACTERS)


def test_texts_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="different lengths"):
        alphabet.encode(["ab", "abc"], CHARACTERS)
