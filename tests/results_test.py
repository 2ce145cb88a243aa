"""What docs/results.md and the README say of results is what commands wrote to docs/results."""

import fnmatch
import json
import pathlib
import re
import statistics

import pytest

from simgan_jax import tables

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
FILES = sorted((ROOT / "docs" / "results").iterdir())
JSONS = {path: json.loads(path.read_text(encoding="utf-8")) for path in FILES if path.suffix == ".json"}


def named(kind):
    """Files of one kind, each as a case of a test: a study's `rows`, an evaluation's `per_char`, a run's `stages`."""
    return [pytest.param(JSONS[path], id=path.stem) for path in JSONS if kind in JSONS[path]]


def test_every_file_is_of_a_known_kind():
    assert JSONS
    kinds = ("rows", "per_char", "stages")
    assert [path.name for path, found in JSONS.items() if sum(kind in found for kind in kinds) != 1] == []
    assert {path.suffix for path in FILES} <= {".json", ".txt"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_is_named(path):
    patterns = [name.replace("seedS", "seed?").replace("ARM", "*") for name in re.findall(r"`([\w.*]+)`", PAGE)]
    assert any(fnmatch.fnmatchcase(path.name, pattern) for pattern in patterns)


@pytest.mark.parametrize("study", named("rows"))
def test_tables_of_studies(study):
    """As the command printed them."""
    assert tables.markdown(study["rows"]).strip() in PAGE


@pytest.mark.parametrize("scores", named("per_char"))
def test_exact_matches(scores):
    exact, low, high = (100 * scores[name] for name in ("exact", "exact_low", "exact_high"))
    assert f"{exact:.2f} ({low:.2f} to {high:.2f})" in PAGE.replace("**", "")


@pytest.mark.parametrize("run", named("stages"))
def test_beliefs_and_seconds(run):
    believed, low, high = (100 * run[name] for name in ("estimate", "estimate_low", "estimate_high"))
    assert f"{believed:.2f} ({low:.2f} to {high:.2f})" in PAGE.replace("**", "")
    assert f"{run['seconds']:,.0f}" in PAGE


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix == ".txt"], ids=lambda path: path.stem)
def test_verdicts_of_contests(path):
    score = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])["contest"]
    assert f"{score['correct']:,} of {score['total']:,}" in PAGE


def test_the_readme_has_the_arms_of_the_runs():
    runs = [path for path in JSONS if re.fullmatch(r"hackmit\.seed\d(\.\w+)?", path.stem) and "exact" in JSONS[path]]
    assert runs
    for path in runs:
        if not path.stem.endswith("final"):
            assert f"{100 * JSONS[path]['exact']:.2f} |" in README.replace("**", ""), path.name


@pytest.mark.parametrize(
    ("text", "runs", "more"),
    [(PAGE, "hackmit", (".adapted1",)), (README, "hackmit", (".adapted1",)), (PAGE, "hackmit.once", ())],
    ids=["page", "README", "page, one round"],
)
def test_means_over_the_seeds(text, runs, more):
    """They stand behind the exact matches of the seeds."""
    lines = [re.sub(r" \([^)]*\)|\*", "", line) for line in text.splitlines() if line.startswith("| ")]
    for ending in ("", ".synthetic", ".refined", ".fitted0", ".fitted1", ".adapted", *more):
        name = re.escape(runs) + rf"\.seed\d{ending}"
        shares = [JSONS[path]["exact"] for path in JSONS if re.fullmatch(name, path.stem)]
        cells = [f"{100 * share:.2f}" for share in (*shares, statistics.fmean(shares))]
        assert len(shares) == 3 and any(f"| {' | '.join(cells)} |" in line for line in lines), ending


def test_the_readme_has_the_beliefs_of_the_runs():
    believed = [JSONS[path]["estimate"] for path in JSONS if re.fullmatch(r"hackmit\.seed\d\.summary", path.stem)]
    assert len(believed) == 3
    assert " | ".join(f"{100 * share:.2f}" for share in (*believed, statistics.fmean(believed))) in README


def test_the_readme_shows_what_make_run_printed():
    assert (ROOT / "docs" / "results" / "embedded.txt").read_text(encoding="utf-8").strip() in README
