"""Data parallelism: batches split over the devices of the ambient mesh (`jax.set_mesh`), states on each of them.

Without a mesh everything stays as it is. Under one the compiler divides the work and sums the gradients, so a step is
the same mathematics for any number of devices: the same key draws the same global batch.
"""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from simgan_jax.config import ConfigError
from simgan_jax.history import HistoryState

AXIS = "data"


def mesh(count: int) -> Mesh:
    """A mesh of the first `count` devices along one axis.

    Raises:
      ConfigError: there are not as many.
    """
    found = jax.devices()
    if not 0 < count <= len(found):
        raise ConfigError(f"{count} devices: this machine has {len(found)} ({found[0].platform}): ask for 1 to that")
    return jax.make_mesh((count,), (AXIS,), axis_types=(AxisType.Auto,), devices=found[:count])


def is_divided() -> bool:
    """Whether batches are divided over the devices of an ambient mesh."""
    ambient = jax.sharding.get_abstract_mesh()
    return not ambient.empty and ambient.size > 1


def spread(batch: Any) -> Any:
    """A batch (leaves `[B, ...]`) inside a jitted function, split by examples where B is a multiple of the devices."""
    ambient = jax.sharding.get_abstract_mesh()
    if ambient.empty or any(leaf.shape[0] % ambient.size for leaf in jax.tree.leaves(batch)):
        return batch
    return jax.lax.with_sharding_constraint(batch, PartitionSpec(AXIS))


def place(tree: Any) -> Any:
    """A state or data on all devices of the mesh: each array whole on each, the images of a history divided.

    A history whose capacity is no multiple of the devices is whole on each too.
    """
    ambient = jax.sharding.get_mesh()
    if ambient.empty:
        return tree
    whole, split = (NamedSharding(ambient, PartitionSpec(*axes)) for axes in ((), (AXIS,)))

    def put(node: Any) -> Any:
        if isinstance(node, HistoryState):
            divides = node.data.shape[0] % ambient.size == 0
            return HistoryState(jax.device_put(node.data, split if divides else whole), put(node.size))
        return jax.device_put(node, whole)

    return jax.tree.map(put, tree, is_leaf=lambda node: isinstance(node, HistoryState))
