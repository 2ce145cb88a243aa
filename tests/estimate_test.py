import numpy as np
import pytest

from simgan_jax import estimate


def readings(*certainties):
    """One-character readings of an alphabet of two, 'a' with the given probability."""
    return np.array([[[p, 1.0 - p]] for p in certainties])


def test_sure_and_even_readings_are_believed():
    assert estimate.accuracy(readings(1.0, 1.0, 0.0, 0.0)) == (1.0, 1.0, 1.0)


def test_by_hand():
    # Certainties 0.8, 0.6, 0.6, 1.0: mean 0.75; variance 0.16 + 0.24 + 0.24 = 0.64, so 1.96 * 0.8 / 4 either way.
    # Three of four say 'a', which is a quarter from even; chance alone: 2 * sqrt(2 / pi / 4 / 4) / 2 = 0.199.
    belief = estimate.accuracy(readings(0.8, 0.4, 0.6, 1.0))
    excess = 0.25 - 0.1994711
    assert belief.estimate == pytest.approx(0.75 * (1 - excess), abs=1e-6)
    assert belief.estimate_low == pytest.approx(0.75 * (1 - excess) - 0.391993 - 0.75 * excess, abs=1e-5)
    assert belief.estimate_high == 1.0


def test_texts_that_were_changed_are_in_doubt():
    sure, before = readings(1.0, 1.0, 0.0, 0.0), readings(0.9, 0.4, 0.2, 0.3)
    assert estimate.accuracy(sure, before=before) == (1.0, 0.75, 1.0)
    assert estimate.accuracy(sure, before=sure) == estimate.accuracy(sure)
    # What was in doubt without it stays so.
    doubtful = estimate.accuracy(readings(0.8, 0.4, 0.6, 1.0))
    assert estimate.accuracy(readings(0.8, 0.4, 0.6, 1.0), before=readings(0.8, 0.4, 0.6, 0.4)) == doubtful


def test_texts_that_were_not_drawn_may_be_wrong_as_well():
    low, high = estimate.accuracy(np.tile(readings(0.8, 0.4, 0.6, 1.0), (100, 1, 1)))[1:]
    widened = estimate.accuracy(np.tile(readings(0.8, 0.4, 0.6, 1.0), (100, 1, 1)), undrawn=0.01)
    assert widened[1:] == pytest.approx((low, high + 0.01))
    assert high + 0.01 < 1.0
    assert estimate.accuracy(readings(1.0, 1.0, 0.0, 0.0), undrawn=0.5).estimate_high == 1.0


def test_a_text_is_right_if_all_its_characters_are():
    # One 'b' and one 'a' are even.
    assert estimate.accuracy(np.array([[[0.5, 0.5], [0.2, 0.8]]])).estimate == pytest.approx(0.4)


def test_characters_that_come_too_often_are_not_believed():
    assert estimate.excess(np.full((400, 1, 2), [0.9, 0.1])) == pytest.approx(0.5, abs=0.02)
    assert estimate.accuracy(np.full((400, 1, 2), [0.9, 0.1])).estimate == pytest.approx(0.45, abs=0.02)
    even = np.tile(np.eye(2), (200, 1))[:, None]
    assert estimate.excess(even) == 0.0


def test_nearly_even_is_chance():
    # 52 of 100 are within what 100 draws do by themselves.
    rows = np.eye(2)[[0] * 52 + [1] * 48][:, None]
    assert estimate.excess(rows) == 0.0
