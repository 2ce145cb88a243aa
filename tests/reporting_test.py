import base64
import dataclasses
import html.parser
import io
import math
from typing import Any

import numpy as np
import pytest
from PIL import Image

from simgan_jax import atomic, grids, reporting
from simgan_jax.config import Config
from simgan_jax.reporting import Figure, Readings, Report

VOID = {"meta", "img", "br", "link", "path", "use", "rect"}


class Page(html.parser.HTMLParser):
    """What stands on a page: tags with attributes, texts by tag, and whether the tags close in order."""

    def __init__(self, text):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self._open[-1], data.strip()))

    def of(self, *tags):
        return [text for tag, text in self.texts if tag in tags]

    def attributes(self, tag, name):
        return [attributes[name] for found, attributes in self.tags if found == tag and name in attributes]


def readings(count=60):
    confidences = np.linspace(0, 1, count)[::-1].copy()
    images = np.stack([np.full((4, 6), i, np.uint8) for i in range(count)])
    return Readings([f"n{i}" for i in range(count)], [f"t{i:02d}" for i in range(count)], confidences, images)


SUMMARY = {
    "target": "embedded",
    "images": 12_000,
    "preset": "smoke",
    "seed": 0,
    "seconds": 754.2,
    "best": "refined",
    "stages": [{"stage": "target", "seconds": 1.25}, {"stage": "classify/refined", "seconds": 61.0, "steps": 1200}],
    "arms": {
        "synthetic": {"images": 12_000, "confidence": 0.81},
        "refined": {
            **{"images": 12_000, "confidence": 0.934, "kept": 3},
            **{"estimate": 0.9, "estimate_low": 0.85, "estimate_high": 0.95},
        },
    },
    "alarms": ["the discriminator has won"],
    "versions": {"jax": "0.10.2"},
}
METRICS: list[dict[str, Any]] = [
    {"stage": "pretrain/refiner", "step": 10, "seconds": 0.1, "regularisation": 5.0},
    *(
        {"stage": f"classify/{arm}", "step": step, "seconds": 1.0, "loss": 1.0 / step, "accuracy": 0.5}
        for arm in ("synthetic", "refined")
        for step in (10, 20)
    ),
    {"stage": "refine", "step": 1, "seconds": 2.0, "accuracy_real": 0.5, "accuracy_refined": math.nan, "change": 0.1},
]


@pytest.fixture(scope="module")
def full():
    picture = grids.png(np.zeros((4, 6), np.uint8))
    figures = [Figure("Target", "what all share", picture), Figure("Refinement", "before", picture, pixelated=True)]
    report = Report("A run", SUMMARY, dataclasses.asdict(Config()), METRICS, figures, readings(), "0123456789t")
    return Page(reporting.render(report))


def test_needs_nothing_else(full):
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in full.tags}
    for tag, attributes in full.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
                assert value.startswith(("data:image/png;base64,", "#")), (tag, value[:60])
            if "url(" in value:
                assert value.count("url(") == value.count("url(#"), (tag, value[:60])
    (style,) = full.of("style")
    assert "url(" not in style and "@import" not in style


def test_links_lead_somewhere(full):
    ids = [attributes["id"] for _, attributes in full.tags if "id" in attributes]
    links = [link.removeprefix("#") for link in full.attributes("a", "href")]
    assert links == ["arms", "stages", "pictures", "curves", "readings", "configuration"]
    assert set(links) <= set(ids)


def test_facts(full):
    facts = dict(
        zip(full.of("dt"), [text for text in full.of("dd") if not text.startswith(("without", "arm"))], strict=True)
    )
    assert facts == {
        "captchas read": "12\N{THIN SPACE}000",
        "believed right": "90.0 %",
        "mean confidence": "93.4 %",
        "time": "12 min 34 s",
        "preset": "smoke",
        "seed": "0",
        "target": "embedded",
    }
    assert "without labels; 85.0 % to 95.0 %" in full.of("dd")
    assert "the discriminator has won" in full.of("p")


def test_tables(full):
    cells = full.of("td", "span")
    for text in ("1.2 s", "1 min 01 s", "steps 1\N{THIN SPACE}200", "81.0 %", "answers taken", "0.10.2"):
        assert text in cells
    at = cells.index("synthesizer.sizes")
    assert cells[at + 1] == ", ".join(map(str, Config().synthesizer.sizes))


def test_figures(full):
    assert full.of("strong") == ["Target", "Refinement"]
    pixelated = [a.get("class") for tag, a in full.tags if tag == "img" and a["alt"] in ("Target", "Refinement")]
    assert pixelated == [None, "pixels"]


