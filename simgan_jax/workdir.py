"""The folder of one run: its configuration, which stages are done, and their arrays (io)."""

import dataclasses
import fcntl
import io
import json
import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from simgan_jax import atomic, hosts
from simgan_jax.config import Config

CONFIG_FILE = "config.json"
STAGES_FILE = "stages.json"
LOCK_FILE = ".lock"


class WorkdirError(ValueError):
    """A workdir that cannot serve this run: one line with the place and the remedy."""


class Workdir:
    """One run's folder, held by one run at a time; use it as a context manager.

    Of several processes of the run (hosts.py) the first holds it and writes, the others follow.

    Args:
      path: folder, made if it is not there.
      identity: what makes the run: configuration, seed, preset, target; written to config.json by the first call
        and compared by every later one.

    Raises:
      WorkdirError: another process holds it, or it belongs to another run.
      HostsError: another process of this run could not open it.
    """

    def __init__(self, path: str | os.PathLike[str], identity: Mapping[str, Any]) -> None:
        self.path = pathlib.Path(path).absolute()
        self._identity = json.loads(json.dumps(identity))
        self._stages: list[dict[str, Any]] = []
        self._lock: io.TextIOWrapper | None = None

    def __enter__(self) -> Self:
        try:
            hosts.in_turn(self._enter)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        if self._lock is not None:
            self._lock.close()

    def _enter(self) -> None:
        if hosts.is_first():
            self._hold()
        self._open()

    def _hold(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / LOCK_FILE, "w", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise WorkdirError(
                f"workdir {self.path}: cannot be used ({error.strerror}): choose another folder"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise WorkdirError(f"workdir {self.path}: another run is at work in it: wait or choose another") from error

    def _open(self) -> None:
        file = self.path / CONFIG_FILE
        if file.exists():
            there = read_json(file)
            for field, here in _flatten(self._identity).items():
                old = _flatten(there).get(field)
                if old != here:
                    raise WorkdirError(
                        f"workdir {self.path}: holds another run ({field} is {old!r} there, {here!r} here): "
                        "choose another --workdir, or the same settings to continue"
                    )
            self._stages = read_json(self.path / STAGES_FILE) if (self.path / STAGES_FILE).exists() else []
            return
        if not hosts.is_first():
            raise WorkdirError(f"workdir {self.path}: not the folder that process 0 has: give one that all hosts share")
        for cut in self.path.glob(f".{CONFIG_FILE}.*.tmp"):
            # Of a run that was killed while it wrote its first file.
            cut.unlink()
        strangers = [p.name for p in self.path.iterdir() if p.name != LOCK_FILE]
        if strangers:
            raise WorkdirError(
                f"workdir {self.path}: not empty ({sorted(strangers)[0]}) and no run's: choose an empty or new folder"
            )
        write_json(file, self._identity)

    def done(self, stage: str) -> bool:
        """Whether the stage ended in this or an earlier process."""
        return any(row["stage"] == stage for row in self._stages)

    def finish(self, stage: str, seconds: float, **facts: Any) -> None:
        """Marks a stage as done, with its seconds and other facts; its files are then there for every process."""
        self._stages.append({"stage": stage, "seconds": round(seconds, 2), **facts})
        hosts.in_turn(lambda: write_json(self.path / STAGES_FILE, self._stages))

    @property
    def stages(self) -> list[dict[str, Any]]:
        """The stages that are done, in order."""
        return [dict(row) for row in self._stages]

    def facts(self, stage: str) -> dict[str, Any]:
        """What `finish` was told of a stage."""
        return next(dict(row) for row in self._stages if row["stage"] == stage)

    def save(self, name: str, **arrays: np.ndarray) -> None:
        """Writes arrays to `name.npz`, whole or not at all."""
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        atomic.write_bytes(self.path / f"{name}.npz", buffer.getvalue())

    def load(self, name: str) -> dict[str, np.ndarray]:
        """Reads what `save` wrote."""
        return load_arrays(self.path / f"{name}.npz")


def load_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file.

    Raises:
      WorkdirError: missing or broken.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise WorkdirError(f"{path}: missing or broken ({error}): run the stage that writes it again") from error


def read_json(path: pathlib.Path) -> Any:
    """The content of a JSON file that a run wrote.

    Raises:
      WorkdirError: missing or broken.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WorkdirError(f"{path}: missing or broken ({error}): start the run afresh in another folder") from error


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes JSON, whole or not at all."""
    atomic.write_text(path, json.dumps(content, indent=2) + "\n")


def config_from(content: Mapping[str, Any]) -> Config:
    """The configuration that `dataclasses.asdict` and JSON made of one.

    Raises:
      WorkdirError: fields that this version does not have.
    """
    try:
        groups = {}
        for field in dataclasses.fields(Config):
            kind: Any = field.default.__class__
            values = content[field.name]
            groups[field.name] = kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
        return Config(**groups)
    except (KeyError, TypeError) as error:
        raise WorkdirError(f"config.json: made by another version ({error}): run again with this one") from error


def _flatten(content: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(content, dict):
        return {prefix: content}
    rows: dict[str, Any] = {}
    for key, value in content.items():
        rows |= _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return rows
