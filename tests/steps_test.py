import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simgan_jax import backend, discriminator, images, refiner, state, steps
from simgan_jax.config import CaptchaConfig, Config, DiscriminatorConfig, RefineConfig, RefinerConfig

HEIGHT, WIDTH, PATCHES = 8, 12, 2 * 3


class Pool(NamedTuple):
    ink: jax.Array
    labels: jax.Array


CONFIG = Config(
    captcha=CaptchaConfig(height=HEIGHT, width=WIDTH),
    refiner=RefinerConfig(width=4, blocks=1, residual=True),
    discriminator=DiscriminatorConfig(widths=(8, 8, 8, 8), noise=0.1),
    refine=RefineConfig(
        batch_size=8,
        history_size=10,
        k_g=2,
        k_d=1,
        lambda_reg=0.02,
        refiner_lr=5e-3,
        discriminator_lr=5e-3,
        average_decay=0.9,
    ),
)
# To be followed by hand: plain SGD, no noise, no history, and one image alone in either stack, so that no key matters.
PLAIN = dataclasses.replace(
    CONFIG,
    discriminator=DiscriminatorConfig(widths=(4, 4, 4, 4), spectral_norm=False, noise=0.0),
    refine=RefineConfig(
        batch_size=2, history_size=0, optimizer="sgd", refiner_lr=0.1, discriminator_lr=0.1, lambda_reg=0.5
    ),
)


def change(config, **fields):
    return dataclasses.replace(config, refine=dataclasses.replace(config.refine, **fields))


def stacks(count):
    """10 black captchas with white bars at `count` places, labelled by the place; the real ones have gray bars."""
    ink = np.zeros((10, HEIGHT, WIDTH), np.uint8)
    columns = np.arange(10) % count
    for image, column in zip(ink, columns, strict=True):
        image[2:7, column : column + 2] = 255
    return Pool(jnp.asarray(ink), jnp.asarray(columns[:, None])), jnp.asarray(ink // 3 * 2)


@functools.cache
def fresh(config):
    """A state with random parameters; made here since compiling the initialisers takes long."""
    generator = np.random.default_rng(0)

    def fill(leaf):
        small = generator.normal(scale=0.3, size=leaf.shape)
        return jnp.asarray(small if leaf.dtype == jnp.float32 else np.zeros(leaf.shape), leaf.dtype)

    filled = jax.tree.map(fill, state.template(config=config))
    nets = {}
    for name, rate in (("refiner", config.refine.refiner_lr), ("discriminator", config.refine.discriminator_lr)):
        params = getattr(filled, name).params
        nets[name] = state.NetState(params, state.optimizer(config.refine, rate).init(params))
    return dataclasses.replace(filled, average=nets["refiner"].params, **nets)


@functools.cache
def compiled(step, config):
    return jax.jit(functools.partial(step, config=config))


def run(step, config, data, *, count=1, seed=0):
    """The state after some steps from `fresh`, and the metrics of each step."""
    current, rows = fresh(config), []
    for i in range(count):
        current, metrics = compiled(step, config)(current, jax.random.key(seed + i), data)
        rows.append({name: float(value) for name, value in metrics.items()})
    return current, rows


def refine(params, ink, config):
    """Refined images `[N, H, W, 1]` of uint8 ink."""
    apply = jax.jit(functools.partial(refiner.apply, config=config.refiner))
    return np.asarray(apply(params, images.to_unit(ink)))


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def differs(one, other):
    return any(not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def test_refiner_pretraining_moves_the_refiner_towards_its_input_and_nothing_else():
    after, rows = run(steps.refiner_pretrain_step, CONFIG, stacks(6), count=40)
    assert set(rows[0]) == {"refiner_reg", "refiner_grad_norm"}
    assert rows[-1]["refiner_reg"] < 0.3 * rows[0]["refiner_reg"]
    assert_same(after.discriminator, fresh(CONFIG).discriminator)
    assert int(after.step) == 40 and int(after.history.size) == 0
    assert differs(after.average, fresh(CONFIG).average) and differs(after.average, after.refiner.params)


def test_discriminator_pretraining_moves_the_discriminator_and_nothing_else():
    after, rows = run(steps.discriminator_pretrain_step, CONFIG, stacks(6), count=60)
    assert_same(after.refiner, fresh(CONFIG).refiner)
    assert_same(after.average, fresh(CONFIG).average)
    assert int(after.step) == 60 and int(after.history.size) == 0
    assert np.mean([row["discriminator_loss"] for row in rows[-10:]]) < min(rows[0]["discriminator_loss"], np.log(2))


def test_algorithm_1_counts_its_updates_and_fills_the_history():
    """Each round: k_g = 2 refiner updates and k_d = 1 of the discriminator, which adds half a batch of 8."""
    after, rows = run(steps.simgan_step, CONFIG, stacks(6), count=3)
    counts = [int(net.opt_state[0].count) for net in (after.refiner, after.discriminator)]
    assert counts == [3 * 2, 3 * 1] and int(after.step) == 3
    assert [row["history_size"] for row in rows] == [4.0, 8.0, 10.0]
    assert set(rows[0]) == {
        *("refiner_adversarial", "refiner_reg", "refiner_grad_norm"),
        *("discriminator_loss", "accuracy_real", "accuracy_refined", "dead_logits", "discriminator_grad_norm"),
        "history_size",
    }
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    assert differs(after.spectral, fresh(CONFIG).spectral)


def test_the_history_holds_refined_images():
    data = stacks(1)
    after, _ = run(steps.simgan_step, CONFIG, data)
    refined = refine(after.refiner.params, data[0].ink, CONFIG)[0]
    for stored in after.history.data[:4]:
        np.testing.assert_allclose(stored, np.round((refined + 1.0) * 127.5), atol=1.0)
    np.testing.assert_array_equal(after.history.data[4:], 0)


def test_keys_decide():
    one, again, other = (run(steps.simgan_step, CONFIG, stacks(6), seed=seed)[0] for seed in (1, 1, 2))
    assert_same(one, again)
    for part in ("refiner", "discriminator", "history"):
        assert differs(getattr(one, part), getattr(other, part))


def hand_made_losses(refiner_params, discriminator_params, data):
    """The sums of section 2 for one synthetic and one real image, written anew."""
    synthetic, real = images.to_unit(data[0].ink[:1]), images.to_unit(data[1][:1])
    refined = refiner.apply(refiner_params, synthetic, config=PLAIN.refiner)
    both = jnp.concatenate([refined, real])
    logits = discriminator.apply(discriminator_params, both, config=PLAIN.discriminator)
    margin = logits[..., 1] - logits[..., 0]
    minus_log_d, minus_log_not_d = jnp.log1p(jnp.exp(-margin)).sum((1, 2)), jnp.log1p(jnp.exp(margin)).sum((1, 2))
    regularization = jnp.abs(refined - synthetic).sum()
    return {
        "refiner": minus_log_not_d[0] + PLAIN.refine.lambda_reg * regularization,
        "discriminator": minus_log_d[0] + minus_log_not_d[1],
        "adversarial": minus_log_not_d[0],
        "regularization": regularization,
        "brightness": refined.sum(),
    }


def assert_descended(before, after, gradient, rate=0.1):
    expected = jax.tree.map(lambda p, g: p - rate * g, before, gradient)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-3, atol=2e-5), after, expected)


