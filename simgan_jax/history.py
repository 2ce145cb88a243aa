"""History of refined images: a buffer of which random entries are replaced (paper 2.3).

At rest the images are uint8 `round(127.5 (x + 1))` of x in [-1, 1]: a quarter of the memory, an error of at most
1 / 255, and the levels that real images have. Shapes: capacity `N`, images `[B, H, W, C]`.
"""

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class HistoryState:
    """data: `[N, H, W, C]` uint8, zeros where nothing was stored; size: `[]` int32, slots 0 to size - 1 are filled."""

    data: jax.Array
    size: jax.Array


def init(capacity: int, shape: tuple[int, ...]) -> HistoryState:
    """An empty history for images `[H, W, C]`; with capacity 0 it stays empty.

    Raises:
      ValueError: a negative capacity.
    """
    if capacity < 0:
        raise ValueError(f"history capacity {capacity}: must not be negative")
    return HistoryState(jnp.zeros((capacity, *shape), jnp.uint8), jnp.zeros((), jnp.int32))


def add(state: HistoryState, key: jax.Array, images: jax.Array) -> HistoryState:
    """Stores all images `[B, H, W, C]` in [-1, 1]: free slots first, in order, then different random filled ones.

    The key is consumed.

    Raises:
      ValueError: more images than slots, unless there are none at all.
    """
    capacity, count = state.data.shape[0], images.shape[0]
    if capacity == 0:
        return state
    if count > capacity:
        raise ValueError(f"history of {capacity} images cannot take {count} at once: give it a larger capacity")
    slot = jnp.arange(capacity)
    # Free slots rank below zero, in order; filled ones at random in [0, 1).
    rank = jnp.where(slot < state.size, jax.random.uniform(key, (capacity,)), slot - float(capacity))
    _, chosen = jax.lax.top_k(-rank, count)
    data = state.data.at[chosen].set(_to_uint8(images))
    return HistoryState(data, jnp.minimum(state.size + count, capacity))


def sample(state: HistoryState, key: jax.Array, batch_size: int) -> jax.Array:
    """Images `[batch_size, H, W, C]` in [-1, 1], each uniform over the filled slots; all -1 from an empty history.

    Whether it is empty is `state.size`, known on the device alone: see `mix`. The key is consumed.

    Raises:
      ValueError: a history without any slot.
    """
    if state.data.shape[0] == 0:
        raise ValueError("a history of capacity 0 has nothing to sample: use mix")
    slots = jax.random.randint(key, (batch_size,), 0, jnp.maximum(state.size, 1))
    return _to_unit(state.data[slots])


def mix(state: HistoryState, key: jax.Array, fresh: jax.Array) -> jax.Array:
    """The discriminator's batch of refined images: half from the history, half of `fresh` `[B, H, W, C]` (paper 2.3).

    The first B // 2 are replaced; while the history is empty all are fresh. The key is consumed.
    """
    half = fresh.shape[0] // 2
    if state.data.shape[0] == 0:
        return fresh
    old = jnp.where(state.size > 0, sample(state, key, half), fresh[:half])
    return jnp.concatenate([old, fresh[half:]])


def _to_uint8(images: jax.Array) -> jax.Array:
    return jnp.clip(jnp.round((images + 1.0) * 127.5), 0.0, 255.0).astype(jnp.uint8)


def _to_unit(stored: jax.Array) -> jax.Array:
    # XLA multiplies by a rounded 1 / 127.5, which alone would take 255 to 1.0000001.
    return jnp.minimum(stored.astype(jnp.float32) / 127.5 - 1.0, 1.0)
