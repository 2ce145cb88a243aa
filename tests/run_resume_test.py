"""A run that is killed (SIGKILL) and continued ends as one that was left alone, bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent


def kill_when(workdir, flags, stage, *, patience=600.0):
    """Starts the run and kills it as soon as it has logged a row of a stage; what it had logged by then."""
    log = workdir.with_suffix(".log")
    with open(log, "a") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "experiments.run", f"--workdir={workdir}", *flags],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
        )
        try:
            end = time.monotonic() + patience
            while f'"stage": "{stage}"' not in (text := logged(workdir)):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < end, "the stage never came"
                time.sleep(0.01)
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == -signal.SIGKILL
    return text


def logged(workdir):
    file = workdir / "metrics.jsonl"
    return file.read_text() if file.exists() else ""


def without_time(workdir):
    rows = [json.loads(line) for line in logged(workdir).splitlines()]
    return {(row["stage"], row["step"]): {k: v for k, v in row.items() if k != "seconds"} for row in rows}


def test_killed_twice_and_continued(small_run, run_script, tmp_path):
    folder = tmp_path / "killed"
    # Once within adversarial training, once within a classifier's, each after some steps of it.
    assert "classify/refined" not in kill_when(folder, small_run.flags, "refine")
    assert not (folder / "predictions.refined.csv").exists()
    assert "adapt" not in kill_when(folder, small_run.flags, "classify/fitted0")
    assert not (folder / "report.html").exists()

    done = run_script("experiments.run", f"--workdir={folder}", *small_run.flags)
    assert done.returncode == small_run.done.returncode, done.stderr
    for file in small_run.workdir.glob("predictions*.csv"):
        assert (folder / file.name).read_bytes() == file.read_bytes(), file.name
    for file in small_run.workdir.glob("*.npz"):
        with np.load(file) as unbroken, np.load(folder / file.name) as broken:
            for name in unbroken.files:
                np.testing.assert_array_equal(broken[name], unbroken[name], err_msg=f"{file.name}: {name}")
    # Every step was logged once, with the same numbers.
    assert without_time(folder) == without_time(small_run.workdir)
    stages = [row["stage"] for row in json.loads((folder / "stages.json").read_text())]
    assert len(stages) == len(set(stages))
