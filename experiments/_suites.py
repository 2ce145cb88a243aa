"""What the benchmark times: our steps and the peers that are installed, on the same weights and data."""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from simgan_jax import (
    backend,
    benchmark,
    classifier,
    classify,
    counts,
    devices,
    discriminator,
    layout,
    refiner,
    stages,
    state,
    steps,
    synthesizer,
    target,
    train,
)
from simgan_jax.benchmark import Case
from simgan_jax.config import Config, ConfigError

POOL = 2048
DRAWN = 500
SEEDS = 3


class Training:
    """A step of ours as the stages run it: some steps a call, the state donated.

    chunk: (state, key, data) -> (state, metrics), compiled; count: devices that a batch is divided over.
    """

    def __init__(
        self, chunk: Callable[..., tuple[Any, Any]], start: Any, data: Any, key: jax.Array, *, count: int
    ) -> None:
        self._chunk, self._key, self._count = chunk, key, count
        with devices.training(count):
            self._state, self._data = devices.place((start, data))

    def __call__(self) -> Any:
        with devices.training(self._count):
            self._state, metrics = self._chunk(self._state, self._key, self._data)
        return metrics, self._state


def one_seed(step_fn: train.Step, start: Any, data: Any, *, length: int, count: int = 1) -> Training:
    """Training as `train.fit` does it, `length` steps at a time, on `count` devices."""
    chunk = functools.partial(train.make_chunk(step_fn), length=length)
    return Training(chunk, start, data, jax.random.key(1), count=count)


def several_seeds(step_fn: train.Step, starts: Sequence[Any], data: Sequence[Any], *, length: int) -> Training:
    """The same of several seeds at once, by `jax.vmap` over their states, keys and data."""

    def stack(trees: Sequence[Any]) -> Any:
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

    chunk = jax.vmap(functools.partial(train.make_chunk(step_fn), length=length))
    keys = jnp.broadcast_to(jax.random.key(1), (len(starts),))
    return Training(jax.jit(chunk, donate_argnums=0), stack(starts), stack(data), keys, count=1)


def chunk_length() -> int:
    """Steps that are timed at once: on an accelerator as many as hide the host."""
    return 1 if backend.has_slow_convolution_gradients() else 20


def pool(config: Config) -> classify.Pool:
    """Captchas of random pixels and labels, which take as long as any."""
    draws = np.random.default_rng(0)
    captcha = config.captcha
    ink = draws.integers(0, 256, (POOL, captcha.height, captcha.width), np.uint8)
    labels = draws.integers(0, len(captcha.alphabet), (POOL, captcha.length), np.int32)
    poses = draws.uniform(0, captcha.height, (POOL, captcha.length, 3)).astype(np.float32)
    return classify.Pool(jnp.asarray(ink), jnp.asarray(labels), jnp.asarray(poses))


def refiner_step(
    current: state.SimGANState, key: jax.Array, data: steps.Data, *, config: Config
) -> tuple[state.SimGANState, steps.Metrics]:
    """The refiner's update of a round of Algorithm 1 alone."""
    judge, _ = discriminator.normalize(current.discriminator.params, current.spectral, config=config.discriminator)
    net, metrics = steps.refiner_update(current.refiner, key, data[0], judge, config=config)
    return dataclasses.replace(current, refiner=net, step=current.step + 1), metrics


def discriminator_step(
    current: state.SimGANState, key: jax.Array, data: steps.Data, *, config: Config
) -> tuple[state.SimGANState, steps.Metrics]:
    """The discriminator's update of a round of Algorithm 1 alone, with its history."""
    updated, metrics = steps.discriminator_update(current, key, data, config=config)
    return dataclasses.replace(updated, step=current.step + 1), metrics


SIMGAN_STEPS: Mapping[str, tuple[Callable[..., Any], Callable[[Config], counts.Cost]]] = {
    "refiner_step": (refiner_step, counts.refiner_update),
    "discriminator_step": (discriminator_step, counts.discriminator_update),
    "simgan_step": (steps.simgan_step, counts.simgan_step),
}


