"""A run that was killed and continued ends bitwise where an unbroken one ends. The module is also the run itself."""

import functools
import pathlib
import signal
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simgan_jax import devices, state, steps, train
from simgan_jax.checkpoints import Checkpoints
from simgan_jax.config import CaptchaConfig, Config, DiscriminatorConfig, RefineConfig, RefinerConfig

ROOT = pathlib.Path(__file__).resolve().parent.parent
STEPS, EVERY = 16, 2
CONFIG = Config(
    captcha=CaptchaConfig(height=8, width=12),
    refiner=RefinerConfig(width=2, blocks=1, residual=True),
    discriminator=DiscriminatorConfig(widths=(2, 2, 2, 2)),
    refine=RefineConfig(batch_size=4, history_size=10),
)


class Pool(NamedTuple):
    ink: jax.Array
    labels: jax.Array


def data():
    ink = np.random.default_rng(0).choice(np.asarray([0, 255], np.uint8), (12, 8, 12))
    return Pool(jnp.asarray(ink), jnp.zeros((12, 1), jnp.int32)), jnp.asarray(ink // 2)


def run(step_fn, *, chunk, hook=None, start=None):
    """Trains `start`, or a fresh state, to the end."""
    start = state.init(jax.random.key(0), config=CONFIG) if start is None else start
    hooks = [hook] if hook else []
    start, seen = devices.place((start, data()))
    return train.fit(start, jax.random.key(1), step_fn, seen, steps=STEPS, chunk=chunk, hooks=hooks)


def main(folder):
    """A run with checkpoints, which goes on from the newest."""
    with Checkpoints(folder) as saved:
        start = None if saved.latest() is None else saved.restore(state.template(config=CONFIG))

        def keep(step, current, metrics):
            saved.save(step, current)
            print("saved", step, flush=True)

        run(functools.partial(steps.simgan_step, config=CONFIG), chunk=EVERY, hook=keep, start=start)


@pytest.fixture(scope="module")
def unbroken():
    """The final state of a run in one piece, how often its step was traced at each chunk's end, and its first state."""
    traces, counts = 0, []

    def counted(current, key, data):
        nonlocal traces
        traces += 1
        return steps.simgan_step(current, key, data, config=CONFIG)

    first = state.init(jax.random.key(0), config=CONFIG)
    last = run(counted, chunk=4, hook=lambda *_: counts.append(traces), start=first)
    return last, counts, first


def test_the_real_step_is_traced_once_and_its_state_donated(unbroken):
    last, counts, first = unbroken
    assert len(counts) == 4 and len(set(counts)) == 1
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first))
    assert int(last.step) == STEPS and int(last.history.size) == 10


def test_killed_and_continued_is_bitwise_unbroken(unbroken, tmp_path):
    command = [sys.executable, "-m", "tests.resume_test", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while "saved 6" not in process.stdout.readline():
            assert process.poll() is None, "the run ended before it was killed"
        # In the next chunk, or while its checkpoint is written.
        process.kill()
        assert process.wait() == -signal.SIGKILL
    with Checkpoints(tmp_path) as saved:
        assert saved.latest() in range(6, STEPS)
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True, timeout=300)
    with Checkpoints(tmp_path) as saved:
        assert saved.latest() == STEPS
        continued = saved.restore(state.template(config=CONFIG))
    jax.tree.map(np.testing.assert_array_equal, continued, unbroken[0])


if __name__ == "__main__":
    main(sys.argv[1])
