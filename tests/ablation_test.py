"""The runner of studies as a user meets it: real processes, tiny networks."""

import csv
import functools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from simgan_jax import ablation, challenge, contest, presets, studies
from simgan_jax.config import ConfigError
from simgan_jax.studies import Arm
from simgan_jax.workdir import WorkdirError
from tests.conftest import SMALL, SMALL_CONFIG_FLAGS, SMALL_IMAGES

ROOT = pathlib.Path(__file__).parent.parent
IMAGES = SMALL_IMAGES
# A stage of no steps compiles nothing.
CONFIG = presets.override(
    presets.SMOKE,
    {**SMALL, "refine.refiner_pretrain_steps": 0, "refine.discriminator_pretrain_steps": 0, "refine.steps": 2},
)
# Seconds; a process that is busy on a busy machine is not stuck.
PATIENCE = 1200.0


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """A folder of captchas, and their labels as a dictionary."""
    folder = tmp_path_factory.mktemp("target") / "challenges"
    folder.mkdir()
    look = contest.ContestConfig(captcha=CONFIG.captcha)
    captchas = [contest.draw("bob", index, config=look) for index in range(IMAGES)]
    (folder / "challenge-0").write_bytes(challenge.encode_batch((c.name, c.jpeg) for c in captchas))
    return folder, {c.name: c.answer for c in captchas}


def write_labels(path, labels):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("name", "label"), *labels.items()])


def finished(workdir):
    """Folders of classifiers that have read the target, as their stage marks say."""
    marks = workdir.glob("seed-*/classifier-*/stages.json")
    return sorted(path.parent for path in marks if "predict/arm" in path.read_text())


