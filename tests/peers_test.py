"""Ours and the peers' outputs, losses and updated weights agree; for an environment with the extra `peers`."""

import dataclasses
import functools
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import _suites
from simgan_jax import classifier, classify, discriminator, refiner, state
from simgan_jax.config import ClassifierConfig, ClassifyConfig, Config, DiscriminatorConfig, RefineConfig, RefinerConfig

# Without chance: one image in each stack, no noise, no dropout, no history.
CONFIG = Config(
    refiner=RefinerConfig(width=8, blocks=2),
    discriminator=DiscriminatorConfig(widths=(8, 8, 8, 8), noise=0.0),
    refine=RefineConfig(batch_size=2, optimizer="sgd", refiner_lr=1e-5, discriminator_lr=1e-5, history_size=0),
    classifier=ClassifierConfig(widths=(16, 32, 32), hidden=16, dropout=0.0),
    classify=ClassifyConfig(batch_size=2),
)


def pictures() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (3, 50, 100, 1)).astype(np.float32)


def stacks() -> tuple[classify.Pool, jax.Array]:
    pool = _suites.pool(CONFIG)
    return classify.Pool(*(leaf[:1] for leaf in pool)), pool.ink[1:2]


@pytest.fixture(scope="module")
def start() -> state.SimGANState:
    return state.init(jax.random.key(0), config=CONFIG)


@pytest.fixture(scope="module")
def reader() -> classifier.Params:
    return classifier.init(jax.random.key(1), CONFIG.captcha, config=CONFIG.classifier)


def our_outputs(start, reader):
    x = jnp.asarray(pictures())
    judge, _ = discriminator.normalize(start.discriminator.params, start.spectral, config=CONFIG.discriminator)
    reading = classifier.apply(reader, x, CONFIG.captcha, config=CONFIG.classifier)
    return (
        refiner.apply(start.refiner.params, x, config=CONFIG.refiner),
        discriminator.apply(judge, x, config=CONFIG.discriminator),
        reading.logits,
        reading.poses,
    )


def our_metrics(suite, start, config=CONFIG):
    step = jax.jit(functools.partial(_suites.SIMGAN_STEPS[suite][0], config=config))
    return step(start, jax.random.key(5), stacks())


def our_reading_metrics(reader):
    begin = classify.start_state(reader, config=CONFIG.classify)
    step = functools.partial(
        classify.classify_step, captcha=CONFIG.captcha, classifier_config=CONFIG.classifier, config=CONFIG.classify
    )
    return jax.jit(lambda: step(begin, jax.random.key(2), stacks()[0]))()[1]


def same(ours, theirs):
    assert set(theirs) <= set(ours)
    for name, value in theirs.items():
        np.testing.assert_allclose(np.asarray(ours[name]), float(value), rtol=1e-4, err_msg=name)


def test_torch_outputs(start, reader):
    torch = pytest.importorskip("torch")
    from experiments import _peers_torch

    x = torch.from_numpy(pictures()).permute(0, 3, 1, 2)
    networks = _peers_torch.Refiner(CONFIG.refiner), _peers_torch.Discriminator(CONFIG.discriminator)
    slots = _peers_torch.SlotClassifier(CONFIG.captcha, CONFIG.classifier)
    _peers_torch.load(networks[0], start.refiner.params)
    _peers_torch.load(networks[1], start.discriminator.params, start.spectral)
    _peers_torch.load(slots, reader)
    with torch.no_grad():
        maps = [network(x).permute(0, 2, 3, 1) for network in networks]
        theirs = [*maps, *slots(x)]
    for ours, other in zip(our_outputs(start, reader), theirs, strict=True):
        np.testing.assert_allclose(np.asarray(ours), other.numpy(), atol=1e-4)


@pytest.mark.parametrize("suite", ["refiner_step", "discriminator_step", "simgan_step"])
def test_torch_steps(suite, start):
    pytest.importorskip("torch")
    from experiments import _peers_torch

    weights = start.refiner.params, start.discriminator.params, start.spectral
    pool, real = stacks()
    peer = _peers_torch.SimGAN(CONFIG, *weights, (pool.ink, real))
    theirs = getattr(peer, suite)()
    after, ours = our_metrics(suite, start)
    same(ours, {name: value.item() for name, value in theirs.items()})
    reference = _peers_torch.SimGAN(CONFIG, after.refiner.params, after.discriminator.params, after.spectral, ([], []))
    for network in ("refiner", "discriminator"):
        pairs = zip(getattr(peer, network).parameters(), getattr(reference, network).parameters(), strict=True)
        for theirs_after, ours_after in pairs:
            np.testing.assert_allclose(ours_after.detach(), theirs_after.detach(), atol=1e-4, rtol=1e-4)


def test_torch_classifier_step(reader):
    pytest.importorskip("torch")
    from experiments import _peers_torch

    theirs = _peers_torch.Classifier(CONFIG, reader, stacks()[0]).step()
    same(our_reading_metrics(reader), {name: value.item() for name, value in theirs.items()})


def test_keras_outputs(start, reader):
    if importlib.util.find_spec("keras") is None:
        pytest.skip("the extra `peers` is not installed")
    from experiments import _peers_keras

    judge, _ = discriminator.normalize(start.discriminator.params, start.spectral, config=CONFIG.discriminator)
    networks = [
        (_peers_keras.refiner(CONFIG.captcha, CONFIG.refiner), start.refiner.params),
        (_peers_keras.discriminator(CONFIG.captcha, CONFIG.discriminator), judge),
        (_peers_keras.classifier(CONFIG.captcha, CONFIG.classifier), reader),
    ]
    theirs: list[Any] = []
    for network, weights in networks:
        _peers_keras.load(network, weights)
        made = _peers_keras.outputs(network, pictures())
        theirs.extend(made if isinstance(made, tuple) else [made])
    for ours, other in zip(our_outputs(start, reader), theirs, strict=True):
        np.testing.assert_allclose(np.asarray(ours), np.asarray(other), atol=1e-4)


def test_keras_steps(start, reader):
    if importlib.util.find_spec("keras") is None:
        pytest.skip("the extra `peers` is not installed")
    from experiments import _peers_keras

    config = dataclasses.replace(CONFIG, refine=dataclasses.replace(CONFIG.refine, optimizer="adam"))
    weights = start.refiner.params, start.discriminator.params, start.spectral
    pool, real = stacks()
    for suite in ("refiner_step", "discriminator_step"):
        peer = _peers_keras.SimGAN(config, *weights, (pool.ink, real))
        same(our_metrics(suite, start)[1], getattr(peer, suite)())
    same(our_reading_metrics(reader), _peers_keras.Classifier(config, reader, pool).step())
