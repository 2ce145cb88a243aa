"""Runs a study, arms by seeds in one folder; labels are opened after the last arm is trained (io)."""

import dataclasses
import functools
import importlib.metadata
import itertools
import os
import pathlib
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from simgan_jax import adoption, atomic, evaluate, finish, reporting, session, studies, tables, workbench, workdir
from simgan_jax.config import CaptchaConfig, Config, TargetConfig
from simgan_jax.studies import Arm, Study

RESULT_FILE = "result.json"
TABLE_FILE = "table.md"

ReadLabels = Callable[[], Mapping[str, str]]
Announce = Callable[[str], None]
Answers = dict[str, list[workbench.Answer]]

RESULTS_CAPTION = (
    "Captchas of which every character is right. The sd is over the seeds; the interval is Wilson's for the mean, over "
    "the captchas; p is McNemar's exact paired test against the row above, seeds pooled. An oracle learned from the "
    "labels of four fifths and is compared on the held-out fifth. 'Believed' is the arm's own estimate without labels. "
    "Seconds are those of the arm's own stages, and of all that it builds on."
)
REFINERS_CAPTION = (
    "On captchas that the refiner was not trained on. Change: mean |R(x) - x|, images in [-1, 1]. A classifier of raw "
    "images reads x and R(x): alike, and right; it is no stranger to a refiner that was held to labels (lambda_label). "
    "Shift: how far the ink of a glyph moved. AUC: of a critic that tells real captchas from simulated or refined ones "
    "it has not seen; 0.5 is a coin."
)


class AblationError(ValueError):
    """A study that cannot be scored: one line with the remedy."""


def run(
    path: str | os.PathLike[str],
    captchas: str | os.PathLike[str],
    study: Study,
    *,
    config: Config,
    seeds: Sequence[int],
    read_labels: ReadLabels,
    facts: Mapping[str, Any],
    announce: Announce,
    runs: Sequence[str | os.PathLike[str]] = (),
    devices: int = 1,
) -> dict[str, Any]:
    """Trains what is not yet trained, scores all, and writes result.json, table.md and report.html; the result.

    The folder may hold several studies of one target: arms that they share are trained once. Each study's files stand
    in a folder of its name. `read_labels` is called once, when every arm that needs no labels is trained under every
    seed; arms called oracles are trained after that.

    Args:
      path: folder of the studies; captchas: the unlabelled target.
      read_labels: () -> label by name of the captcha.
      facts: what else the result should tell, such as the command.
      announce: is told what begins, and of arms that broke down.
      runs: finished runs of the main job on the same target; what they trained is taken over (`adoption.adopt`).
      devices: those that training is divided over.

    Raises:
      WorkdirError, ChallengeError, ConfigError: unusable folder, input or arm.
      AblationError: labels that do not fit the target.
    """
    read_target = _target_reader(captchas)
    seen = read_target(config.captcha, config.target)
    names, digest = seen.names, session.digest_of(seen)
    with workdir.Workdir(path, {"target": str(captchas), "captchas": len(names), "digest": digest}) as place:
        for arm in study.arms:
            studies.arm_config(arm, config)
        answers: Answers = {arm.name: [] for arm in study.arms}

        for source, seed in itertools.product(runs, seeds):
            bench = workbench.Workbench(place.path / f"seed-{seed}", read_target, seed=seed, devices=devices)
            if adoption.adopt(source, bench):
                announce(f"seed {seed}: taken over from {source}")

        def each(oracle: bool, answer: Callable[[workbench.Workbench, Arm], workbench.Answer]) -> None:
            arms = [arm for arm in study.arms if arm.oracle == oracle]
            for seed in seeds:
                work = workbench.Workbench(place.path / f"seed-{seed}", read_target, seed=seed, devices=devices)
                for number, arm in enumerate(arms, start=1):
                    announce(f"seed {seed}: {arm.name} ({number} of {len(arms)})")
                    answers[arm.name].append(found := answer(work, arm))
                    if found.collapsed:
                        announce(f"seed {seed}: {arm.name}: {found.collapsed}")

        each(False, lambda work, arm: work.answer(arm, config))
        truth = read_labels()
        labelled = _labelled(names, truth, config)
        held_out = np.asarray(studies.held_out(labelled))
        known = [name for name, held in zip(labelled, held_out, strict=True) if not held]
        each(True, lambda work, arm: work.oracle(arm, config, truth, known))
        outcomes = {
            arm.name: [_outcome(answer, names, labelled, truth, held_out, arm) for answer in answers[arm.name]]
            for arm in study.arms
        }
        result = _result(study, outcomes, held_out, config=config, seeds=seeds, facts=facts)
        folder = place.path / study.name
        folder.mkdir(exist_ok=True)
        work = workbench.Workbench(place.path / f"seed-{seeds[0]}", read_target, seed=seeds[0])
        _write(folder, study, result, work, config=config)
        return result


