import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simgan_jax import backend, classifier, classify, images, layout, reading, refiner, stages, target
from simgan_jax.config import (
    CaptchaConfig,
    ClassifierConfig,
    Config,
    ConfigError,
    FitConfig,
    RefineConfig,
    RefinerConfig,
    SynthesizerConfig,
    TargetConfig,
)

CONFIG = Config(
    captcha=CaptchaConfig(height=24, width=48, length=4, alphabet="abc3"),
    synthesizer=SynthesizerConfig(fonts=("lato-bold",), sizes=(0.5,), strokes=(0,)),
    refiner=RefinerConfig(width=4, blocks=1, residual=True),
    fit=FitConfig(images=8, passes=1, batch_size=4, inner=1, styles=1),
)
SEED_LAW = dataclasses.replace(CONFIG, synthesizer=dataclasses.replace(CONFIG.synthesizer, law="seed"))
SCENE = target.Scene(np.full((24, 48), 60.0, np.float32), np.zeros((24, 48), bool), 255.0, None)


def equal(pool, other):
    jax.tree.map(np.testing.assert_array_equal, pool, other)


@pytest.mark.parametrize("config", [CONFIG, SEED_LAW], ids=["wide", "seed"])
def test_a_captcha_depends_on_its_number_alone(config):
    simulator = stages.configured_simulator(config)
    assert simulator.reject == (config is SEED_LAW)
    few = stages.draw_pool(jax.random.key(3), simulator, SCENE, count=5, config=config)
    many = stages.draw_pool(jax.random.key(3), simulator, SCENE, count=504, config=config)
    assert (many.ink.shape, many.ink.dtype, many.labels.shape) == ((504, 24, 48), jnp.uint8, (504, 4))
    equal(few, stages.take(many, 5))
    assert len(np.unique(np.asarray(many.ink), axis=0)) == 504
    if simulator.reject:
        assert bool(layout.separated(many.ink / 255.0, length=4).all())
    other = stages.draw_pool(jax.random.key(4), simulator, SCENE, count=5, config=config)
    assert not np.array_equal(other.ink, few.ink)


def test_lines_of_a_binary_scene_are_no_characters():
    """Every column is crossed by one, so that no image would show separate runs."""
    lines = np.zeros((24, 48), bool)
    lines[20:22] = True
    config = dataclasses.replace(SEED_LAW, target=TargetConfig(representation="binary", threshold=130))
    scene = dataclasses.replace(SCENE, mask=lines)
    pool = stages.draw_pool(jax.random.key(3), stages.configured_simulator(config), scene, count=5, config=config)
    ink = np.asarray(pool.ink)
    assert (ink[:, lines] == 255).all()
    assert bool(layout.separated(jnp.asarray(np.where(lines, 0, ink)) / 255.0, length=4).all())


def test_a_law_that_rejects_nearly_all_is_refused():
    """More characters than fit."""
    config = dataclasses.replace(SEED_LAW, captcha=CaptchaConfig(height=24, width=48, length=7, alphabet="abc3"))
    with pytest.raises(ConfigError, match="law='seed': 50 attempts .* no 7 separate characters: choose law 'wide'"):
        stages.draw_pool(jax.random.key(3), stages.configured_simulator(config), SCENE, count=5, config=config)


def test_rows_are_put_in_place_and_others_left_out():
    there = (jnp.zeros((5, 2)), jnp.arange(5))
    ones, numbers = stages.put(there, jnp.asarray([3, 5, 0]), (jnp.ones((3, 2)), jnp.asarray([7, 8, 9])))
    np.testing.assert_array_equal(numbers, [9, 1, 2, 7, 4])
    np.testing.assert_array_equal(ones, np.outer([1, 0, 0, 1, 0], [1, 1]))
    assert all(leaf.is_deleted() for leaf in there)


