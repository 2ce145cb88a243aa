"""A stage of training across processes: what its watch sees, and when it is saved."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from simgan_jax import checkpoints, metrics, session, target, workdir
from simgan_jax.config import Config


@struct.dataclass
class Counter:
    step: jax.Array


class StopError(Exception):
    pass


@pytest.fixture
def train(tmp_path):
    """Trains a stage as a process of its own would; its state."""
    nothing = np.zeros((0, 2, 2), np.uint8)
    scene = target.Scene(np.zeros((2, 2), np.float32), np.zeros((2, 2), bool), 255.0, None)
    seen = session.Target((), nothing, nothing, scene)

    def train(total, **settings):
        with workdir.Workdir(tmp_path, {}) as place, metrics.MetricsWriter(tmp_path) as writer:
            run = session.Run(Config(), place, writer, session.stream_keys(0), seen)
            return session.train_stage(
                run,
                "count",
                jax.random.key(0),
                lambda: Counter(jnp.zeros((), jnp.int32)),
                lambda state, key, data: (Counter(state.step + 1), {"number": state.step.astype(jnp.float32)}),
                jnp.zeros(()),
                total=total,
                **settings,
            )

    return train


def test_a_watch_sees_what_earlier_processes_logged(train):
    """A run that was ended by its watch, and goes on from a checkpoint, ends there again."""
    seen = []

    def watch(rows):
        seen.append([row["number"] for row in rows])
        if len(rows) == 6:
            raise StopError

    for _ in range(2):
        with pytest.raises(StopError):
            train(20, checkpoint_every=4, log_every=1, watch=watch)
    assert seen[:6] == [list(range(count)) for count in range(1, 7)]
    # The second began with the checkpoint of step 4.
    assert seen[6:] == seen[4:6]


def test_checkpoints_come_though_rows_fall_between(train, tmp_path):
    def watch(rows):
        if len(rows) == 4:
            raise StopError

    with pytest.raises(StopError):
        train(20, checkpoint_every=4, log_every=3, watch=watch)
    # Rows at 3, 6, 9 and 12: the first at or after 4 and 8.
    with checkpoints.Checkpoints(session.checkpoint_folder(tmp_path, "count")) as saved:
        assert saved.latest() == 9
    assert int(train(20, checkpoint_every=4, log_every=3).step) == 20
