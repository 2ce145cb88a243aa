import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simgan_jax import history

SHAPE = (2, 3, 1)
add, mix = jax.jit(history.add), jax.jit(history.mix)
sample = jax.jit(history.sample, static_argnums=2)


def number_images(numbers):
    """Images that hold their number / 127.5 - 1 in every pixel; numbers up to 255 survive the rounding."""
    return jnp.asarray(numbers, jnp.float32)[:, None, None, None] * jnp.ones((1, *SHAPE)) / 127.5 - 1.0


def read_numbers(images):
    images = np.asarray(images)
    assert (images == images[:, :1, :1, :]).all(), "images were mixed with each other"
    return np.round((images[:, 0, 0, 0] + 1.0) * 127.5).astype(int).tolist()


def stored(state):
    """Numbers in the filled slots."""
    return np.asarray(state.data)[: int(state.size), 0, 0, 0].tolist()


def filled(capacity, size):
    """A history that holds the numbers 1 to size."""
    state = history.init(capacity, SHAPE)
    return add(state, jax.random.key(99), number_images(range(1, size + 1))) if size else state


@settings(deadline=None, max_examples=40)
@given(
    capacity=st.sampled_from([3, 4, 7]),
    batches=st.lists(st.integers(1, 3), min_size=1, max_size=9),
    seed=st.integers(0, 2**31 - 1),
)
def test_add_against_a_model(capacity, batches, seed):
    """The model is a list: append while there is room, then as many different entries as are left are replaced."""
    state, number = history.init(capacity, SHAPE), 0
    model: list[int] = []
    key = jax.random.key(seed)
    for i, count in enumerate(batches):
        new = [number := number + 1 for _ in range(count)]
        state = add(state, jax.random.fold_in(key, i), number_images(new))
        room = min(count, capacity - len(model))
        now = stored(state)
        assert now[len(model) : len(model) + room] == new[:room]
        replaced = [slot for slot, old in enumerate(model) if now[slot] != old]
        assert sorted(now[slot] for slot in replaced) == new[room:]
        model = now
        assert len(model) == int(state.size) == min(capacity, number)
    assert state.data.dtype == jnp.uint8 and state.size.dtype == jnp.int32


@pytest.mark.parametrize("size", [0, 1, 5, 6])
def test_mix_when_empty_filling_full(size):
    capacity = 6
    state = filled(capacity, size)
    fresh = number_images(range(101, 109))
    got = read_numbers(mix(state, jax.random.key(1), fresh))
    assert got[4:] == [105, 106, 107, 108]
    if size:
        assert set(got[:4]) <= set(range(1, size + 1))
    else:
        assert got[:4] == [101, 102, 103, 104]


def test_mix_after_wrapping_around():
    state = filled(4, 4)
    for i in range(5):
        state = add(state, jax.random.key(i), number_images([10 + 2 * i, 11 + 2 * i]))
    assert int(state.size) == 4
    now = stored(state)
    assert {18, 19} <= set(now)
    got = read_numbers(mix(state, jax.random.key(7), number_images(range(101, 107))))
    assert set(got[:3]) <= set(now) and got[3:] == [104, 105, 106]


def test_capacity_0_is_no_history():
    state = history.init(0, SHAPE)
    fresh = number_images([1, 2, 3, 4])
    after = add(state, jax.random.key(0), fresh)
    assert after.data.shape == (0, *SHAPE) and int(after.size) == 0
    np.testing.assert_array_equal(mix(state, jax.random.key(1), fresh), fresh)
    with pytest.raises(ValueError, match="capacity 0"):
        history.sample(state, jax.random.key(2), 2)


def test_replacement_is_uniform_over_slots():
    """Each of 8 slots loses its entry to one of 2 new images with probability 1 / 4, in 2,000 draws."""
    state = filled(8, 8)
    keys = jax.random.split(jax.random.key(3), 2000)
    new = number_images([100, 101])
    data = jax.vmap(lambda key: history.add(state, key, new).data[:, 0, 0, 0])(keys)
    share = (np.asarray(data) >= 100).mean(axis=0)
    assert (np.asarray(data) >= 100).sum(axis=1).tolist() == [2] * 2000
    # Six standard deviations of a share of 2,000.
    assert np.abs(share - 0.25).max() < 6 * np.sqrt(0.25 * 0.75 / 2000)


def test_samples_are_uniform_over_filled_slots():
    state = filled(8, 5)
    got = np.asarray(read_numbers(sample(state, jax.random.key(4), 4000)))
    share = np.bincount(got, minlength=9)[1:] / 4000
    assert (share[5:] == 0).all()
    assert np.abs(share[:5] - 0.2).max() < 6 * np.sqrt(0.2 * 0.8 / 4000)


def test_keys_decide_and_nothing_else():
    state, fresh = filled(8, 8), number_images(range(100, 108))
    first, again = (mix(state, jax.random.key(5), fresh) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    others = [read_numbers(mix(state, jax.random.key(seed), fresh))[:4] for seed in range(6, 12)]
    assert any(other != read_numbers(first)[:4] for other in others)


def test_rounding_stays_within_half_a_level_and_clips():
    images = jnp.linspace(-1.0, 1.0, 6 * 50).reshape(50, *SHAPE)
    state = history.add(history.init(50, SHAPE), jax.random.key(0), images)
    back = state.data.astype(jnp.float32) / 127.5 - 1.0
    assert jnp.abs(back - images).max() <= 0.5 / 127.5 + 1e-6
    state = history.add(
        history.init(2, SHAPE), jax.random.key(0), jnp.asarray([[-3.0], [3.0]])[..., None, None] * jnp.ones((1, *SHAPE))
    )
    assert stored(state) == [0, 255]


def test_too_many_at_once_and_negative_capacity():
    with pytest.raises(ValueError, match="history of 2 images cannot take 3 at once"):
        history.add(history.init(2, SHAPE), jax.random.key(0), number_images([1, 2, 3]))
    with pytest.raises(ValueError, match="must not be negative"):
        history.init(-1, SHAPE)


def test_runs_inside_scan():
    """As it does in a chunk: add and mix by turns, with sizes that the trace does not know."""

    def body(state, key):
        add_key, mix_key = jax.random.split(key)
        mixed = history.mix(state, mix_key, number_images([200, 201]))
        return history.add(state, add_key, number_images([7])), (mixed[0, 0, 0, 0], state.size)

    step = functools.partial(jax.lax.scan, body)
    state, (first, sizes) = jax.jit(step)(history.init(3, SHAPE), jax.random.split(jax.random.key(0), 5))
    assert sizes.tolist() == [0, 1, 2, 3, 3] and stored(state) == [7, 7, 7]
    np.testing.assert_allclose((first + 1.0) * 127.5, [200, 7, 7, 7, 7], atol=1e-3)
