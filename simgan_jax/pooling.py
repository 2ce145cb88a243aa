"""Results of one study from several workdirs, other seeds in each, as one result. Pure Python.

Seeds that ran on different machines, or on different days, make one table: shares by seed stand in every result, and
the discordant pairs of a paired test add up.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from simgan_jax import evaluate, tables

Result = Mapping[str, Any]
Row = Mapping[str, Any]

# What must not differ, or the seeds are not seeds of one experiment.
SAME = ("study", "preset", "target", "labelled", "held_out", "config")
RUN = ("seeds", "command", "versions")
MEANS = ("per_char", "believed")
TIMES = ("seconds", "seconds_with")


class PoolingError(ValueError):
    """Results that are not of one study; the message names the result, what differs and the remedy."""


def pool(results: Mapping[str, Result]) -> dict[str, Any]:
    """One result of all seeds, with the rows and choices of `ablation.run`; the results in order of their first seeds.

    Args:
      results: of `ablation.run` or of this function, by the name that an error calls them by; with the same arms,
        configuration and target.

    Returns:
      What the results share, their pooled `rows`, `seeds` and `choices`, and `pooled`: for each run, its seeds,
      command and versions.

    Raises:
      PoolingError: fewer than two results, no results of a study, other arms, target or configuration, a seed that is
        there twice, or an arm that collapsed under a seed, as the pairs of its tests are then not known.
    """
    if len(results) < 2:
        raise PoolingError(f"{len(results)} result: give the results of at least two runs of one study")
    _check(results)
    parts = sorted(results.values(), key=lambda result: min(result["seeds"]))
    first = parts[0]
    rows = [_row(same) for same in zip(*(part["rows"] for part in parts), strict=True)]
    return {
        **{key: first[key] for key in ("study", "question", "preset", "target")},
        "seeds": [seed for part in parts for seed in part["seeds"]],
        "labelled": first["labelled"],
        "held_out": first["held_out"],
        "rows": rows,
        "choices": [choice for part in parts for choice in part["choices"]],
        "config": first["config"],
        "pooled": [run for part in parts for run in _runs(part)],
    }


def _check(results: Mapping[str, Result]) -> None:
    for name, result in results.items():
        missing = [key for key in (*SAME, "seeds", "rows", "choices") if key not in result]
        if missing:
            raise PoolingError(f"{name}: no {missing[0]!r}: give results of experiments.ablate")
    (name, first), *others = results.items()
    recipes = _recipes(first)
    for other, result in others:
        for key in SAME:
            if result[key] != first[key]:
                raise PoolingError(f"{other}: another {key} than {name}: pool results of one study, target and preset")
        if _recipes(result) != recipes:
            raise PoolingError(f"{other}: other arms than {name}: run both with the same --arms")
    seen: dict[int, str] = {}
    for other, result in results.items():
        for row in result["rows"]:
            if row["collapsed"]:
                raise PoolingError(f"{other}: {row['arm']!r} collapsed: run all seeds in one workdir")
        for seed in result["seeds"]:
            if seed in seen:
                raise PoolingError(f"{other}: seed {seed} is in {seen[seed]} as well: give each seed once")
            seen[seed] = other


def _runs(result: Result) -> list[dict[str, Any]]:
    return result["pooled"] if "pooled" in result else [{key: result[key] for key in RUN}]


def _recipes(result: Result) -> list[Any]:
    return [row["recipe"] for row in result["rows"]]


def _row(same: Sequence[Row]) -> dict[str, Any]:
    """One arm, over the seeds of all results."""
    first, weights = same[0], [row["seeds"] for row in same]
    names = {name: None for row in same for name in row["measures"]}
    return {
        "arm": first["arm"],
        "seeds": sum(weights),
        "collapsed": 0,
        **{where: _summary([row[where] for row in same]) for where in ("all", "held_out")},
        **{key: _mean([row[key] for row in same], weights) for key in (*MEANS, *TIMES)},
        "measures": {name: _mean([row["measures"].get(name) for row in same], weights) for name in names},
        "against": _against(same),
        "recipe": first["recipe"],
    }


def _summary(parts: Sequence[Any]) -> dict[str, Any] | None:
    if parts[0] is None:
        return None
    return tables.summary_of_shares([share for part in parts for share in part["exact"]], parts[0]["n"])


def _against(same: Sequence[Row]) -> dict[str, Any] | None:
    tests = [row["against"] for row in same]
    if tests[0] is None:
        return None
    on = tests[0]["on"]
    pairs = sum(row["seeds"] * row[on]["n"] for row in same)
    b, c = (sum(test[side] for test in tests) for side in ("b", "c"))
    return {"arm": tests[0]["arm"], "on": on, "difference": (c - b) / pairs, **evaluate.mcnemar_of_counts(b, c)}


def _mean(values: Sequence[float | None], weights: Sequence[int]) -> float | None:
    known = [(value, weight) for value, weight in zip(values, weights, strict=True) if value is not None]
    if not known:
        return None
    return math.fsum(value * weight for value, weight in known) / sum(weight for _, weight in known)
