import numpy as np
import pytest

from simgan_jax import estimate


def readings(*certainties):
    """One-character readings of an alphabet of two, 'a' with the given probability."""
    return np.array([[[p, 1.0 - p]] for p in certainties])


def test_sure_readings_are_believed():
    assert estimate.accuracy(readings(1.0, 1.0, 0.0)) == (1.0, 1.0, 1.0)


def test_by_hand():
    # Certainties 0.8, 0.6, 0.6, 1.0: mean 0.75; variance 0.16 + 0.24 + 0.24 = 0.64, so 1.96 * 0.8 / 4 either way.
    belief = estimate.accuracy(readings(0.8, 0.4, 0.6, 1.0))
    assert belief.estimate == pytest.approx(0.75)
    assert belief.estimate_low == pytest.approx(0.75 - 0.391993, abs=1e-6)
    assert belief.estimate_high == 1.0


def test_a_text_is_right_if_all_its_characters_are():
    assert estimate.accuracy(np.array([[[0.5, 0.5], [0.2, 0.8]]])).estimate == pytest.approx(0.4)


def test_another_reader_widens_the_interval():
    alone = readings(1.0, 1.0, 1.0, 1.0)
    # The other reader shares three of four texts: half of the gap of 0.25 on either side.
    belief = estimate.accuracy(alone, [readings(1.0, 1.0, 1.0, 0.0), readings(0.0, 0.0, 0.0, 0.0)])
    assert belief == (1.0, pytest.approx(0.875), 1.0)


def test_the_reader_itself_is_no_other_reader():
    alone = readings(0.9, 0.9)
    assert estimate.accuracy(alone, [alone.copy()]) == estimate.accuracy(alone)