def test_updates_are_gradient_steps_on_the_losses_of_the_paper():
    data, start = stacks(1), fresh(PLAIN)
    after, rows = run(steps.simgan_step, PLAIN, data)
    refiner_gradient, values = jax.jit(
        jax.grad(lambda p, d: (lambda v: (v["refiner"], v))(hand_made_losses(p, d, data)), has_aux=True)
    )(start.refiner.params, start.discriminator.params)
    assert_descended(start.refiner.params, after.refiner.params, refiner_gradient)
    # The discriminator answers the refiner as it is after its update.
    discriminator_gradient, later = jax.jit(
        jax.grad(lambda d, p: (lambda v: (v["discriminator"], v))(hand_made_losses(p, d, data)), has_aux=True)
    )(start.discriminator.params, after.refiner.params)
    assert_descended(start.discriminator.params, after.discriminator.params, discriminator_gradient)
    np.testing.assert_allclose(rows[0]["refiner_adversarial"], values["adversarial"] / PATCHES, rtol=1e-4)
    np.testing.assert_allclose(rows[0]["refiner_reg"], values["regularization"] / (HEIGHT * WIDTH), rtol=1e-4)
    np.testing.assert_allclose(rows[0]["discriminator_loss"], later["discriminator"] / (2 * PATCHES), rtol=1e-4)
    norm = np.sqrt(sum((np.asarray(g) ** 2).sum() for g in jax.tree.leaves(refiner_gradient)))
    np.testing.assert_allclose(rows[0]["refiner_grad_norm"], norm, rtol=1e-3)