def test_curves_of_arms_and_halves_share_charts(full):
    titles = full.of("h3")
    assert titles[:3] == ["pretrain", "classify", "refine"]
    captions = full.of("figcaption")
    assert [c for c in captions if c[0].islower()][:6] == [
        *("regularisation (refiner)", "loss", "accuracy", "accuracy", "change"),
        "characters read; dashed: if all were equally frequent",
    ]
    legends = full.of("text")
    for name in ("synthetic", "refined", "real"):
        assert name in legends


def test_readings_least_and_most_confident(full):
    texts = full.of("code")
    # A strip of six over the whole input, then 24 from either end; the first of the input is the most confident.
    assert texts[:6] == ["t00", "t11", "t23", "t35", "t47", "t59"]
    assert texts[6:30] == [f"t{i}" for i in range(59, 35, -1)]
    assert texts[30:] == [f"t{i:02d}" for i in range(24)]
    sources = [a["src"] for tag, a in full.tags if tag == "img" and a["alt"].startswith("captcha")]
    picture = Image.open(io.BytesIO(base64.b64decode(sources[6].removeprefix("data:image/png;base64,"))))
    assert np.asarray(picture).tolist() == [[59] * 6] * 4


@pytest.mark.parametrize(
    "report",
    [
        Report("bare"),
        Report("few", readings=readings(2)),
        Report("none", readings=Readings([], [], np.empty(0), np.empty((0, 4, 6), np.uint8))),
        Report("arms", {"arms": {"refined": {}}, "best": "refined", "stages": []}),
        Report("arm without its row", {"best": "refined", "stages": [{"stage": "target", "seconds": 0.0}]}),
        Report("nan", metrics=[{"stage": "a", "step": 1, "seconds": 0.0, "loss": math.nan}]),
        Report("nothing measured", metrics=[{"stage": "a", "step": 1, "seconds": 0.0}]),
    ],
    ids=lambda report: report.title,
)
def test_missing_sections_are_left_out(report):
    page = Page(reporting.render(report))
    assert page.of("h1") == [report.title]
    ids = {"arms": "arms" in report.summary, "stages": bool(report.summary.get("stages")), "pictures": False}
    shown = set(page.attributes("h2", "id"))
    assert {name for name, there in ids.items() if there} == shown & set(ids)


def test_colour_images_and_unknown_characters():
    images = np.zeros((1, 4, 6, 3), np.uint8)
    page = Page(reporting.render(Report("a", readings=Readings(["n"], ["a!"], np.array([0.5]), images), alphabet="ab")))
    assert {"a", "b", "!"} <= set(page.of("text"))
    assert "50.0 %" in page.of("dd")


def test_texts_are_not_markup():
    bad = "<script>alert('1')</script>&\"$x$"
    one = readings(1)
    report = Report(
        bad,
        {
            "target": bad,
            "best": bad,
            "arms": {bad: {"note": bad}},
            "stages": [{"stage": bad, "seconds": 1.0, bad: bad}],
        },
        {bad: {bad: bad}},
        [{"stage": f"{bad}/{arm}", "step": 1, "seconds": 0.0, bad: 1.0} for arm in (bad, "other")],
        [Figure(bad, bad, b"")],
        dataclasses.replace(one, names=[bad], predictions=[bad]),
        bad,
    )
    page = Page(reporting.render(report))
    assert page.of("script") == []
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.of("h1") == [bad]


def test_is_written_whole_or_not_at_all(tmp_path):
    report = Report("A run", SUMMARY)
    path = reporting.write_report(tmp_path, report)
    assert path == tmp_path / "report.html"
    assert path.read_text(encoding="utf-8") == reporting.render(report)
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(atomic.WriteError, match=r"missing/report\.html"):
        reporting.write_report(tmp_path / "missing", report)


def test_durations():
    texts = [reporting.duration(seconds) for seconds in (0, 9.96, 60, 119.6, 3599, 3600, 7384)]
    assert texts == ["0.0 s", "10.0 s", "1 min 00 s", "2 min 00 s", "59 min 59 s", "1 h 00 min", "2 h 03 min"]


def test_numbers():
    values: tuple[Any, ...] = (1_234_567, np.int64(5), 0.123456, np.float32(2e-5), True, None, (1, "a"), [], "text")
    thin = "\N{THIN SPACE}"
    expected = [f"1{thin}234{thin}567", "5", "0.1235", "2e-05", "True", "None", "1, a", "none", "text"]
    assert [reporting.number(value) for value in values] == expected
    assert reporting.percent(0.9649) == "96.5 %"
