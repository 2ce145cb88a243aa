import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simgan_jax import classifier, images, reading
from simgan_jax.config import CaptchaConfig, ClassifierConfig

CAPTCHA = CaptchaConfig(height=8, width=16, length=2, alphabet="abc")
NETWORK = ClassifierConfig(widths=(4,), hidden=8)


@pytest.fixture
def params(key):
    return classifier.init(key, CAPTCHA, config=NETWORK)


@pytest.fixture
def ink():
    # Seven different images: a bar that walks.
    ink = np.zeros((7, 8, 16), np.uint8)
    for i in range(7):
        ink[i, i : i + 2, 2 * i : 2 * i + 3] = 255
    return ink


APPLY = jax.jit(lambda params, ink: classifier.apply(params, images.to_unit(ink), CAPTCHA, config=NETWORK))


def direct(params, ink):
    out = APPLY(params, jnp.asarray(ink))
    return np.asarray(jax.nn.softmax(out.logits)), np.asarray(out.poses)


def test_batches_are_seamless(params, ink):
    got = reading.Reader(CAPTCHA, config=NETWORK, batch_size=3)(params, ink)
    probabilities, poses = direct(params, ink)
    np.testing.assert_allclose(got.probabilities, probabilities, atol=1e-5)
    np.testing.assert_allclose(got.poses, poses, atol=1e-4)


def test_unsure_images_are_averaged_over_shifts(params, ink):
    reader = reading.Reader(CAPTCHA, config=NETWORK, batch_size=4)
    first = reader(params, ink)
    certainty = reading.certainty(first.probabilities)
    sure = float(np.median(certainty))
    got = reader.again(params, ink, first, shifts=((1, 0), (0, -2)), sure=sure)
    parts = [direct(params, np.roll(ink, shift, axis=(1, 2)))[0] for shift in ((0, 0), (1, 0), (0, -2))]
    unsure = certainty < sure
    assert unsure.sum() == 3
    np.testing.assert_allclose(got.probabilities[unsure], np.mean(parts, axis=0)[unsure], atol=1e-5)
    assert np.abs(got.probabilities[unsure] - first.probabilities[unsure]).max() > 1e-3
    np.testing.assert_array_equal(got.probabilities[~unsure], first.probabilities[~unsure])
    # Poses are those of the image as it stands.
    np.testing.assert_array_equal(got.poses, first.poses)
    assert reader.again(params, ink, first, shifts=((1, 0),), sure=0.0) is first


def test_answers_by_hand():
    probabilities = np.array([[[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]], [[0.1, 0.5, 0.4], [0.9, 0.1, 0.0]]])
    texts, confidences = reading.answers(probabilities, CAPTCHA)
    assert texts == ["ac", "ba"]
    np.testing.assert_allclose(confidences, [0.56, 0.45])


def test_an_untrained_reader_is_unsure_of_noise(params):
    noise = np.asarray(jax.random.randint(jax.random.key(1), (50, 8, 16), 0, 256)).astype(np.uint8)
    readings = reading.Reader(CAPTCHA, config=NETWORK, batch_size=50)(params, noise)
    assert reading.answers(readings.probabilities, CAPTCHA)[1].mean() < 0.5
