"""Checkpoints of a whole state, labelled with its completed steps; orbax's v1 interface in one place (io)."""

import contextlib
import gc
import logging
import os
import pathlib
import re
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from simgan_jax import hosts

State = Any
Result = TypeVar("Result")
KEPT = 2
# Seconds that a failed save waits for what is still being written.
PATIENCE = 60.0
UNFINISHED = "*.orbax-checkpoint-tmp"


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or read: one line with the folder and the remedy."""


class Checkpoints:
    """The checkpoints of one stage, of which the newest two stay; use it as a context manager.

    A state is a pytree of arrays; where several processes have parts of it, all of them call every method and each
    writes what it has into the one folder. Whatever happens while one is written, those before it are intact.

    Args:
      folder: made if it is not there; half-written checkpoints of a killed run in it are removed.

    Raises:
      CheckpointError: the folder cannot be used.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = pathlib.Path(folder).absolute()
        self._checkpointer = self._attempt(self._open, "cannot be used", "give a folder that can be written")

    def _open(self) -> ocp.training.Checkpointer:
        hosts.in_turn(self._prepare)
        return ocp.training.Checkpointer(
            str(self._folder), preservation_policy=ocp.training.preservation_policies.LatestN(KEPT)
        )

    def _prepare(self) -> None:
        if hosts.is_first():
            self._folder.mkdir(parents=True, exist_ok=True)
        self._remove_unfinished()

    def _remove_unfinished(self) -> None:
        for path in self._folder.glob(UNFINISHED) if hosts.is_first() else ():
            shutil.rmtree(path, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Closing tells of a failed save once more, which must not hide what is on its way already.
        with contextlib.suppress(CheckpointError) if kind else contextlib.nullcontext():
            self._attempt(self._checkpointer.close, "not closed", "run again")

    def latest(self) -> int | None:
        """Completed steps of the newest whole checkpoint, None if there is none."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step: int, state: State) -> None:
        """Writes a checkpoint, whole or not at all, and returns when it is there.

        The newest checkpoint is left as it is if it has this step already: the same run would write the same.

        Raises:
          CheckpointError: the disk refused; earlier checkpoints are as they were.
        """
        if self.latest() == step:
            return
        try:
            self._attempt(
                lambda: self._checkpointer.save(step, _without_empty(state), force=True),
                f"step {step} not written",
                "make room and run again; earlier checkpoints are intact",
            )
        except CheckpointError:
            self._remove_unfinished()
            raise

    def restore(self, state: State, *, step: int | None = None) -> State:
        """The newest checkpoint, or that of a step.

        Args:
          state: arrays, or `jax.ShapeDtypeStruct`s, of the structure, shapes and types that are expected.

        Raises:
          CheckpointError: none there, broken, or of another configuration.
        """
        step = self.latest() if step is None else step
        if step is None:
            raise CheckpointError(f"checkpoints {self._folder}: none: run the stage that writes them")
        template = jax.tree.map(_abstract, _without_empty(state))
        fault = f"step {step} cannot be read"
        remedy = f"remove {self._folder / str(step)} to go on from an earlier one"
        self._check_fit(
            self._attempt(lambda: self._checkpointer.metadata(step).metadata, fault, remedy), template, step
        )
        arrays = iter(jax.tree.leaves(self._attempt(lambda: self._checkpointer.load(step, template), fault, remedy)))
        return jax.tree.map(lambda x: next(arrays) if x.size else jnp.zeros(x.shape, x.dtype), state)

    def _check_fit(self, metadata: Any, template: Any, step: int) -> None:
        there, here = _describe(metadata), _describe(template)
        if not there:
            raise CheckpointError(
                f"checkpoints {self._folder}: step {step} is broken: remove {self._folder / str(step)} to go on from "
                "an earlier one"
            )
        for name in sorted(there.keys() | here.keys()):
            if there.get(name) != here.get(name):
                raise CheckpointError(
                    f"checkpoints {self._folder}: step {step} is of another configuration ({name} is "
                    f"{there.get(name, 'missing')} there, {here.get(name, 'missing')} here): use the configuration "
                    "that wrote it, or another folder"
                )

    def _attempt(self, action: Callable[[], Result], fault: str, remedy: str) -> Result:
        with _quiet():
            try:
                return action()
            except Exception as error:
                reason = _reason(error)
            _wait_for_writers()
            # Orbax's exceptions hold coroutines that complain when they go: let them, while nobody listens.
            gc.collect()
        raise CheckpointError(f"checkpoints {self._folder}: {fault} ({reason}): {remedy}")


def _without_empty(state: State) -> State:
    """The state with None for arrays of size 0, which orbax refuses to write."""
    return jax.tree.map(lambda x: x if x.size else None, state)


def _abstract(array: Any) -> jax.ShapeDtypeStruct:
    sharding = array.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)


def _describe(tree: Any) -> dict[str, str]:
    """Type and shape of each leaf, such as `float32[3, 3]`, by a dotted name."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in leaves
    }


def _wait_for_writers() -> None:
    """Waits for the threads of orbax that still write when one has failed, while nobody listens to them."""
    for thread in threading.enumerate():
        if type(thread).__module__.startswith("orbax."):
            # Not their own join, which raises what they met.
            threading.Thread.join(thread, PATIENCE)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps orbax from logging and warning of a failure that is reported in one line."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            yield
    finally:
        logging.disable(level)


def _reason(error: BaseException) -> str:
    """What went wrong at the bottom, in one line."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    number = re.search(r"os_error_code='(\d+)'", str(error))
    text = os.strerror(int(number[1])) if number else getattr(error, "strerror", None) or str(error)
    return " ".join(text.split())[:200] or type(error).__name__
