"""Two processes on loopback that make one run. The module is also what each of them does."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simgan_jax import atomic, checkpoints, devices, history, hosts, metrics, session, state, workdir
from simgan_jax.config import ClassifyConfig, Config, ConfigError
from tests.conftest import SMALL_FLAGS

ROOT = pathlib.Path(__file__).resolve().parent.parent
PATIENCE = 600.0
# More steps of adversarial training, so that it can be killed within them, and nothing after the second arm.
FLAGS = (*SMALL_FLAGS, "--config.refine.steps=12", "--config.fit.rounds=0", "--config.adapt.steps=0")


@contextlib.contextmanager
def pair(log, arguments, *, count):
    """Two processes, each with `count` devices, its own arguments after Python's name, and its own log; then killed."""
    env = os.environ | {"JAX_NUM_CPU_DEVICES": str(count), "JAX_PLATFORMS": "cpu"}
    processes = []
    try:
        for number in (0, 1):
            with contextlib.ExitStack() as stack:
                out, err = (
                    stack.enter_context(open(log.with_suffix(f".{number}.{name}"), "w")) for name in ("out", "err")
                )
                processes.append(
                    subprocess.Popen(
                        [sys.executable, *map(str, arguments(number))],
                        cwd=ROOT,
                        env=env,
                        stdin=subprocess.DEVNULL,
                        stdout=out,
                        stderr=err,
                    )
                )
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def said(log, name="err"):
    return [log.with_suffix(f".{number}.{name}").read_text() for number in (0, 1)]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def script(module, folder):
    """A script and its flags, as one of two processes on loopback."""
    where = f"--coordinator=127.0.0.1:{free_port()}"
    flags = (f"--workdir={folder}", *FLAGS, "--multihost", where, "--num_processes=2")
    return lambda number: ("-m", module, *flags, f"--process_id={number}")


def tree():
    """A state of a history that two processes with two devices each divide among them, and what is whole on each."""
    images = jnp.arange(8 * 6, dtype=jnp.uint8).reshape(8, 2, 3, 1)
    return {"history": history.HistoryState(images, jnp.int32(8)), "kernel": jnp.arange(6.0), "step": jnp.int32(1)}


def refused(here, kind, words, elsewhere):
    """The failure of an action of both processes, on the one where it was and on the other."""
    return pytest.raises(kind if here else hosts.HostsError, match=words if here else elsewhere)


def member(folder, port, number):
    """What each of two processes with two devices does in `test_two_processes_act_as_one`."""
    hosts.start(f"127.0.0.1:{port}", 2, number)
    assert jax.device_count() == 4 and hosts.is_first() == (number == 0)

    def append():
        with open(folder / "turns", "a") as file:
            file.write(str(number))
        return number

    assert hosts.in_turn(append) == number and (folder / "turns").read_text() == "01"
    hosts.agreed(lambda: atomic.write_text(folder / "atomic", str(number)))
    assert (folder / "atomic").read_text() == "0"

    for bad in (0, 1):

        def fail(bad=bad):
            if number == bad:
                raise OSError("disk full")

        for together in (hosts.agreed, hosts.in_turn):
            with refused(number == bad, OSError, "disk full", f"process {bad} has failed"):
                together(fail)

    # The test itself holds this one.
    held = workdir.Workdir(folder / "held", {})
    with refused(number == 0, workdir.WorkdirError, "at work in it", "process 0 has failed"), held:
        pass
    with workdir.Workdir(folder / "shared", {"seed": 0}) as shared:
        shared.save("arrays", mine=np.asarray(number))
        shared.finish("stage", 1.0)
        assert shared.load("arrays")["mine"] == 0 and shared.done("stage")

    with pytest.raises(ConfigError, match="classify.batch_size=30: 4 devices"):
        devices.check_batches(Config(classify=ClassifyConfig(batch_size=30)), 1)
    with devices.training(1), checkpoints.Checkpoints(folder / "checkpoints") as saved:
        placed = devices.place(tree())
        assert [shard.data.shape[0] for shard in placed["history"].data.addressable_shards] == [2, 2]
        assert not placed["kernel"].is_fully_addressable
        saved.save(1, placed)
        restored = saved.restore(jax.tree.map(jnp.zeros_like, placed))
        assert restored["history"].data.sharding.shard_shape((8, 2, 3, 1)) == (2, 2, 3, 1)
        collected = devices.collect(restored)
    assert all(leaf.is_fully_addressable for leaf in jax.tree.leaves(collected))
    jax.tree.map(np.testing.assert_array_equal, collected, tree())


def test_two_processes_act_as_one(tmp_path):
    code = "from tests import hosts_test as t; import pathlib, sys; "
    code += "t.member(pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))"
    port, log = free_port(), tmp_path / "log"
    with (
        workdir.Workdir(tmp_path / "held", {}),
        pair(log, lambda number: ("-c", code, tmp_path, port, number), count=2) as processes,
    ):
        assert [process.wait(PATIENCE) for process in processes] == [0, 0], said(log)
    assert [row["stage"] for row in workdir.read_json(tmp_path / "shared" / "stages.json")] == ["stage"]
    # What both wrote, one process reads.
    parts = (tmp_path / "checkpoints" / "1" / "state").glob("ocdbt.process_*")
    assert sorted(part.name for part in parts) == ["ocdbt.process_0", "ocdbt.process_1"]
    with checkpoints.Checkpoints(tmp_path / "checkpoints") as saved:
        jax.tree.map(np.testing.assert_array_equal, saved.restore(tree()), tree())


