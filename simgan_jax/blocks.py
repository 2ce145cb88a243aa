"""A batch in blocks of a few images, whose activations a CPU's cache holds."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from simgan_jax import devices


def over_blocks(batch: Any, function: Callable[[Any], Any], *, block: int | None) -> Any:
    """Mean of `function(part)`, a tree of means, over equal parts of a batch (leaves `[B, ...]`), one at a time.

    Parts have `block` images, or the largest divisor below it of B, or, under a mesh, of what each device has of the
    batch; with None the batch stays whole, and the compiler divides it.
    """
    if block is None:
        return function(batch)
    # Two at a time, so that XLA has both to share between its threads, which devices have one each of.
    unroll = 1 if devices.is_divided() else 2
    return devices.mean_of_shares(batch, lambda share: _in_turn(share, function, block=block, unroll=unroll))


def _in_turn(batch: Any, function: Callable[[Any], Any], *, block: int, unroll: int) -> Any:
    count = jax.tree.leaves(batch)[0].shape[0]
    if block >= count:
        return function(batch)
    size = max(size for size in range(1, block + 1) if count % size == 0)
    parts = jax.tree.map(lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:]), batch)

    def add(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, function(part)), None

    shapes = jax.eval_shape(function, jax.tree.map(lambda leaf: leaf[0], parts))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, parts, unroll=unroll)
    return jax.tree.map(lambda leaf: leaf * (size / count), total)


def map_blocks(batch: Any, function: Callable[[Any], Any], *, block: int) -> Any:
    """What `function(part)` makes (leaves `[b, ...]`) of parts of a batch (leaves `[B, ...]`), put together.

    Parts have `block` images, the last one what is left.
    """
    count = jax.tree.leaves(batch)[0].shape[0]
    if block >= count:
        return function(batch)
    whole = count // block * block
    parts = jax.tree.map(lambda leaf: leaf[:whole].reshape(-1, block, *leaf.shape[1:]), batch)
    made = jax.tree.map(lambda leaf: leaf.reshape(whole, *leaf.shape[2:]), jax.lax.map(function, parts))
    if whole == count:
        return made
    rest = function(jax.tree.map(lambda leaf: leaf[whole:], batch))
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), made, rest)
