import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simgan_jax import discriminator, history, refiner, state, steps
from simgan_jax.config import CaptchaConfig, Config, DiscriminatorConfig, RefineConfig, RefinerConfig

HEIGHT, WIDTH, PATCHES = 8, 12, 2 * 3


class Pool(NamedTuple):
    ink: jax.Array
    labels: jax.Array


CONFIG = Config(
    captcha=CaptchaConfig(height=HEIGHT, width=WIDTH),
    refiner=RefinerConfig(width=3, blocks=1, residual=True),
    discriminator=DiscriminatorConfig(widths=(4, 4, 4, 4), noise=0.02),
    refine=RefineConfig(batch_size=4, history_size=10, k_g=2, k_d=3, lambda_reg=0.02, refiner_lr=1e-2),
)
# What can be followed by hand: plain SGD, no noise, no history, one image in either stack, so that no key matters.
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
    """Black captchas with white bars, labelled by the bar's column; the real ones are gray bars."""
    ink = np.zeros((count, HEIGHT, WIDTH), np.uint8)
    columns = np.arange(count) % (WIDTH - 2)
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


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def differs(one, other):
    return any(not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def test_refiner_pretraining_moves_the_refiner_towards_its_input_and_nothing_else():
    after, rows = run(steps.refiner_pretrain_step, CONFIG, stacks(6), count=30)
    assert set(rows[0]) == {"refiner_reg", "refiner_grad_norm"}
    assert rows[-1]["refiner_reg"] < 0.3 * rows[0]["refiner_reg"]
    assert_same(after.discriminator, fresh(CONFIG).discriminator)
    assert int(after.step) == 30 and int(after.history.size) == 0
    assert differs(after.average, fresh(CONFIG).average) and differs(after.average, after.refiner.params)


def test_discriminator_pretraining_moves_the_discriminator_and_nothing_else():
    config = change(CONFIG, discriminator_lr=1e-2)
    after, rows = run(steps.discriminator_pretrain_step, config, stacks(6), count=60)
    assert_same(after.refiner, fresh(config).refiner)
    assert_same(after.average, fresh(config).average)
    assert int(after.step) == 60 and int(after.history.size) == 0
    assert rows[-1]["discriminator_loss"] < min(rows[0]["discriminator_loss"], np.log(2))
    assert rows[-1]["accuracy_real"] + rows[-1]["accuracy_refined"] > 1.2


def test_algorithm_1_counts_its_updates_and_fills_the_history():
    """Each round: k_g = 2 refiner and k_d = 3 discriminator updates, each of which adds half a batch."""
    after, rows = run(steps.simgan_step, CONFIG, stacks(6), count=2)
    counts = [int(net.opt_state[0].count) for net in (after.refiner, after.discriminator)]
    assert counts == [2 * 2, 2 * 3] and int(after.step) == 2
    assert [row["history_size"] for row in rows] == [6.0, 10.0]
    assert set(rows[0]) == {
        *("refiner_adversarial", "refiner_reg", "refiner_grad_norm"),
        *("discriminator_loss", "accuracy_real", "accuracy_refined", "dead_logits", "discriminator_grad_norm"),
        "history_size",
    }
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    assert differs(after.spectral, fresh(CONFIG).spectral)
    assert jax.tree.structure(after) == jax.tree.structure(fresh(CONFIG))
    for one, other in zip(jax.tree.leaves(after), jax.tree.leaves(fresh(CONFIG)), strict=True):
        assert (one.shape, one.dtype, one.weak_type) == (other.shape, other.dtype, other.weak_type)


def test_the_history_holds_refined_images():
    data = stacks(1)
    after, _ = run(steps.simgan_step, change(CONFIG, k_g=1, k_d=1), data)
    refined = refiner.apply(after.refiner.params, data[0].ink[..., None] / 127.5 - 1.0, config=CONFIG.refiner)
    want = jnp.round((refined[0] + 1.0) * 127.5)
    for stored in after.history.data[:2]:
        np.testing.assert_allclose(stored, want, atol=1.0)
    np.testing.assert_array_equal(after.history.data[2:], 0)


def test_keys_decide():
    config, data = change(CONFIG, k_g=1, k_d=1), stacks(6)
    one, again, other = (run(steps.simgan_step, config, data, seed=seed)[0] for seed in (1, 1, 2))
    assert_same(one, again)
    for part in ("refiner", "discriminator", "history"):
        assert differs(getattr(one, part), getattr(other, part))


def hand_made_losses(refiner_params, discriminator_params, data):
    """The sums of section 2 for one synthetic and one real image, written anew."""
    synthetic, real = data[0].ink[0, ..., None] / 127.5 - 1.0, data[1][0, ..., None] / 127.5 - 1.0
    refined = refiner.apply(refiner_params, synthetic[None], config=PLAIN.refiner)
    logits = discriminator.apply(
        discriminator_params, jnp.concatenate([refined, real[None]]), config=PLAIN.discriminator
    )
    margin = logits[..., 1] - logits[..., 0]
    minus_log_d, minus_log_not_d = jnp.log1p(jnp.exp(-margin)).sum((1, 2)), jnp.log1p(jnp.exp(margin)).sum((1, 2))
    regularization = jnp.abs(refined - synthetic[None]).sum()
    return {
        "refiner": minus_log_not_d[0] + PLAIN.refine.lambda_reg * regularization,
        "discriminator": minus_log_d[0] + minus_log_not_d[1],
        "adversarial": minus_log_not_d[0],
        "regularization": regularization,
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


def test_the_batch_size_does_not_rescale_the_losses():
    """With one image in the stack, every batch has the same mean."""
    data = stacks(1)
    small, large = (run(steps.simgan_step, change(PLAIN, batch_size=size), data)[0] for size in (2, 6))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), small, large)


