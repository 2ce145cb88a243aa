import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simgan_jax import adapt, classifier, classify, images
from simgan_jax.config import AdaptConfig, CaptchaConfig, ClassifierConfig, ClassifyConfig

STILL = AdaptConfig(shift=0, boxes=0, gain=0.0, noise=0.0)
CAPTCHA = CaptchaConfig(height=8, width=16, length=2, alphabet="abc")


def test_align_by_hand():
    # Readings that say 'a' three times as often as 'b': (0.6 / 1.5, 0.4 / 0.5), normalised.
    aligned = adapt.align(jnp.array([[[0.6, 0.4]], [[0.9, 0.1]]]))
    np.testing.assert_allclose(aligned, [[[1 / 3, 2 / 3]], [[0.75, 0.25]]], atol=1e-5)


def test_align_to_uniform_changes_nothing():
    probabilities = jnp.array([[[0.2, 0.3, 0.5], [0.3, 0.5, 0.2], [0.5, 0.2, 0.3]]])
    np.testing.assert_allclose(adapt.align(probabilities), probabilities, atol=1e-5)


def test_characters_are_believed_one_by_one(ink):
    said = np.asarray([[0, 1], [1, 2], [2, 0], [0, 2], [1, 0]])
    probabilities = np.full((5, 2, 3), 0.04, np.float32)
    np.put_along_axis(probabilities, said[..., None], 0.92, axis=-1)
    probabilities[3, 1] = [0.3, 0.3, 0.4]
    seen = adapt.believe(ink, jnp.asarray(probabilities), config=AdaptConfig(threshold=0.7))
    np.testing.assert_array_equal(seen.labels, said)
    np.testing.assert_array_equal(seen.use, [[1, 1], [1, 1], [1, 1], [1, 0], [1, 1]])


@pytest.fixture
def ink(key):
    return jax.random.randint(jax.random.fold_in(key, 1), (5, 8, 16), 0, 256).astype(jnp.uint8)


def test_augment_keeps_shape_and_range(key, ink):
    out = adapt.augment(key, ink, config=AdaptConfig(noise=0.5, gain=0.9))
    assert (out.shape, out.dtype) == ((5, 8, 16, 1), jnp.float32)
    assert float(out.min()) >= -1.0 and float(out.max()) <= 1.0


def test_augment_of_nothing_is_the_image(key, ink):
    np.testing.assert_allclose(adapt.augment(key, ink, config=STILL), images.to_unit(ink), atol=1e-6)


def test_augment_shifts_each_image_by_itself(key, ink):
    out = adapt.augment(key, ink, config=AdaptConfig(shift=2, boxes=0, gain=0.0, noise=0.0))
    shifts = []
    for before, after in zip(np.asarray(images.to_unit(ink)), np.asarray(out), strict=True):
        moves = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)]
        fits = [move for move in moves if np.allclose(np.roll(before, move, axis=(0, 1)), after, atol=1e-6)]
        assert len(fits) == 1
        shifts += fits
    assert len(set(shifts)) > 1


def test_augment_erases_boxes(key):
    full = jnp.full((20, 8, 16), 255, jnp.uint8)
    out = np.asarray(adapt.augment(key, full, config=AdaptConfig(shift=0, boxes=1, box=0.25, gain=0.0, noise=0.0)))
    erased = (out == -1.0).sum(axis=(1, 2, 3))
    # A side of 0.25 * 8 = 2 pixels; a corner between pixels meets two of them, one past the edge none.
    assert set(erased) <= {0, 1, 2, 4} and 4 in erased
    assert ((out == 1.0) | (out == -1.0)).all()


def test_only_believed_characters_are_learned(key, ink):
    init_key, step_key, other_key = jax.random.split(key, 3)
    network, settings = (
        ClassifierConfig(widths=(4,), hidden=8),
        ClassifyConfig(batch_size=4, steps=10, warmup=0, lr=0.1),
    )
    step = jax.jit(
        functools.partial(
            adapt.adapt_step,
            captcha=CAPTCHA,
            classifier_config=network,
            classify_config=settings,
            config=AdaptConfig(batch_size=4),
        )
    )
    params = classifier.init(init_key, CAPTCHA, config=network)
    state = classify.start_state(params, config=settings)
    pool = classify.Pool(ink, jnp.zeros((5, 2), jnp.int32), jnp.zeros((5, 2, 3)))
    nothing = adapt.Believed(ink, jnp.ones((5, 2), jnp.int32), jnp.zeros((5, 2)))

    # Past the step whose learning rate is 0.
    state, metrics = step(state, step_key, pool, nothing)
    one, _ = step(state, jnp.copy(other_key), pool, nothing)
    two, _ = step(state, jnp.copy(other_key), pool, nothing._replace(ink=255 - ink, labels=nothing.labels + 1))
    assert (float(metrics["used"]), float(metrics["consistency"])) == (0.0, 0.0)
    jax.tree.map(np.testing.assert_array_equal, one.params, two.params)
    assert int(one.step) == 2

    # All of the target is believed to say 'b'.
    swayed, metrics = step(state, jnp.copy(other_key), pool, nothing._replace(use=jnp.ones((5, 2))))
    assert float(metrics["used"]) == 1.0 and float(metrics["consistency"]) > 0.0
    bias, plain = swayed.params["Dense_1"]["bias"], one.params["Dense_1"]["bias"]
    assert float(bias[1]) > float(plain[1])
