import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simgan_jax import classifier, classify, estimate, images, train
from simgan_jax.config import CaptchaConfig, ClassifierConfig, ClassifyConfig

CAPTCHA = CaptchaConfig(height=12, width=24, length=2, alphabet="abcd")
NETWORK = ClassifierConfig(widths=(8,), hidden=16, dropout=0.0)
CONFIG = ClassifyConfig(batch_size=32, steps=120, lr=0.02, warmup=5, average_decay=0.9)


def toy(seed, count):
    """Captchas of two characters; character c is a bar at row 3 c of its half, on faint noise."""
    label_key, noise_key = jax.random.split(jax.random.key(seed))
    labels = np.asarray(jax.random.randint(label_key, (count, 2), 0, 4))
    ink = np.asarray(jax.random.randint(noise_key, (count, 12, 24), 0, 60)).astype(np.uint8)
    for row, (left, right) in zip(ink, labels, strict=True):
        row[3 * left : 3 * left + 2, 2:10] = 255
        row[3 * right : 3 * right + 2, 14:22] = 255
    poses = np.stack([3.0 * labels + 1.0, np.broadcast_to([6.0, 18.0], labels.shape), 0.0 * labels], -1)
    return classify.Pool(jnp.asarray(ink), jnp.asarray(labels), jnp.asarray(poses, jnp.float32))


STEP = functools.partial(classify.classify_step, captcha=CAPTCHA, classifier_config=NETWORK, config=CONFIG)
LOGITS = jax.jit(lambda params, ink: classifier.apply(params, images.to_unit(ink), CAPTCHA, config=NETWORK).logits)


def trained(pool):
    rows = []
    state = jax.jit(lambda key: classify.init(key, CAPTCHA, classifier_config=NETWORK, config=CONFIG))(
        jax.random.key(0)
    )
    hooks = [lambda step, state, metrics: rows.append(metrics)]
    state = train.fit(state, jax.random.key(1), STEP, pool, steps=CONFIG.steps, chunk=20, hooks=hooks)
    return state, rows


@pytest.fixture(scope="module")
def learned():
    return trained(toy(0, 256))


def accuracy(params, pool):
    return float((LOGITS(params, pool.ink).argmax(axis=-1) == pool.labels).mean())


def test_loss_falls_and_what_is_learned_holds_for_new_captchas(learned):
    state, rows = learned
    assert rows[-1]["cross_entropy"] < 0.2 * rows[0]["cross_entropy"]
    assert rows[-1]["pose_error"] < rows[0]["pose_error"]
    assert int(state.step) == CONFIG.steps
    fresh = toy(5, 200)
    assert accuracy(state.params, fresh) > 0.95
    assert accuracy(state.average, fresh) > 0.95


def test_a_trained_reader_is_not_believed_on_noise(learned):
    fresh, generator = np.asarray(toy(5, 200).ink), np.random.default_rng(0)
    shuffled = generator.permuted(fresh.reshape(200, -1), axis=1).reshape(fresh.shape)
    uniform = generator.integers(0, 256, fresh.shape, np.uint8)

    def believed(ink):
        probabilities = np.asarray(jax.nn.softmax(LOGITS(learned[0].average, jnp.asarray(ink))))
        return estimate.accuracy(probabilities).estimate

    assert believed(fresh) > 0.9
    assert max(believed(shuffled), believed(uniform)) < 0.4


def test_shuffled_labels_teach_nothing():
    pool = toy(0, 256)
    labels = jax.random.randint(jax.random.key(9), pool.labels.shape, 0, 4)
    state, rows = trained(pool._replace(labels=labels))
    # Far from the true labels' loss, and a quarter of the characters right: 400 draws have a deviation of 0.022.
    assert rows[-1]["cross_entropy"] > 1.0
    fresh = toy(5, 200)
    unrelated = jax.random.randint(jax.random.key(8), fresh.labels.shape, 0, 4)
    assert accuracy(state.average, fresh._replace(labels=unrelated)) == pytest.approx(0.25, abs=0.1)