def test_a_round_in_blocks_is_that_of_the_whole_batch(monkeypatch):
    """On a CPU gradients come from blocks of a few images, on an accelerator from all at once."""
    config = change(CONFIG, optimizer="sgd", refiner_lr=0.01, discriminator_lr=0.01)
    data, start = stacks(6), fresh(config)
    rounds = []
    for size in (4, None):
        monkeypatch.setattr(backend, "block_size", lambda size=size: size)
        rounds.append(jax.jit(functools.partial(steps.simgan_step, config=config))(start, jax.random.key(5), data))
    (parts, parts_metrics), (whole, whole_metrics) = rounds
    for name in ("refiner", "discriminator"):
        nets = [getattr(state, name).params for state in (parts, whole)]
        assert differs(nets[1], getattr(start, name).params)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), *nets)
    for name, value in whole_metrics.items():
        np.testing.assert_allclose(parts_metrics[name], value, rtol=1e-3, atol=1e-5, err_msg=name)


def test_label_loss_is_weighed_and_sees_refined_images_and_labels():
    pool, real = stacks(1)
    data = (pool._replace(labels=jnp.full((10, 1), 3)), real)
    config = change(PLAIN, lambda_label=0.01)

    def label_loss(refined, labels):
        return labels[:, 0].astype(jnp.float32) * refined.sum(axis=(1, 2, 3))

    step = jax.jit(functools.partial(steps.simgan_step, config=config, label_loss_fn=label_loss))
    start = fresh(config)
    after, metrics = step(start, jax.random.key(3), data)

    def loss(params):
        values = hand_made_losses(params, start.discriminator.params, data)
        return values["refiner"] + 0.01 * 3.0 * values["brightness"], values["brightness"]

    gradient, brightness = jax.jit(jax.grad(loss, has_aux=True))(start.refiner.params)
    assert_descended(start.refiner.params, after.refiner.params, gradient)
    np.testing.assert_allclose(metrics["refiner_label"], 3.0 * brightness, rtol=1e-4)


def test_training_makes_synthetic_ink_as_gray_as_real_ink():
    """A toy with a known answer: bars are 255 in synthetic and 170 in real images, places and background agree."""
    data, start = stacks(10), fresh(CONFIG)
    # From the identity, as pretraining would leave it.
    params = start.refiner.params | {"Conv_3": jax.tree.map(jnp.zeros_like, start.refiner.params["Conv_3"])}
    current = state.restart(dataclasses.replace(start, refiner=dataclasses.replace(start.refiner, params=params)))
    for i in range(200):
        current, metrics = compiled(steps.simgan_step, CONFIG)(current, jax.random.key(i), data)
    refined = refine(current.average, data[0].ink, CONFIG)[..., 0]
    bars = np.asarray(data[0].ink) > 0
    ink, ground = refined[bars].mean(), refined[~bars].mean()
    assert abs(ink - (170 / 127.5 - 1.0)) < 0.25, (ink, ground)
    assert ground < -0.8, (ink, ground)
    assert 0.1 < float(metrics["discriminator_loss"]) < 1.5


def test_training_with_latents_gives_images_chance():
    """A toy whose synthetic images are all one gray, and real ones black and white by chance."""
    config = dataclasses.replace(CONFIG, refiner=dataclasses.replace(CONFIG.refiner, latents=1))
    real = np.random.default_rng(1).integers(0, 2, (10, HEIGHT, WIDTH)) * 255
    data = Pool(jnp.full((10, HEIGHT, WIDTH), 128, jnp.uint8), jnp.zeros((10, 1), int)), jnp.asarray(real, jnp.uint8)
    gray = images.to_unit(data[0].ink)
    latents = refiner.draw_latents(jax.random.split(jax.random.key(500), 10), gray, config=config.refiner)

    def chance(params):
        """The standard deviation of a pixel over images that differ in their latents alone."""
        return refiner.apply(params, gray, config=config.refiner, latents=latents).std(axis=0).mean()

    before = current = state.restart(fresh(config))
    for i in range(100):
        current, _ = compiled(steps.simgan_step, config)(current, jax.random.key(i), data)
    assert chance(current.average) > max(0.3, 1.5 * chance(before.average)), chance(before.average)


@pytest.mark.parametrize("adversary", ["local", "global"])
@pytest.mark.parametrize("history_size", [0, 9])
def test_every_option_keeps_shapes_and_types(adversary, history_size):
    config = dataclasses.replace(
        change(CONFIG, psi="gradients", optimizer="rmsprop", clip_norm=1.0, k_d=2, history_size=history_size),
        discriminator=DiscriminatorConfig(adversary=adversary, widths=(2, 2, 2, 2), spectral_norm=False),
        refiner=RefinerConfig(width=2, blocks=1, residual=False),
    )
    start = state.template(config=config)
    after, metrics = jax.eval_shape(
        functools.partial(steps.simgan_step, config=config), start, jax.random.key(0), stacks(3)
    )

    def describe(tree):
        return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)

    assert describe(after) == describe(start)
    assert {(m.shape, m.dtype) for m in metrics.values()} == {((), jnp.dtype("float32"))}