def _target_reader(captchas: str | os.PathLike[str]) -> workbench.ReadTarget:
    """Reads a folder of captchas once for each way of preparing them, and keeps the last."""

    @functools.lru_cache(maxsize=1)
    def read(captcha: CaptchaConfig, target: TargetConfig) -> session.Target:
        return session.read_target(captchas, config=dataclasses.replace(Config(), captcha=captcha, target=target))

    return read


def _labelled(names: Sequence[str], truth: Mapping[str, str], config: Config) -> list[str]:
    """Names of the target's captchas that have a label, in the target's order."""
    labelled = [name for name in names if name in truth]
    if len(labelled) < 2:
        raise AblationError(
            f"{len(labelled)} of the target's {len(names)} captchas have a label: give the labels of this target"
        )
    alphabet, length = set(config.captcha.alphabet), config.captcha.length
    odd = next((name for name in labelled if len(truth[name]) != length or not set(truth[name]) <= alphabet), None)
    if odd is not None:
        raise AblationError(
            f"label {truth[odd]!r} of {odd!r}: not {length} characters of the alphabet: repair it or set config.captcha"
        )
    return labelled


def _outcome(
    answer: workbench.Answer,
    names: Sequence[str],
    labelled: Sequence[str],
    truth: Mapping[str, str],
    held_out: np.ndarray,
    arm: Arm,
) -> tables.Outcome:
    if answer.texts is None:
        return tables.Outcome(None, seconds=answer.seconds, seconds_with=answer.seconds_with)
    text = dict(zip(names, answer.texts, strict=True))
    read, labels = [text[name] for name in labelled], [truth[name] for name in labelled]
    right = evaluate.exact_match(read, labels)
    counted = held_out if arm.oracle else np.ones_like(held_out)
    pairs = [
        a == b
        for line, label, use in zip(read, labels, counted, strict=True)
        if use
        for a, b in zip(line, label, strict=True)
    ]
    return tables.Outcome(
        right, float(np.mean(pairs)), answer.believed, answer.seconds, answer.seconds_with, answer.measures
    )


def _result(
    study: Study,
    outcomes: Mapping[str, Sequence[tables.Outcome]],
    held_out: np.ndarray,
    *,
    config: Config,
    seeds: Sequence[int],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for above, arm in zip((None, *study.arms), study.arms, strict=False):
        before = None if above is None else (above.name, outcomes[above.name])
        after = above is not None and above.oracle
        row = tables.row(arm.name, outcomes[arm.name], held_out, before=before, oracle=arm.oracle, after_oracle=after)
        rows.append(row | {"recipe": dataclasses.asdict(arm)})
    return {
        "study": study.name,
        "question": study.question,
        **facts,
        "seeds": list(seeds),
        "labelled": len(held_out),
        "held_out": int(held_out.sum()),
        "rows": rows,
        "choices": tables.choices({arm.name: outcomes[arm.name] for arm in study.arms if not arm.oracle}),
        "config": dataclasses.asdict(config),
        "versions": {name: importlib.metadata.version(name) for name in finish.PACKAGES}
        | {"python": platform.python_version()},
    }


def _write(
    folder: pathlib.Path, study: Study, result: dict[str, Any], work: workbench.Workbench, *, config: Config
) -> None:
    rows = result["rows"]
    figures = []
    for arm in study.arms:
        png = work.picture(arm, config)
        if png is not None:
            caption = (
                f"Seed {result['seeds'][0]}: captchas, and what the arm's own stages made of them, beside real ones."
            )
            figures.append(reporting.Figure(arm.name, caption, png, pixelated=True))
        sheet = work.sheet(arm, config)
        if sheet is not None:
            name = "turing-" + arm.name.replace(" ", "-").replace("/", "-")
            atomic.write_bytes(folder / f"{name}.png", sheet[0])
            workdir.write_json(folder / f"{name}.json", sheet[1])
    lists = [reporting.Table(study.question, RESULTS_CAPTION, tables.RESULTS, tables.result_cells(rows))]
    if refiners := tables.refiner_cells(rows):
        lists.append(reporting.Table("What the refiners did", REFINERS_CAPTION, tables.REFINERS, refiners))
    shown = ("study", "preset", "labelled", "held_out", "command")
    reporting.write_report(
        folder,
        reporting.Report(
            title=f"Study: {study.name}",
            summary={name: result[name] for name in shown if name in result}
            | {"number_of_seeds": len(result["seeds"]), "versions": result["versions"]},
            config=result["config"],
            figures=figures,
            tables=lists,
        ),
    )
    atomic.write_text(folder / TABLE_FILE, tables.markdown(rows))
    workdir.write_json(folder / RESULT_FILE, result)