def make_pool(count, seed=0):
    ink = jax.random.randint(jax.random.key(seed), (count, 24, 48), 0, 256).astype(jnp.uint8)
    return classify.Pool(ink, jnp.full((count, 4), seed), jnp.full((count, 4, 3), float(seed)))


def test_a_fresh_residual_refiner_changes_nothing():
    pool = make_pool(7)
    params = refiner.init(jax.random.key(1), config=CONFIG.refiner)
    equal(stages.refine_pool(jax.random.key(9), params, pool, config=CONFIG), pool)


def test_refining_changes_ink_alone():
    pool = make_pool(3)
    params = refiner.init(jax.random.key(1), config=CONFIG.refiner)
    # The last convolution adds 0.5 to every pixel.
    params = jax.tree.map(jnp.zeros_like, params)
    last = max((name for name in params if name.startswith("Conv")), key=lambda name: int(name.split("_")[1]))
    params[last]["bias"] = jnp.full_like(params[last]["bias"], 0.5)
    refined = stages.refine_pool(jax.random.key(9), params, pool, config=CONFIG)
    brighter = np.clip(np.asarray(pool.ink, np.float64) + 0.5 * 127.5, 0, 255)
    assert np.abs(np.asarray(refined.ink, np.float64) - brighter).max() <= 0.76
    equal(refined[1:], pool[1:])


def test_latents_of_a_refined_captcha_depend_on_its_number_alone(monkeypatch):
    config = dataclasses.replace(CONFIG, refiner=dataclasses.replace(CONFIG.refiner, latents=2))
    pool = make_pool(7)._replace(ink=jnp.full((7, 24, 48), 128, jnp.uint8))
    params = refiner.init(jax.random.key(1), config=config.refiner)
    params = jax.tree.map(lambda leaf: leaf + 0.05, params)
    many = stages.refine_pool(jax.random.key(9), params, pool, config=config)
    assert len(np.unique(np.asarray(many.ink), axis=0)) == 7
    monkeypatch.setattr(backend, "images_at_once", lambda: 2)
    equal(stages.refine_pool(jax.random.key(9), params, stages.take(pool, 5), config=config), stages.take(many, 5))


def test_label_loss_is_that_of_the_reader():
    config = dataclasses.replace(CONFIG, classifier=ClassifierConfig(widths=(8,), hidden=8))
    asked = dataclasses.replace(config, refine=RefineConfig(lambda_label=2.0))
    reader = classifier.init(jax.random.key(0), config.captcha, config=config.classifier)
    assert stages.label_loss(reader, config) is None
    pool = make_pool(3, seed=1)
    refined = images.to_unit(pool.ink)
    # Weighed where it is used (steps.py).
    label_loss = stages.label_loss(reader, asked)
    assert label_loss is not None
    loss = jax.jit(label_loss)(refined, pool.labels)
    logits = jax.jit(lambda x: classifier.apply(reader, x, config.captcha, config=config.classifier).logits)(refined)
    likely = np.exp(np.asarray(logits, np.float64))[..., 1] / np.exp(np.asarray(logits, np.float64)).sum(-1)
    np.testing.assert_allclose(loss, -np.log(likely).sum(axis=1), rtol=1e-4)
    # Training that asks for it must not go on without it.
    forgotten = stages.label_loss(None, asked)
    assert forgotten is not None
    with pytest.raises(ValueError, match="give the classifier"):
        forgotten(refined, pool.labels)


def test_mixing():
    mixed = stages.mix_pools(make_pool(2, seed=1), stages.take(make_pool(5, seed=2), 3))
    assert mixed.ink.shape == (5, 24, 48)
    assert np.asarray(mixed.labels)[:, 0].tolist() == [1, 1, 2, 2, 2]


