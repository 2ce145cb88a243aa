import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from simgan_jax import atomic

ROOT = Path(__file__).resolve().parent.parent

# A real refusal by the kernel, as on a full disk: no file of this process may grow beyond 1,000 bytes.
FULL_DISK = """
    import resource
    import sys

    from simgan_jax import atomic, challenge

    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    path = sys.argv[1]
    calls = {
        "bytes": lambda: atomic.write_bytes(path, bytes(5000)),
        "solutions": lambda: challenge.write_solutions(path, [f"n{i}" for i in range(500)], ["abcd"] * 500),
        "predictions": lambda: challenge.write_predictions(
            path, [f"n{i}" for i in range(500)], ["abcd"] * 500, [0.5] * 500
        ),
    }
    try:
        calls[sys.argv[2]]()
    except atomic.WriteError as error:
        print(error)
"""


def test_writes_and_replaces_whole_files(tmp_path):
    path = tmp_path / "a.bin"
    atomic.write_bytes(path, b"first")
    atomic.write_bytes(path, b"\x00second\xff")
    atomic.write_text(str(tmp_path / "b.txt"), "one\r\ntwö\n")
    assert path.read_bytes() == b"\x00second\xff"
    assert (tmp_path / "b.txt").read_bytes() == b"one\r\ntw\xc3\xb6\n"
    assert sorted(os.listdir(tmp_path)) == ["a.bin", "b.txt"]


def test_files_get_the_mode_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        atomic.write_bytes(tmp_path / "a", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_names_of_the_longest_length(tmp_path):
    path = tmp_path / ("ö" * 127)
    atomic.write_bytes(path, b"x")
    assert path.read_bytes() == b"x"


def test_missing_folder(tmp_path):
    with pytest.raises(atomic.WriteError, match=r"missing/a: not written \(No such file or directory\)") as caught:
        atomic.write_bytes(tmp_path / "missing" / "a", b"x")
    assert "\n" not in str(caught.value)


def test_a_folder_in_the_way(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(atomic.WriteError, match="a: not written"):
        atomic.write_bytes(tmp_path / "a", b"x")
    assert os.listdir(tmp_path) == ["a"]


def test_an_interrupted_write_leaves_nothing(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(TypeError):
        atomic.write_bytes(tmp_path / "a", "no bytes")  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


@pytest.mark.parametrize("call", ["bytes", "solutions", "predictions"])
def test_full_disk_keeps_the_old_file_and_leaves_no_other(tmp_path, call):
    path = tmp_path / "kept"
    path.write_bytes(b"old")
    command = [sys.executable, "-c", textwrap.dedent(FULL_DISK), path, call]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
    assert done.stdout.startswith(f"{path}: not written (File too large): make room")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["kept"]
