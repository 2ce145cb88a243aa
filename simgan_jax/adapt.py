"""Self-training of a classifier on the unlabelled target, beside labelled simulated captchas.

The averaged network reads each target image as it stands; the trained one must read the same in a strongly
augmented copy (FixMatch, Sohn et al. 2020; mean teacher, Tarvainen and Valpola 2017). Characters are used one by
one where the teacher is sure, and its class marginal is aligned to uniform first (AdaMatch, Berthelot et al.
2021), which keeps look-alikes from collapsing into one another.
"""

import jax
import jax.numpy as jnp

from simgan_jax import classifier, classify, devices, images
from simgan_jax.config import AdaptConfig, CaptchaConfig, ClassifierConfig, ClassifyConfig


def align(probabilities: jax.Array, marginal: jax.Array) -> jax.Array:
    """Probabilities `[B, L, V]` divided by the teacher's marginal `[V]` over uniform, and normalised."""
    ratio = 1.0 / (marginal * marginal.shape[-1] + 1e-6)
    aligned = probabilities * ratio[None, None, :]
    return aligned / aligned.sum(axis=-1, keepdims=True)


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


def adapt_step(
    state: classify.ClassifierState,
    key: jax.Array,
    pool: classify.Pool,
    target: jax.Array,
    marginal: jax.Array,
    captcha: CaptchaConfig,
    *,
    classifier_config: ClassifierConfig,
    classify_config: ClassifyConfig,
    config: AdaptConfig,
) -> tuple[classify.ClassifierState, classify.Metrics]:
    """One update on a labelled batch of the pool and an unlabelled one of the target uint8 `[N, H, W]`.

    `marginal` `[V]` is the teacher's mean probability of each character over the target. The key is consumed.
    """
    source_key, real_key, source_drop_key, real_drop_key, augment_key = jax.random.split(key, 5)
    batch = classify.draw_batch(source_key, pool, batch_size=classify_config.batch_size)
    index = jax.random.randint(real_key, (config.batch_size,), 0, target.shape[0])
    real = devices.spread(target[index])
    teacher = classifier.apply(state.average, images.to_unit(real), captcha, config=classifier_config)
    belief = align(jax.nn.softmax(teacher.logits, axis=-1), marginal)
    guess, certainty = belief.argmax(axis=-1), belief.max(axis=-1)
    use = (certainty > config.threshold).astype(jnp.float32)
    strong = augment(augment_key, real, config=config)

    def loss(params: classifier.Params) -> tuple[jax.Array, classify.Metrics]:
        supervised, metrics = classify.reading_loss(
            params, source_drop_key, batch, captcha, classifier_config=classifier_config, config=classify_config
        )
        student = classifier.apply(params, strong, captcha, config=classifier_config, dropout_key=real_drop_key)
        log_p = jax.nn.log_softmax(student.logits, axis=-1)
        picked = jnp.take_along_axis(log_p, guess[..., None], axis=-1)[..., 0]
        consistency = -(picked * use).sum(axis=-1).mean()
        metrics = metrics | {"consistency": consistency, "used": use.mean(), "certainty": certainty.mean()}
        return supervised + config.weight * consistency, metrics

    (_, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
    return classify.update(state, gradient, config=classify_config), metrics
