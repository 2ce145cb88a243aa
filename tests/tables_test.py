import math

import numpy as np
import pytest

from simgan_jax import evaluate, tables
from simgan_jax.tables import Outcome

HELD = np.array([True, False, False, False, True])


def flags(text):
    return np.array([c == "+" for c in text])


def summary(*texts):
    got = tables.summary([flags(text) for text in texts])
    assert got is not None
    return got


def test_summary_by_hand():
    got = summary("+++--", "++++-", "+++++")
    assert got["exact"] == [0.6, 0.8, 1.0]
    assert got["mean"] == pytest.approx(0.8)
    assert got["sd"] == pytest.approx(0.2)
    # Seeds do not make more captchas: Wilson's interval of 4 of 5.
    assert (got["n"], got["low"], got["high"]) == (5, *evaluate.wilson(4, 5))
    assert got["low"] == pytest.approx(0.3755, abs=1e-4)


def test_one_seed_has_no_sd_and_none_has_no_summary():
    assert summary("+-")["sd"] is None
    assert tables.summary([]) is None


def test_row_by_hand():
    above = [Outcome(flags("+-+--"), 0.5, 0.4, 1.0, 1.0), Outcome(flags("++---"), 0.7, 0.6, 3.0, 3.0)]
    here = [
        Outcome(flags("+++-+"), 0.9, 0.8, 10.0, 11.0, {"shift": 1.0}),
        Outcome(flags("-++--"), 0.7, 0.6, 20.0, 23.0, {"shift": 2.0}),
    ]
    row = tables.row("refined", here, HELD, before=("raw", above))
    assert (row["arm"], row["seeds"], row["collapsed"]) == ("refined", 2, 0)
    assert row["all"]["exact"] == [0.8, 0.4]
    assert row["held_out"]["exact"] == [1.0, 0.0]
    assert (row["per_char"], row["believed"]) == (pytest.approx(0.8), pytest.approx(0.7))
    assert (row["seconds"], row["seconds_with"], row["measures"]) == (15.0, 17.0, {"shift": 1.5})
    # Pairs over both seeds: won 2nd and 5th, then lost the 1st and won the 3rd; p = 2 (1 + 4) / 16.
    assert row["against"] == {
        "arm": "raw", "on": "all", "difference": pytest.approx(0.2), "b": 1, "c": 3, "p": pytest.approx(0.625)
    }  # fmt: skip
    assert tables.row("raw", above, HELD)["against"] is None


def test_an_oracle_counts_where_it_saw_no_labels():
    above, oracle = [Outcome(flags("-----"))], [Outcome(flags("+++++"), 1.0)]
    row = tables.row("oracle", oracle, HELD, before=("route", above), oracle=True)
    assert row["all"] is None
    assert (row["held_out"]["n"], row["held_out"]["mean"]) == (2, 1.0)
    assert (row["against"]["on"], row["against"]["c"], row["against"]["difference"]) == ("held_out", 2, 1.0)


def test_after_an_oracle_the_captchas_that_it_saw_do_not_count():
    row = tables.row(
        "route", [Outcome(flags("-----"))], HELD, before=("oracle", [Outcome(flags("+++++"))]), after_oracle=True
    )
    assert row["all"]["n"] == 5
    assert (row["against"]["on"], row["against"]["b"], row["against"]["difference"]) == ("held_out", 2, -1.0)


def test_collapsed_seeds_are_counted_and_left_out():
    above = [Outcome(flags("+----")), Outcome(flags("+----"))]
    here = [Outcome(None, seconds=4.0), Outcome(flags("++---"), 0.5, 0.5, 2.0, 2.0)]
    row = tables.row("x", here, HELD, before=("raw", above))
    assert (row["collapsed"], row["all"]["exact"], row["against"]["c"]) == (1, [0.4], 1)
    assert row["seconds"] == 3.0
    gone = tables.row("x", [Outcome(None)], HELD, before=("raw", above[:1]))
    assert (gone["all"], gone["held_out"], gone["against"], gone["per_char"]) == (None, None, None, None)
    assert "1 of 1 seeds collapsed" in tables.markdown([gone])


def test_markdown():
    first = tables.row("raw", [Outcome(flags("+----"), 0.25, 0.5, 2.0, 3.0)], HELD)
    measures = dict.fromkeys(tables.MEASURES, 0.5) | {"shift": math.nan}
    second = tables.row("refined", [Outcome(flags("++---"), 0.5, 0.5, 9.0, 12.0, measures)], HELD, before=("raw", [
        Outcome(flags("+----"))
    ]))  # fmt: skip
    results, refiners = tables.markdown([first, second]).split("\n\n")
    lines = results.splitlines()
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| raw | 20.00 | – | 3.62 to 62.45 | 50.00 | 25.00 | – | – | 50.00 | 2 | 3 |")
    assert "| +20.00 | 1.000 |" in lines[3]
    assert refiners.splitlines()[2] == "| refined | 0.500 | 50.00 | 50.00 | 50.00 | – | 0.500 | 50.00 | 0.500 | 0.500 |"
    assert "AUC" not in tables.markdown([first])


def test_choices_by_hand():
    outcomes = {
        "a": [Outcome(flags("+---"), believed=0.9), Outcome(None)],
        "b": [Outcome(flags("+++-"), believed=0.5), Outcome(flags("+---"), believed=0.2)],
    }
    assert tables.choices(outcomes) == [
        {"arm": "a", "believed": 0.9, "exact": 0.25, "best": "b", "best_exact": 0.75, "regret": 0.5},
        {"arm": "b", "believed": 0.2, "exact": 0.25, "best": "b", "best_exact": 0.25, "regret": 0.0},
    ]
    assert tables.choices({"a": [Outcome(None)]}) == [{}]
    assert tables.choices({}) == []
