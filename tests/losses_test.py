import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simgan_jax import config, losses

IMAGE = jnp.asarray([[0.0, 1.0, -1.0], [0.5, 0.5, 0.0]])[None, :, :, None]


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def test_psi_gradients_are_differences_down_and_right():
    got = losses.psi(IMAGE, name="gradients")
    assert got.shape == (1, 2, 3, 2)
    np.testing.assert_allclose(got[0, :, :, 0], [[0.5, -0.5, 1.0], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(got[0, :, :, 1], [[1.0, -2.0, 0.0], [0.0, -0.5, 0.0]])


def test_psi_blur_is_a_binomial_filter():
    point = jnp.zeros((1, 9, 9, 1)).at[0, 4, 4, 0].set(256.0)
    row = np.asarray([0, 0, 1, 4, 6, 4, 1, 0, 0])
    np.testing.assert_allclose(losses.psi(point, name="blur")[0, :, :, 0], np.outer(row, row))
    np.testing.assert_allclose(losses.psi(jnp.full((1, 3, 2, 1), 0.25), name="blur"), 0.25)


def test_psi_mean_and_identity():
    image = jnp.asarray([[1.0, 3.0], [-1.0, 0.0]])[None, None]
    np.testing.assert_allclose(losses.psi(image, name="mean"), [[[[2.0], [-0.5]]]])
    np.testing.assert_array_equal(losses.psi(image, name="identity"), image)


def test_every_psi_of_the_config_exists_and_no_other():
    for name in config.PSIS:
        assert losses.psi(IMAGE, name=name).shape[:3] == IMAGE.shape[:3]
    with pytest.raises(ValueError, match="psi 'cnn': choose one of identity, gradients, blur, mean"):
        losses.psi(IMAGE, name="cnn")


def test_self_regularization_sums_over_pixels_of_each_example():
    synthetic = jnp.zeros((2, 2, 3, 1))
    refined = synthetic.at[0, 0, 0, 0].set(-0.5).at[0, 1, 2, 0].set(0.25).at[1].set(1.0)
    np.testing.assert_allclose(losses.self_regularization(refined, synthetic), [0.75, 6.0])
    np.testing.assert_allclose(losses.self_regularization(refined, synthetic, psi=losses.psi_gradients), [1.5, 0.0])


def test_local_adversarial_sums_cross_entropies_over_patches():
    logits = np.random.default_rng(0).normal(size=(3, 2, 4, 2))
    log_p = log_softmax(logits)
    for label in (losses.REAL, losses.REFINED):
        got = losses.local_adversarial(jnp.asarray(logits), label)
        np.testing.assert_allclose(got, -log_p[..., label].sum(axis=(1, 2)), rtol=1e-5)


def test_undecided_patches_cost_ln_2_each():
    np.testing.assert_allclose(losses.local_adversarial(jnp.zeros((2, 13, 25, 2)), 1), 325 * np.log(2), rtol=1e-5)
    np.testing.assert_allclose(losses.local_adversarial(jnp.zeros((2, 1, 1, 2)), 0), np.log(2), rtol=1e-5)


def test_losses_of_the_paper():
    # D = p(refined): odds 3:1 for refined in one patch, 1:3 in the other.
    refined_logits = jnp.asarray([[[[0.0, np.log(3.0)], [np.log(3.0), 0.0]]]])
    real_logits = jnp.asarray([[[[np.log(3.0), 0.0], [np.log(3.0), 0.0]]]])
    got = losses.discriminator_loss(refined_logits, real_logits)
    np.testing.assert_allclose(got, [-np.log(3 / 4) - np.log(1 / 4) - 2 * np.log(3 / 4)], rtol=1e-5)
    got = losses.refiner_loss(refined_logits, jnp.asarray([8.0]), lambda_reg=0.5)
    np.testing.assert_allclose(got, [-np.log(1 / 4) - np.log(3 / 4) + 4.0], rtol=1e-5)


def test_refiner_gradient_leads_away_from_refined_and_does_not_vanish():
    sure_refined = jnp.asarray([[[[0.0, 20.0]]]])
    gradient = jax.grad(lambda logits: losses.refiner_loss(logits, jnp.zeros(1), lambda_reg=1.0).sum())(sure_refined)
    np.testing.assert_allclose(gradient[0, 0, 0], [-1.0, 1.0], atol=1e-5)


def test_huge_logits_stay_finite():
    logits = jnp.asarray([[[[1e4, -1e4]]]])
    value, gradient = jax.value_and_grad(lambda logits: losses.local_adversarial(logits, 1).sum())(logits)
    np.testing.assert_allclose(value, 2e4)
    assert jnp.isfinite(gradient).all()


def test_accuracy_counts_patches_and_no_draw():
    logits = jnp.asarray([[[[1.0, 2.0], [2.0, 1.0]]], [[[0.0, 0.0], [0.0, 3.0]]]])
    np.testing.assert_allclose(losses.accuracy(logits, losses.REFINED), [0.5, 0.5])
    np.testing.assert_allclose(losses.accuracy(logits, losses.REAL), [0.5, 0.0])
    np.testing.assert_allclose(losses.dead_share(logits), [0.0, 0.5])


def test_character_cross_entropy_sums_over_characters():
    logits = np.random.default_rng(1).normal(size=(2, 3, 5))
    labels = np.asarray([[0, 4, 2], [1, 1, 3]])
    want = -np.take_along_axis(log_softmax(logits), labels[..., None], axis=-1)[..., 0].sum(axis=-1)
    got = losses.character_cross_entropy(jnp.asarray(logits), jnp.asarray(labels))
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_no_loss_mixes_examples():
    """Each gives the same for an example alone as in a batch."""
    generator = np.random.default_rng(2)
    logits = jnp.asarray(generator.normal(size=(3, 2, 2, 2)), jnp.float32)
    images = jnp.asarray(generator.normal(size=(3, 4, 5, 1)), jnp.float32)
    reg = losses.self_regularization(images, -images, psi=losses.psi_blur)
    for function in (
        lambda s: losses.discriminator_loss(logits[s], -logits[s]),
        lambda s: losses.refiner_loss(logits[s], reg[s], lambda_reg=0.1),
        lambda s: losses.self_regularization(images[s], -images[s], psi=losses.psi_blur),
        lambda s: losses.accuracy(logits[s], 0),
    ):
        alone = jnp.concatenate([function(slice(i, i + 1)) for i in range(3)])
        np.testing.assert_allclose(function(slice(None)), alone, rtol=1e-5)


def test_no_default_decides_a_lambda():
    assert inspect.signature(losses.refiner_loss).parameters["lambda_reg"].default is inspect.Parameter.empty
