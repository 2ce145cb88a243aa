"""Collapse alarms: what the metric rows of adversarial training, and the images before it, say about its health."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

# Rows of the window in which every row must show the fault.
WINDOW = 10
SURE = 0.99
NO_LOSS = 1e-3
DEAD = 0.5
LEAST_CHANGE, MOST_CHANGE = 1e-5, 0.3
# Share of the full range by which background or ink of the two domains may differ.
RANGE_TOLERANCE = 0.2


class CollapseError(RuntimeError):
    """A training broke down, or would; the message says how and what to change."""


def messages(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """Faults that the last rows show, none if all is well; rows are those of one of the `steps`, oldest first.

    A metric that is not finite is a fault at once. The others concern Algorithm 1 alone, since either network may do
    as it likes while the other stands still, and must hold in each of the last `WINDOW` rows.
    """
    if not rows:
        return []
    found = [
        f"{name} is {value}: lower the learning rates" for name, value in rows[-1].items() if not math.isfinite(value)
    ]
    window = rows[-WINDOW:]
    if found or len(window) < WINDOW or "refiner_adversarial" not in window[-1]:
        return found
    if all(_is_beaten(row) for row in window):
        found.append(
            "the discriminator tells real from refined without a doubt: lower lambda_reg or discriminator_lr, "
            "or check that both domains have the same value range"
        )
    if all(row["dead_logits"] > DEAD for row in window):
        found.append("most of the discriminator's logits are dead (equal): lower discriminator_lr or use a leak")
    if all(row["refiner_grad_norm"] == 0.0 for row in window):
        found.append("the refiner gets no gradient: lower the learning rates")
    elif all(row["refiner_reg"] < LEAST_CHANGE for row in window):
        found.append("the refiner returns its input: lower lambda_reg")
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
        raise CollapseError("training collapsed: " + "; ".join(found))


def check_ranges(synthetic: np.ndarray, real: np.ndarray) -> None:
    """Refuses two stacks of images uint8 `[N, H, W]` of which background or ink have different levels.

    A discriminator needs no more than that to tell them apart, and a refiner that is held to its input cannot repair
    it (the first fault of the notebook that this project rebuilds). Background is the 10 % quantile of all pixels, ink
    the median over the images of their brightest pixel, which does not depend on how much ink there is.

    Raises:
      CollapseError: with both levels.
    """
    one, other = (_levels(stack[:: max(1, len(stack) // 500)]) for stack in (synthetic, real))
    for name in one:
        if abs(one[name] - other[name]) > RANGE_TOLERANCE * 255.0:
            raise CollapseError(
                f"adversarial training would collapse: {name} is {one[name]:.0f} in synthetic and {other[name]:.0f} in "
                "real images (of 255): draw and prepare both in the same way"
            )


def _levels(stack: np.ndarray) -> dict[str, float]:
    brightest = stack.max(axis=(1, 2))
    return {"background": float(np.quantile(stack, 0.1)), "ink": float(np.median(brightest))}


def _is_beaten(row: Mapping[str, float]) -> bool:
    sure = row["accuracy_real"] > SURE and row["accuracy_refined"] > SURE
    return sure or row["discriminator_loss"] < NO_LOSS
