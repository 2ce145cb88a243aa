"""Line and bar charts as SVG text, in the colours of the page that shows them (io)."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Colours that stand for a style of the page, and can stand for nothing else.
STYLES = {"#010101": "currentColor", "#020202": "var(--rule)", "#030303": "var(--muted)"}
INK, RULE, MUTED = STYLES
SERIES = ("#2f7ed8", "#e07b00", "#2a9d5c", "#c2459b", "#8a6d3b", "#7a5cd6")
MOST_POINTS = 400
# Above this ratio of the largest to the smallest value a curve is drawn on a logarithmic scale.
LOG_RATIO = 50.0
STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": RULE,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": MUTED,
    "axes.prop_cycle": cycler(color=SERIES),
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.size": 9,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "svg.fonttype": "none",
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "ytick.left": False,
    "ytick.minor.left": False,
}

Curve = tuple[Sequence[float], Sequence[float]]


def lines(curves: Mapping[str, Curve], *, x_label: str = "step", share: bool = False) -> str:
    """SVG of named curves (x, y); values that are not finite leave a gap.

    Args:
      share: y is a fraction, drawn from 0 to 1; else a positive curve of a wide range gets a logarithmic scale.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(3.6, 2.1)
        values = [np.empty(0)]
        for name, (x, y) in curves.items():
            across, up = _thin(np.asarray(x, np.float64), np.asarray(y, np.float64))
            values.append(up[np.isfinite(up)])
            axes.plot(across, up, label=_plain(name), marker="o" if len(up) == 1 else "", markersize=3)
        every = np.concatenate(values)
        if share:
            axes.set_ylim(-0.02, 1.02)
        elif every.size and every.min() > 0 and every.max() > LOG_RATIO * every.min():
            axes.set_yscale("log")
        axes.set_xlabel(_plain(x_label))
        if len(curves) > 1:
            axes.legend(loc="best", fontsize=8, handlelength=1.2)
        return _svg(figure)


def bars(names: Sequence[str], heights: Sequence[float], *, expected: float | None = None) -> str:
    """SVG of a bar for each name, and a dashed line where the expected height is."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(7.4, 1.9)
        axes.bar(np.arange(len(names)), heights, color=SERIES[0], width=0.72)
        axes.set_xticks(np.arange(len(names)), [_plain(name) for name in names])
        axes.tick_params(axis="x", length=0)
        if expected is not None:
            axes.axhline(expected, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.margins(x=0.01)
        return _svg(figure)


def histogram(values: np.ndarray, *, bins: int = 20, x_label: str = "") -> str:
    """SVG of how often values in [0, 1] occur, counts on a logarithmic scale."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(3.6, 2.1)
        counts, edges = np.histogram(values, bins=bins, range=(0.0, 1.0))
        axes.bar(edges[:-1], counts, width=0.86 / bins, align="edge", color=SERIES[0])
        if counts.any():
            axes.set_yscale("log")
        axes.set_xlim(0.0, 1.0)
        axes.set_xlabel(_plain(x_label))
        return _svg(figure)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    # Figure without pyplot: no global state, no display.
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _plain(text: str) -> str:
    """The text with what matplotlib would read as mathematics taken as it is."""
    return text.replace("$", r"\$")


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of neighbouring points, so that a curve has few enough of them."""
    group = -(-len(x) // MOST_POINTS)
    if group <= 1:
        return x, y
    starts = np.arange(0, len(x), group)
    counts = np.diff(np.append(starts, len(x)))
    return np.add.reduceat(x, starts) / counts, np.add.reduceat(y, starts) / counts


def _svg(figure: Figure) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Creator": None, "Date": None, "Format": None, "Type": None})
    text = out.getvalue()
    # The page has the namespaces, sets the width, and keeps style sheets that would reach all of it out.
    box = re.search(r'viewBox="[^"]*"', text)
    body = re.sub(r"<style.*?</style>", "", text[text.index("<defs") :], flags=re.DOTALL)
    text = f"<svg {box and box[0]}>{body}"
    for colour, style in STYLES.items():
        text = text.replace(colour, style)
    return text
