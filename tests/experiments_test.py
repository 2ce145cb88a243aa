"""The scripts as a user runs them, on one small run: it, its stages one by one, and what reads its files."""

import csv
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from simgan_jax import challenge, contest, metrics, workdir

ROOT = pathlib.Path(__file__).resolve().parent.parent
ARMS = ["synthetic", "refined", "fitted0", "adapted"]
STAGES = [
    *("target", "pool/synthetic", "classify/synthetic", "predict/synthetic"),
    *("pretrain/refiner", "pretrain/discriminator", "refine", "pool/refined", "classify/refined", "predict/refined"),
    *("fit/0", "pool/fitted0", "classify/fitted0", "predict/fitted0", "adapt"),
    *("predict/adapted", "predict/final", "report"),
]


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def config(small_run):
    return workdir.config_from(json.loads((small_run.workdir / "config.json").read_text())["config"])


def test_run_prints_summary_and_verdict(small_run):
    printed, verdict = map(json.loads, small_run.done.stdout.splitlines())
    assert printed.keys() == {"images", "best", "estimate", "seconds"}
    assert printed["images"] == 60 and printed["best"] in ARMS and 0.0 <= printed["estimate"] <= 1.0
    # Six steps of training pass no contest; the exit code says so.
    score = verdict["contest"]
    assert (score["total"], score["needed"], score["passed"]) == (60, 40, score["correct"] >= 40)
    assert small_run.done.returncode == (0 if score["passed"] else 1)
    assert "Traceback" not in small_run.done.stderr


def test_run_reads_every_image_with_every_arm(small_run, config):
    names = challenge.read(small_run.challenges).names
    tables = {arm: challenge.read_predictions(small_run.workdir / f"predictions.{arm}.csv") for arm in ARMS}
    tables["answer"] = challenge.read_predictions(small_run.workdir / "predictions.csv")
    for table in tables.values():
        assert table.names == names
        assert {len(text) for text in table.predictions} == {2}
        assert set("".join(table.predictions)) <= set(config.captcha.alphabet)
    solutions = challenge.read_solutions(small_run.workdir / "solutions.json").solutions
    assert [(s.name, s.solution) for s in solutions] == list(zip(names, tables["answer"].predictions, strict=True))


def test_run_accounts_for_every_stage(small_run):
    summary = json.loads((small_run.workdir / "summary.json").read_text())
    assert [row["stage"] for row in summary["stages"]] == STAGES[:-1]
    assert all(row["seconds"] >= 0 for row in summary["stages"])
    assert list(summary["arms"]) == ARMS
    assert {arm["images"] for arm in summary["arms"].values()} == {60}
    assert (summary["seed"], summary["preset"], summary["target"]) == (0, "smoke", "embedded")
    assert {"jax", "python"} <= summary["versions"].keys()
    rows = {(row["stage"], row["step"]): row for row in metrics.read_metrics(small_run.workdir)}
    assert {("refine", 2), ("refine", 4), ("classify/refined", 4), ("fit/0", 2), ("adapt", 4)} <= rows.keys()
    # Two characters, of which a reader that knows little reads one at ln 4 or worse.
    assert rows["refine", 4]["refiner_label"] > 1.0


def test_report_is_one_file(small_run):
    report = (small_run.workdir / "report.html").read_text()
    assert "<svg" in report or "data:image/png" in report
    assert re.search(r"""(src|href)=["']?(https?:)?//""", report) is None


def test_complete_run_does_nothing_but_post_its_answers(small_run, run_script, tmp_path):
    """It may have been stopped before it had posted them. A copy, as other processes read the run meanwhile."""
    folder = tmp_path / "copy"
    shutil.copytree(small_run.workdir, folder)
    before = contents(folder)
    done = run_script("experiments.run", f"--workdir={folder}", *small_run.flags)
    assert done.returncode == small_run.done.returncode
    told, verdict = done.stdout.splitlines()
    assert "complete, nothing to do" in told and verdict == small_run.done.stdout.splitlines()[1]
    assert contents(folder) == before


def test_evaluate_scores_the_run(small_run, run_script, config, tmp_path):
    game = contest.Contest("alice", size=60, batch_size=60, config=contest.ContestConfig(captcha=config.captcha))
    table = challenge.read_predictions(small_run.workdir / "predictions.csv")
    rows = [f"b,{name},{game.answer(name)}" for name in table.names]
    (tmp_path / "truth.csv").write_text("\n".join(["batch,name,label", *rows, ""]))
    done = run_script(
        "experiments.evaluate",
        f"--predictions={small_run.workdir / 'predictions.csv'}",
        f"--labels={tmp_path / 'truth.csv'}",
    )
    result = json.loads(done.stdout)
    verdict = json.loads(small_run.done.stdout.splitlines()[1])["contest"]
    assert (result["n"], result["exact"]) == (60, pytest.approx(verdict["correct"] / 60))


def test_summary_tells_arms_and_answers_apart(small_run):
    """Each arm's confidence is that of its own file, the summary's that of the answers."""
    summary = json.loads((small_run.workdir / "summary.json").read_text())
    confidences = {arm: row["confidence"] for arm, row in summary["arms"].items()}
    tables = {arm: challenge.read_predictions(small_run.workdir / f"predictions.{arm}.csv") for arm in ARMS}
    assert confidences == pytest.approx({arm: np.mean(table.confidences) for arm, table in tables.items()}, abs=1e-5)
    answers = challenge.read_predictions(small_run.workdir / "predictions.csv")
    assert summary["confidence"] == pytest.approx(np.mean(answers.confidences), abs=1e-5)