def rows(folder, *, seconds=False):
    """Logged rows by stage and step."""
    found = metrics.read_metrics(folder)
    keyed = {(row["stage"], row["step"]): row for row in found}
    assert len(keyed) == len(found)
    left_out = {"stage"} if seconds else {"stage", "seconds"}
    return {place: {k: v for k, v in row.items() if k not in left_out} for place, row in keyed.items()}


def assert_same_rows(here, there):
    """Rows that both have, and there are some, are the same but for rounding."""
    shared = here.keys() & there.keys()
    assert shared
    for place in shared:
        assert here[place].keys() == there[place].keys()
        for name, value in here[place].items():
            np.testing.assert_allclose(value, there[place][name], rtol=2e-3, atol=2e-3, err_msg=f"{place} {name}")


def assert_same_run(folder, other):
    """Both ended adversarial training with the same numbers but for rounding; what else both logged is the same."""
    here, there = rows(folder), rows(other)
    assert {place for place in here.keys() & there.keys() if place[0] == "refine"} == {
        ("refine", step) for step in range(2, 13, 2)
    }
    assert_same_rows(here, there)
    config = workdir.config_from(json.loads((folder / "config.json").read_text())["config"])
    states = []
    for place in (folder, other):
        with checkpoints.Checkpoints(session.checkpoint_folder(place, "refine")) as saved:
            states.append(saved.restore(state.template(config=config), step=12))
    for one, two in zip(*map(jax.tree.leaves, states), strict=True):
        # See devices_test: sums in another order, which may round an image to the next level.
        one, two = (np.asarray(leaf).astype(np.float64) for leaf in (one, two))
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1 if leaf_is_image(one) else 2.4e-3)


def leaf_is_image(leaf):
    return leaf.ndim == 4 and leaf.max() > 100


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The workdir of two processes, one of which was killed within adversarial training, after a checkpoint of it."""
    folder = tmp_path_factory.mktemp("hosts") / "killed"
    end = time.monotonic() + PATIENCE
    with pair(folder, script("experiments.train_simgan", folder), count=1) as processes:
        while not (folder / "checkpoints" / "refine" / "2").exists():
            assert [process.poll() for process in processes] == [None, None], said(folder)
            assert time.monotonic() < end, "the stage never came"
            time.sleep(0.01)
        processes[1].send_signal(signal.SIGKILL)
        assert processes[1].wait() == -signal.SIGKILL
    assert '"refine"' not in (folder / "stages.json").read_text()
    return folder


def copy(folder, to):
    shutil.copytree(folder, to)
    return to


def test_killed_and_continued_by_one_process_or_two(killed, small_run, run_script, tmp_path):
    one, two = (copy(killed, tmp_path / name) for name in ("one", "two"))
    done = run_script("experiments.train_simgan", f"--workdir={one}", *FLAGS)
    assert done.returncode == 0, done.stderr
    log = tmp_path / "log"
    with pair(log, script("experiments.run", two), count=1) as processes:
        # The verdict of the contest, which so short a training does not pass, is the exit code of both.
        codes = [process.wait(PATIENCE) for process in processes]
    # Gloo tells of its connections there too.
    printed, silent = ([line for line in out.splitlines() if line.startswith("{")] for out in said(log, "out"))
    summary, verdict = map(json.loads, printed)
    assert codes == [0 if verdict["contest"]["passed"] else 1] * 2, said(log)
    assert summary["images"] == 60 and silent == [] and "classify" not in said(log)[1]
    names = [row["stage"] for row in workdir.read_json(two / "stages.json")]
    assert len(names) == len(set(names)) and names[-1] == "report"

    # Both went on from the last checkpoint: what had been logged until then was not done again.
    before = rows(killed, seconds=True)
    kept = {place for place in before if place[0] != "refine" or place[1] <= 2}
    assert ("refine", 2) in kept
    for folder in (one, two):
        after = rows(folder, seconds=True)
        assert {place: after[place] for place in kept} == {place: before[place] for place in kept}
    assert_same_run(one, two)
    # What two processes did before is what one does.
    assert_same_rows(rows(killed), {place: row for place, row in rows(small_run.workdir).items() if place in kept})
    with (
        np.load(two / "readings.synthetic.npz") as here,
        np.load(small_run.workdir / "readings.synthetic.npz") as there,
    ):
        np.testing.assert_allclose(here["probabilities"], there["probabilities"], atol=1e-3)


def test_alone_nothing_waits():
    assert hosts.is_first()
    assert hosts.in_turn(lambda: 3) == hosts.agreed(lambda: 3) == 3
    with pytest.raises(OSError, match="disk full"), devices.training(1):
        hosts.in_turn(lambda: (_ for _ in ()).throw(OSError("disk full")))


def test_nothing_tells_of_other_processes(monkeypatch):
    def initialize(*places, **settings):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(hosts.HostsError, match="^--multihost: coordinator_address should be defined: start all .* by"):
        hosts.start(None, None, None)