def simgan_cases(suite: str, config: Config, *, count: int) -> list[Case]:
    """A step of adversarial training, ours on `count` devices and the peers'.

    Raises:
      ConfigError: a refiner with latents, which the peers' has not.
    """
    if config.refiner.latents:
        raise ConfigError(f"config.refiner.latents={config.refiner.latents}: the peers have none: benchmark it with 0")
    step_fn, counted = SIMGAN_STEPS[suite]
    start, data, length = state.init(jax.random.key(0), config=config), pool(config), chunk_length()
    real = data.ink[::-1]
    params, judged, spectral = jax.device_get((start.refiner.params, start.discriminator.params, start.spectral))
    batch, cost = config.refine.batch_size, counted(config) * length
    x = jnp.zeros((batch, config.captcha.height, config.captcha.width, 1))
    judge, _ = discriminator.normalize(start.discriminator.params, start.spectral, config=config.discriminator)
    facts = {
        "forward_flops": sum(
            counts.forward(layers).flops
            for layers in (
                counts.refiner_layers(batch, config.captcha, config=config.refiner),
                counts.discriminator_layers(batch, config.captcha, config=config.discriminator),
            )
        ),
        "xla_forward_flops": benchmark.xla_flops(
            functools.partial(refiner.apply, config=config.refiner), start.refiner.params, x
        )
        + benchmark.xla_flops(functools.partial(discriminator.apply, config=config.discriminator), judge, x),
    }
    ours = one_seed(functools.partial(step_fn, config=config), start, (data, real), length=length, count=count)
    cases = [Case("simgan_jax", ours, batch * length, cost, facts)]
    if importlib.util.find_spec("torch"):
        from experiments import _peers_torch

        peer = _peers_torch.SimGAN(config, params, judged, spectral, (data.ink, real))
        call = _torch_call(getattr(peer, suite), length)
        cases.append(Case("PyTorch, channels_last", call, batch * length, cost))
    if importlib.util.find_spec("keras") and suite != "simgan_step":
        from experiments import _peers_keras

        keras_peer = _peers_keras.SimGAN(config, params, judged, spectral, (data.ink, real))
        cases.append(Case("Keras 3, JAX backend", _repeated(getattr(keras_peer, suite), length), batch * length, cost))
    return cases


def classifier_cases(config: Config, *, count: int) -> list[Case]:
    """A training step of the classifier, ours on `count` devices and the peers'."""
    data, length = pool(config), chunk_length()
    start = classify.init(
        jax.random.key(0), config.captcha, classifier_config=config.classifier, config=config.classify
    )
    weights = jax.device_get(start.params)
    batch, cost = config.classify.batch_size, counts.classify_step(config) * length
    layers = counts.classifier_layers(batch, config.captcha, config=config.classifier)

    def read(params: classifier.Params, x: jax.Array) -> Any:
        return classifier.apply(params, x, config.captcha, config=config.classifier)

    x = jnp.zeros((batch, config.captcha.height, config.captcha.width, 1))
    facts = {
        "forward_flops": counts.forward(layers).flops,
        "xla_forward_flops": benchmark.xla_flops(read, start.params, x),
    }
    step_fn = stages.classify_step(config, config.classify.steps)
    ours = one_seed(step_fn, start, data, length=length, count=count)
    cases = [Case("simgan_jax", ours, batch * length, cost, facts)]
    if config.classifier.kind != "slots":
        return cases
    if importlib.util.find_spec("torch"):
        from experiments import _peers_torch

        call = _torch_call(_peers_torch.Classifier(config, weights, data).step, length)
        cases.append(Case("PyTorch, channels_last", call, batch * length, cost))
    if importlib.util.find_spec("keras"):
        from experiments import _peers_keras

        keras_step = _peers_keras.Classifier(config, weights, data).step
        cases.append(Case("Keras 3, JAX backend", _repeated(keras_step, length), batch * length, cost))
    return cases


