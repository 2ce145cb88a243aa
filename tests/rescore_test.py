import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simgan_jax import layout, reading, rescore, synthesizer
from simgan_jax.config import CaptchaConfig, Config, RescoreConfig

CAPTCHA = CaptchaConfig(height=20, width=40, length=2, alphabet="abc")
CONFIG = Config(captcha=CAPTCHA, rescore=RescoreConfig(rounds=4, steps=20))
IMAGES, CELL = 24, 16


def atlas():
    """A cross, a ring and a wedge, `[1, 3, S, S]`."""
    y, x = np.mgrid[:CELL, :CELL] - (CELL - 1) / 2
    cross = (np.minimum(abs(y), abs(x)) < 1.5) & (np.maximum(abs(y), abs(x)) < 6)
    ring = (np.hypot(y, x) < 6) & (np.hypot(y, x) > 3)
    wedge = (x > -5) & (x < 5) & (y < x) & (y > -5)
    return np.stack([cross, ring, wedge])[None].astype(np.float32)


@pytest.fixture(scope="module")
def target():
    """Ink, labels `[N, 2]` and poses of drawn captchas."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (IMAGES, 2)).astype(np.int32)
    poses = np.zeros((IMAGES, 2, 3), np.float32)
    poses[..., 0], poses[..., 1] = 10.0, np.asarray([10.0, 30.0]) + rng.uniform(-2, 2, (IMAGES, 2))
    rotation = jnp.asarray(poses[..., 2])
    matrix = layout.affine(rotation, jnp.ones_like(rotation), jnp.zeros_like(rotation))
    where = layout.Layout(jnp.asarray(labels), jnp.zeros_like(labels), jnp.asarray(poses[..., :2]), matrix, rotation)
    coverage = synthesizer.render(jnp.asarray(atlas()), where, height=20, width=40)
    return np.asarray(jnp.round(coverage * 255), np.uint8), labels, poses


def test_proposals_are_the_likeliest_texts():
    probabilities = np.asarray([[[0.7, 0.3, 0.0], [0.6, 0.0, 0.4]]], np.float32)
    readings = reading.Readings(probabilities, np.zeros((1, 2, 3), np.float32))
    found = rescore.propose(readings, config=RescoreConfig(texts=5))
    np.testing.assert_array_equal(found.labels[0, :4], [[0, 0], [0, 2], [1, 0], [1, 2]])
    np.testing.assert_allclose(np.exp(found.prior[0, :4]), [0.42, 0.28, 0.18, 0.12], rtol=1e-5)
    assert found.prior[0, 4] == -np.inf


def test_proposals_are_those_of_all_texts():
    """Against the product over every text, where a text may be of more characters than are looked at one by one."""
    probabilities = np.random.default_rng(0).dirichlet(np.full(4, 0.5), (20, 5)).astype(np.float32)
    readings = reading.Readings(probabilities, np.zeros((20, 5, 3), np.float32))
    found = rescore.propose(readings, config=RescoreConfig(texts=7, least=1e-6))
    texts = np.asarray(list(itertools.product(range(4), repeat=5)))
    each = np.log(np.maximum(probabilities, 1e-9))[:, np.arange(5), texts].sum(-1)
    np.testing.assert_allclose(found.prior, -np.sort(-each, axis=1)[:, :7], rtol=1e-5)
    own = np.log(np.take_along_axis(probabilities[:, None], found.labels[..., None], -1)[..., 0]).sum(-1)
    np.testing.assert_allclose(own, found.prior, rtol=1e-4)


def test_what_is_not_drawn_is_what_the_texts_leave():
    probabilities = np.asarray([[[0.7, 0.3, 0.0], [0.6, 0.0, 0.4]], [[0.995, 0.005, 0.0], [1.0, 0.0, 0.0]]], np.float32)
    readings = reading.Readings(probabilities, np.zeros((2, 2, 3), np.float32))
    # Two texts of four have 0.42 and 0.28; the second reading is sure.
    left = rescore.undrawn(readings, config=RescoreConfig(texts=2, sure=0.99))
    np.testing.assert_allclose(left, [0.3, 0.0], atol=1e-6)


def believed(labels, poses):
    """Readings whose every third first character is wrong, and says so; and those rows."""
    probabilities = np.full((IMAGES, 2, 3), 0.001, np.float32)
    np.put_along_axis(probabilities, labels[..., None], 0.998, axis=-1)
    wrong = np.arange(0, IMAGES, 3)
    probabilities[wrong, 0] = 0.01
    probabilities[wrong, 0, labels[wrong, 0]] = 0.3
    probabilities[wrong, 0, (labels[wrong, 0] + 1) % 3] = 0.69
    return reading.Readings(probabilities, poses + np.float32(0.4)), wrong


@pytest.fixture(scope="module")
def judge():
    noise = rescore.make_noise(jax.random.key(1), CAPTCHA, config=CONFIG.rescore)
    return rescore.Rescorer(atlas(), np.zeros((20, 40), bool), noise, config=CONFIG)


def test_drawings_share_out_what_the_texts_that_were_drawn_had():
    """0.7 of the belief was in two texts, which become 1 to 3 of it; the third of them is none, the rest stays."""
    probabilities = np.asarray([[[0.7, 0.3, 0.0], [0.6, 0.0, 0.4]], [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]], np.float32)
    labels = np.asarray([[[0, 0], [0, 2], [1, 0]]], np.int32)
    prior, score = np.log([[0.42, 0.28, 0.18]]), np.log([[0.25, 0.75, 0.5]])
    prior[:, 2] = score[:, 2] = -np.inf
    found = rescore.Hypotheses(labels, prior, np.arange(18.0).reshape(1, 3, 2, 3), np.ones((1, 3)))
    before = reading.Readings(probabilities, np.zeros((2, 2, 3)))
    after = rescore.decide(before, np.asarray([0]), found, score)
    want = np.asarray([[0.7, 0.3, 0.0], [0.6 + 0.175 - 0.42, 0.0, 0.4 + 0.525 - 0.28]])
    np.testing.assert_allclose(after.probabilities[0], want, atol=1e-6)
    np.testing.assert_array_equal(after.probabilities[1], probabilities[1])
    np.testing.assert_array_equal(after.poses[0], found.poses[0, 1])
    # With one of them taken for the right one they share out everything.
    closed = rescore.decide(before, np.asarray([0]), found, score, closed=True)
    np.testing.assert_allclose(closed.probabilities[0], [[1.0, 0.0, 0.0], [0.25, 0.0, 0.75]], atol=1e-6)
    np.testing.assert_array_equal(closed.probabilities[1], probabilities[1])


def test_a_wrong_belief_is_mended_by_the_drawing(judge, target):
    ink, labels, poses = target
    before, wrong = believed(labels, poses)
    assert (before.probabilities.argmax(-1) == labels).all(-1).sum() == IMAGES - len(wrong)
    after = judge(ink, before, usual=judge.usual_residual(ink, before))
    np.testing.assert_array_equal(after.probabilities.argmax(-1), labels)
    np.testing.assert_allclose(after.probabilities[wrong].sum(-1), 1.0, atol=1e-5)
    sure = np.setdiff1d(np.arange(IMAGES), wrong)
    np.testing.assert_array_equal(after.probabilities[sure], before.probabilities[sure])
    assert abs(after.poses[wrong] - poses[wrong])[..., :2].mean() < 0.2


def test_an_image_alone_is_decided_as_among_others(judge, target):
    ink, labels, poses = target
    before, wrong = believed(labels, poses)
    usual = judge.usual_residual(ink, before)
    after = judge(ink, before, usual=usual)
    one = wrong[3:4]
    alone = judge(ink[one], reading.Readings(*(part[one] for part in before)), usual=usual)
    np.testing.assert_allclose(alone.probabilities, after.probabilities[one], atol=1e-5)
    np.testing.assert_allclose(alone.poses, after.poses[one], atol=1e-3)


def test_a_drawing_that_tells_nothing_leaves_the_belief(target):
    """Where no pixel is known, all texts are drawn equally well."""
    ink, labels, poses = target
    before, wrong = believed(labels, poses)
    noise = rescore.make_noise(jax.random.key(1), CAPTCHA, config=CONFIG.rescore)
    blind = rescore.Rescorer(atlas(), np.ones((20, 40), bool), noise, config=CONFIG)
    after = blind(ink, before, usual=blind.usual_residual(ink, before))
    np.testing.assert_array_equal(after.probabilities.argmax(-1), before.probabilities.argmax(-1))
    np.testing.assert_allclose(after.probabilities[wrong], before.probabilities[wrong], atol=0.02)


def test_a_character_that_no_reader_thought_of_is_found(judge, target):
    """The first character of a few images is believed to be one of two others, the right one out of question."""
    ink, labels, poses = target
    before, wrong = believed(labels, poses)
    usual = judge.usual_residual(ink, before)
    probabilities = before.probabilities.copy()
    for row in wrong:
        right = labels[row, 0]
        probabilities[row, 0] = np.where(np.arange(3) == right, 0.0, 0.5)
    after = judge(ink, reading.Readings(probabilities, before.poses), usual=usual)
    np.testing.assert_array_equal(after.probabilities.argmax(-1), labels)
    np.testing.assert_allclose(after.probabilities[wrong].sum(-1), 1.0, atol=1e-5)


def test_sure_readings_stay(judge, target):
    ink, labels, poses = target
    readings = reading.Readings(np.eye(3, dtype=np.float32)[labels], poses)
    assert judge(ink, readings, usual=1.0) is readings


def test_misfit_grows_by_proportion_beyond_the_usual():
    np.testing.assert_allclose(rescore.misfit(np.array([0.0, 0.5, 1.0, np.e, np.inf])), [0.0, 0.5, 1.0, 2.0, np.inf])
    # A glyph that is drawn badly leaves as much of every text: what is won of ten parts is not what is won of one.
    one, ten = (np.diff(rescore.misfit(np.array(pair)))[0] for pair in ((0.8, 1.0), (9.8, 10.0)))
    assert one == pytest.approx(0.2) and ten == pytest.approx(np.log(10.0 / 9.8))
