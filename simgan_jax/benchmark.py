"""Timing beside the machine's own limits: cases in turn, medians and quartiles, tables from files (io)."""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from simgan_jax import workdir
from simgan_jax.counts import Cost

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "pillow", "torch", "keras")
MATMUL, COPY = "matmul", "copy"


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to time. call: does it once and returns what to wait for; items: images that a call handles.

    cost: of one call by count, if known; facts: more for the row, such as what XLA itself counts; peer: whether ours
    is compared with it.
    """

    name: str
    call: Callable[[], Any]
    items: int
    cost: Cost | None = None
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    peer: bool = True


class Times(NamedTuple):
    """first: seconds of the first call, compilation included; seconds: of each repetition."""

    first: float
    seconds: list[float]


def measure(cases: Sequence[Case], *, repetitions: int) -> list[Times]:
    """Times of all cases: each is called twice to compile and warm up, then all take turns, so that none meets a
    busier machine than another."""
    first = [_timed(case.call) for case in cases]
    for case in cases:
        _timed(case.call)
    seconds: list[list[float]] = [[] for _ in cases]
    for _ in range(repetitions):
        for case, row in zip(cases, seconds, strict=True):
            row.append(_timed(case.call))
    return [Times(*pair) for pair in zip(first, seconds, strict=True)]


def _timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def ceilings(*, size: int = 2048, megabytes: int = 256, dtype: Any = jnp.float32) -> list[Case]:
    """The machine's limits as cases: a product of square matrices, and a copy of an array larger than any cache."""
    matrix = jnp.ones((size, size), dtype)
    array = jnp.ones((megabytes * 2**18,), jnp.float32)
    multiply = jax.jit(lambda x: x @ x)
    copy = jax.jit(lambda x: x + 1.0)
    return [
        Case(MATMUL, lambda: multiply(matrix), 1, Cost(2 * size**3, 3 * size * size * matrix.dtype.itemsize)),
        Case(COPY, lambda: copy(array), 1, Cost(array.size, 2 * array.nbytes)),
    ]


def run(suite: str, cases: Sequence[Case], *, repetitions: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Measures cases beside the machine's limits; the content of a benchmark file.

    The first case is ours. Its speed against a peer is the median over the turns of the peer's time an image over
    ours: above 1 we are faster.
    """
    limits = ceilings()
    everything = measure([*limits, *cases], repetitions=repetitions)
    best = {case.name: min(times.seconds) for case, times in zip(limits, everything, strict=False)}
    matmul_flops = limits[0].cost.flops / best[MATMUL] if limits[0].cost else 0.0
    copy_bytes = limits[1].cost.bytes / best[COPY] if limits[1].cost else 0.0
    rows: list[dict[str, Any]] = []
    ours = everything[len(limits)]
    for case, times in zip(cases, everything[len(limits) :], strict=True):
        row = _row(case, times, matmul_flops, copy_bytes)
        if case.peer and case is not cases[0]:
            scale = cases[0].items / case.items
            pairs = [peer / own * scale for peer, own in zip(times.seconds, ours.seconds, strict=True)]
            row["speed_of_ours"] = _quartiles(pairs)
        rows.append(row)
    return content(suite, rows, settings=settings) | {
        "repetitions": repetitions,
        "ceilings": {"matmul_flops_per_second": matmul_flops, "copy_bytes_per_second": copy_bytes},
    }


def content(suite: str, rows: Sequence[Mapping[str, Any]], *, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a benchmark file: rows, date, settings, and the machine with its load of the last minutes."""
    return {
        "suite": suite,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "settings": json.loads(json.dumps(settings)),
        "rows": [dict(row) for row in rows],
    }


def end_to_end(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Where each second of a finished run went, from its summary.json.

    Raises:
      WorkdirError: no finished run there.
    """
    summary = workdir.read_json(pathlib.Path(path) / "summary.json")
    rows = []
    for stage in summary["stages"]:
        row = dict(stage) | {"share": stage["seconds"] / summary["seconds"]}
        if stage.get("steps"):
            row["seconds_per_step"] = stage["seconds"] / stage["steps"]
        rows.append(row)
    settings = {key: summary[key] for key in ("preset", "images", "seconds", "best") if key in summary}
    return content("end_to_end", rows, settings=settings)


def _row(case: Case, times: Times, matmul_flops: float, copy_bytes: float) -> dict[str, Any]:
    median = statistics.median(times.seconds)
    row: dict[str, Any] = {
        "name": case.name,
        "images": case.items,
        "first_seconds": times.first,
        "seconds": _quartiles(times.seconds),
        "images_per_second": case.items / median,
    }
    if case.cost is not None:
        by_limit = {MATMUL: case.cost.flops / matmul_flops, COPY: case.cost.bytes / copy_bytes}
        bound = max(by_limit, key=lambda limit: by_limit[limit])
        row |= {
            "flops": case.cost.flops,
            "bytes": case.cost.bytes,
            "flops_per_second": case.cost.flops / median,
            "limit": bound,
            "share_of_limit": by_limit[bound] / median,
        }
    return row | dict(case.facts)


def _quartiles(values: Sequence[float]) -> dict[str, float]:
    if len(values) < 2:
        return {"median": values[0], "low": values[0], "high": values[0]}
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high}


def xla_flops(function: Callable[..., Any], *arguments: Any) -> float:
    """FLOPs that XLA counts for a function before it optimises; loops count once."""
    analysis = jax.jit(function).lower(*arguments).cost_analysis() or {}
    return float(analysis.get("flops", 0.0))


def machine() -> dict[str, Any]:
    """Processor, memory, devices and versions."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in jax.devices()],
        "load": [round(load, 1) for load in os.getloadavg()],
        "versions": {"python": platform.python_version()} | versions,
    }


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def write(path: str | os.PathLike[str], made: Mapping[str, Any]) -> None:
    """Writes a benchmark file, and its folder where that is missing."""
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    workdir.write_json(pathlib.Path(path), made)
