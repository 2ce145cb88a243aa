"""The networks and steps of simgan_jax in Keras 3 on its JAX backend, to be timed beside them.

Keras's own layers and optimisers in a custom training step, as its guide for JAX has it: `stateless_call`,
`jax.value_and_grad`, `stateless_apply`, one jit with donation.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import keras
from keras import layers, ops

from simgan_jax.classifier import group_size
from simgan_jax.config import CaptchaConfig, ClassifierConfig, Config, DiscriminatorConfig, RefinerConfig

Weights = Mapping[str, Any]
Variables = list[jax.Array]


@contextlib.contextmanager
def _as_keras_expects() -> Iterator[None]:
    # Its layers broadcast over ranks and use a key more than once, which JAX refuses under strict settings.
    with jax.numpy_rank_promotion("allow"), jax.debug_key_reuse(False):
        yield


def refiner(captcha: CaptchaConfig, config: RefinerConfig) -> keras.Model:
    """`simgan_jax.refiner` on `[B, H, W, 1]`; a residual one is clipped, plainly."""
    inputs = keras.Input((captcha.height, captcha.width, 1))

    def conv(x: Any, number: int) -> Any:
        return layers.Conv2D(config.width, config.kernel, padding="same", name=f"Conv_{number}")(x)

    x = ops.relu(conv(inputs, 0))
    for block in range(config.blocks):
        x = ops.relu(x + conv(ops.relu(conv(x, 2 * block + 1)), 2 * block + 2))
    x = layers.Conv2D(1, 1, name=f"Conv_{2 * config.blocks + 1}")(x)
    return keras.Model(inputs, ops.clip(inputs + x, -1.0, 1.0) if config.residual else ops.tanh(x))


def discriminator(captcha: CaptchaConfig, config: DiscriminatorConfig) -> keras.Model:
    """`simgan_jax.discriminator` on `[B, H, W, 1]`; the spectral norm is taken of its variables."""
    x = inputs = keras.Input((captcha.height, captcha.width, 1))
    for i, (width, kernel, stride) in enumerate(zip(config.widths, (3, 3, 3, 1), (2, 2, 1, 1), strict=True)):
        if i == 2:
            x = layers.MaxPooling2D(3, 1, padding="same")(x)
        x = layers.Conv2D(width, kernel, stride, padding="same", name=f"Conv_{i}")(x)
        x = ops.leaky_relu(x, config.leak)
    if config.adversary == "global":
        x = ops.mean(x, axis=(1, 2), keepdims=True)
    return keras.Model(inputs, layers.Conv2D(2, 1, name="Conv_4")(x))


class _Position(layers.Layer):
    """A learned bias for each cell and slot."""

    def build(self, shape: tuple[int, ...]) -> None:
        self.position = self.add_weight(shape=shape[1:], initializer="zeros", name="position")

    def call(self, x: Any) -> Any:
        return x + self.position[None]


@_as_keras_expects()
def classifier(captcha: CaptchaConfig, config: ClassifierConfig) -> keras.Model:
    """`simgan_jax.classifier` of the kind "slots" on `[B, H, W, 1]`: logits `[B, L, V]` and poses `[B, L, 3]`."""
    H, W = captcha.height, captcha.width
    inputs = keras.Input((H, W, 1))
    x = ops.pad(inputs, ((0, 0), (0, H % 2), (0, W % 2), (0, 0)), constant_values=-1.0)
    rows, columns = (H + 1) // 2, (W + 1) // 2
    x = ops.transpose(ops.reshape(x, (-1, rows, 2, columns, 2, 1)), (0, 1, 3, 2, 4, 5))
    x = ops.reshape(x, (-1, rows, columns, 4))
    for i, width in enumerate(config.widths):
        y = layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"Conv_{i}")(x)
        groups = width // group_size(width)
        y = ops.relu(layers.GroupNormalization(groups, epsilon=1e-6, name=f"GroupNorm_{i}")(y))
        x = x + y if x.shape == y.shape else y
        if i == 0:
            x = layers.MaxPooling2D(2, padding="same")(x)
    rows, columns = x.shape[1:3]
    scores = layers.Conv2D(captcha.length, 1, name=f"Conv_{len(config.widths)}")(x)
    scores = _Position(name="position")(scores)
    attention = ops.softmax(ops.reshape(scores, (-1, rows * columns, captcha.length)), axis=1)
    slots = ops.einsum("bpl,bpc->blc", attention, ops.reshape(x, (-1, rows * columns, x.shape[-1])))
    slots = layers.Dropout(config.dropout)(slots)
    hidden = layers.Dense(config.hidden, "relu", name="Dense_0")(slots)
    scale = jnp.asarray([H / rows, W / columns])
    cells = (jnp.stack(jnp.meshgrid(jnp.arange(rows), jnp.arange(columns), indexing="ij"), -1) + 0.5) * scale
    seen = ops.einsum("bpl,pd->bld", attention, cells.reshape(-1, 2))
    turned = layers.Dense(3, name="Dense_2")(hidden)
    poses = ops.concatenate([seen + turned[..., :2] * scale, turned[..., 2:]], axis=-1)
    return keras.Model(inputs, (layers.Dense(len(captcha.alphabet), name="Dense_1")(hidden), poses))


def load(model: keras.Model, weights: Weights) -> None:
    """Copies Flax parameters into a model whose layers have their names."""
    for name, leaves in weights.items():
        layer = model.get_layer(name)
        if name == "position":
            layer.position.assign(leaves)
            continue
        for leaf, values in leaves.items():
            normal = name.startswith("GroupNorm")
            getattr(layer, {"scale": "gamma", "bias": "beta"}[leaf] if normal else leaf).assign(values)


@_as_keras_expects()
def outputs(model: keras.Model, images: Any) -> Any:
    """What a network makes of `[B, H, W, 1]`."""
    return model(images)


def _values(variables: list[Any]) -> Variables:
    return [jnp.array(variable.value) for variable in variables]


def _rule(config: Config, lr: float) -> keras.optimizers.Optimizer:
    if config.refine.optimizer != "adam":
        raise ValueError(f"optimizer {config.refine.optimizer!r}: the peer has adam alone")
    return keras.optimizers.Adam(lr, beta_1=0.5, beta_2=0.9, epsilon=1e-8)


def _draw(key: jax.Array, stack: jax.Array, count: int) -> jax.Array:
    index = jax.random.randint(key, (count,), 0, stack.shape[0])
    return (stack[index].astype(jnp.float32) / 127.5 - 1.0)[..., None]


class SimGAN:
    """Updates as in `simgan_jax.steps`, without a history. ink, real: uint8 `[N, H, W]` and `[M, H, W]`."""

    @_as_keras_expects()
    def __init__(self, config: Config, weights: Weights, judge: Weights, spectral: Weights, data: Any):
        self.config, self.data = config, tuple(jnp.asarray(x) for x in data)
        self.refiner = refiner(config.captcha, config.refiner)
        self.discriminator = discriminator(config.captcha, config.discriminator)
        load(self.refiner, weights)
        load(self.discriminator, judge)
        self.rules = _rule(config, config.refine.refiner_lr), _rule(config, config.refine.discriminator_lr)
        models = self.refiner, self.discriminator
        for rule, model in zip(self.rules, models, strict=True):
            rule.build(model.trainable_variables)
        vectors = [jnp.array(spectral[f"Conv_{i}"]) for i in range(5)] if spectral else []
        self.state: Any = (
            [_values(model.trainable_variables) for model in models],
            [_values(rule.variables) for rule in self.rules],
            vectors,
            jax.random.key(0),
        )
        self._refiner = jax.jit(self._refiner_update, donate_argnums=0)
        self._discriminator = jax.jit(self._discriminator_update, donate_argnums=0)

    @_as_keras_expects()
    def refiner_step(self) -> Any:
        """One update of the refiner."""
        self.state, metrics = self._refiner(self.state, self.data)
        return metrics

    @_as_keras_expects()
    def discriminator_step(self) -> Any:
        """One update of the discriminator, on freshly refined and real images."""
        self.state, metrics = self._discriminator(self.state, self.data)
        return metrics

    def _normal(self, variables: Variables, vectors: Variables) -> tuple[Variables, Variables]:
        normal, following = list(variables), []
        for i, vector in enumerate(vectors):
            matrix = variables[2 * i].reshape(-1, vector.shape[0])
            fixed = jax.lax.stop_gradient(matrix)
            left = fixed @ vector / jnp.linalg.norm(fixed @ vector)
            right = left @ fixed / jnp.linalg.norm(left @ fixed)
            normal[2 * i] = variables[2 * i] / (left @ matrix @ right)
            following.append(right)
        return normal, following

    def _noisy(self, key: jax.Array, x: jax.Array) -> jax.Array:
        return x + self.config.discriminator.noise * jax.random.normal(key, x.shape)

    def _refiner_update(self, state: Any, data: Any) -> tuple[Any, Any]:
        (variables, judge), (own, other), vectors, key = state
        key, draw_key, noise_key = jax.random.split(key, 3)
        synthetic = _draw(draw_key, data[0], self.config.refine.batch_size)
        normal, _ = self._normal(judge, vectors)

        def objective(variables: Variables) -> tuple[jax.Array, Any]:
            refined, _ = self.refiner.stateless_call(variables, [], synthetic)
            logits, _ = self.discriminator.stateless_call(normal, [], self._noisy(noise_key, refined))
            adversarial = -jax.nn.log_softmax(logits)[..., 0].sum(axis=(1, 2)).mean()
            distance = jnp.abs(refined - synthetic)
            loss = adversarial + self.config.refine.lambda_reg * distance.sum(axis=(1, 2, 3)).mean()
            patches = logits.shape[1] * logits.shape[2]
            return loss, {"refiner_adversarial": adversarial / patches, "refiner_reg": distance.mean()}

        (_, metrics), gradient = jax.value_and_grad(objective, has_aux=True)(variables)
        variables, own = self.rules[0].stateless_apply(own, gradient, variables)
        return ([variables, judge], [own, other], vectors, key), metrics

    def _discriminator_update(self, state: Any, data: Any) -> tuple[Any, Any]:
        (variables, judge), (other, own), vectors, key = state
        key, draw_key, real_key, noise_key = jax.random.split(key, 4)
        batch = self.config.refine.batch_size
        refined, _ = self.refiner.stateless_call(variables, [], _draw(draw_key, data[0], batch))
        seen = self._noisy(noise_key, jnp.concatenate([refined, _draw(real_key, data[1], batch)]))

        def objective(judge: Variables) -> tuple[jax.Array, Any]:
            logits, _ = self.discriminator.stateless_call(self._normal(judge, vectors)[0], [], seen)
            log_p = jax.nn.log_softmax(logits)
            loss = -(log_p[:batch, ..., 1] + log_p[batch:, ..., 0]).sum(axis=(1, 2)).mean()
            return loss, {"discriminator_loss": loss / (2 * logits.shape[1] * logits.shape[2])}

        (_, metrics), gradient = jax.value_and_grad(objective, has_aux=True)(judge)
        judge, own = self.rules[1].stateless_apply(own, gradient, judge)
        return ([variables, judge], [other, own], self._normal(judge, vectors)[1], key), metrics


class Classifier:
    """Training of the reader as in `simgan_jax.classify`. data: ink uint8 `[N, H, W]`, labels, poses."""

    @_as_keras_expects()
    def __init__(self, config: Config, weights: Weights, data: Any):
        self.config, self.data = config, tuple(jnp.asarray(x) for x in data)
        self.model = classifier(config.captcha, config.classifier)
        load(self.model, weights)
        own = config.classify
        warmup = max(1, min(own.warmup, own.steps // 4))
        schedule = keras.optimizers.schedules.CosineDecay(
            0.0, max(1, own.steps - warmup), alpha=0.02, warmup_target=own.lr, warmup_steps=warmup
        )
        self.rule = keras.optimizers.AdamW(
            schedule, weight_decay=own.weight_decay, global_clipnorm=1.0, use_ema=True, ema_momentum=own.average_decay
        )
        self.rule.build(self.model.trainable_variables)
        parts = (self.model.trainable_variables, self.model.non_trainable_variables, self.rule.variables)
        self.state: Any = (*map(_values, parts), jax.random.key(0))
        self._update: Callable[..., Any] = jax.jit(self._step, donate_argnums=0)

    @_as_keras_expects()
    def step(self) -> Any:
        """One update."""
        self.state, metrics = self._update(self.state, self.data)
        return metrics

    def _step(self, state: Any, data: Any) -> tuple[Any, Any]:
        variables, other, own, key = state
        key, draw_key = jax.random.split(key)
        config, height = self.config.classify, self.config.captcha.height
        ink, labels, poses = data
        index = jax.random.randint(draw_key, (config.batch_size,), 0, ink.shape[0])
        images = (ink[index].astype(jnp.float32) / 127.5 - 1.0)[..., None]
        unit = jnp.asarray([height / 5, height / 5, 0.3])

        def objective(variables: Variables) -> tuple[jax.Array, Any]:
            (logits, seen), following = self.model.stateless_call(variables, other, images, training=True)
            log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[index][..., None], axis=-1)
            cross_entropy = -log_p.sum(axis=(1, 2)).mean()
            pose_error = jnp.abs((seen - poses[index]) / unit).sum(axis=(1, 2)).mean()
            metrics = {"cross_entropy": cross_entropy, "pose_error": pose_error}
            return cross_entropy + config.pose_weight * pose_error, (metrics, following)

        (_, (metrics, other)), gradient = jax.value_and_grad(objective, has_aux=True)(variables)
        variables, own = self.rule.stateless_apply(own, gradient, variables)
        return (variables, other, own, key), metrics
