import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from simgan_jax import presets, workdir
from simgan_jax.workdir import Workdir, WorkdirError

IDENTITY = {"seed": 0, "config": {"captcha": {"height": 50, "sizes": (0.5, 0.6)}}}


def test_stages_and_arrays_outlive_the_process(tmp_path):
    with Workdir(tmp_path / "new" / "run", IDENTITY) as first:
        assert not first.done("target")
        first.save("scene", background=np.arange(4.0))
        first.finish("target", 1.234, images=7)
        assert first.done("target")
    with Workdir(tmp_path / "new" / "run", IDENTITY) as again:
        assert again.done("target") and not again.done("refine")
        assert again.stages == [{"stage": "target", "seconds": 1.23, "images": 7}]
        assert again.facts("target")["images"] == 7
        np.testing.assert_array_equal(again.load("scene")["background"], np.arange(4.0))


def test_stages_are_copies(tmp_path):
    with Workdir(tmp_path, IDENTITY) as run:
        run.finish("target", 1.0)
        run.stages[0]["stage"] = "other"
        assert run.done("target")


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"seed": 1, "config": IDENTITY["config"]}, "seed is 0 there, 1 here"),
        ({"seed": 0, "config": {"captcha": {"height": 40, "sizes": (0.5, 0.6)}}}, "config.captcha.height is 50"),
        ({"seed": 0, "config": {"captcha": {"height": 50, "sizes": (0.5,)}}}, "config.captcha.sizes"),
    ],
)
def test_another_run_is_refused(tmp_path, other, named):
    with Workdir(tmp_path, IDENTITY):
        pass
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(WorkdirError, match=named), Workdir(tmp_path, other):
        pass
    assert (tmp_path / "config.json").read_text() == before


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(WorkdirError, match=r"not empty \(thesis.txt\)"), Workdir(tmp_path, IDENTITY):
        pass
    assert not (tmp_path / "config.json").exists()


def test_a_kill_while_the_first_file_was_written_does_no_harm(tmp_path):
    (tmp_path / ".config.json.0123456789abcdef.tmp").write_text('{"se')
    with Workdir(tmp_path, IDENTITY):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "config.json"]


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkdirError, match="cannot be used"), Workdir(tmp_path / "file", IDENTITY):
        pass


def test_one_process_at_a_time(tmp_path):
    code = f"from simgan_jax.workdir import Workdir; Workdir({str(tmp_path)!r}, {{'seed': 0}}).__enter__()"
    with Workdir(tmp_path, {"seed": 0}):
        child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "another run is at work" in child.stderr
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("name", ["config.json", "stages.json"])
def test_broken_json(tmp_path, name):
    with Workdir(tmp_path, IDENTITY) as run:
        run.finish("target", 1.0)
    (tmp_path / name).write_text('{"seed": ')
    with pytest.raises(WorkdirError, match=f"{name}: missing or broken"), Workdir(tmp_path, IDENTITY):
        pass


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut"])
def test_broken_arrays(tmp_path, content):
    if content is not None:
        (tmp_path / "scene.npz").write_bytes(content)
    with pytest.raises(WorkdirError, match="scene.npz: missing or broken"):
        workdir.load_arrays(tmp_path / "scene.npz")


@pytest.mark.parametrize("name", presets.PRESETS)
def test_config_comes_back_from_json(name):
    config = presets.PRESETS[name]
    assert workdir.config_from(json.loads(json.dumps(dataclasses.asdict(config)))) == config


@pytest.mark.parametrize("change", [{"nose": 1}, None])
def test_config_of_another_version(change):
    content = dataclasses.asdict(presets.SMOKE)
    if change is None:
        del content["fit"]
    else:
        content["refiner"] |= change
    with pytest.raises(WorkdirError, match="made by another version"):
        workdir.config_from(content)
