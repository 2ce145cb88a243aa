"""The numbers of a run while it goes: metrics.jsonl, TensorBoard files and progress bars (io)."""

import json
import math
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self, TextIO

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tqdm import tqdm

from simgan_jax import atomic, hosts

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
RESERVED = ("stage", "step", "seconds")
# A part may not begin with a dot, so that no stage leads out of the folder.
STAGE = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*")
LOG_INTERVAL = 10.0


class MetricsError(ValueError):
    """A metrics file that cannot be read or written; one line with file, line and remedy."""


class MetricsWriter:
    """Appends rows `{"stage", "step", "seconds", **metrics}` to `workdir/metrics.jsonl`, and to TensorBoard files.

    A row counts as written when `write` returns. `step` is the number of completed steps of the stage, and rises from
    row to row: a stage that starts or continues says so with `resume` first, so that each (stage, step) stands once.
    `seconds` is the time spent in the workdir's runs, without the pauses between them. Numbers that are not finite
    stand as null. Each stage has its own TensorBoard folder. Use it as a context manager.

    Args:
      workdir: folder of the run, made if it is not there.
      clock: monotonic seconds.

    Raises:
      MetricsError: an unreadable file, a broken line other than the last, which a kill may have cut, or a full disk.
    """

    def __init__(self, workdir: str | os.PathLike[str], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._workdir = pathlib.Path(workdir)
        self._path = self._workdir / METRICS_FILE
        self._clock = clock
        try:
            self._workdir.mkdir(parents=True, exist_ok=True)
            self._rows, torn = _read(self._path)
            if torn:
                self._replace()
            self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise _failed(self._path, error) from error
        self._last = {row["stage"]: row["step"] for row in self._rows}
        self._start = clock() - max((row["seconds"] for row in self._rows), default=0.0)
        self._boards: dict[str, EventsWriter] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def write(self, stage: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends one row; metrics are numbers or scalar arrays.

        Raises:
          ValueError: a stage name that makes no folder, a reserved metric name, or a step that is not above the last.
          MetricsError: full disk; the file is as before.
        """
        step = int(step)
        reserved = [name for name in RESERVED if name in metrics]
        if reserved:
            raise ValueError(f"metric {reserved[0]!r} of stage {stage!r}: choose another name, each row has its own")
        if stage in self._last and step <= self._last[stage]:
            raise ValueError(f"stage {stage!r}: step {step} after {self._last[stage]}: call resume before going back")
        self._check_stage(stage)
        values = {name: float(value) for name, value in metrics.items()}
        row = {"stage": stage, "step": step, "seconds": round(self._clock() - self._start, 3), **values}
        try:
            self._append(_line(row))
            self._rows.append(row)
            self._last[stage] = step
            finite = {name: value for name, value in values.items() if math.isfinite(value)}
            self._record(stage, step, [summary.scalar(name, value) for name, value in finite.items()])
        except OSError as error:
            raise _failed(self._path, error) from error

    def write_image(self, stage: str, step: int, name: str, image: np.ndarray) -> None:
        """Shows an image uint8 `[H, W, 3]` in TensorBoard.

        Raises:
          ValueError: a stage name that makes no folder.
          MetricsError: full disk.
        """
        self._check_stage(stage)
        try:
            self._record(stage, int(step), [summary.image(name, image, dataformats="HWC")])
        except OSError as error:
            raise _failed(self._workdir / TENSORBOARD_FOLDER, error) from error

    def resume(self, stage: str, step: int) -> None:
        """Forgets what a stage wrote after `step` completed steps; 0 starts it afresh and forgets all its rows.

        Raises:
          ValueError: a stage name that makes no folder.
          MetricsError: full disk; the file is as before.
        """
        self._check_stage(stage)
        kept = [row for row in self._rows if row["stage"] != stage or (step > 0 and row["step"] <= step)]
        try:
            if len(kept) < len(self._rows):
                self._rows, forgotten = kept, self._rows
                try:
                    self._replace()
                except OSError:
                    self._rows = forgotten
                    raise
                self._file.close()
                self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115
                self._last = {row["stage"]: row["step"] for row in self._rows}
            if (self._workdir / TENSORBOARD_FOLDER / stage).exists():
                session = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
                self._event(stage, event_pb2.Event(step=step + 1 if step > 0 else 0, session_log=session))
        except OSError as error:
            raise _failed(self._path, error) from error

    def close(self) -> None:
        """Closes all files; more than once does no harm."""
        self._file.close()
        while self._boards:
            self._boards.popitem()[1].close()

    def _check_stage(self, stage: str) -> None:
        if not STAGE.fullmatch(stage):
            raise ValueError(f"stage {stage!r}: use letters, digits, '_', '.' and '-', and '/' between parts")

    def _append(self, line: bytes) -> None:
        size = os.fstat(self._file.fileno()).st_size
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(size)
            raise

    def _replace(self) -> None:
        atomic.write_bytes(self._path, b"".join(map(_line, self._rows)))

    def _record(self, stage: str, step: int, values: list[Any]) -> None:
        event = event_pb2.Event(step=step)
        for value in values:
            event.summary.MergeFrom(value)
        self._event(stage, event)

    def _event(self, stage: str, event: event_pb2.Event) -> None:
        if stage not in self._boards:
            folder = self._workdir / TENSORBOARD_FOLDER / stage
            folder.mkdir(parents=True, exist_ok=True)
            # The name that EventsWriter makes is the same for all writers of one second.
            suffix = f".{sum(1 for _ in folder.glob('events.*')):04d}"
            self._boards[stage] = EventsWriter(str(folder / "events"), suffix)
        event.wall_time = time.time()
        self._boards[stage].write_event(event)
        self._boards[stage].flush()


class NoWriter(MetricsWriter):
    """Writes nothing: for the processes of a run that do not report."""

    def __init__(self) -> None:
        pass

    def write(self, stage: str, step: int, metrics: Mapping[str, Any]) -> None:
        pass

    def write_image(self, stage: str, step: int, name: str, image: np.ndarray) -> None:
        pass

    def resume(self, stage: str, step: int) -> None:
        pass

    def close(self) -> None:
        pass


def read_metrics(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Rows of `workdir/metrics.jsonl` in order, null as NaN; none if there is no such file.

    Raises:
      MetricsError: an unreadable file or a broken line; a last line that a kill has cut is passed over.
    """
    path = pathlib.Path(workdir) / METRICS_FILE
    try:
        return _read(path)[0]
    except OSError as error:
        raise MetricsError(f"{path}: cannot be read ({error.strerror}): check its permissions") from error


def progress(
    stage: str, total: int, *, initial: int = 0, unit: str = "step", stream: TextIO | None = None
) -> "tqdm[Any]":
    """A progress bar with rate and time left, a context manager with `update(n)` and `set_postfix(**values)`.

    On a terminal it redraws itself; elsewhere it adds a line every ten seconds at most, and one at the end. What
    `set_postfix` is given shows with the next update. Of several processes the first alone shows one.

    Args:
      stage: text before the bar; total, initial: steps in all and done before.
      stream: standard error if None.
    """
    stream = sys.stderr if stream is None else stream
    terminal = stream.isatty()
    return _Bar(
        total=total,
        initial=initial,
        desc=stage,
        unit=unit,
        file=stream if terminal else _Lines(stream),
        mininterval=0.2 if terminal else LOG_INTERVAL,
        miniters=1,
        dynamic_ncols=terminal,
        ncols=None if terminal else 100,
        disable=not hosts.is_first(),
    )


class _Bar(tqdm):
    # No watching thread: a chunk of steps may well take longer than its patience.
    monitor_interval = 0

    def set_postfix(
        self, ordered_dict: Mapping[str, Any] | None = None, refresh: bool | None = None, **values: Any
    ) -> None:
        # Not a reason to redraw, unless asked for: in a log each redraw is a line.
        super().set_postfix(ordered_dict, refresh=bool(refresh), **values)


class _Lines:
    """A stream for logs: each redraw becomes a line of its own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        if text.strip():
            self._stream.write(text.strip("\r\n ") + "\n")

    def flush(self) -> None:
        self._stream.flush()


def _line(row: Mapping[str, Any]) -> bytes:
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(finite, allow_nan=False).encode() + b"\n"


def _read(path: pathlib.Path) -> tuple[list[dict[str, Any]], bool]:
    """Rows, and whether a cut last line was passed over."""
    if not path.exists():
        return [], False
    *lines, torn = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            stage, step, seconds = row["stage"], row["step"], row["seconds"]
            if not (isinstance(stage, str) and isinstance(step, int) and isinstance(seconds, int | float)):
                raise TypeError
        except (ValueError, KeyError, TypeError) as error:
            raise MetricsError(f"{path}: line {number} is no row of metrics: remove the line") from error
        rows.append({name: math.nan if value is None else value for name, value in row.items()})
    return rows, bool(torn)


def _failed(path: pathlib.Path, error: OSError) -> MetricsError:
    if isinstance(error, atomic.WriteError):
        return MetricsError(str(error))
    return MetricsError(f"{path}: not written ({error.strerror or error}): make room there or give another workdir")
