"""Checkpoints of a whole state, labelled with its completed steps; orbax's v1 interface in one place (io)."""

import os
import pathlib
from types import TracebackType
from typing import Any, Self

import jax
from orbax.checkpoint import v1 as ocp

State = Any
KEPT = 2


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or read: one line with the folder and the remedy."""


class Checkpoints:
    """The checkpoints of one stage; use it as a context manager, which waits for writing to end.

    Args:
      folder: made if it is not there; half-written checkpoints of a killed run in it are removed.

    Raises:
      CheckpointError: the folder cannot be used.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = pathlib.Path(folder).absolute()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._checkpointer = ocp.training.Checkpointer(
                str(self._folder),
                save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
                preservation_policy=ocp.training.preservation_policies.LatestN(KEPT),
                cleanup_tmp_directories=True,
            )
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"checkpoints {self._folder}: cannot be used ({_one_line(error)}): check the folder"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._checkpointer.close()

    def latest(self) -> int | None:
        """Completed steps of the newest whole checkpoint."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step: int, state: State) -> None:
        """Writes a checkpoint, whole or not at all; one that is there already stays.

        Raises:
          CheckpointError: the disk refused; earlier checkpoints are as they were.
        """
        if self.latest() == step:
            return
        try:
            self._checkpointer.save(step, state)
        except Exception as error:
            raise CheckpointError(
                f"checkpoints {self._folder}: step {step} not written ({_one_line(error)}): make room and run again; "
                "earlier checkpoints are intact"
            ) from error

    def restore(self, state: State, *, step: int | None = None) -> State:
        """The newest checkpoint, or that of a step, shaped as `state`.

        Raises:
          CheckpointError: none there, broken, or of other shapes.
        """
        step = self.latest() if step is None else step
        if step is None:
            raise CheckpointError(f"checkpoints {self._folder}: none: run the stage that writes them")
        template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        try:
            return self._checkpointer.load(step, template)
        except Exception as error:
            raise CheckpointError(
                f"checkpoints {self._folder}: step {step} cannot be read ({_one_line(error)}): remove that folder to "
                "go on from an earlier one, or use the configuration that wrote it"
            ) from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
