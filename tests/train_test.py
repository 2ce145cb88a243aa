import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from simgan_jax import train
from simgan_jax.convolution import conv


@struct.dataclass
class Toy:
    """A kernel that learns by noisy gradient steps; conv and randomness are what a chunk could get wrong."""

    kernel: jax.Array
    step: jax.Array


def start():
    return Toy(jnp.ones((3, 3, 1, 2)), jnp.zeros((), jnp.int32))


def toy_step(state, key, data):
    x = data + 0.1 * jax.random.normal(key, data.shape)
    loss, gradient = jax.value_and_grad(lambda k: jnp.mean((conv(x, k) - 2.0) ** 2))(state.kernel)
    return Toy(state.kernel - 0.05 * gradient, state.step + 1), {"loss": loss, "step": state.step.astype(jnp.float32)}


@pytest.fixture(scope="module")
def data():
    return jnp.asarray(np.random.default_rng(0).uniform(size=(2, 5, 6, 1)), jnp.float32)


def fit(state, data, *, steps=12, chunk=4, hooks=(), seed=1, step=toy_step):
    return train.fit(state, jax.random.key(seed), step, data, steps=steps, chunk=chunk, hooks=hooks)


def test_the_cut_into_chunks_does_not_matter(data):
    """Bitwise on a CPU: nothing but the state and the step's number enters a step."""
    whole = fit(start(), data, chunk=12)
    assert int(whole.step) == 12
    for chunk in (1, 5):
        np.testing.assert_array_equal(fit(start(), data, chunk=chunk).kernel, whole.kernel)
    halfway = fit(start(), data, steps=7, chunk=3)
    np.testing.assert_array_equal(fit(halfway, data, chunk=5).kernel, whole.kernel)


def test_hooks_come_after_each_chunk_with_its_mean_metrics(data):
    calls = []

    def hook(step, state, metrics):
        calls.append((step, int(state.step), metrics["step"]))
        assert isinstance(metrics["loss"], float)

    fit(start(), data, steps=10, chunk=4, hooks=[hook])
    assert calls == [(4, 4, 1.5), (8, 8, 5.5), (10, 10, 8.5)]
    # A stage that goes on ends its chunks where it would have without a break.
    calls.clear()
    fit(dataclasses.replace(start(), step=jnp.asarray(3, jnp.int32)), data, steps=9, chunk=4, hooks=[hook])
    assert [step for step, *_ in calls] == [4, 8, 9]


def test_a_finished_state_comes_back_as_it_is(data):
    done = dataclasses.replace(start(), step=jnp.asarray(5, jnp.int32))
    assert fit(done, data, steps=5) is done and not done.kernel.is_deleted()


def test_the_state_is_donated(data):
    first = start()
    fit(first, data)
    assert first.kernel.is_deleted() and first.step.is_deleted() and not data.is_deleted()


def test_a_chunk_is_traced_once(data):
    traces = 0

    def counted(state, key, data):
        nonlocal traces
        traces += 1
        return toy_step(state, key, data)

    run_chunk, key = train.make_chunk(counted), jax.random.key(0)
    state, _ = run_chunk(start(), key, data, length=3)
    after_first = traces
    for _ in range(3):
        state, _ = run_chunk(state, key, data, length=3)
    # Other data of the same shape, and another key, are arguments too.
    run_chunk(state, jax.random.key(7), data + 1.0, length=3)
    assert after_first == traces


def test_the_loss_falls_and_seeds_differ(data):
    losses = []
    one = fit(start(), data, steps=100, chunk=10, hooks=[lambda step, state, metrics: losses.append(metrics["loss"])])
    assert losses[-1] < 0.2 * losses[0]
    other = fit(start(), data, steps=100, chunk=10, seed=2)
    assert not np.array_equal(one.kernel, other.kernel)


def test_each_step_has_its_own_key():
    """`fold_in(key, step)`: what is drawn at a step depends on its number alone, not on where the run began."""
    drawn = []

    def draw(state, key, data):
        return Toy(jax.random.normal(key, state.kernel.shape), state.step + 1), {}

    def keep(step, state, metrics):
        drawn.append(np.asarray(state.kernel))

    fit(start(), None, steps=3, chunk=1, hooks=[keep], step=draw)
    fit(dataclasses.replace(start(), step=jnp.asarray(2, jnp.int32)), None, steps=3, chunk=1, hooks=[keep], step=draw)
    assert len({array.tobytes() for array in drawn[:3]}) == 3
    np.testing.assert_array_equal(drawn[2], drawn[3])
    want = jax.random.normal(jax.random.fold_in(jax.random.key(1), 2), (3, 3, 1, 2))
    np.testing.assert_array_equal(drawn[2], want)
