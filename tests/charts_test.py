import re
from xml.etree import ElementTree

import numpy as np
import pytest

from simgan_jax import charts


def parse(svg):
    # The page supplies the namespace that an SVG in HTML leaves out.
    return ElementTree.fromstring(svg.replace("<svg", '<svg xmlns:xlink="x"', 1))


def texts(svg):
    return ["".join(node.itertext()).strip() for node in parse(svg).iter("text")]


def curves(svg):
    """Points of the drawn curves, by colour."""
    found = {}
    for path in parse(svg).iter("path"):
        colour = re.search("stroke: (#[0-9a-f]{6})", path.get("style", ""))
        if colour and path.get("clip-path"):
            points = re.findall(r"[ML] (\S+) (\S+)", path.get("d", ""))
            found[colour[1]] = np.array(points, np.float64)
    return found


def heights(svg):
    """Heights of the only curve's points."""
    (points,) = curves(svg).values()
    return -points[:, 1]


def test_lines_have_a_legend_and_colours_of_the_page():
    svg = charts.lines({"synthetic": ([1, 2, 3], [3, 1, 2]), "refined": ([1, 2], [1, 2])})
    assert {"synthetic", "refined", "step"} <= set(texts(svg))
    assert set(curves(svg)) == set(charts.SERIES[:2])
    assert "currentColor" in svg and "var(--rule)" in svg
    assert not any(colour in svg for colour in charts.STYLES)


def test_a_lone_curve_has_no_legend():
    assert "alone" not in texts(charts.lines({"alone": ([1, 2], [1, 2])}))


def test_charts_stand_alone():
    svg = charts.lines({"a": ([1, 2], [1, 2])})
    assert svg.startswith("<svg viewBox=")
    assert "http" not in svg and "<style" not in svg and "<?xml" not in svg


def test_names_are_texts():
    # Neither markup nor mathematics.
    svg = charts.lines({"<b>&$a$": ([1, 2], [1, 2]), "$\\frac": ([1, 2], [2, 3])})
    assert {"<b>&$a$", "$\\frac"} <= set(texts(svg))


def test_wide_ranges_are_logarithmic():
    first, second = np.diff(heights(charts.lines({"a": ([1, 2, 3], [1.0, 10.0, 100.0])})))
    assert first == pytest.approx(second, rel=1e-3)
    for values in ([1.0, 10.0, 40.0], [0.0, 10.0, 100.0], [-1.0, 10.0, 100.0]):
        first, second = np.diff(heights(charts.lines({"a": ([1, 2, 3], values)})))
        assert second / first == pytest.approx((values[2] - values[1]) / (values[1] - values[0]), rel=1e-3)


def test_shares_are_drawn_from_0_to_1():
    curve = {"a": ([11, 12], [0.4, 0.5])}
    assert {"0.0", "1.0"} <= set(texts(charts.lines(curve, share=True)))
    assert not {"0.0", "1.0"} & set(texts(charts.lines(curve)))


def test_long_curves_are_thinned_to_means():
    x, y = charts._thin(np.arange(1000.0), np.arange(1000.0) % 2)
    # Groups of three; the last has one.
    assert len(x) == 334
    assert x[:2].tolist() == [1.0, 4.0] and x[-1] == 999.0
    assert y[:2].tolist() == pytest.approx([1 / 3, 2 / 3])


@pytest.mark.parametrize("values", [[], [1.0], [np.nan, np.nan], [1.0, np.nan, 2.0], [0.0, 0.0], [np.inf, 1.0]])
def test_any_values_can_be_drawn(values):
    parse(charts.lines({"a": (range(len(values)), values)}))
    parse(charts.lines({}))


def test_bars():
    svg = charts.bars(["a", "$"], [3, 1], expected=2.0)
    assert {"a", "$"} <= set(texts(svg))
    bars = [path for path in parse(svg).iter("path") if charts.SERIES[0] in path.get("style", "")]
    assert len(bars) == 2


def test_histogram():
    parse(charts.histogram(np.array([0.0, 0.5, 1.0]), x_label="confidence"))
    parse(charts.histogram(np.empty(0)))
