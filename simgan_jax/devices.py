"""Data parallelism: batches split over the devices of the ambient mesh (`jax.set_mesh`), states on each of them.

Training alone has a mesh. Where several processes make a run (hosts.py), it has the devices of all; what comes between,
drawing, fitting and reading, is done by each process for itself, with one of its own.

Without a mesh everything is on the first device. Under one the compiler divides the work and sums the gradients, so a
step is the same mathematics for any number of devices: the same key draws the same global batch.
"""

import contextlib
import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from simgan_jax.config import Config, ConfigError
from simgan_jax.history import HistoryState

AXIS = "data"
BATCHES = ("refine.batch_size", "classify.batch_size", "adapt.batch_size", "adapt.pool_batch_size")


def mesh(count: int) -> Mesh:
    """A mesh of the first `count` devices along one axis.

    Raises:
      ConfigError: there are not as many.
    """
    found = jax.devices()
    if not 0 < count <= len(found):
        raise ConfigError(f"{count} devices: this machine has {len(found)} ({found[0].platform}): ask for 1 to that")
    return jax.make_mesh((count,), (AXIS,), axis_types=(AxisType.Auto,), devices=found[:count])


def usual_count(config: Config) -> int:
    """Devices that training is divided over unless a number is asked for: all; of a CPU one, where a batch is odd."""
    count = len(jax.devices())
    even = all(size % count == 0 for size in _batch_sizes(config).values())
    return count if even or jax.default_backend() != "cpu" else 1


def is_divided() -> bool:
    """Whether batches are divided over the devices of an ambient mesh."""
    ambient = jax.sharding.get_abstract_mesh()
    return not ambient.empty and ambient.size > 1


def training(count: int) -> contextlib.AbstractContextManager[Any]:
    """The context of training on `count` devices, or on all of several processes: a mesh of them, if it is not one.

    Raises:
      ConfigError: there are not as many.
    """
    chosen = mesh(_together(count))
    return jax.set_mesh(chosen) if chosen.size > 1 else contextlib.nullcontext()


def check_batches(config: Config, count: int) -> None:
    """Raises where training on `count` devices, or on all of several processes, could not divide its batches evenly.

    Raises:
      ConfigError: there are not as many devices, or a batch is no multiple of them.
    """
    count = mesh(_together(count)).size
    even = math.lcm(count, 2)
    for field, size in _batch_sizes(config).items():
        if size % count:
            raise ConfigError(
                f"config.{field}={size}: {count} devices cannot share it evenly: give a multiple of {count} such as "
                f"{-(-size // even) * even}, or another number of devices"
            )


def _together(count: int) -> int:
    return jax.device_count() if jax.process_count() > 1 else count


def _batch_sizes(config: Config) -> dict[str, int]:
    return {field: operator.attrgetter(field)(config) for field in BATCHES}


def spread(batch: Any) -> Any:
    """A batch (leaves `[B, ...]`) inside a jitted function, split by examples where B is a multiple of the devices."""
    ambient = jax.sharding.get_abstract_mesh()
    if ambient.empty or any(leaf.shape[0] % ambient.size for leaf in jax.tree.leaves(batch)):
        return batch
    return jax.lax.with_sharding_constraint(batch, PartitionSpec(AXIS))


def mean_of_shares(batch: Any, function: Callable[[Any], Any]) -> Any:
    """Mean of `function(share)`, a tree of means, over the devices' shares of a batch (leaves `[B, ...]`).

    The batch stays whole without a mesh, and where B is no multiple of its devices.
    """
    ambient = jax.sharding.get_abstract_mesh()
    if not is_divided() or any(leaf.shape[0] % ambient.size for leaf in jax.tree.leaves(batch)):
        return function(batch)

    def mean(share: Any) -> Any:
        return jax.tree.map(lambda x: jax.lax.pmean(x, AXIS), function(share))

    # Without the check each device takes the gradient of its own share; with it they would be summed at every block.
    return jax.shard_map(mean, in_specs=PartitionSpec(AXIS), out_specs=PartitionSpec(), check_vma=False)(batch)


def place(tree: Any) -> Any:
    """A state or data on all devices of the mesh: each array whole on each, the images of a history divided.

    A history whose capacity is no multiple of the devices is whole on each too. Without a mesh, all on the first
    device, and committed to it as what a checkpoint restores is: a run that goes on needs no other programs.
    """
    ambient = jax.sharding.get_mesh()
    if ambient.empty:
        return jax.device_put(tree, jax.local_devices()[0])
    whole, split = (NamedSharding(ambient, PartitionSpec(*axes)) for axes in ((), (AXIS,)))

    def put(node: Any) -> Any:
        if isinstance(node, HistoryState):
            divides = node.data.shape[0] % ambient.size == 0
            return HistoryState(_put(node.data, split if divides else whole), put(node.size))
        return _put(node, whole)

    return jax.tree.map(put, tree, is_leaf=lambda node: isinstance(node, HistoryState))


def _put(array: jax.Array, sharding: NamedSharding) -> jax.Array:
    if jax.process_count() == 1 or not array.is_fully_addressable:
        return jax.device_put(array, sharding)
    # Each process has the same array, so that nothing is sent, as it would be to compare them.
    own = np.asarray(array)
    return jax.make_array_from_callback(own.shape, sharding, own.__getitem__)


def collect(tree: Any) -> Any:
    """A state that was trained on the ambient mesh, whole on the first device of this process."""
    ambient = jax.sharding.get_mesh()
    if ambient.empty:
        return tree
    if jax.process_count() == 1:
        return jax.device_put(tree, jax.local_devices()[0])
    whole = NamedSharding(ambient, PartitionSpec())
    return jax.tree.map(lambda x: x.addressable_data(0), jax.jit(lambda x: x, out_shardings=whole)(tree))