def seeds_cases(config: Config) -> list[Case]:
    """A training step of the classifiers of several seeds: all of them at once, and one after the other."""
    length, step_fn = chunk_length(), stages.classify_step(config, config.classify.steps)
    batch, cost = SEEDS * config.classify.batch_size, counts.classify_step(config) * (SEEDS * length)
    data = [pool(config)] * SEEDS

    def starts() -> list[Any]:
        init = functools.partial(classify.init, classifier_config=config.classifier, config=config.classify)
        return [init(jax.random.key(seed), config.captcha) for seed in range(SEEDS)]

    at_once = several_seeds(step_fn, starts(), data, length=length)
    in_turn = [one_seed(step_fn, start, own, length=length) for start, own in zip(starts(), data, strict=True)]
    return [
        Case(f"simgan_jax, {SEEDS} seeds at once", at_once, batch * length, cost),
        Case(f"simgan_jax, {SEEDS} seeds in turn", lambda: [train() for train in in_turn], batch * length, cost),
    ]


def _repeated(step: Callable[[], Any], times: int) -> Callable[[], Any]:
    return lambda: [step() for _ in range(times)][-1]


def _torch_call(step: Callable[[], Any], times: int) -> Callable[[], None]:
    from experiments import _peers_torch

    def call() -> None:
        for _ in range(times):
            step()
        _peers_torch.wait()

    return call


def example_scene(config: Config) -> target.Scene:
    """A striped captcha with two lines, JPEG quality about 75: as much work as a real target's."""
    captcha = config.captcha
    background = np.full((captcha.height, captcha.width), 96.0, np.float32)
    background[captcha.height // 2 :] = 128.0
    mask = np.zeros(background.shape, bool)
    mask[captcha.height // 3], mask[2 * captcha.height // 3] = True, True
    background[mask] = 250.0
    table = np.add.outer(np.arange(8.0), np.arange(8.0)).astype(np.float32) * 4.0 + 8.0
    return target.Scene(background, mask, 250.0, table)


def synthesis_cases(config: Config) -> list[Case]:
    """Drawing of labelled captchas: the wide law, the notebook's law with its rejection, and the notebook's way."""
    captcha, scene = config.captcha, example_scene(config)
    simulator = stages.configured_simulator(config)
    keys = jax.random.split(jax.random.key(0), DRAWN)
    packed = jax.jit(synthesizer.pack)(simulator.atlas)
    draw = jax.jit(lambda keys, atlas: synthesizer.synthesize(keys, atlas, scene, law=simulator.law, config=config))
    cell = simulator.atlas.shape[-1]
    cost = counts.synthesis(DRAWN, captcha, cell=cell, codec=config.synthesizer.codec)
    cases = [Case("simgan_jax, wide law, codec", lambda: draw(keys, packed), DRAWN, cost)]
    if (captcha.height, captcha.width, captcha.length) != (50, 100, 4):
        return cases

    plain = dataclasses.replace(
        config,
        synthesizer=dataclasses.replace(
            config.synthesizer, law="seed", codec=False, fonts=("dejavu-bold",), sizes=(0.52,), strokes=(0,)
        ),
        target=dataclasses.replace(config.target, representation="binary"),
    )
    seeded = stages.configured_simulator(plain)
    seeded = seeded._replace(atlas=jax.jit(synthesizer.pack)(seeded.atlas))

    @jax.jit
    def attempt(keys: jax.Array, atlas: jax.Array) -> tuple[synthesizer.Synthetic, jax.Array]:
        drawn = synthesizer.synthesize(keys, atlas, scene, law=seeded.law, config=plain)
        return drawn, layout.separated(drawn.ink.astype(jnp.float32) / 255.0, length=captcha.length)

    kept = int(attempt(keys, seeded.atlas)[1].sum())
    seed_cost = counts.synthesis(DRAWN, captcha, cell=seeded.atlas.shape[-1], codec=False)
    name = "simgan_jax, the notebook's law and rejection"
    facts = {"attempts": DRAWN, "accepted": kept}
    cases.append(Case(name, lambda: attempt(keys, seeded.atlas), max(kept, 1), seed_cost, facts, peer=False))

    from experiments import _peers_pillow

    drawer = _peers_pillow.Drawer(scene.mask, alphabet=captcha.alphabet)
    cases.append(Case("The notebook's way: Pillow", lambda: [drawer.draw() for _ in range(20)], 20))
    return cases
