"""Tables of a study: arms by rows, seeds pooled. Pure NumPy.

Seeds do not make N larger where a share has an interval; the paired test takes the pairs of all seeds as independent.

Symbols: `N` labelled captchas, the same for every arm and seed. Shares are fractions in [0, 1].
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from simgan_jax import evaluate

ABSENT = "\N{EN DASH}"


class Outcome(NamedTuple):
    """One arm under one seed.

    right: bool `[N]`, captchas read right, None where the arm has no answers because its training collapsed;
    characters: share of characters right; believed: share that the arm itself believes right, without labels;
    seconds: of its own stages; seconds_with: those it builds on included; measures: of its refiner, by name.
    """

    right: np.ndarray | None
    characters: float = math.nan
    believed: float = math.nan
    seconds: float = 0.0
    seconds_with: float = 0.0
    measures: Mapping[str, float] = {}


def row(
    name: str,
    outcomes: Sequence[Outcome],
    held_out: np.ndarray,
    *,
    before: tuple[str, Sequence[Outcome]] | None = None,
    oracle: bool = False,
    after_oracle: bool = False,
) -> dict[str, Any]:
    """One row of the table.

    Args:
      name: of the arm; outcomes: one a seed.
      held_out: bool `[N]`, captchas that the oracle has not seen.
      before: name and outcomes of the row above, seed by seed.
      oracle: the arm saw the labels of all others, so only the held-out ones count.
      after_oracle: so did the row above, so only the held-out ones count in the test against it.

    Returns:
      `arm`, `seeds`, `collapsed` (seeds without answers); `all` (None for the oracle) and `held_out`, each as
      `summary` gives it; `per_char`, `believed`, `seconds`, `seconds_with` and `measures`, means over the seeds;
      `against`, None for the first row, the paired test on the pairs (seed, captcha) that both arms answered:
      `{"arm", "on", "difference", "b", "c", "p"}`, b right above alone, c right here alone.
    """
    alive = [outcome for outcome in outcomes if outcome.right is not None]
    return {
        "arm": name,
        "seeds": len(outcomes),
        "collapsed": len(outcomes) - len(alive),
        "all": None if oracle else summary([o.right for o in alive if o.right is not None]),
        "held_out": summary([o.right[held_out] for o in alive if o.right is not None]),
        "per_char": _mean([outcome.characters for outcome in alive]),
        "believed": _mean([outcome.believed for outcome in alive]),
        "seconds": _mean([outcome.seconds for outcome in outcomes]),
        "seconds_with": _mean([outcome.seconds_with for outcome in outcomes]),
        "measures": _measures(outcomes),
        "against": None if before is None else _against(before, outcomes, held_out if oracle or after_oracle else None),
    }


def summary(right: Sequence[np.ndarray]) -> dict[str, Any] | None:
    """Exact match of one arm under several seeds, bool `[N]` each; None without any.

    `exact` by seed; `mean`; `sd` over the seeds, None for one seed; `low` and `high`, the 95 % Wilson interval of the
    mean over N captchas. Seeds read the same captchas, so they do not make N larger: the interval says what another
    set of captchas might give, the sd what another seed might.
    """
    if not right:
        return None
    return summary_of_shares([float(flags.mean()) for flags in right], len(right[0]))


def summary_of_shares(shares: Sequence[float], n: int) -> dict[str, Any]:
    """The summary of exact matches by seed, each a share of the same n captchas."""
    mean = statistics.fmean(shares)
    low, high = evaluate.wilson(round(mean * n), n)
    sd = statistics.stdev(shares) if len(shares) > 1 else None
    return {"n": n, "exact": list(shares), "mean": mean, "sd": sd, "low": low, "high": high}


def choices(outcomes: Mapping[str, Sequence[Outcome]]) -> list[dict[str, Any]]:
    """For each seed: the arm that believes most of itself, chosen without a label, and how good that choice was.

    Returns:
      For each seed `{"arm", "believed", "exact", "best", "best_exact", "regret"}`: shares, and the arm that labels
      would have chosen; `{}` where no arm has answers.
    """
    rows: list[dict[str, Any]] = []
    for number in range(min(map(len, outcomes.values()), default=0)):
        here = {name: seeds[number] for name, seeds in outcomes.items()}
        alive = {name: (o.believed, float(o.right.mean())) for name, o in here.items() if o.right is not None}
        if not alive:
            rows.append({})
            continue
        chosen = max(alive, key=lambda name: alive[name][0])
        best = max(alive, key=lambda name: alive[name][1])
        believed, exact = alive[chosen]
        found = {"arm": chosen, "believed": believed, "exact": exact, "best": best, "best_exact": alive[best][1]}
        rows.append(found | {"regret": alive[best][1] - exact})
    return rows


def _against(
    before: tuple[str, Sequence[Outcome]], outcomes: Sequence[Outcome], only: np.ndarray | None
) -> dict[str, Any] | None:
    pairs = [
        (above.right, here.right)
        for above, here in zip(before[1], outcomes, strict=True)
        if above.right is not None and here.right is not None
    ]
    if not pairs:
        return None
    above, here = (
        np.concatenate([part if only is None else part[only] for part in side]) for side in zip(*pairs, strict=True)
    )
    return {
        "arm": before[0],
        "on": "all" if only is None else "held_out",
        "difference": float(here.mean() - above.mean()),
        **evaluate.mcnemar(above, here),
    }


def _measures(outcomes: Sequence[Outcome]) -> dict[str, float | None]:
    names = {name: None for outcome in outcomes for name in outcome.measures}
    return {name: _mean([o.measures[name] for o in outcomes if name in o.measures]) for name in names}


def _mean(values: Sequence[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return statistics.fmean(finite) if finite else None


RESULTS = (
    "arm",
    "exact %",
    "sd",
    "95 % interval",
    "held-out %",
    "characters %",
    "change",
    "p",
    "believed %",
    "s",
    "s in all",
)
REFINERS = (
    *("arm", "change per pixel", "read alike %", "right before %", "right after %", "shift px", "shift px, 95 %"),
    *("glyphs lost %", "AUC simulated", "AUC refined"),
)
MEASURES = (
    *("change", "agreement", "accuracy_before", "accuracy_after", "shift", "shift_high", "lost"),
    *("auc_simulated", "auc_refined"),
)
SHARES = {"agreement", "accuracy_before", "accuracy_after", "lost"}


def result_cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Texts under the headings RESULTS, row by row."""
    return [_result(row) for row in rows]


