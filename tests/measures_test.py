import jax
import numpy as np
import pytest

from simgan_jax import evaluate, measures
from simgan_jax.config import DiscriminatorConfig

TINY = DiscriminatorConfig(adversary="global", widths=(4, 4, 4, 4), spectral_norm=False, noise=0.0)


def image(*pixels):
    """One image `[1, 12, 24]` with ink at (y, x, level)."""
    ink = np.zeros((1, 12, 24), np.uint8)
    for y, x, level in pixels:
        ink[0, y, x] = level
    return ink


POSES = np.array([[[6.0, 6.0, 0.0], [6.0, 18.0, 0.0]]], np.float32)


def test_centroids_by_hand():
    # The first glyph has weights 100 and 200 at x 4 and 7; the second one pixel; (0, 0) is too far from both.
    ink = image((5, 4, 100), (5, 7, 200), (8, 18, 50), (0, 0, 255))
    got = measures.ink_centroids(ink, POSES, radius=5.0)
    np.testing.assert_allclose(got, [[[5.0, 6.0], [8.0, 18.0]]])


def test_ink_goes_to_the_nearest_glyph():
    got = measures.ink_centroids(image((6, 11, 255), (6, 13, 255)), POSES, radius=10.0)
    np.testing.assert_allclose(got, [[[6.0, 11.0], [6.0, 13.0]]])


def test_shift_by_hand():
    before = image((5, 5, 255), (6, 18, 255))
    after = image((8, 9, 255))
    np.testing.assert_allclose(measures.centroid_shift(before, after, POSES, radius=5.0), [[5.0, np.nan]])


def test_preservation_by_hand():
    before = np.concatenate([image((5, 5, 255), (6, 18, 255)), image((6, 6, 255), (6, 18, 255))])
    after = np.concatenate([image((8, 9, 255)), image((6, 6, 255), (6, 18, 255))])
    poses = np.repeat(POSES, 2, axis=0)
    labels = np.array([[1, 2], [3, 4]])
    got = measures.preservation(before, after, poses, labels, labels, np.array([[1, 0], [3, 4]]), radius=5.0)
    assert (got.agreement, got.agreement_per_char) == (0.5, 0.75)
    assert (got.accuracy_before, got.accuracy_after) == (1.0, 0.5)
    # Glyphs moved by 5, 0 and 0; the fourth is gone.
    assert got.shift == pytest.approx(5 / 3) and got.lost == 0.25
    assert got.shift_high == pytest.approx(4.5)
    # Three pixels changed by the whole range of 2.
    assert got.change == pytest.approx(3 * 2 / (2 * 12 * 24))


def test_a_critic_tells_what_differs_and_nothing_else(key):
    noise = np.asarray(jax.random.randint(key, (128, 16, 16), 0, 120), np.uint8)

    def auc(others):
        return measures.turing_auc(jax.random.key(1), noise[:64], others, steps=25, config=TINY)

    assert auc(noise[64:] + 120) > 0.99
    same = auc(noise[64:])
    assert 0.25 < same < 0.75


def test_a_critic_needs_two_halves(key):
    one, two = np.zeros((1, 8, 8), np.uint8), np.zeros((2, 8, 8), np.uint8)
    with pytest.raises(evaluate.EvaluationError, match="2 real and 1 other"):
        measures.turing_auc(key, two, one, steps=1, config=TINY)


def test_turing_sheet_shows_each_once(key):
    real, fake = np.zeros((3, 2, 2)) + np.arange(3)[:, None, None], np.full((2, 2, 2), 9.0)
    tiles, answers = measures.turing_sheet(key, real, fake)
    assert list(answers) == ["1", "2", "3", "4"]
    shown = {number: tile[0, 0] for number, tile in zip(answers, tiles, strict=True)}
    assert sorted(shown.values()) == [0.0, 1.0, 9.0, 9.0]
    assert {number: "refined" if value == 9.0 else "real" for number, value in shown.items()} == answers
