import os
import subprocess
import sys

import numpy as np
import pytest

from simgan_jax import challenge, contest, stack

SIZE = (3, 4)


def drawn(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *SIZE), np.uint8)


def stacked(pieces, in_memory):
    with stack.Stack(in_memory=in_memory) as images:
        for piece in pieces:
            images.append(piece)
        return images.array()


def is_mapped(array):
    while array is not None and not isinstance(array, np.memmap):
        array = array.base
    return array is not None


@pytest.mark.parametrize("sizes", [[5], [2, 5, 1, 1, 9], [1] * 30])
@pytest.mark.parametrize("in_memory", [0, 40, 84, 10_000])
def test_a_stack_is_its_pieces_wherever_it_is(sizes, in_memory):
    pieces = [drawn(size, seed) for seed, size in enumerate(sizes)]
    array = stacked(pieces, in_memory)
    np.testing.assert_array_equal(array, np.concatenate(pieces))
    assert is_mapped(array) == (sum(sizes) * 12 > in_memory)


def test_the_file_has_no_name_and_takes_views_and_no_writing(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    array = stacked([drawn(6)[:, ::-1], drawn(4, 1)[::2]], 12)
    assert os.listdir(tmp_path) == [] and is_mapped(array)
    np.testing.assert_array_equal(array, np.concatenate([drawn(6)[:, ::-1], drawn(4, 1)[::2]]))
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 0


@pytest.fixture
def captchas(tmp_path):
    """A folder of two contest files with 40 captchas each."""
    folder = tmp_path / "captchas"
    folder.mkdir()
    for file in range(2):
        records = [contest.draw("many", 40 * file + i) for i in range(40)]
        (folder / f"challenge-{file}").write_bytes(challenge.encode_batch((c.name, c.jpeg) for c in records))
    return folder


def test_a_target_past_the_limit_reads_as_within(captchas, monkeypatch):
    within = challenge.read(captchas)
    monkeypatch.setattr(stack.Stack.__init__, "__kwdefaults__", {"in_memory": 1000})
    past = challenge.read(captchas)
    assert is_mapped(past.gray) and not is_mapped(within.gray)
    assert past.names == within.names
    np.testing.assert_array_equal(past.gray, within.gray)


FULL = """
import resource, sys
from simgan_jax import challenge, stack
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
stack.Stack.__init__.__kwdefaults__["in_memory"] = 1000
challenge.read(sys.argv[1])
"""


@pytest.mark.parametrize("limit", [0, 1000, 100_000])
def test_a_full_disk_is_named(captchas, tmp_path, limit):
    command = [sys.executable, "-W", "error", "-c", FULL, str(captchas), str(limit)]
    env = os.environ | {"TMPDIR": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 1
    # Where nothing can be written at all there is no folder for temporary files.
    place, why = ("temporary files", "No usable temporary directory") if limit == 0 else (tmp_path, "File too large")
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"simgan_jax.challenge.ChallengeError: {place}: no room for the pixels"), last
    assert why in last and "TMPDIR" in last and "ignored" not in done.stderr
