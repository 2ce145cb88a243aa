"""Several processes, on one host or many, that make one run: all compute, the first writes and reports (io)."""

from collections.abc import Callable
from typing import TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

Result = TypeVar("Result")
# Seconds that a process which ends, well or not, waits for the others; then JAX ends them all.
SHUTDOWN = 120


class HostsError(ValueError):
    """Processes that do not come together, or of which another one failed: one line with the remedy."""


def start(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Joins this process with the others of its run, before anything is computed.

    Args:
      coordinator: HOST:PORT of process 0; processes, process: how many, and which this is. JAX finds out what is
        None where Slurm, Kubernetes, a TPU pod or Open MPI started the processes.

    Raises:
      HostsError: they cannot be found or reached.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(coordinator, processes, process, shutdown_timeout_seconds=SHUTDOWN)
    except (RuntimeError, ValueError) as error:
        raise HostsError(
            f"--multihost: {' '.join(str(error).split()).rstrip('.')}: start all processes by Slurm, Kubernetes, "
            "Open MPI or on a TPU pod, or give --coordinator=HOST:PORT, --num_processes and --process_id"
        ) from error


def is_first() -> bool:
    """Whether this process is the one that writes and reports; it is where it is alone."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def agreed(action: Callable[[], Result]) -> Result:
    """`action()`, on every process at once, which all wait for; where it fails on one, it fails on all.

    Raises:
      HostsError: it failed on another process, which says why.
    """
    if not jax.distributed.is_initialized():
        return action()
    results, failure = [], None
    try:
        results.append(action())
    except Exception as error:
        failure = error
    failed = np.flatnonzero(multihost_utils.process_allgather(np.int32(failure is not None)))
    if failure is not None:
        raise failure
    if len(failed):
        raise HostsError(f"process {failed[0]} has failed: see what it says, and start all processes again")
    return results[0]


def in_turn(action: Callable[[], Result]) -> Result:
    """`action()` on the first process, then on the others, which so see what the first one wrote.

    Raises:
      HostsError: it failed on another process, which says why.
    """
    results = [agreed(action if is_first() == first else _nothing) for first in (True, False)]
    return cast(Result, results[0] if is_first() else results[1])


def _nothing() -> None:
    pass