def test_predict_reads_as_the_run_did(small_run, run_script, tmp_path):
    records = challenge.read(small_run.challenges)
    Image.fromarray(records.gray[7]).save(tmp_path / "seven.png")
    images = f"--images={small_run.challenges},{tmp_path / 'seven.png'}"
    done = run_script("experiments.predict", f"--workdir={small_run.workdir}", images)
    assert (done.returncode, done.stderr) == (0, "")
    rows = list(csv.reader(io.StringIO(done.stdout)))
    table = challenge.read_predictions(small_run.workdir / "predictions.csv")
    assert rows[0] == ["name", "prediction", "confidence"]
    assert [row[:2] for row in rows[1:-1]] == [list(pair) for pair in zip(table.names, table.predictions, strict=True)]
    np.testing.assert_allclose([float(row[2]) for row in rows[1:-1]], table.confidences, atol=2e-6)
    assert rows[-1][:2] == ["seven", table.predictions[7]]


def test_stages_one_by_one_are_the_run(small_run, run_script, tmp_path):
    folder = tmp_path / "staged"

    def stage(script, *args):
        done = run_script(f"experiments.{script}", f"--workdir={folder}", *small_run.flags, *args)
        assert done.returncode == 0, done.stderr
        stages = [row["stage"] for row in json.loads((folder / "stages.json").read_text())]
        return [json.loads(line) for line in done.stdout.splitlines()], stages

    (facts,), stages = stage("prepare_target")
    assert (facts["images"], facts["jpeg_table"], stages) == (60, True, ["target"])
    with Image.open(folder / "target.png") as picture:
        assert picture.width > 48
    with np.load(folder / "scene.npz") as scene:
        assert scene["background"].shape == scene["mask"].shape == (24, 48)

    (last,), stages = stage("pretrain")
    assert last.keys() == {"pretrain/refiner", "pretrain/discriminator"}
    assert stages == ["target", "pool/synthetic", "pretrain/refiner", "pretrain/discriminator"]

    (last,), stages = stage("train_simgan")
    # Refined captchas are held to their labels by the first arm.
    assert last["refine"]["step"] == 4 and stages[-2:] == ["classify/synthetic", "refine"]
    assert (folder / "refinement.png").exists()

    arms, stages = stage("train_classifier", "--arm=refined")
    assert [row["arm"] for row in arms] == ["synthetic", "refined"]
    assert stages[-1] == "predict/refined" and not (folder / "predictions.csv").exists()

    done = run_script("experiments.run", f"--workdir={folder}", *small_run.flags)
    assert json.loads(done.stdout.splitlines()[0])["images"] == 60
    rows = json.loads((folder / "stages.json").read_text())
    assert sorted(row["stage"] for row in rows) == sorted(STAGES)
    for file in ("predictions.csv", "solutions.json", *(f"predictions.{arm}.csv" for arm in ARMS)):
        assert (folder / file).read_bytes() == (small_run.workdir / file).read_bytes(), file


def test_other_contests_of_a_user_have_other_folders(small_run, run_script, tmp_path):
    """As the files of one that are there already are not asked for again."""
    for alphabet in ("abc3", "abcd"):
        flags = (*small_run.flags, f"--config.captcha.alphabet={alphabet}")
        done = run_script("experiments.prepare_target", f"--workdir={tmp_path / 'run'}", *flags)
        assert done.returncode == 0, done.stderr
        shutil.rmtree(tmp_path / "run")
    assert len(list((tmp_path / "run.challenges").iterdir())) == 2


def test_help_says_what_it_does_and_takes(run_script):
    done = run_script("experiments.run", "--help")
    assert "reads every captcha of a folder without one label" in done.stdout
    for flag in ("--target", "--workdir", "--preset", "--seed", "--embedded_images"):
        assert flag in done.stdout
    assert "--labels" not in done.stdout


def on_cores(cores, script, settings, *flags):
    """A script in a process of its own, on a machine of so many cores and without the devices of the tests."""
    given = f"import os; os.sched_getaffinity = lambda process: {cores!r}; "
    environment = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}
    return subprocess.run(
        [sys.executable, "-c", given + script, *flags],
        cwd=ROOT,
        env=environment | {"JAX_PLATFORMS": "cpu"} | settings,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(("asked", "cores", "count"), [(None, {0, 1}, 2), (None, {0}, 1), ("3", {0, 1}, 3)])
def test_a_cpu_of_several_cores_is_two_devices_unless_told_otherwise(asked, cores, count):
    settings = {} if asked is None else {"JAX_NUM_CPU_DEVICES": asked}
    script = "import jax; from experiments import _flags; _flags.divide_cpu(); print(jax.device_count())"
    done = on_cores(cores, script, settings)
    assert (done.returncode, done.stdout.strip()) == (0, str(count)), done.stderr


def test_the_first_stage_takes_the_devices_that_the_others_train_on(small_run, tmp_path):
    script = "import runpy; runpy.run_module('experiments.prepare_target', run_name='__main__')"
    flags = (*small_run.flags, "--devices=2", f"--workdir={tmp_path / 'run'}")
    done = on_cores({0, 1}, script, {}, *flags)
    assert done.returncode == 0, done.stderr
