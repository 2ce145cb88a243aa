"""Markdown tables of benchmark files; every number in them comes from a file."""

from collections.abc import Mapping, Sequence
from typing import Any

Content = Mapping[str, Any]
# Settings that decide the amount of work; the files hold all of them.
SHOWN = {*("width", "widths", "blocks", "kind", "hidden", "batch_size", "k_g", "k_d", "history_size"), "codec", "sizes"}
SHOWN |= {"preset", "images", "seconds"}


def markdown(files: Mapping[str, Content]) -> str:
    """One section for each benchmark file, by file name: its table, its settings and its machine."""
    return "\n".join(_section(name, content) for name, content in files.items())


def _section(name: str, content: Content) -> str:
    suite = content["suite"]
    if suite == "end_to_end":
        table = _stages(content["rows"])
    elif suite == "growth":
        table = _growth(content["rows"])
    else:
        table = _steps(content)
    return f"### {suite} (`{name}`)\n\n{table}\n\n{_machine(content)}\n"


def _steps(content: Content) -> str:
    rows: list[tuple[str, ...]] = []
    for row in content["rows"]:
        times = row["seconds"]
        speed = row.get("speed_of_ours")
        rows.append(
            (
                row["name"],
                _seconds(times["median"]),
                f"{_seconds(times['low'])} to {_seconds(times['high'])}",
                _number(row["images_per_second"]),
                _number(row["flops_per_second"] / 1e9) if "flops_per_second" in row else "",
                f"{row['share_of_limit']:.0%} of {row['limit']}" if "share_of_limit" in row else "",
                f"{speed['median']:.2f} ({speed['low']:.2f} to {speed['high']:.2f})" if speed else "",
                _seconds(row["first_seconds"]),
            )
        )
    if content["machine"]["backend"] == "cpu":
        rows.append(("on a GPU or TPU", "not measured", *[""] * 6))
    head = (
        "what",
        "median",
        "quartiles",
        "images/s",
        "GFLOP/s",
        "share of the limit",
        "ours is faster by",
        "first call",
    )
    limits = content["ceilings"]
    return (
        _table(head, rows) + f"\n\nLimits in the same run: {limits['matmul_flops_per_second'] / 1e9:.0f} GFLOP/s "
        f"in a float32 matrix product, {limits['copy_bytes_per_second'] / 1e9:.1f} GB/s in a copy. "
        f"{content['repetitions']} repetitions in turns."
    )


def _stages(rows: Sequence[Content]) -> str:
    lines = [
        (
            row["stage"],
            f"{row['seconds']:.1f} s",
            f"{row['share']:.1%}",
            str(row.get("steps", "")),
            _seconds(row["seconds_per_step"]) if "seconds_per_step" in row else "",
        )
        for row in rows
    ]
    return _table(("stage", "time", "share", "steps", "a step"), lines)


def _growth(rows: Sequence[Content]) -> str:
    lines = [
        (
            row["part"],
            f"{row['images']:,}",
            _seconds(row["seconds"]),
            _number(row["images_per_second"]),
            f"{row['peak_bytes'] / 2**20:,.0f} MiB",
            f"{row['grown_bytes'] / 2**20:,.0f} MiB",
        )
        for row in rows
    ]
    return _table(("part", "images", "time", "images/s", "peak memory", "of that, since the imports"), lines)


def _machine(content: Content) -> str:
    machine = content["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    shown = _flat(content["settings"])
    settings = ", ".join(f"{name}={value}" for name, value in shown.items() if name.rpartition(".")[2] in SHOWN)
    return (
        f"{content['date']}: {machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB, {machine['backend']} ({', '.join(machine['devices'])}), "
        f"load {machine['load'][0]} (1 min), {machine['load'][2]} (15 min); {versions}; settings: {settings or 'none'}."
    )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for name, value in settings.items():
        rows |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return rows


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _seconds(value: float) -> str:
    if value >= 1.0:
        return f"{value:.2f} s"
    return f"{value * 1e3:.1f} ms" if value >= 1e-3 else f"{value * 1e6:.0f} us"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