@pytest.mark.usefixtures("small_run")
def test_smoke_study(target, tmp_path, run_script):
    """Killed and run again it goes on; it asks for labels when all is trained; with them it trains nothing more."""
    folder, labels = target
    workdir, path = tmp_path / "studies", tmp_path / "labels.csv"
    args = [
        *("--study=smoke", "--seeds=2", f"--target={folder}", f"--labels={path}"),
        *(f"--workdir={workdir}", f"--out={tmp_path / 'out.json'}", *SMALL_CONFIG_FLAGS),
    ]
    command = [sys.executable, "-m", "experiments.ablate", *args]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + PATIENCE
        while not finished(workdir) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    [first] = finished(workdir)
    before = (first / "predictions.arm.csv").stat().st_mtime_ns

    refused = run_script("experiments.ablate", *args, timeout=PATIENCE)
    assert (refused.returncode, refused.stdout) == (2, ""), refused.stderr
    assert refused.stderr.splitlines()[-1].startswith(f"LabelsError: {path}: cannot be read")
    assert len(finished(workdir)) == 4
    assert (first / "predictions.arm.csv").stat().st_mtime_ns == before
    assert not (workdir / "smoke").exists()

    write_labels(path, labels)
    done = run_script("experiments.ablate", *args, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert "step/s" not in done.stderr
    result = json.loads((workdir / "smoke" / "result.json").read_text())
    assert result == json.loads((tmp_path / "out.json").read_text())
    assert done.stdout == (workdir / "smoke" / "table.md").read_text()
    check_result(result, finished(workdir), labels)
    report = (workdir / "smoke" / "report.html").read_text()
    assert "Does the runner run?" in report and report.count('class="picture"') == 1
    key = json.loads((workdir / "smoke" / "turing-refined.json").read_text())
    assert sorted(key.values()) == ["real"] * 20 + ["refined"] * 20

    other = run_script("experiments.ablate", *args, f"--target={tmp_path}")
    assert other.returncode == 2


def check_result(result, folders, labels):
    assert (result["seeds"], result["labelled"], result["held_out"]) == ([0, 1], IMAGES, IMAGES // 5)
    assert re.search("--target=DIR --labels=CSV --workdir=DIR --preset=smoke", result["command"])
    assert str(ROOT) not in json.dumps(result)
    rows = {row["arm"]: row for row in result["rows"]}
    assert list(rows) == ["raw", "refined"]
    for name, row in rows.items():
        mine = [folder for folder in folders if f"-wide-{name}-" in folder.name]
        for folder, share in zip(mine, row["all"]["exact"], strict=True):
            table = challenge.read_predictions(folder / "predictions.arm.csv")
            right = [labels[n] == text for n, text in zip(table.names, table.predictions, strict=True)]
            assert share == pytest.approx(np.mean(right))
    assert rows["refined"]["against"]["arm"] == "raw"
    measures = rows["refined"]["measures"]
    assert 0 <= measures["auc_refined"] <= 1 and measures["shift"] >= 0 and rows["raw"]["measures"] == {}


def run(tmp_path, folder, study, read_labels, config=CONFIG):
    return ablation.run(
        tmp_path / "studies", folder, study, config=config, seeds=[0], read_labels=read_labels, facts={}, announce=print
    )


def test_labels_are_opened_after_the_last_arm_and_before_the_oracle(target, tmp_path):
    folder, labels = target
    study = studies.Study(
        "long",
        "?",
        (
            Arm("oracle", oracle=True, augmented=True),
            Arm("rounds", "fitted", "both", training="rounds", self_trained=True, shifted=True),
        ),
    )
    seen: list[str] = []

    def read_labels():
        seen.extend(path.parent.name for path in (tmp_path / "studies").glob("seed-0/*/predictions.*.csv"))
        return dict(list(labels.items())[:40])

    result = run(tmp_path, folder, study, read_labels)
    assert sorted(name.rpartition("-")[0] for name in seen) == [
        *("adapted-fitted", "adapted-fitted", "classifier-wide-raw", "classifier-wide-refined", "rounds-fitted"),
    ]
    oracle, rounds = result["rows"]
    assert (result["labelled"], result["held_out"]) == (40, 8)
    assert oracle["all"] is None and (oracle["held_out"]["n"], rounds["all"]["n"]) == (8, 40)
    assert rounds["seconds_with"] > rounds["seconds"] > 0
    [part] = (tmp_path / "studies" / "seed-0").glob("oracle-*")
    identity = json.loads((part / "config.json").read_text())
    assert (identity["seen"], identity["steps"]) == (32, studies.route_steps(CONFIG))


def test_a_checkpoint_that_was_removed_is_made_again(target, tmp_path):
    """Which is what an error says of a broken one, of an arm that is done and of one that goes on from there."""
    folder, labels = target
    plain, shifted = Arm("raw"), Arm("raw shifted", shifted=True)
    run(tmp_path, folder, studies.Study("one", "?", (plain,)), lambda: labels)
    [checkpoint] = (tmp_path / "studies").glob(f"seed-0/*/checkpoints/*/{CONFIG.classify.steps}")
    shutil.rmtree(checkpoint)
    run(tmp_path, folder, studies.Study("two", "?", (plain, shifted)), lambda: labels)
    assert checkpoint.is_dir()


def test_other_captchas_of_the_same_names_are_another_target(target, tmp_path):
    folder, labels = target
    run(tmp_path, folder, studies.Study("none", "?", ()), lambda: labels)
    other = tmp_path / "other" / folder.name
    other.mkdir(parents=True)
    look = contest.ContestConfig(captcha=CONFIG.captcha)
    captchas = [contest.draw("carol", index, config=look) for index in range(IMAGES)]
    (other / "challenge-0").write_bytes(
        challenge.encode_batch((name, c.jpeg) for name, c in zip(labels, captchas, strict=True))
    )
    os.rename(folder, tmp_path / "kept")
    os.rename(other, folder)
    try:
        with pytest.raises(WorkdirError, match="holds another run .digest is"):
            run(tmp_path, folder, studies.Study("none", "?", ()), lambda: labels)
    finally:
        shutil.rmtree(folder)
        os.rename(tmp_path / "kept", folder)


def test_an_oracle_that_collapses_is_a_result(target, tmp_path, capsys):
    folder, labels = target
    study = studies.Study("wild", "?", (Arm("oracle", oracle=True, overrides={"classify.lr": 1e30}),))
    for _ in range(2):
        [row] = run(tmp_path, folder, study, lambda: labels)["rows"]
        assert (row["collapsed"], row["held_out"]) == (1, None)
        assert "seed 0: oracle: training collapsed" in capsys.readouterr().out
    [marks] = (tmp_path / "studies").glob("seed-0/oracle-*/stages.json")
    assert [row["stage"] for row in json.loads(marks.read_text())] == ["collapsed"]


def test_a_collapse_is_a_result(target, tmp_path):
    folder, labels = target
    overrides = {"refine.optimizer": "sgd", "refine.refiner_lr": 1e30}
    fitted = functools.partial(Arm, simulator="fitted", training="rounds", self_trained=True, overrides=overrides)
    # What is read at shifts or decided builds on what has collapsed, under its own name and as another arm.
    arms = (
        Arm("wild", images="refined", overrides=overrides),
        fitted("wild shifted", shifted=True),
        fitted("wild decided", decided=True),
    )
    for _ in range(2):
        rows = run(tmp_path, folder, studies.Study("wild", "?", arms), lambda: labels)["rows"]
        assert [(row["collapsed"], row["all"], row["seeds"]) for row in rows] == [(1, None, 1)] * 3
    assert "1 of 1 seeds collapsed" in (tmp_path / "studies" / "wild" / "table.md").read_text()


@pytest.mark.parametrize(
    ("labels", "message"),
    [({"other": "abcd"}, "0 of the target's 60 captchas have a label"), ({}, "give the labels of this target")],
)
def test_labels_of_another_target(target, tmp_path, labels, message):
    folder, _ = target
    with pytest.raises(ablation.AblationError, match=message):
        run(tmp_path, folder, studies.Study("none", "?", ()), lambda: labels)


def test_labels_of_another_alphabet(target, tmp_path):
    folder, labels = target
    with pytest.raises(ablation.AblationError, match="'ABCD' of .*: not 2 characters of the alphabet"):
        run(tmp_path, folder, studies.Study("none", "?", ()), lambda: labels | {next(iter(labels)): "ABCD"})


def test_bad_arms_are_refused_before_anything_is_trained(target, tmp_path):
    folder, _ = target
    study = studies.Study("bad", "?", (Arm("raw"), Arm("x", overrides={"refine.k_g": 0})))
    with pytest.raises(ConfigError, match="refine.k_g"):
        run(tmp_path, folder, study, dict)
    assert not list((tmp_path / "studies").glob("seed-*"))
