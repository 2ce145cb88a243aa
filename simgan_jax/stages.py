"""What each stage of a run does; pipeline.py has the order, arms.py and rounds.py write what is read (io)."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from simgan_jax import (
    adapt,
    backend,
    classifier,
    classify,
    fit,
    glyphs,
    images,
    layout,
    losses,
    reading,
    refiner,
    steps,
    synthesizer,
    target,
)
from simgan_jax.config import ClassifyConfig, Config, ConfigError

DRAW_BATCH = 500
# Attempts at each captcha, until which a law with rejection must have drawn half of them.
ATTEMPTS = 50


class Simulator(NamedTuple):
    """What captchas are drawn with.

    atlas: `[K, V, S, S]` in [0, 1]; law: key -> layout; reject: does it reject; left: see `synthesizer.synthesize`.
    """

    atlas: jax.Array
    law: Callable[[jax.Array], layout.Layout]
    reject: bool
    left: jax.Array | None = None


def configured_simulator(config: Config) -> Simulator:
    """The simulator of `config.synthesizer`, before it has seen the target.

    Raises:
      ConfigError: a font that cannot be used.
    """
    settings, captcha = config.synthesizer, config.captcha
    atlas = glyphs.make_atlas(
        settings.fonts or tuple(glyphs.FACES),
        alphabet=captcha.alphabet,
        height=captcha.height,
        cell=synthesizer.cell_size(captcha.height, settings.sizes),
        sizes=settings.sizes,
        strokes=settings.strokes,
    )
    cells = jnp.asarray(atlas.cells, jnp.float32) / 255.0
    styles = cells.shape[0]
    if settings.law == "seed":
        return Simulator(cells, functools.partial(layout.seed_law, styles=styles, captcha=captcha), True)
    law = functools.partial(layout.wide_law, styles=styles, captcha=captcha, config=settings)
    return Simulator(cells, law, False)


def fitted_simulator(config: Config, atlas: np.ndarray, poses: np.ndarray) -> Simulator:
    """The simulator with glyphs `[K, V, S, S]` and poses `[M, L, 3]` that were fitted to the target."""
    law = functools.partial(
        layout.fitted_law,
        styles=atlas.shape[0],
        poses=jnp.asarray(poses),
        captcha=config.captcha,
        config=config.synthesizer,
    )
    return Simulator(jnp.asarray(atlas), law, False)


def draw_pool(
    key: jax.Array, simulator: Simulator, scene: target.Scene, *, count: int, config: Config
) -> classify.Pool:
    """`count` labelled captchas; number i depends on the key and i alone. The key is consumed.

    Under a law with rejection, an image is its key's first attempt that passes (`layout.separated`).

    Raises:
      ConfigError: hardly any attempt passes.
    """
    draw = jax.jit(functools.partial(synthesizer.synthesize, scene=scene, law=simulator.law, config=config))
    # A binary image shows the lines of the contest as ink, which the notebook's rule is not about.
    shown = 1.0 if config.target.representation == "soft" else jnp.asarray(~scene.mask, jnp.float32)[None]
    passes = jax.jit(lambda ink: layout.separated(ink * shown / 255.0, length=config.captcha.length))
    packed = jax.jit(synthesizer.pack)(simulator.atlas)
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(count))
    height, width, length = config.captcha.height, config.captcha.width, config.captcha.length
    pool = classify.Pool(
        jnp.zeros((count, height, width), jnp.uint8),
        jnp.zeros((count, length), jnp.int32),
        jnp.zeros((count, length, 3)),
    )
    open_rows, attempt = np.arange(count), 0
    while len(open_rows):
        rest = []
        for start in range(0, len(open_rows), DRAW_BATCH):
            rows = open_rows[start : start + DRAW_BATCH]
            # A batch that is not full is filled up with rows that `put` leaves out.
            places = jnp.asarray(np.pad(rows, (0, DRAW_BATCH - len(rows)), constant_values=count))
            batch_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys.at[places].get(mode="clip"), attempt)
            drawn = draw(batch_keys, packed, left=simulator.left)
            if simulator.reject:
                good = passes(drawn.ink)
                rest.append(rows[~np.asarray(good)[: len(rows)]])
                places = jnp.where(good, places, count)
            pool = put(pool, places, classify.Pool(*drawn))
        open_rows, attempt = np.concatenate(rest) if rest else open_rows[:0], attempt + 1
        if attempt == ATTEMPTS and len(open_rows) > count / 2:
            raise ConfigError(
                f"config.synthesizer.law={config.synthesizer.law!r}: {ATTEMPTS} attempts at each captcha and most show "
                f"no {length} separate characters: choose law 'wide', or another height, width or length"
            )
    return pool


@functools.partial(jax.jit, donate_argnums=0)
def put(there: Any, rows: jax.Array, values: Any) -> Any:
    """Arrays `[N, ...]` with values `[B, ...]` in rows `[B]`, those from N on left out; the arrays are donated."""
    return jax.tree.map(lambda x, value: x.at[rows].set(value, mode="drop"), there, values)


def refine_pool(key: jax.Array, params: refiner.Params, pool: classify.Pool, *, config: Config) -> classify.Pool:
    """The pool with refined ink; labels and poses stay, as the refiner's loss asks (paper 2.1).

    The latents of number i, where the refiner takes any, depend on the key and i alone. The key is consumed.
    """

    count, size = len(pool.ink), backend.images_at_once()

    @jax.jit
    def refine(params: refiner.Params, ink: jax.Array, rows: jax.Array) -> jax.Array:
        synthetic = images.to_unit(ink)
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows)
        latents = refiner.draw_latents(keys, synthetic, config=config.refiner)
        return images.to_uint8(refiner.apply(params, synthetic, config=config.refiner, latents=latents))

    refined = jnp.zeros_like(pool.ink)
    for start in range(0, count, size):
        rows = start + jnp.arange(size)
        # Gathered apart, so that one program refines pools of any size.
        refined = put(refined, rows, refine(params, pool.ink.at[rows].get(mode="clip"), rows))
    return pool._replace(ink=refined)


def label_loss(reader: classifier.Params | None, config: Config) -> steps.LabelLoss | None:
    """(refined `[B, H, W, 1]`, labels `[B, L]`) -> `[B]`: how badly a classifier reads them, summed cross-entropies.

    None where `refine.lambda_label` is 0. Without a reader it cannot be computed: a stage that is done has no need to.

    Raises:
      ValueError: computed without a reader.
    """
    if not config.refine.lambda_label:
        return None

    def loss(refined: jax.Array, labels: jax.Array) -> jax.Array:
        if reader is None:
            raise ValueError("refine.lambda_label is above 0: give the classifier that holds refined images to labels")
        logits = classifier.apply(reader, refined, config.captcha, config=config.classifier).logits
        return losses.character_cross_entropy(logits, labels)

    return loss


def take(pool: classify.Pool, count: int) -> classify.Pool:
    """The first `count` captchas of a pool."""
    return classify.Pool(*(leaf[:count] for leaf in pool))


def mix_pools(*pools: classify.Pool) -> classify.Pool:
    """One pool of several."""
    return classify.Pool(*(jnp.concatenate(leaves) for leaves in zip(*pools, strict=True)))


def fit_simulator(
    ink: np.ndarray,
    readings: reading.Readings,
    simulator: Simulator,
    scene: target.Scene,
    *,
    config: Config,
    report: Callable[[int, float], None],
) -> tuple[np.ndarray, np.ndarray]:
    """Glyphs `[K, V, S, S]` and poses `[M, L, 3]` fitted to the surest images of the target `[N, H, W]`.

    `report(step, residual)` is called after each pass over the images.
    """
    chosen, evidence = fit_evidence(ink, readings, scene, config=config)
    size = config.fit.batch_size
    state = fit.init(simulator.atlas, jnp.asarray(readings.poses[chosen]), config=config.fit)
    step = jax.jit(
        lambda state, evidence: fit.fit_step(state, evidence, captcha=config.captcha, config=config.fit),
        donate_argnums=0,
    )
    batches = max(1, len(chosen) // size)
    for visit in range(config.fit.passes):
        # First for glyphs of an earlier fit, then when these are plain and there is time to settle again.
        if visit in (0, config.fit.passes // 2):
            state = state._replace(poses=_moved_aside(state, evidence, size=size))
        residuals = []
        for _ in range(batches):
            state, residual = step(state, evidence)
            residuals.append(residual)
        report((visit + 1) * batches, float(np.mean([np.asarray(r) for r in residuals])))
    return np.asarray(fit.clean(state.atlas, config=config.fit)), np.asarray(state.poses)


def fit_evidence(
    ink: np.ndarray, readings: reading.Readings, scene: target.Scene, *, config: Config
) -> tuple[np.ndarray, fit.Evidence]:
    """Numbers `[M]` of the images that a fit looks at, and what it sees there.

    What is believed of them is aligned to a uniform class marginal first: a reader of simulated captchas takes most of
    one character for its look-alike, whose glyph would become both.
    """
    belief = np.asarray(adapt.align(jnp.asarray(readings.probabilities)))
    chosen = fit.choose(belief, config=config.fit)
    size = config.fit.batch_size
    if len(chosen) > size:
        chosen = chosen[: len(chosen) // size * size]
    return chosen, fit.Evidence(
        ink=jnp.asarray(ink[chosen]),
        labels=jnp.asarray(belief[chosen].argmax(axis=-1), jnp.int32),
        known=jnp.asarray(~scene.mask, jnp.float32),
    )


def left_over(
    ink: np.ndarray,
    readings: reading.Readings,
    scene: target.Scene,
    atlas: np.ndarray,
    poses: np.ndarray,
    *,
    config: Config,
) -> jax.Array:
    """What glyphs and poses that `fit_simulator` found with these readings leave of its images: int8 `[M, H, W]`."""
    _, evidence = fit_evidence(ink, readings, scene, config=config)
    leave = jax.jit(functools.partial(fit.left_over, config=config.fit))
    size = config.fit.batch_size
    return jnp.concatenate(
        [
            leave(atlas, poses[rows], evidence.ink[rows], evidence.labels[rows], evidence.known)
            for rows in (slice(start, start + size) for start in range(0, len(poses), size))
        ]
    )


def _moved_aside(state: fit.FitState, evidence: fit.Evidence, *, size: int) -> jax.Array:
    """`fit.step_aside` of all poses `[M, L, 3]`, a batch at a time."""
    move = jax.jit(fit.step_aside)
    rows = (state.poses, evidence.ink, evidence.labels)
    starts = range(0, len(state.poses), size)
    parts = [move(state.atlas, *(x[start : start + size] for x in rows), evidence.known) for start in starts]
    return jnp.concatenate(parts)


def classify_step(config: Config, total: int) -> Callable[..., tuple[classify.ClassifierState, classify.Metrics]]:
    """The classifier's step (state, key, pool) of an arm of `total` steps."""
    return functools.partial(
        classify.classify_step,
        captcha=config.captcha,
        classifier_config=config.classifier,
        config=dataclasses.replace(config.classify, steps=total),
    )


def adapt_settings(config: Config) -> ClassifyConfig:
    """The classifier's training settings during self-training."""
    own = config.adapt
    return dataclasses.replace(
        config.classify,
        steps=own.steps,
        lr=own.lr,
        batch_size=own.pool_batch_size,
        average_decay=own.average_decay,
    )


def adapt_step(config: Config) -> Callable[..., tuple[classify.ClassifierState, classify.Metrics]]:
    """The self-training step (state, key, (pool, believed))."""

    def step(
        state: classify.ClassifierState, key: jax.Array, data: tuple[classify.Pool, adapt.Believed]
    ) -> tuple[classify.ClassifierState, classify.Metrics]:
        pool, believed = data
        return adapt.adapt_step(
            state,
            key,
            pool,
            believed,
            config.captcha,
            classifier_config=config.classifier,
            classify_config=adapt_settings(config),
            config=config.adapt,
        )

    return step
