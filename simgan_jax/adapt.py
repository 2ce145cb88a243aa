"""Self-training of a classifier on the unlabelled target, beside labelled simulated captchas.

What is believed of each target image, it must read in a strongly augmented copy (pseudo-labels, Lee 2013; strong
augmentation, FixMatch, Sohn et al. 2020). Characters are used one by one where the belief is sure, and its class
marginal is aligned to uniform first (AdaMatch, Berthelot et al. 2021), which keeps look-alikes from collapsing into one
another. The belief stands still while the network learns, so that it cannot follow its own drift.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from simgan_jax import backend, blocks, classifier, classify, devices, images
from simgan_jax.config import AdaptConfig, CaptchaConfig, ClassifierConfig, ClassifyConfig


class Believed(NamedTuple):
    """The target and what is believed of it. ink: uint8 `[N, H, W]`; labels: int32 `[N, L]`; use: float32 `[N, L]`, 1
    where a character is sure enough to learn from."""

    ink: jax.Array
    labels: jax.Array
    use: jax.Array


def align(probabilities: jax.Array) -> jax.Array:
    """Probabilities `[N, L, V]` divided by their mean over images and slots in units of uniform, and normalised."""
    marginal = probabilities.mean(axis=(0, 1), keepdims=True)
    aligned = probabilities / (marginal * probabilities.shape[-1] + 1e-6)
    return aligned / aligned.sum(axis=-1, keepdims=True)


def believe(ink: jax.Array, probabilities: jax.Array, *, config: AdaptConfig) -> Believed:
    """What readings `[N, L, V]` of ink `[N, H, W]` say, and which characters more surely than `config.threshold`."""
    belief = align(probabilities)
    use = belief.max(axis=-1) > config.threshold
    return Believed(ink, belief.argmax(axis=-1).astype(jnp.int32), use.astype(jnp.float32))


def augment(key: jax.Array, ink: jax.Array, *, config: AdaptConfig) -> jax.Array:
    """Strongly augmented float images `[B, H, W, 1]` of uint8 ink `[B, H, W]`. The key is consumed.

    A shift of some pixels, two erased boxes, a change of contrast, and noise; a character stays readable for a
    human in nearly all cases.
    """
    B, H, W = ink.shape
    shift_key, box_key, gain_key, noise_key = jax.random.split(key, 4)
    shift = jax.random.randint(shift_key, (B, 2), -config.shift, config.shift + 1)
    moved = jax.vmap(lambda image, s: jnp.roll(image, s, axis=(0, 1)))(ink, shift)
    x = moved.astype(jnp.float32) / 255.0
    corner = jax.random.uniform(box_key, (B, config.boxes, 2)) * jnp.asarray([H, W])[None, None]
    side = config.box * H
    rows = jnp.arange(H, dtype=jnp.float32)[None, None, :] - corner[..., 0:1]
    columns = jnp.arange(W, dtype=jnp.float32)[None, None, :] - corner[..., 1:2]
    inside = ((rows >= 0) & (rows < side))[..., :, None] & ((columns >= 0) & (columns < side))[..., None, :]
    x = jnp.where(inside.any(axis=1), 0.0, x)
    gain = 1.0 + config.gain * jax.random.uniform(gain_key, (B, 1, 1), minval=-1.0, maxval=1.0)
    x = x * gain + config.noise * jax.random.normal(noise_key, x.shape)
    return jnp.clip(x, 0.0, 1.0)[..., None] * 2.0 - 1.0


def augmented_copies(key: jax.Array, ink: np.ndarray, copies: int, *, config: AdaptConfig) -> np.ndarray:
    """Uint8 ink `[copies N, H, W]`: images `[N, H, W]` as they stand, then each augmented anew. Consumes the key."""
    change = jax.jit(lambda key, ink: images.to_uint8(augment(key, ink, config=config)))
    changed = [np.asarray(change(jax.random.fold_in(key, copy), jnp.asarray(ink))) for copy in range(1, copies)]
    return np.concatenate([ink, *changed])


def adapt_step(
    state: classify.ClassifierState,
    key: jax.Array,
    pool: classify.Pool,
    believed: Believed,
    captcha: CaptchaConfig,
    *,
    classifier_config: ClassifierConfig,
    classify_config: ClassifyConfig,
    config: AdaptConfig,
) -> tuple[classify.ClassifierState, classify.Metrics]:
    """One update on a labelled batch of the pool and one of the target with its believed labels. Consumes the key."""
    source_key, real_key, source_drop_key, real_drop_key, augment_key = jax.random.split(key, 5)
    batch = classify.draw_batch(source_key, pool, batch_size=classify_config.batch_size)
    index = jax.random.randint(real_key, (config.batch_size,), 0, believed.ink.shape[0])
    real = devices.spread(Believed(*(leaf[index] for leaf in believed)))
    strong = augment(augment_key, real.ink, config=config)
    block = backend.block_size()

    def consistency(
        params: classifier.Params, keys: jax.Array, strong: jax.Array, labels: jax.Array, use: jax.Array
    ) -> tuple[jax.Array, classify.Metrics]:
        read = classifier.apply(params, strong, captcha, config=classifier_config, dropout_keys=keys)
        log_p = jax.nn.log_softmax(read.logits, axis=-1)
        picked = jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]
        loss = -(picked * use).sum(axis=-1).mean()
        agreed = jnp.mean(read.logits.argmax(axis=-1) == labels)
        return config.weight * loss, {"consistency": loss, "used": use.mean(), "agreed": agreed}

    def gradient(part: tuple[jax.Array, ...]) -> tuple[classifier.Params, classify.Metrics]:
        return jax.grad(consistency, has_aux=True)(state.params, *part)

    supervised, metrics = classify.reading_gradient(
        state.params,
        source_drop_key,
        batch,
        captcha,
        classifier_config=classifier_config,
        config=classify_config,
        block=block,
    )
    part = classify.image_keys(real_drop_key, strong), strong, real.labels, real.use
    learned, seen = blocks.over_blocks(part, gradient, block=block)
    return classify.update(state, jax.tree.map(jnp.add, supervised, learned), config=classify_config), metrics | seen
