import io
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from simgan_jax.metrics import MetricsError, MetricsWriter, progress, read_metrics


class Clock:
    """Seconds that pass when told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def events(folder):
    """Events of a TensorBoard folder in the order in which TensorBoard reads them."""
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            yield event_pb2.Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]


def scalars(folder):
    return [
        (e.step, v.tag, v.simple_value) for e in events(folder) for v in e.summary.value if v.HasField("simple_value")
    ]


def test_rows_stand_as_soon_as_they_are_written(tmp_path):
    clock = Clock()
    with MetricsWriter(tmp_path / "new" / "run", clock=clock) as writer:
        clock.now += 2.5
        writer.write("refine", 10, {"loss": 0.5, "change": np.float32(0.25)})
        expected = {"stage": "refine", "step": 10, "seconds": 2.5, "loss": 0.5, "change": 0.25}
        assert lines(tmp_path / "new" / "run") == [expected]
        assert list(lines(tmp_path / "new" / "run")[0]) == ["stage", "step", "seconds", "loss", "change"]
    assert read_metrics(tmp_path / "new" / "run") == [expected]


def test_numbers_that_are_not_finite_are_null(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write("refine", 1, {"loss": math.nan, "norm": math.inf})
    assert lines(tmp_path)[0]["loss"] is None
    (row,) = read_metrics(tmp_path)
    assert math.isnan(row["loss"]) and math.isnan(row["norm"])
    assert scalars(tmp_path / "tensorboard" / "refine") == []


def test_a_continued_run_has_each_step_once(tmp_path):
    clock = Clock()
    with MetricsWriter(tmp_path, clock=clock) as writer:
        writer.write("pretrain", 40, {"loss": 9})
        for step in (10, 20, 30):
            clock.now += 1
            writer.write("refine", step, {"loss": step})
    clock.now += 5000
    with MetricsWriter(tmp_path, clock=clock) as writer:
        # Killed at 30, the last checkpoint was at 20.
        writer.resume("refine", 20)
        clock.now += 1
        writer.write("refine", 30, {"loss": -30})
        writer.write("refine", 40, {"loss": -40})
    rows = [(row["stage"], row["step"], row["loss"], row["seconds"]) for row in lines(tmp_path)]
    assert rows == [
        ("pretrain", 40, 9, 0),
        ("refine", 10, 10, 1),
        ("refine", 20, 20, 2),
        # Time goes on from the three seconds that were spent; the pause does not count.
        ("refine", 30, -30, 4),
        ("refine", 40, -40, 4),
    ]
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["metrics.jsonl"]


def test_a_stage_can_start_afresh(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write("a", 0, {"x": 1})
        writer.write("b", 0, {"x": 2})
        writer.resume("a", 0)
        writer.write("a", 0, {"x": 3})
    assert [(row["stage"], row["x"]) for row in lines(tmp_path)] == [("b", 2), ("a", 3)]


def test_steps_rise(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write("a", 10, {})
        for step in (10, 5):
            with pytest.raises(ValueError, match="call resume"):
                writer.write("a", step, {})
    with MetricsWriter(tmp_path) as writer, pytest.raises(ValueError, match="call resume"):
        writer.write("a", 10, {})


@pytest.mark.parametrize("stage", ["", "../a", "a/../b", "/a", "a/", "a b", ".a"])
def test_stage_names_stay_inside(tmp_path, stage):
    with MetricsWriter(tmp_path / "run") as writer:
        for call in (lambda: writer.write(stage, 1, {}), lambda: writer.resume(stage, 0)):
            with pytest.raises(ValueError, match="use letters"):
                call()
    assert lines(tmp_path / "run") == []


def test_reserved_names(tmp_path):
    with MetricsWriter(tmp_path) as writer, pytest.raises(ValueError, match="'seconds'"):
        writer.write("a", 1, {"seconds": 1.0})


def test_a_line_that_a_kill_has_cut_is_dropped(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write("a", 1, {"x": 1})
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(whole + b'{"stage": "a", "st')
    assert len(read_metrics(tmp_path)) == 1
    with MetricsWriter(tmp_path) as writer:
        assert (tmp_path / "metrics.jsonl").read_bytes() == whole
        writer.write("a", 2, {"x": 2})
    assert [row["step"] for row in lines(tmp_path)] == [1, 2]


@pytest.mark.parametrize("line", ["nonsense", "[]", "{}", '{"stage": "a", "step": "1", "seconds": 0}'])
def test_broken_files(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(f'{{"stage": "a", "step": 1, "seconds": 0}}\n{line}\n')
    for read in (read_metrics, MetricsWriter):
        with pytest.raises(MetricsError, match=r"metrics\.jsonl: line 2 is no row"):
            read(tmp_path)


def test_no_file_no_rows(tmp_path):
    assert read_metrics(tmp_path) == []
    (tmp_path / "file").touch()
    with pytest.raises(MetricsError, match="file"):
        MetricsWriter(tmp_path / "file")


# No file may grow above 200 bytes there, as on a full disk.
FULL_DISK = """
import resource, sys
from simgan_jax.metrics import MetricsError, MetricsWriter
with MetricsWriter(sys.argv[1]) as writer:
    writer.write("a", 1, {"x": 1.0})
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, resource.RLIM_INFINITY))
    try:
        for step in range(2, 100):
            writer.write("a", step, {"x": 1.0})
    except MetricsError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""


def test_a_full_disk_ends_in_one_line(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL_DISK, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(tmp_path / "metrics.jsonl"))
    assert len(done.stdout.splitlines()) == 1
    rows = lines(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))


def test_tensorboard_forgets_with_the_rows(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.resume("classify/refined", 0)
        writer.write("classify/refined", 10, {"loss": 0.5})
        writer.write("classify/refined", 20, {"loss": 0.25})
    with MetricsWriter(tmp_path) as writer:
        writer.resume("classify/refined", 10)
        writer.write("classify/refined", 20, {"loss": 0.125})
    folder = tmp_path / "tensorboard" / "classify" / "refined"
    assert scalars(folder) == [(10, "loss", 0.5), (20, "loss", 0.25), (20, "loss", 0.125)]
    # TensorBoard drops what came before such an event and has its step or a later one.
    starts = [event.step for event in events(folder) if event.session_log.status == event_pb2.SessionLog.START]
    assert starts == [11]
    assert len(list(folder.iterdir())) == 2


def test_tensorboard_images(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write_image("refine", 10, "grid", np.zeros((20, 30, 3), np.uint8))
    images = [v.image for e in events(tmp_path / "tensorboard" / "refine") for v in e.summary.value]
    assert [(image.height, image.width) for image in images] == [(20, 30)]
    assert not (tmp_path / "metrics.jsonl").read_text()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_in_a_log():
    log = io.StringIO()
    with progress("refine", 600, initial=100, stream=log) as bar:
        for loss in range(500):
            bar.set_postfix(loss=loss)
            bar.update()
    first, last = log.getvalue().splitlines()
    assert first.startswith("refine:") and "100/600" in first
    assert "600/600" in last and "step/s" in last and "loss=499" in last
    assert "\r" not in log.getvalue()


def test_progress_on_a_terminal():
    screen = Terminal()
    with progress("predict", 10, unit="image", stream=screen) as bar:
        bar.update(10)
    assert screen.getvalue().startswith("\rpredict:")
    assert "10/10" in screen.getvalue() and "image" in screen.getvalue()


def test_progress_goes_to_standard_error(capsys):
    with progress("refine", 1) as bar:
        bar.update()
    captured = capsys.readouterr()
    assert captured.out == "" and "1/1" in captured.err
