"""Collapse alarms: what the metric rows of adversarial training say about its health."""

import math
from collections.abc import Mapping, Sequence

# Rows of the window in which every row must show the fault.
WINDOW = 10
SURE = 0.995
DEAD = 0.5
MOST_CHANGE = 0.5


class CollapseError(RuntimeError):
    """The adversarial training broke down; the message says how and what to change."""


def messages(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """Faults that the last rows show, none if all is well.

    A metric that is not finite is a fault at once; the others must hold over the whole window. `refiner_reg` is the mean
    |R(x) - x| per pixel in [-1, 1] units.
    """
    if not rows:
        return []
    found = [
        f"{name} is {value}: lower the learning rates" for name, value in rows[-1].items() if not math.isfinite(value)
    ]
    window = rows[-WINDOW:]
    if found or len(window) < WINDOW:
        return found
    if all(row["accuracy_real"] > SURE and row["accuracy_refined"] > SURE for row in window):
        found.append(
            "the discriminator tells real from refined without a doubt: lower lambda_reg or discriminator_lr, "
            "or check that both domains have the same value range"
        )
    if all(row["dead_logits"] > DEAD for row in window):
        found.append("most of the discriminator's logits are dead (equal): lower discriminator_lr or use a leak")
    if all(row["refiner_reg"] > MOST_CHANGE for row in window):
        found.append("the refiner redraws the whole image: raise lambda_reg")
    return found


def check(rows: Sequence[Mapping[str, float]]) -> None:
    """Ends a run that broke down.

    Raises:
      CollapseError: with all faults in one line.
    """
    found = messages(rows)
    if found:
        raise CollapseError("adversarial training collapsed: " + "; ".join(found))
