"""Training of a classifier on labelled simulated captchas: state and pure step, unjitted."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from simgan_jax import backend, blocks, classifier, devices, images, losses
from simgan_jax.config import CaptchaConfig, ClassifierConfig, ClassifyConfig

Metrics = dict[str, jax.Array]


class Pool(NamedTuple):
    """Labelled captchas at rest on the device. ink: uint8 `[N, H, W]`; labels: `[N, L]`; poses: `[N, L, 3]`."""

    ink: jax.Array
    labels: jax.Array
    poses: jax.Array


@struct.dataclass
class ClassifierState:
    """params, opt_state, their running average, and completed steps `[]` int32; array leaves only."""

    params: classifier.Params
    opt_state: optax.OptState
    average: classifier.Params
    step: jax.Array


def optimizer(config: ClassifyConfig) -> optax.GradientTransformation:
    """AdamW under a cosine schedule with a short warm-up, gradients clipped to norm 1."""
    warmup = max(1, min(config.warmup, config.steps // 4))
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.lr, warmup, max(config.steps, warmup + 1), 0.02 * config.lr
    )
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=config.weight_decay))


def start_state(params: classifier.Params, *, config: ClassifyConfig) -> ClassifierState:
    """A state at step 0 from parameters, fresh or of another arm."""
    return ClassifierState(
        params=jax.tree.map(jnp.array, params),
        opt_state=optimizer(config).init(params),
        average=jax.tree.map(jnp.array, params),
        step=jnp.zeros((), jnp.int32),
    )


def init(
    key: jax.Array, captcha: CaptchaConfig, *, classifier_config: ClassifierConfig, config: ClassifyConfig
) -> ClassifierState:
    """A fresh state. The key is consumed."""
    return start_state(classifier.init(key, captcha, config=classifier_config), config=config)


def draw_batch(key: jax.Array, pool: Pool, *, batch_size: int) -> Pool:
    """A batch of the pool, uniform with replacement. The key is consumed."""
    index = jax.random.randint(key, (batch_size,), 0, pool.ink.shape[0])
    return devices.spread(Pool(pool.ink[index], pool.labels[index], pool.poses[index]))


def reading_loss(
    params: classifier.Params,
    dropout_keys: jax.Array,
    batch: Pool,
    captcha: CaptchaConfig,
    *,
    classifier_config: ClassifierConfig,
    config: ClassifyConfig,
) -> tuple[jax.Array, Metrics]:
    """Mean over the batch of the summed character cross-entropies, plus the weighted pose error where there is one."""
    reading = classifier.apply(
        params, images.to_unit(batch.ink), captcha, config=classifier_config, dropout_keys=dropout_keys
    )
    cross_entropy = losses.character_cross_entropy(reading.logits, batch.labels).mean()
    metrics = {
        "cross_entropy": cross_entropy,
        "character_accuracy": jnp.mean(reading.logits.argmax(axis=-1) == batch.labels),
    }
    if classifier_config.kind == "seed":
        return cross_entropy, metrics
    # One unit of pose error: a fifth of the image height, or 0.3 radians.
    unit = jnp.asarray([captcha.height / 5, captcha.height / 5, 0.3])
    pose_error = jnp.abs((reading.poses - batch.poses) / unit[None, None]).sum(axis=(-1, -2)).mean()
    return cross_entropy + config.pose_weight * pose_error, metrics | {"pose_error": pose_error}


def reading_gradient(
    params: classifier.Params,
    key: jax.Array,
    batch: Pool,
    captcha: CaptchaConfig,
    *,
    classifier_config: ClassifierConfig,
    config: ClassifyConfig,
    block: int | None,
) -> tuple[classifier.Params, Metrics]:
    """Gradient of `reading_loss` and its metrics, from blocks of `block` images (blocks.py). Consumes the key."""

    def gradient(part: tuple[jax.Array, Pool]) -> tuple[classifier.Params, Metrics]:
        return jax.grad(reading_loss, has_aux=True)(
            params, *part, captcha, classifier_config=classifier_config, config=config
        )

    return blocks.over_blocks((image_keys(key, batch), batch), gradient, block=block)


def image_keys(key: jax.Array, batch: Any) -> jax.Array:
    """Keys `[B]`, one for each image of a batch (leaves `[B, ...]`), by its place there. The key is consumed."""
    count = jax.tree.leaves(batch)[0].shape[0]
    return devices.spread(jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(count)))


def classify_step(
    state: ClassifierState,
    key: jax.Array,
    pool: Pool,
    captcha: CaptchaConfig,
    *,
    classifier_config: ClassifierConfig,
    config: ClassifyConfig,
) -> tuple[ClassifierState, Metrics]:
    """One update on a batch of the pool. The key is consumed."""
    batch_key, dropout_key = jax.random.split(key)
    batch = draw_batch(batch_key, pool, batch_size=config.batch_size)
    gradient, metrics = reading_gradient(
        state.params,
        dropout_key,
        batch,
        captcha,
        classifier_config=classifier_config,
        config=config,
        block=backend.block_size(),
    )
    return update(state, gradient, config=config), metrics


def update(state: ClassifierState, gradient: classifier.Params, *, config: ClassifyConfig) -> ClassifierState:
    """The optimiser's update and the running average, which weighs early steps less."""
    updates, opt_state = optimizer(config).update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    step = state.step.astype(jnp.float32)
    decay = jnp.minimum(config.average_decay, (1.0 + step) / (10.0 + step))
    average = jax.tree.map(lambda a, p: a + (1.0 - decay) * (p - a), state.average, params)
    return ClassifierState(params, opt_state, average, state.step + 1)