def test_average_by_hand():
    # Decay min(0.9, (1 + n) / (10 + n)) at n completed steps: 0.1, 2/11, 0.25.
    state = classify.start_state({"w": jnp.ones(3)}, config=CONFIG)
    average = np.ones(3)
    for decay in (0.1, 2 / 11, 0.25):
        state = classify.update(state, {"w": jnp.array([1.0, -2.0, 0.5])}, config=CONFIG)
        average = decay * average + (1 - decay) * np.asarray(state.params["w"])
        np.testing.assert_allclose(state.average["w"], average, rtol=1e-6)
    assert not np.allclose(state.average["w"], state.params["w"])


def test_average_never_weighs_more_than_its_decay():
    state = classify.start_state({"w": jnp.zeros(1)}, config=CONFIG)
    state = dataclasses.replace(state, step=jnp.asarray(1000, jnp.int32), params={"w": jnp.ones(1)})
    after = classify.update(state, {"w": jnp.zeros(1)}, config=dataclasses.replace(CONFIG, weight_decay=0.0))
    np.testing.assert_allclose(after.average["w"], [0.1], rtol=1e-5)


def test_a_batch_keeps_image_label_and_pose_together():
    pool = classify.Pool(
        jnp.broadcast_to(jnp.arange(7, dtype=jnp.uint8)[:, None, None], (7, 2, 2)),
        jnp.arange(7)[:, None],
        jnp.broadcast_to(jnp.arange(7.0)[:, None, None], (7, 1, 3)),
    )
    batch = classify.draw_batch(jax.random.key(0), pool, batch_size=50)
    np.testing.assert_array_equal(batch.ink[:, 0, 0], batch.labels[:, 0])
    np.testing.assert_array_equal(batch.poses[:, 0, 0], batch.labels[:, 0])
    assert set(np.asarray(batch.labels).ravel()) <= set(range(7)) and len(set(np.asarray(batch.labels).ravel())) > 3


def test_the_seeds_network_is_not_asked_for_poses():
    captcha = CaptchaConfig(height=8, width=8, length=1, alphabet="ab")
    config = ClassifierConfig(kind="seed", widths=(2, 2), hidden=4)
    init_key, *drop_keys = jax.random.split(jax.random.key(0), 3)
    params = classifier.init(init_key, captcha, config=config)
    batch = classify.Pool(jnp.zeros((2, 8, 8), jnp.uint8), jnp.zeros((2, 1), jnp.int32), jnp.full((2, 1, 3), jnp.nan))
    loss, metrics = classify.reading_loss(
        params, jnp.stack(drop_keys), batch, captcha, classifier_config=config, config=CONFIG
    )
    assert np.isfinite(loss) and metrics.keys() == {"cross_entropy", "character_accuracy"}


@pytest.fixture(scope="module")
def gradient():
    """Gradient and metrics of a batch in blocks, by a function of the network's dropout, the batch and the block."""
    params = classifier.init(jax.random.key(2), CAPTCHA, config=NETWORK)

    def make(batch, block, dropout=0.0, key=None):
        network = dataclasses.replace(NETWORK, dropout=dropout)
        options = {"classifier_config": network, "config": CONFIG, "block": block}
        apply = jax.jit(lambda key, batch: classify.reading_gradient(params, key, batch, CAPTCHA, **options))
        return apply(jax.random.key(3) if key is None else jax.random.clone(key), batch)

    return make


@pytest.mark.parametrize(("count", "block"), [(8, 4), (8, 1), (6, 4), (7, 4), (4, 8)])
def test_the_gradient_in_blocks_is_that_of_the_batch(gradient, count, block):
    # Poses that are far off in the first images: a mean over other than equal blocks would be another.
    batch = toy(4, count)
    batch = batch._replace(poses=batch.poses.at[: count // 2].add(30.0))
    whole, parts = gradient(batch, None), gradient(batch, block)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(whole[0])) > 0.1
    for got, want in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-5)


def test_what_an_image_loses_to_dropout_does_not_depend_on_its_block(gradient):
    batch = toy(4, 8)
    one, other = gradient(batch, None, 0.5), gradient(batch, None, 0.5, jax.random.key(4))
    assert np.abs(one[0]["position"] - other[0]["position"]).max() > 1e-4
    for block in (4, 1):
        for got, want in zip(*map(jax.tree.leaves, (gradient(batch, block, 0.5), one)), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-5)