def test_fitting_reports_and_fits_a_simulator():
    simulator = stages.configured_simulator(CONFIG)
    drawn = stages.draw_pool(jax.random.key(3), simulator, SCENE, count=16, config=CONFIG)
    sure = np.eye(4, dtype=np.float32)[np.asarray(drawn.labels)]
    reports = []
    atlas, poses = stages.fit_simulator(
        np.asarray(drawn.ink),
        reading.Readings(sure, np.asarray(drawn.poses)),
        simulator,
        SCENE,
        config=CONFIG,
        report=lambda step, residual: reports.append((step, residual)),
    )
    assert (atlas.shape, poses.shape) == ((1, 4, *simulator.atlas.shape[2:]), (8, 4, 3))
    ((step, residual),) = reports
    assert step == 2 and np.isfinite(residual)
    fitted = stages.fitted_simulator(CONFIG, atlas, poses)
    again = stages.draw_pool(jax.random.key(5), fitted, SCENE, count=3, config=CONFIG)
    assert again.ink.shape == (3, 24, 48) and not fitted.reject


def test_what_a_fit_leaves_comes_into_its_simulator():
    """A stain on every captcha that a fit sees is left by its drawings, and is on every captcha drawn with it then."""
    config = dataclasses.replace(CONFIG, fit=dataclasses.replace(CONFIG.fit, images=6))
    simulator = stages.configured_simulator(config)
    drawn = stages.draw_pool(jax.random.key(3), simulator, SCENE, count=16, config=config)
    stained = np.asarray(drawn.ink).copy()
    stained[:, :2] = 255
    readings = reading.Readings(np.eye(4, dtype=np.float32)[np.asarray(drawn.labels)], np.asarray(drawn.poses))
    # As if the fit had found the glyphs and poses that were drawn.
    chosen, _ = stages.fit_evidence(stained, readings, SCENE, config=config)
    atlas, poses = np.asarray(simulator.atlas), readings.poses[chosen]
    left = stages.left_over(stained, readings, SCENE, atlas, poses, config=config)
    # Whole batches of four alone are fitted on.
    assert (left.shape, left.dtype, len(chosen)) == ((4, 24, 48), jnp.int8, 4)
    assert (np.asarray(left)[:, :2] > 100).mean() > 0.9
    assert (np.asarray(left)[:, 2:] == 0).mean() > 0.9
    fitted = stages.fitted_simulator(config, atlas, poses)
    plain, again = (
        stages.draw_pool(jax.random.key(5), one, SCENE, count=3, config=config)
        for one in (fitted, fitted._replace(left=left))
    )
    assert (np.asarray(again.ink)[:, :2] > 200).mean() > 0.9 > 0.5 > (np.asarray(plain.ink)[:, :2] > 200).mean()


def test_a_look_alike_that_takes_over_is_fitted_as_what_it_is():
    """A reader that takes every b for an a, but is less sure of it, fits what one fits that reads all right."""
    config = dataclasses.replace(CONFIG, fit=dataclasses.replace(CONFIG.fit, images=16, share=1.0))
    simulator = stages.configured_simulator(config)
    drawn = stages.draw_pool(jax.random.key(3), simulator, SCENE, count=16, config=config)
    right = np.eye(4, dtype=np.float32)[np.asarray(drawn.labels)]
    biased = np.where(right[..., 1:2] == 1, np.asarray([0.55, 0.45, 0.0, 0.0], np.float32), right)

    def fitted(probabilities):
        readings = reading.Readings(probabilities, np.asarray(drawn.poses))
        return stages.fit_simulator(
            np.asarray(drawn.ink), readings, simulator, SCENE, config=config, report=lambda *_: None
        )

    assert (biased.argmax(-1) != right.argmax(-1)).any()
    for one, other in zip(fitted(biased), fitted(right), strict=True):
        np.testing.assert_array_equal(one, other)


def test_settings_of_an_arm():
    adapting = stages.adapt_settings(CONFIG)
    assert (adapting.steps, adapting.batch_size, adapting.lr) == (
        CONFIG.adapt.steps,
        CONFIG.adapt.pool_batch_size,
        CONFIG.adapt.lr,
    )