def refiner_cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Texts under the headings REFINERS, for the arms whose refiner was measured."""
    return [
        [row["arm"]]
        + [_percent(row["measures"].get(m)) if m in SHARES else _number(row["measures"].get(m)) for m in MEASURES]
        for row in rows
        if row["measures"]
    ]


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Both tables in Markdown, the second only if a refiner was measured."""
    tables = [_table(RESULTS, result_cells(rows))]
    refiners = refiner_cells(rows)
    if refiners:
        tables.append(_table(REFINERS, refiners))
    return "\n".join(tables)


def _result(row: Mapping[str, Any]) -> list[str]:
    whole, held, test = row["all"], row["held_out"], row["against"]
    main = whole or held
    note = f" ({row['collapsed']} of {row['seeds']} seeds collapsed)" if row["collapsed"] else ""
    interval = ABSENT if main is None else f"{_percent(main['low'])} to {_percent(main['high'])}"
    return [
        row["arm"] + note,
        ABSENT if whole is None else _percent(whole["mean"]),
        ABSENT if main is None or main["sd"] is None else f"{100 * main['sd']:.2f}",
        interval,
        ABSENT if held is None else _percent(held["mean"]),
        _percent(row["per_char"]),
        ABSENT if test is None else f"{100 * test['difference']:+.2f}",
        ABSENT if test is None else _p(test["p"]),
        _percent(row["believed"]),
        ABSENT if row["seconds"] is None else f"{row['seconds']:.0f}",
        ABSENT if row["seconds_with"] is None else f"{row['seconds_with']:.0f}",
    ]


def _table(head: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _percent(share: float | None) -> str:
    return ABSENT if share is None else f"{100 * share:.2f}"


def _number(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.3f}"


def _p(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"
