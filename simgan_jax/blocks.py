"""Gradients of a batch in blocks of a few images, whose activations a CPU's cache holds."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from simgan_jax import devices


def over_blocks(batch: Any, function: Callable[[Any], Any], *, block: int | None) -> Any:
    """Mean of `function(part)`, a tree of means, over equal parts of a batch (leaves `[B, ...]`), one at a time.

    Parts have `block` images, or the largest divisor of B below it; with None, or under a mesh, which divides the batch
    already, the batch stays whole.
    """
    count = jax.tree.leaves(batch)[0].shape[0]
    if block is None or block >= count or devices.is_divided():
        return function(batch)
    size = max(size for size in range(1, block + 1) if count % size == 0)
    parts = jax.tree.map(lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:]), batch)

    def add(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, function(part)), None

    shapes = jax.eval_shape(function, jax.tree.map(lambda leaf: leaf[0], parts))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    # Two at a time, so that XLA has both to share between its threads.
    total, _ = jax.lax.scan(add, zeros, parts, unroll=2)
    return jax.tree.map(lambda leaf: leaf * (size / count), total)
