"""What a run leaves behind: answers, summary and report (io)."""

import dataclasses
import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

import numpy as np

from simgan_jax import challenge, estimate, metrics, reading, reporting, rescore, workdir
from simgan_jax.session import Run

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pillow")
SUMMARY_FILE = "summary.json"
SOLUTIONS_FILE = "solutions.json"


def write_answers(run: Run, readings: reading.Readings) -> tuple[list[str], np.ndarray]:
    """Writes predictions.csv and solutions.json; texts and confidences, one for each input image in input order."""
    texts, confidences = reading.answers(readings.probabilities, run.config.captcha)
    challenge.write_predictions(run.workdir.path / "predictions.csv", run.target.names, texts, confidences)
    challenge.write_solutions(run.workdir.path / SOLUTIONS_FILE, run.target.names, texts)
    return texts, confidences


def write_summary(
    run: Run,
    identity: Mapping[str, Any],
    arms: Mapping[str, reading.Readings],
    best: str,
    readings: reading.Readings,
    undecided: reading.Readings,
) -> dict[str, Any]:
    """Writes summary.json: stages with seconds, arms, the believed accuracy, versions; returns it.

    Args:
      best: the arm that the answers come from; readings: the answers; undecided: before any was decided by drawing.
    """
    left = 0.0 if readings is undecided else rescore.undrawn(undecided, config=run.config.rescore).mean()
    believed = estimate.accuracy(readings.probabilities, before=undecided.probabilities, undrawn=float(left))
    stages = run.workdir.stages
    summary = {
        **identity,
        "images": len(run.target.names),
        "best": best,
        **believed._asdict(),
        "confidence": float(reading.answers(readings.probabilities, run.config.captcha)[1].mean()),
        "seconds": round(sum(row["seconds"] for row in stages), 1),
        "stages": stages,
        "arms": {
            arm: {
                "images": len(part.probabilities),
                "confidence": float(reading.answers(part.probabilities, run.config.captcha)[1].mean()),
                **estimate.accuracy(part.probabilities)._asdict(),
            }
            for arm, part in arms.items()
        },
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
    }
    workdir.write_json(run.workdir.path / SUMMARY_FILE, summary)
    return summary


def write_report(
    run: Run,
    summary: Mapping[str, Any],
    texts: list[str],
    confidences: np.ndarray,
    figures: list[reporting.Figure],
) -> None:
    """Writes report.html."""
    shown = run.target.gray
    reporting.write_report(
        run.workdir.path,
        reporting.Report(
            title="Captchas read without a label",
            summary=summary,
            config=dataclasses.asdict(run.config),
            metrics=metrics.read_metrics(run.workdir.path),
            figures=figures,
            readings=reporting.Readings(run.target.names, texts, confidences, shown),
            alphabet=run.config.captcha.alphabet,
        ),
    )
