import logging
import os
import pathlib
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct

from simgan_jax.checkpoints import CheckpointError, Checkpoints

ROOT = pathlib.Path(__file__).resolve().parent.parent


@struct.dataclass
class State:
    params: dict[str, jax.Array]
    opt_state: optax.OptState
    ring: jax.Array
    step: jax.Array


def make(value, *, width=3, ring=4):
    params = {"kernel": jnp.full((2, width), value, jnp.float32)}
    ring = jnp.full((ring, 2), int(value), jnp.uint8)
    return State(params, optax.adam(0.1).init(params), ring, jnp.asarray(int(value), jnp.int32))


def assert_same(one, other):
    assert str(jax.tree.structure(one)) == str(jax.tree.structure(other))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def steps_in(folder):
    """Names in a folder of checkpoints."""
    return sorted(path.name for path in folder.iterdir())


def test_round_trip_and_the_newest_two_stay(tmp_path):
    with Checkpoints(tmp_path / "new" / "folder") as saved:
        assert saved.latest() is None
        for step in (1, 2, 5):
            saved.save(step, make(step))
        assert saved.latest() == 5
        assert_same(saved.restore(make(0)), make(5))
    assert steps_in(tmp_path / "new" / "folder") == ["2", "5"]
    with Checkpoints(tmp_path / "new" / "folder") as saved:
        assert saved.latest() == 5
        assert_same(saved.restore(make(0), step=2), make(2))


def test_what_is_restored_can_be_donated_and_saved_state_too(tmp_path):
    with Checkpoints(tmp_path) as saved:
        state = make(1)
        saved.save(1, state)
        forget = jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)
        forget(state)
        restored = saved.restore(make(0))
        assert_same(restored, make(1))
        forget(restored)
        assert_same(saved.restore(make(0)), make(1))


def test_a_template_without_arrays_will_do(tmp_path):
    with Checkpoints(tmp_path) as saved:
        saved.save(3, make(3))
        assert_same(saved.restore(jax.eval_shape(lambda: make(0))), make(3))


def test_arrays_of_size_0_come_back(tmp_path):
    with Checkpoints(tmp_path) as saved:
        saved.save(3, make(3, ring=0))
        assert_same(saved.restore(make(0, ring=0)), make(3, ring=0))


def test_the_same_step_again_is_no_fault(tmp_path):
    with Checkpoints(tmp_path) as saved:
        saved.save(3, make(3))
        saved.save(3, make(3))
        assert saved.latest() == 3


def test_nothing_there(tmp_path):
    with Checkpoints(tmp_path) as saved, pytest.raises(CheckpointError, match="none: run the stage"):
        saved.restore(make(0))


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (make(0, width=4), r"params.kernel is float32\[2, 3\] there, float32\[2, 4\] here"),
        (make(0, ring=5), r"ring is uint8\[4, 2\] there, uint8\[5, 2\] here"),
        (make(0).replace(params={}), r"params.kernel is float32\[2, 3\] there, missing here"),
        (make(0).replace(step=jnp.zeros(())), r"step is int32\[\] there, float32\[\] here"),
    ],
)
def test_another_configuration_is_named(tmp_path, template, words):
    template = template.replace(opt_state=make(0).opt_state)
    with Checkpoints(tmp_path) as saved:
        saved.save(1, make(1))
        with pytest.raises(CheckpointError, match=words) as caught:
            saved.restore(template)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("rest", [0, 40])
def test_a_broken_checkpoint_is_named_and_an_earlier_one_still_serves(tmp_path, rest):
    with Checkpoints(tmp_path) as saved:
        saved.save(1, make(1))
        saved.save(2, make(2))
    broken = tmp_path / "2" / "state" / "_METADATA"
    broken.write_bytes(broken.read_bytes()[:rest])
    with Checkpoints(tmp_path) as saved:
        with pytest.raises(CheckpointError, match="step 2 .*: remove .*2 to go on from an earlier one") as caught:
            saved.restore(make(0))
        assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
        assert_same(saved.restore(make(0), step=1), make(1))


def test_a_half_written_checkpoint_of_a_killed_run_is_removed(tmp_path):
    with Checkpoints(tmp_path) as saved:
        saved.save(1, make(1))
    (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "2.orbax-checkpoint-tmp" / "data").write_bytes(b"half")
    with Checkpoints(tmp_path) as saved:
        assert saved.latest() == 1
    assert steps_in(tmp_path) == ["1"]


def test_a_folder_that_cannot_be_one(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file: cannot be used .*: give a folder"):
        Checkpoints(tmp_path / "file")


FULL_DISK = """
import resource, sys
import jax, jax.numpy as jnp
from simgan_jax.checkpoints import CheckpointError, Checkpoints

resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    with Checkpoints(sys.argv[1]) as saved:
        saved.save(3, {"noise": jax.random.normal(jax.random.key(3), (100_000,))})
except CheckpointError as error:
    sys.exit(str(error))
"""


def test_a_full_disk_leaves_earlier_checkpoints_and_no_rest(tmp_path):
    """A limit on the size of files stands for the disk; the process ends with one line and not with 0."""
    template = {"noise": jnp.zeros(100_000)}
    with Checkpoints(tmp_path) as saved:
        for step in (1, 2):
            saved.save(step, {"noise": jnp.full(100_000, float(step))})
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        # The compilation cache writes files as well.
        env={name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"},
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"checkpoints {tmp_path}: step 3 not written (File too large): make room")
    assert steps_in(tmp_path) == ["1", "2"]
    with Checkpoints(tmp_path) as saved:
        np.testing.assert_array_equal(saved.restore(template)["noise"], 2.0)


def test_a_failed_save_waits_for_what_orbax_still_writes(tmp_path, monkeypatch, caplog):
    """One thread of orbax has failed, another goes on: it may not write, nor speak, when all is told and removed."""

    class Writer(threading.Thread):
        __module__ = "orbax.writer"

        def run(self):
            time.sleep(0.2)
            logging.getLogger("absl").error("it failed here as well")

        def join(self, timeout=None):
            raise OSError("disk full")

    writer = Writer()

    def save(*arguments, **settings):
        writer.start()
        raise OSError("disk full")

    with Checkpoints(tmp_path) as saved:
        monkeypatch.setattr(saved._checkpointer, "save", save)
        with pytest.raises(CheckpointError, match="step 1 not written"):
            saved.save(1, {"kernel": jnp.zeros(3)})
        assert not writer.is_alive()
    assert caplog.records == []
