"""Pretraining and Algorithm 1 of Shrivastava et al. 2017: pure steps (state, key, data) -> (state, metrics).

Data is a pair: labelled synthetic captchas at rest, and real ones, uint8 `[M, H, W]`. Batches of `B` are drawn from
both by key, uniform with replacement. Metrics are float32 scalars: cross-entropies per patch (ln 2 is a discriminator
that knows nothing), |refined - synthetic| per pixel (images span 2), shares and gradient norms. What is minimised is
the sum over patches and pixels, mean over the batch.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from simgan_jax import backend, blocks, classify, devices, discriminator, history, images, losses, refiner
from simgan_jax.config import Config, RefineConfig
from simgan_jax.state import NetState, SimGANState, optimizer

# Folded into the key of a step; far from the numbers of its parts, which are folded in alike.
LATENT_STREAM = 1000
Metrics = dict[str, jax.Array]
LabelLoss = Callable[[jax.Array, jax.Array], jax.Array]


class Synthetic(Protocol):
    """Labelled synthetic captchas at rest. ink: uint8 `[N, H, W]`; labels: `[N, L]`."""

    @property
    def ink(self) -> jax.Array: ...

    @property
    def labels(self) -> jax.Array: ...


Data = tuple[Synthetic, jax.Array]


def refiner_pretrain_step(
    state: SimGANState, key: jax.Array, data: Data, *, config: Config
) -> tuple[SimGANState, Metrics]:
    """One update of the refiner towards its input, by the self-regularisation alone (paper 3.1). Consumes the key."""
    synthetic, _ = _draw(key, data[0], config=config.refine)
    latents = _latents(key, synthetic, config=config)
    # Weighed as in Algorithm 1, which matters to SGD; without a lambda there the scale is free.
    weight = config.refine.lambda_reg or 1.0

    def objective(params: refiner.Params, synthetic: jax.Array, latents: jax.Array | None) -> tuple[jax.Array, Metrics]:
        refined = refiner.apply(params, synthetic, config=config.refiner, latents=latents)
        loss = weight * _regularization(refined, synthetic, config=config).mean()
        return loss, {"refiner_reg": jnp.abs(refined - synthetic).mean()}

    refiner_state, metrics = _descend(
        state.refiner, objective, (synthetic, latents), "refiner", config.refine, config.refine.refiner_lr
    )
    return _finish(state, refiner=refiner_state, config=config), metrics


def discriminator_pretrain_step(
    state: SimGANState, key: jax.Array, data: Data, *, config: Config
) -> tuple[SimGANState, Metrics]:
    """One update of the discriminator on real and freshly refined images, no history (paper 3.1). Consumes the key."""
    pretrained = dataclasses.replace(state, history=history.init(0, state.history.data.shape[1:]))
    updated, metrics = discriminator_update(pretrained, key, data, config=config)
    return _finish(updated, history=state.history, config=config), metrics


def simgan_step(
    state: SimGANState, key: jax.Array, data: Data, *, config: Config, label_loss_fn: LabelLoss | None = None
) -> tuple[SimGANState, Metrics]:
    """One round of Algorithm 1: k_g updates of the refiner, then k_d of the discriminator, each on fresh batches.

    The discriminator's refined half is half from the history, which afterwards takes B / 2 new images (paper 2.3).
    The key is consumed.

    Args:
      label_loss_fn: (refined `[B, H, W, 1]`, labels `[B, L]`) -> `[B]`, how far the images have lost their labels;
        `config.refine.lambda_label` times it is added to the refiner's loss.
    """
    refiner_key, discriminator_key = jax.random.split(key)
    networks, _ = discriminator.normalize(state.discriminator.params, state.spectral, config=config.discriminator)

    def refine(net: NetState, key: jax.Array) -> tuple[NetState, Metrics]:
        return refiner_update(net, key, data[0], networks, config=config, label_loss_fn=label_loss_fn)

    def judge(state: SimGANState, key: jax.Array) -> tuple[SimGANState, Metrics]:
        return discriminator_update(state, key, data, config=config)

    refiner_state, refiner_metrics = _repeat(refine, state.refiner, refiner_key, config.refine.k_g)
    state = dataclasses.replace(state, refiner=refiner_state)
    state, discriminator_metrics = _repeat(judge, state, discriminator_key, config.refine.k_d)
    size = {"history_size": state.history.size.astype(jnp.float32)}
    return _finish(state, config=config), refiner_metrics | discriminator_metrics | size


def refiner_update(
    net_state: NetState,
    key: jax.Array,
    data: Synthetic,
    judge: discriminator.Params,
    *,
    config: Config,
    label_loss_fn: LabelLoss | None = None,
) -> tuple[NetState, Metrics]:
    """One update of the refiner against a discriminator as `discriminator.normalize` gives it. Consumes the key."""
    data_key, noise_key = jax.random.split(key)
    synthetic, labels = _draw(data_key, data, config=config.refine)
    noise = _noise(noise_key, synthetic.shape, config=config)
    latents = _latents(key, synthetic, config=config)

    def objective(
        params: refiner.Params,
        synthetic: jax.Array,
        labels: jax.Array,
        noise: jax.Array,
        latents: jax.Array | None,
    ) -> tuple[jax.Array, Metrics]:
        refined = refiner.apply(params, synthetic, config=config.refiner, latents=latents)
        logits = discriminator.apply(judge, refined + noise, config=config.discriminator)
        regularization = _regularization(refined, synthetic, config=config)
        loss = losses.refiner_loss(logits, regularization, lambda_reg=config.refine.lambda_reg)
        metrics = {
            "refiner_adversarial": losses.local_adversarial(logits, losses.REAL).mean() / _patches(logits),
            "refiner_reg": jnp.abs(refined - synthetic).mean(),
        }
        if label_loss_fn is not None:
            lost = label_loss_fn(refined, labels)
            loss = loss + config.refine.lambda_label * lost
            metrics["refiner_label"] = lost.mean()
        return loss.mean(), metrics

    batch = (synthetic, labels, noise, latents)
    return _descend(net_state, objective, batch, "refiner", config.refine, config.refine.refiner_lr)


def discriminator_update(
    state: SimGANState, key: jax.Array, data: Data, *, config: Config
) -> tuple[SimGANState, Metrics]:
    """One update of the discriminator, which then adds to the history (paper 2.3). Consumes the key."""
    synthetic_key, real_key, mix_key, add_key, noise_key = jax.random.split(key, 5)
    synthetic, _ = _draw(synthetic_key, data[0], config=config.refine)
    latents = _latents(key, synthetic, config=config)
    refined = refiner.apply(state.refiner.params, synthetic, config=config.refiner, latents=latents)
    mixed = history.mix(state.history, mix_key, refined)
    real = devices.spread(images.to_unit(data[1][_indices(real_key, data[1], config=config.refine)]))
    noise = _noise(noise_key, (2, *mixed.shape), config=config)

    def objective(params: discriminator.Params, refined: jax.Array, real: jax.Array) -> tuple[jax.Array, Metrics]:
        normal, _ = discriminator.normalize(params, state.spectral, config=config.discriminator)
        logits = discriminator.apply(normal, jnp.concatenate([refined, real]), config=config.discriminator)
        refined_logits, real_logits = jnp.split(logits, 2)
        loss = losses.discriminator_loss(refined_logits, real_logits).mean()
        return loss, {
            "discriminator_loss": loss / (2 * _patches(logits)),
            "accuracy_refined": losses.accuracy(refined_logits, losses.REFINED).mean(),
            "accuracy_real": losses.accuracy(real_logits, losses.REAL).mean(),
            "dead_logits": losses.dead_share(logits).mean(),
        }

    seen = (mixed + noise[0], real + noise[1])
    net, metrics = _descend(
        state.discriminator, objective, seen, "discriminator", config.refine, config.refine.discriminator_lr
    )
    _, spectral = discriminator.normalize(net.params, state.spectral, config=config.discriminator)
    # The half of the fresh images that this update did not see, where there is a history. They depend, if by nothing,
    # on those that were drawn: XLA then overwrites the history in place, where it would copy all of it in every step.
    half = refined.shape[0] // 2
    new_history = history.add(state.history, add_key, refined[:half] + 0.0 * mixed[:half])
    return dataclasses.replace(state, discriminator=net, spectral=spectral, history=new_history), metrics


def _draw(key: jax.Array, data: Synthetic, *, config: RefineConfig) -> tuple[jax.Array, jax.Array]:
    index = _indices(key, data.ink, config=config)
    return devices.spread((images.to_unit(data.ink[index]), data.labels[index]))


def _indices(key: jax.Array, stack: jax.Array, *, config: RefineConfig) -> jax.Array:
    return jax.random.randint(key, (config.batch_size,), 0, stack.shape[0])


def _noise(key: jax.Array, shape: tuple[int, ...], *, config: Config) -> jax.Array:
    """Instance noise, for real and refined images alike (Sonderby et al. 2017)."""
    return config.discriminator.noise * jax.random.normal(key, shape)


def _latents(key: jax.Array, synthetic: jax.Array, *, config: Config) -> jax.Array | None:
    """Latents from a stream beside the keys that `key` is split into: those do not depend on whether there are any."""
    keys = classify.image_keys(jax.random.fold_in(key, LATENT_STREAM), synthetic)
    return refiner.draw_latents(keys, synthetic, config=config.refiner)


def _regularization(refined: jax.Array, synthetic: jax.Array, *, config: Config) -> jax.Array:
    return losses.self_regularization(refined, synthetic, psi=lambda batch: losses.psi(batch, name=config.refine.psi))


def _patches(logits: jax.Array) -> int:
    return logits.shape[1] * logits.shape[2]


def _descend(
    net: NetState,
    objective: Callable[..., tuple[jax.Array, Metrics]],
    batch: tuple[jax.Array | None, ...],
    name: str,
    config: RefineConfig,
    learning_rate: float,
) -> tuple[NetState, Metrics]:
    """One update of one network by the gradient of its objective, a mean over a batch (leaves `[B, ...]`)."""

    def gradient(part: tuple[jax.Array | None, ...]) -> tuple[Any, Metrics]:
        return jax.grad(objective, has_aux=True)(net.params, *part)

    slope, metrics = blocks.over_blocks(batch, gradient, block=backend.block_size())
    updates, opt_state = optimizer(config, learning_rate).update(slope, net.opt_state, net.params)
    metrics = metrics | {f"{name}_grad_norm": optax.tree.norm(slope)}
    return NetState(optax.apply_updates(net.params, updates), opt_state), metrics


def _repeat(
    update: Callable[[Any, jax.Array], tuple[Any, Metrics]], state: Any, key: jax.Array, count: int
) -> tuple[Any, Metrics]:
    """`count` updates with keys of their own, and the mean of their metrics."""
    if count == 1:
        # A scan of one step stays a loop, whatever its `unroll`.
        return update(state, key)
    keys = jax.random.split(key, count)
    if backend.has_slow_convolution_gradients():
        rows = []
        for i in range(count):
            state, row = update(state, keys[i])
            rows.append(row)
        return state, jax.tree.map(lambda *x: jnp.mean(jnp.stack(x)), *rows)
    state, metrics = jax.lax.scan(update, state, keys)
    return state, jax.tree.map(jnp.mean, metrics)


def _finish(state: SimGANState, *, config: Config, **changes: Any) -> SimGANState:
    """The state with changes, one more completed step, and the average of the refiner's parameters moved on.

    The average weighs early steps less, so that it does not cling to the parameters that it began with.
    """
    state = dataclasses.replace(state, **changes)
    step = state.step.astype(jnp.float32)
    decay = jnp.minimum(config.refine.average_decay, (1.0 + step) / (10.0 + step))
    average = jax.tree.map(lambda a, p: a + (1.0 - decay) * (p - a), state.average, state.refiner.params)
    return dataclasses.replace(state, average=average, step=state.step + 1)
