"""What adversarial training carries from step to step: arrays alone, so that a checkpoint holds all of it."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from simgan_jax import discriminator, history, refiner
from simgan_jax.config import Config, RefineConfig
from simgan_jax.history import HistoryState


@struct.dataclass
class NetState:
    """params: of one network; opt_state: of its optimiser."""

    params: Any
    opt_state: optax.OptState


@struct.dataclass
class SimGANState:
    """State of pretraining and of Algorithm 1.

    refiner, discriminator: networks with their optimisers; average: running average of the refiner's parameters;
    spectral: vectors of the discriminator's spectral norm; history: refined images; step: `[]` int32, completed
    steps of the stage.
    """

    refiner: NetState
    discriminator: NetState
    average: Any
    spectral: Any
    history: HistoryState
    step: jax.Array


def optimizer(config: RefineConfig, learning_rate: float) -> optax.GradientTransformation:
    """The optimiser of either network: Adam (0.5, 0.9), RMSprop (0.9) or plain SGD, after clipping if that is on."""
    if config.optimizer == "adam":
        rule = optax.adam(learning_rate, b1=0.5, b2=0.9)
    elif config.optimizer == "rmsprop":
        rule = optax.rmsprop(learning_rate, decay=0.9, eps=1e-7)
    else:
        rule = optax.sgd(learning_rate)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), rule) if config.clip_norm else rule


@functools.partial(jax.jit, static_argnames="config")
def init(key: jax.Array, *, config: Config) -> SimGANState:
    """A fresh state at step 0 with an empty history, by one program. The key is consumed."""
    refiner_key, discriminator_key, spectral_key = jax.random.split(key, 3)
    refiner_params = refiner.init(refiner_key, config=config.refiner)
    discriminator_params = discriminator.init(discriminator_key, config=config.discriminator)
    settings = config.refine
    refiner_rule = optimizer(settings, settings.refiner_lr)
    discriminator_rule = optimizer(settings, settings.discriminator_lr)
    return SimGANState(
        refiner=NetState(refiner_params, refiner_rule.init(refiner_params)),
        discriminator=NetState(discriminator_params, discriminator_rule.init(discriminator_params)),
        average=_copy(refiner_params),
        spectral=discriminator.init_spectral(discriminator_params, spectral_key, config=config.discriminator),
        history=history.init(settings.history_size, (config.captcha.height, config.captcha.width, 1)),
        step=jnp.zeros((), jnp.int32),
    )


def template(*, config: Config) -> SimGANState:
    """Shapes and types of a state, without its arrays; a checkpoint is restored into it."""
    return jax.eval_shape(lambda: init(jax.random.key(0), config=config))


def restart(state: SimGANState) -> SimGANState:
    """The state at the beginning of the next stage: step 0, and the average starts from the refiner as it is.

    Both optimisers go on with their moments, which forget the last stage within some tens of steps. Arrays are
    shared with the old state, which is gone once the new one is donated.
    """
    return dataclasses.replace(state, average=_copy(state.refiner.params), step=jnp.zeros((), jnp.int32))


def _copy(params: Any) -> Any:
    # Twins in one donated tree must not share a buffer.
    return jax.tree.map(jnp.copy, params)
