"""A growing stack of images: in memory up to a limit, past it in a temporary file that is mapped (io)."""

import contextlib
import tempfile
from collections.abc import Iterator
from types import TracebackType
from typing import IO, Self

import numpy as np

# Bytes of pixels.
IN_MEMORY = 1 << 30


class StackError(OSError):
    """Images do not fit into the temporary file: one line with its folder and the remedy."""


class Stack:
    """Images of one size, appended some at a time; a context that closes the file.

    in_memory: bytes of pixels above which they go to a file, in the folder of `tempfile` (TMPDIR), that has no name and
    is gone with the array. The system drops its pages from memory where it needs the room, unless that folder is itself
    held in memory (tmpfs).
    """

    def __init__(self, *, in_memory: int = IN_MEMORY) -> None:
        self._in_memory = in_memory
        self._images = np.empty((0, 0, 0), np.uint8)
        self._file: IO[bytes] | None = None
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            # Closing writes what a full disk has refused already.
            with contextlib.suppress(OSError) if kind else contextlib.nullcontext():
                self._file.close()

    def append(self, images: np.ndarray) -> None:
        """Adds images uint8 `[N, H, W]`.

        Raises:
          StackError: the disk refused.
        """
        needed = self._count + len(images)
        if self._file is None and needed * images[0].size > self._in_memory:
            with _refusals():
                self._file = tempfile.TemporaryFile()  # noqa: SIM115
                self._file.write(self._images[: self._count].data)
            self._images = np.empty((0, *images.shape[1:]), np.uint8)
        if self._file is not None:
            with _refusals():
                self._file.write(np.ascontiguousarray(images).data)
        else:
            if needed > len(self._images):
                # Grown by a quarter, before NumPy 2.5 in place: the images then never stand in memory twice.
                self._images.resize((max(needed, self._count + self._count // 4), *images.shape[1:]), refcheck=False)
            self._images[self._count : needed] = images
        self._count = needed

    def array(self) -> np.ndarray:
        """The stack uint8 `[N, H, W]`, read-only where it is mapped. Nothing can be appended any more.

        Raises:
          StackError: the disk refused.
        """
        shape = (self._count, *self._images.shape[1:])
        if self._file is None:
            self._images.resize(shape, refcheck=False)
            return self._images
        with _refusals():
            self._file.flush()
            return np.asarray(np.memmap(self._file, np.uint8, "r", shape=shape))


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StackError(
            f"{tempfile.tempdir or 'temporary files'}: no room for the pixels of so many images ({error.strerror}): "
            "make room there, or set TMPDIR to a folder that has it"
        ) from error