def test_label_loss_is_weighed_and_sees_the_labels():
    data = stacks(6)

    def label_loss(refined, labels):
        return 10.0 * labels[:, 0].astype(jnp.float32) + 0.0 * refined.sum(axis=(1, 2, 3))

    def darkness(refined, labels):
        return refined.sum(axis=(1, 2, 3))

    def refine(loss, weight):
        step = functools.partial(steps.simgan_step, config=change(PLAIN, lambda_label=weight), label_loss_fn=loss)
        return jax.jit(step)(fresh(PLAIN), jax.random.key(3), data)

    after, metrics = refine(label_loss, 1.0)
    assert float(metrics["refiner_label"]) % 5.0 == 0.0
    without, _ = run(steps.simgan_step, PLAIN, data, seed=3)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), after.refiner, without.refiner)
    darker, _ = refine(darkness, 0.1)
    brightness = [
        float(refiner.apply(s.refiner.params, data[0].ink[..., None] / 127.5 - 1.0, config=PLAIN.refiner).mean())
        for s in (darker, without)
    ]
    assert brightness[0] < brightness[1]


def test_training_makes_synthetic_ink_as_gray_as_real_ink():
    """A toy with a known answer: bars are 255 in synthetic and 170 in real images, places and background agree."""
    config = dataclasses.replace(
        change(CONFIG, batch_size=8, history_size=32, k_g=1, k_d=1, discriminator_lr=5e-3, average_decay=0.9),
        discriminator=DiscriminatorConfig(widths=(8, 8, 8, 8), noise=0.1),
    )
    pool, real = stacks(10)
    start = fresh(config)
    # From the identity, as pretraining would leave it.
    last = jax.tree.map(jnp.zeros_like, start.refiner.params["Conv_3"])
    start = dataclasses.replace(
        start, refiner=dataclasses.replace(start.refiner, params=start.refiner.params | {"Conv_3": last})
    )
    current = state.restart(start)
    for i in range(250):
        current, metrics = compiled(steps.simgan_step, config)(current, jax.random.key(i), (pool, real))
    refined = refiner.apply(current.average, pool.ink[..., None] / 127.5 - 1.0, config=config.refiner)[..., 0]
    bars = pool.ink > 0
    ink, ground = float(refined[bars].mean()), float(refined[~bars].mean())
    assert abs(ink - (170 / 127.5 - 1.0)) < 0.3, (ink, ground)
    assert ground < -0.8, (ink, ground)
    assert 0.1 < float(metrics["discriminator_loss"]) < 1.5


@pytest.mark.parametrize("adversary", ["local", "global"])
def test_every_option_compiles_to_the_same_interface(adversary):
    config = dataclasses.replace(
        change(CONFIG, psi="gradients", optimizer="rmsprop", clip_norm=1.0, k_g=1, k_d=1),
        discriminator=DiscriminatorConfig(adversary=adversary, widths=(2, 2, 2, 2), spectral_norm=False),
        refiner=RefinerConfig(width=2, blocks=1, residual=False),
    )
    start = jax.eval_shape(lambda: fresh(config))
    after, metrics = jax.eval_shape(
        functools.partial(steps.simgan_step, config=config), start, jax.random.key(0), stacks(3)
    )
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), start)
    assert {(m.shape, m.dtype) for m in metrics.values()} == {((), jnp.dtype("float32"))}


def test_no_history_is_an_empty_history():
    assert isinstance(fresh(PLAIN).history, history.HistoryState)
    assert fresh(PLAIN).history.data.shape[0] == 0
