"""Bad input to the main job, as a process: one line on standard error, exit code 2, nothing half-written."""

import base64
import io
import json
import multiprocessing
import os
import re
import resource
import runpy
import shutil
import struct
import sys
import zlib

import jax
import numpy as np
import pytest
from PIL import Image

FLAGS = ("--preset=smoke", "--config.captcha.height=24", "--config.captcha.width=48")

# Each script runs in a process of its own, forked from one that has imported the library already.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["simgan_jax.pipeline", "simgan_jax.contest_client", "ml_collections.config_flags"])


def script(out, limit, module, *args):
    """Runs a script in this process, as `python -m` does; files may grow to `limit` bytes."""
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{out}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    if limit:
        # Compiled programs that cannot be kept are no trouble: JAX warns and goes on. Here none is written.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.argv = [module, *args]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


@pytest.fixture
def refused(tmp_path):
    """Runs the main job, which must refuse in one line; that line."""

    def refused(*args, module="experiments.run", limit=0, code=2):
        out = tmp_path.with_name(tmp_path.name + ".log")
        process = PROCESSES.Process(target=script, args=(str(out), limit, module, *map(str, args)))
        process.start()
        process.join(300)
        err = out.with_name(out.name + ".err").read_text()
        assert process.exitcode == code, err
        assert out.with_name(out.name + ".out").read_text() == ""
        # A progress bar that was under way says what it had reached.
        lines = [line for line in err.splitlines() if not re.search(r"\| \d+/\d+ \[", line)]
        assert len(lines) == 1, err
        return lines[0]

    return refused


def jpeg(height=24, width=48):
    out = io.BytesIO()
    Image.fromarray(np.arange(height * width, dtype=np.uint8).reshape(height, width)).save(out, "JPEG")
    return out.getvalue()


def png(height=24, width=48):
    out = io.BytesIO()
    Image.new("L", (width, height)).save(out, "PNG")
    return out.getvalue()


def vast_png():
    """A PNG file that says it has 30,000 x 30,000 pixels."""
    chunks = [
        b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0),
        b"IDAT" + zlib.compress(bytes(1000)),
        b"IEND",
    ]
    framed = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def batch(*images):
    rows = [{"name": name, "jpg_base64": base64.b64encode(data).decode()} for name, data in images]
    return json.dumps({"images": rows}).encode()


GOOD = [(f"good-{i}", jpeg()) for i in range(3)]
FOLDERS = {
    "truncated JSON": ({"challenge-0": batch(*GOOD)[:-30]}, ["challenge-0", "no contest JSON"]),
    "wrong base64": (
        {"challenge-0": batch(*GOOD).replace(b'"jpg_base64": "', b'"jpg_base64": "!', 1)},
        ["challenge-0", "record 0", "base64"],
    ),
    "a PNG renamed": ({"a.jpg": jpeg(), "b.jpg": png()}, ["b.jpg", "PNG data in a .jpg file"]),
    "a PNG in a batch": ({"challenge-0": batch(*GOOD, ("odd", png()))}, ["challenge-0", "record 3 'odd'", "PNG"]),
    "1x1": ({"challenge-0": batch(GOOD[0], ("dot", jpeg(1, 1)))}, ["challenge-0", "record 1 'dot'", "1x1 pixels"]),
    "30000x30000": ({"a.png": png(), "b.png": vast_png()}, ["b.png", "far too many pixels"]),
    "a name with ../": (
        {"challenge-0": batch(("../../passwd", jpeg()))},
        ["challenge-0", "record 0 '../../passwd'", "a path"],
    ),
    "duplicate names": (
        {"challenge-0": batch(*GOOD), "challenge-1": batch(*GOOD)},
        ["challenge-1", "record 0 'good-0'", "came before, in", "challenge-0"],
    ),
    "an empty folder": ({}, ["empty folder"]),
    "another image size": (
        {"challenge-0": batch(*GOOD), "challenge-1": batch(("big", jpeg(50, 100)))},
        ["challenge-1", "record 0 'big'", "100x50 pixels", "not 48x24"],
    ),
}


@pytest.mark.parametrize(("files", "named"), FOLDERS.values(), ids=FOLDERS)
def test_captchas(files, named, refused, tmp_path):
    captchas = tmp_path / "captchas"
    captchas.mkdir()
    for name, data in files.items():
        (captchas / name).write_bytes(data)
    line = refused(*FLAGS, f"--target={captchas}", f"--workdir={tmp_path / 'run'}")
    assert line.startswith("ChallengeError: ")
    assert [part for part in [str(captchas), *named] if part not in line] == [], line
    assert os.listdir(tmp_path) == ["captchas"]
    assert sorted(os.listdir(captchas)) == sorted(files)


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("--config.synthesizer.fonts=('missing.ttf',)", ["font 'missing.ttf'", "no such file"]),
        (f"--config.synthesizer.fonts=('{__file__}',)", [f"font {__file__}", "not a font file"]),
        ("--config.refine.stepz=3", ["no such --config field", "stepz"]),
        ("--config.refine.steps=-3", ["config.refine.steps=-3", "must not be negative"]),
        ("--config.refine.steps=many", ["--config.refine.steps=many"]),
        ("--config.fit.steps=('many',)", ["config.fit.steps", "several values of type int"]),
        ("--nonsense=3", ["nonsense"]),
        ("nonsense", ["unknown argument 'nonsense'"]),
        ("--preset=huge", ["--preset=huge", "smoke"]),
        ("--embedded_images=1500", ["--embedded_images=1500"]),
        ("--user=../alice", ["user '../alice'"]),
        ("--workdir=", ["--workdir=", "give a folder"]),
    ],
)
def test_flags(flag, named, refused, tmp_path):
    line = refused(*FLAGS, "--target=embedded", f"--workdir={tmp_path / 'run'}", flag)
    assert [part for part in named if part not in line] == [], line
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (
            ("--devices=2", "--config.classify.batch_size=9"),
            ["config.classify.batch_size=9", "2 devices", "such as 10"],
        ),
        (("--config.fit.steps=(4,9)", "--config.fit.steps=(5,-1)"), ["config.fit.steps=(5, -1)"]),
        (("--coordinator=127.0.0.1:1",), ["--coordinator", "give --multihost"]),
        (("--multihost", "--devices=2"), ["--devices=2", "--multihost takes all devices"]),
        (("--multihost", "--process_id=-1"), ["process_id"]),
    ],
)
def test_several_flags(flags, named, refused, tmp_path):
    line = refused(*FLAGS, "--target=embedded", f"--workdir={tmp_path / 'run'}", *flags)
    assert [part for part in named if part not in line] == [], line
    assert os.listdir(tmp_path) == []


