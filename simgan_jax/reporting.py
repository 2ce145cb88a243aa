"""The report of a run: one HTML file that needs nothing else (io)."""

import base64
import collections
import dataclasses
import importlib.resources
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jinja2
import markupsafe
import numpy as np

from simgan_jax import atomic, charts, grids

REPORT_FILE = "report.html"
TEMPLATE = "templates/report.html.j2"
SHOWN = 24
HALVES = re.compile(r"_(real|refined|synthetic|simulated|fake|fresh|history|current|low|high)$")
SHARE = re.compile("accuracy|agreement|confidence|coverage|share|fraction")


@dataclasses.dataclass(frozen=True)
class Figure:
    """A picture of the report. png: bytes of the file; pixelated: enlarge its pixels as they are."""

    title: str
    caption: str
    png: bytes
    pixelated: bool = False


@dataclasses.dataclass(frozen=True)
class Readings:
    """What was read: N names, texts, confidences in [0, 1], and images uint8 `[N, H, W]` or `[N, H, W, 3]`."""

    names: Sequence[str]
    predictions: Sequence[str]
    confidences: np.ndarray
    images: np.ndarray


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of the report: headings, and rows of as many texts; the first column names the row."""

    title: str
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Report:
    """What a report shows; whatever is missing is left out of it.

    summary: as in summary.json. It may hold `target`, `preset`, `seed`; `images`, how many were read; `seconds` in
      all; `stages`, a list of `{"stage", "seconds", ...}`; `arms`, by name `{"images", "confidence", "estimate",
      "estimate_low", "estimate_high", ...}`, shares in [0, 1]; `best`, the arm that the answers come from, and
      `confidence`, `estimate` ... of these; `alarms`, texts; `versions`, by package.
      Further numbers and texts are listed as they are.
    config: nested mappings, as `dataclasses.asdict` gives them.
    metrics: rows of metrics.jsonl. A stage called `classify/refined` is the arm `refined` of `classify`, and shares
      its charts with the other arms; metrics that differ in an ending such as `_real` or `_refined` share one chart.
    alphabet: characters for the histogram; those that were read if empty.
    """

    title: str
    summary: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    metrics: Sequence[Mapping[str, Any]] = ()
    figures: Sequence[Figure] = ()
    readings: Readings | None = None
    alphabet: str = ""
    tables: Sequence[Table] = ()


def write_report(workdir: str | os.PathLike[str], report: Report) -> pathlib.Path:
    """Writes `workdir/report.html`, whole or not at all, and returns its path.

    Raises:
      atomic.WriteError: the disk refused.
    """
    path = pathlib.Path(workdir) / REPORT_FILE
    atomic.write_text(path, render(report))
    return path


def render(report: Report) -> str:
    """The report as HTML: pictures inlined, no scripts, nothing from elsewhere, for light and dark screens."""
    source = importlib.resources.files("simgan_jax").joinpath(TEMPLATE).read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(duration=duration, percent=percent, number=number)
    summary = report.summary
    return environment.from_string(source).render(
        title=report.title,
        facts=list(_facts(report)),
        alarms=list(summary.get("alarms", ())),
        strip=_cells(report.readings, _spread(report.readings, 6)),
        stages=_stages(summary.get("stages", ())),
        arms=_arms(summary),
        tables=report.tables,
        families=_families(report.metrics),
        figures=[_figure(figure) for figure in report.figures],
        least=_cells(report.readings, _ranked(report.readings)[:SHOWN]),
        most=_cells(report.readings, _ranked(report.readings)[::-1][:SHOWN]),
        histograms=_histograms(report),
        config=list(_flat(report.config)),
        versions=sorted(summary.get("versions", {}).items()),
    )


def duration(seconds: float) -> str:
    """Text of a time span, such as `4 min 05 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def percent(share: float) -> str:
    """Text of a share of one, such as `96.5 %`."""
    return f"{100 * share:.1f} %"


def number(value: Any) -> str:
    """Text of a value: thousands apart, four significant digits, the items of a list with commas."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int | np.integer):
        return f"{value:,}".replace(",", "\N{THIN SPACE}")
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(number(item) for item in value) or "none"
    return str(value)


def _facts(report: Report) -> Iterator[tuple[str, str, str]]:
    """Name, value, and a note below it."""
    summary = report.summary
    count = summary.get("images", len(report.readings.names) if report.readings else None)
    if count is not None:
        yield "captchas read", number(count), ""
    # The answers may say more than the arm that they come from: it has read each image once.
    answers = {**summary.get("arms", {}).get(summary.get("best"), {}), **summary}
    if "estimate" in answers:
        interval = ""
        if "estimate_low" in answers and "estimate_high" in answers:
            interval = f"{percent(answers['estimate_low'])} to {percent(answers['estimate_high'])}"
        yield "believed right", percent(answers["estimate"]), f"without labels; {interval}".rstrip("; ")
    if "confidence" in answers:
        yield "mean confidence", percent(answers["confidence"]), f"arm {summary['best']}" if "best" in summary else ""
    elif report.readings is not None and len(report.readings.confidences):
        yield "mean confidence", percent(float(np.mean(report.readings.confidences))), ""
    if "seconds" in summary:
        yield "time", duration(summary["seconds"]), ""
    for name in ("preset", "seed", "target"):
        if name in summary:
            yield name, str(summary[name]), ""
    known = {"images", "seconds", "preset", "seed", "target", "best", "confidence"}
    known |= {"estimate", "estimate_low", "estimate_high"}
    for name, value in summary.items():
        if name not in known and isinstance(value, str | int | float):
            yield name.replace("_", " "), number(value), ""


def _stages(stages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    longest = max((stage["seconds"] for stage in stages), default=0.0) or 1.0
    return [
        {
            "name": stage["stage"],
            "seconds": stage["seconds"],
            "width": 100 * stage["seconds"] / longest,
            "notes": [
                (key.replace("_", " "), value) for key, value in stage.items() if key not in ("stage", "seconds")
            ],
        }
        for stage in stages
    ]


def _arms(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    empty = dict.fromkeys(("images", "confidence", "estimate", "estimate_low", "estimate_high"))
    arms = summary.get("arms", {})
    return [{**empty, **arm, "name": name, "best": name == summary.get("best")} for name, arm in arms.items()]


def _families(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Charts by kind of stage, in the order in which they came."""
    families: dict[str, dict[str, dict[str, tuple[list[float], list[float]]]]] = {}
    for row in rows:
        family, _, arm = row["stage"].partition("/")
        for name, value in row.items():
            if name not in ("stage", "step", "seconds"):
                half = HALVES.search(name)
                chart = families.setdefault(family, {}).setdefault(HALVES.sub("", name), {})
                key = " ".join(filter(None, [arm, half[1] if half else ""]))
                x, y = chart.setdefault(key, ([], []))
                x.append(row["step"])
                y.append(value)
    return [
        {
            "name": family,
            "charts": [
                {
                    "name": _title(name, curves),
                    "svg": markupsafe.Markup(charts.lines(curves, share=bool(SHARE.search(name)))),
                }
                for name, curves in named.items()
            ],
        }
        for family, named in families.items()
    ]


def _title(name: str, curves: Mapping[str, Any]) -> str:
    """A lone curve has no legend, so its arm and half go into the title."""
    lone = "".join(curves) if len(curves) == 1 else ""
    return name.replace("_", " ") + (f" ({lone})" if lone else "")


def _figure(figure: Figure) -> dict[str, Any]:
    return {**dataclasses.asdict(figure), "src": _data_uri(figure.png)}


def _ranked(readings: Readings | None) -> np.ndarray:
    """Indices from the least to the most confident reading."""
    return np.argsort(readings.confidences, kind="stable") if readings is not None else np.empty(0, int)


def _spread(readings: Readings | None, count: int) -> np.ndarray:
    """Indices of a few readings, evenly over the input."""
    total = len(readings.names) if readings is not None else 0
    return np.unique(np.linspace(0, max(total - 1, 0), count).astype(int)) if total else np.empty(0, int)


def _cells(readings: Readings | None, indices: np.ndarray) -> list[dict[str, Any]]:
    if readings is None:
        return []
    return [
        {
            "src": _data_uri(grids.png(readings.images[i])),
            "name": readings.names[i],
            "text": readings.predictions[i],
            "confidence": float(readings.confidences[i]),
        }
        for i in indices
    ]


def _histograms(report: Report) -> list[dict[str, Any]]:
    if report.readings is None or not len(report.readings.names):
        return []
    counts = collections.Counter("".join(report.readings.predictions))
    alphabet = report.alphabet or "".join(sorted(counts))
    others = "".join(sorted(set(counts) - set(alphabet)))
    heights = [counts[character] for character in alphabet + others]
    characters = charts.bars(list(alphabet + others), heights, expected=counts.total() / max(len(alphabet), 1))
    confidences = charts.histogram(np.asarray(report.readings.confidences), x_label="confidence")
    return [
        {"name": "characters read; dashed: if all were equally frequent", "svg": markupsafe.Markup(characters)},
        {"name": "captchas by confidence", "svg": markupsafe.Markup(confidences)},
    ]


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