def test_predict_is_one_process(refused, tmp_path):
    line = refused(f"--workdir={tmp_path}", f"--images={tmp_path}", "--multihost", module="experiments.predict")
    assert "--multihost: pretrain, train_simgan, train_classifier and run take it" in line


def test_train_classifier_names_the_arms(refused, tmp_path):
    line = refused(
        *FLAGS,
        "--target=embedded",
        f"--workdir={tmp_path / 'run'}",
        "--arm=best",
        module="experiments.train_classifier",
    )
    assert "--arm=best" in line and "synthetic, refined, fitted0, adapted" in line


def test_predict_needs_a_finished_run(refused, tmp_path):
    line = refused(f"--workdir={tmp_path}", f"--images={tmp_path}", module="experiments.predict")
    assert f"{tmp_path}: no run of experiments.run: check --workdir" in line
    # The folder of a study has another config.json.
    (tmp_path / "config.json").write_text("{}")
    line = refused(f"--workdir={tmp_path}", f"--images={tmp_path}", module="experiments.predict")
    assert f"{tmp_path}: no run of experiments.run: check --workdir" in line


def test_tables_of_files_of_no_benchmark(refused, tmp_path):
    (tmp_path / "result.json").write_text("{}")
    line = refused(f"--markdown={tmp_path}", module="experiments.benchmark")
    assert "result.json is of no benchmark" in line


def test_predict_of_a_run_that_was_stopped(copied_run, refused):
    (copied_run / "summary.json").unlink()
    line = refused(f"--workdir={copied_run}", f"--images={copied_run}", module="experiments.predict")
    assert f"{copied_run}: its run has not ended: run it again" in line


@pytest.fixture
def copied_run(small_run, tmp_path):
    """A copy of a finished run that a test may spoil."""
    shutil.copytree(small_run.workdir, tmp_path / "run")
    shutil.copytree(small_run.challenges, tmp_path / "run.challenges" / small_run.challenges.name)
    return tmp_path / "run"


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_workdir_of_another_config(small_run, copied_run, refused):
    before = contents(copied_run)
    line = refused(*small_run.flags, f"--workdir={copied_run}", "--config.refine.k_g=2")
    assert "config.refine.k_g is 1 there, 2 here" in line and str(copied_run) in line
    line = refused(*small_run.flags, f"--workdir={copied_run}", "--seed=1")
    assert "seed is 0 there, 1 here" in line
    assert contents(copied_run) == before


def test_target_that_changed_since(small_run, copied_run, refused):
    """The same contest's folder with other captchas in it."""
    file = copied_run.with_name("run.challenges") / small_run.challenges.name / "challenge-0"
    whole = json.loads(file.read_bytes())
    file.write_text(json.dumps({"images": whole["images"][:50]}))
    line = refused(*small_run.flags, f"--workdir={copied_run}")
    assert "held other captchas when this run began (60 then, 50 now)" in line
    # As many, and the same background, but what was read of one would be said of another.
    whole["images"].reverse()
    file.write_text(json.dumps(whole))
    assert "(60 then, 60 now), or these under other names" in refused(*small_run.flags, f"--workdir={copied_run}")


def test_full_disk_at_a_checkpoint(small_run, copied_run, refused, run_script):
    # As if the run had been killed before the adversarial training.
    rows = json.loads((copied_run / "stages.json").read_text())
    kept = rows[: [row["stage"] for row in rows].index("refine")]
    (copied_run / "stages.json").write_text(json.dumps(kept))
    for name in ("refine", "classify-refined", "classify-fitted0", "adapt"):
        shutil.rmtree(copied_run / "checkpoints" / name)
    earlier = contents(copied_run / "checkpoints")

    # The state of the adversarial training takes more than this, every other file less.
    line = refused(*small_run.flags, f"--workdir={copied_run}", limit=16_000)
    assert line.startswith("CheckpointError: ") and "earlier checkpoints are intact" in line
    assert str(copied_run / "checkpoints" / "refine") in line
    now = contents(copied_run / "checkpoints")
    assert {path: now.get(path) for path in earlier} == earlier

    files = ("predictions.csv", "predictions.refined.csv")
    for file in files:
        (copied_run / file).unlink()
    done = run_script("experiments.run", f"--workdir={copied_run}", *small_run.flags)
    assert (done.returncode, "Traceback" in done.stderr) == (small_run.done.returncode, False), done.stderr
    for file in files:
        assert (copied_run / file).read_bytes() == (small_run.workdir / file).read_bytes()
