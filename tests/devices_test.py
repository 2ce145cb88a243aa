"""Training that stays on its devices, and is the same on one of them or eight."""

import contextlib
import dataclasses
import functools
import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simgan_jax import adapt, checkpoints, classify, devices, history, stages, state, steps, train
from simgan_jax.config import (
    AdaptConfig,
    CaptchaConfig,
    ClassifierConfig,
    ClassifyConfig,
    Config,
    ConfigError,
    DiscriminatorConfig,
    RefineConfig,
    RefinerConfig,
)

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = Config(
    captcha=CaptchaConfig(height=8, width=8, length=2, alphabet="abc"),
    refiner=RefinerConfig(width=4, blocks=1),
    discriminator=DiscriminatorConfig(widths=(4, 4, 4, 4)),
    refine=RefineConfig(batch_size=16, history_size=32),
    classifier=ClassifierConfig(widths=(4,), hidden=4, dropout=0.4),
    classify=ClassifyConfig(batch_size=8),
    adapt=AdaptConfig(batch_size=8, pool_batch_size=8),
)
STEPS = ("refiner", "discriminator", "simgan", "classify", "adapt")


def pool(count: int = 24) -> classify.Pool:
    draws = np.random.default_rng(0)
    ink = jnp.asarray(draws.integers(0, 256, (count, 8, 8), np.uint8))
    labels = jnp.asarray(draws.integers(0, 3, (count, 2), np.int32))
    return classify.Pool(ink, labels, jnp.zeros((count, 2, 3)))


def beginning(name: str) -> tuple[train.Step, train.State, object]:
    """Step, first state and data of a stage."""
    labelled = pool()
    gan_steps = {
        "refiner": steps.refiner_pretrain_step,
        "discriminator": steps.discriminator_pretrain_step,
        "simgan": steps.simgan_step,
    }
    if name in gan_steps:
        step = functools.partial(gan_steps[name], config=CONFIG)
        return step, state.init(jax.random.key(0), config=CONFIG), (labelled, labelled.ink[::-1])
    settings = CONFIG.classify if name == "classify" else stages.adapt_settings(CONFIG)
    reader = classify.init(jax.random.key(1), CONFIG.captcha, classifier_config=CONFIG.classifier, config=settings)
    if name == "classify":
        return stages.classify_step(CONFIG, CONFIG.classify.steps), reader, labelled
    believed = adapt.Believed(labelled.ink, labelled.labels, jnp.ones(labelled.labels.shape))
    return stages.adapt_step(CONFIG), reader, (labelled, believed)


@pytest.mark.parametrize("name", STEPS)
def test_a_stage_compiles_once_gives_its_state_away_and_stays_on_the_device(name):
    step_fn, start, data = beginning(name)
    traces = []

    def counted(*arguments):
        traces.append(1)
        return step_fn(*arguments)

    chunk, key = train.make_chunk(counted), jax.random.key(2)
    current, _ = chunk(start, key, data, length=1)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(start))
    before = len(traces)
    with jax.transfer_guard("disallow"):
        current, _ = chunk(current, key, data, length=2)
    assert len(traces) == before
    assert int(current.step) == 3


def test_the_history_is_overwritten_in_place():
    capacity = 100_000
    config = dataclasses.replace(CONFIG, refine=dataclasses.replace(CONFIG.refine, history_size=capacity))
    step = jax.jit(functools.partial(steps.simgan_step, config=config), donate_argnums=0)
    start = jax.eval_shape(lambda: state.init(jax.random.key(0), config=config))
    labelled = pool()
    memory = step.lower(start, jax.random.key(1), (labelled, labelled.ink)).compile().memory_analysis()
    stored = capacity * 8 * 8
    assert memory is not None
    assert memory.alias_size_in_bytes > stored
    # A copy of the history would stand here; the ranks of its slots do.
    assert memory.temp_size_in_bytes < stored / 2


def trained(name: str, count: int) -> tuple[train.State, train.Metrics]:
    """A state and the last metrics after three steps on `count` devices."""
    with jax.set_mesh(devices.mesh(count)) if count > 1 else contextlib.nullcontext():
        step_fn, start, data = beginning(name)
        traces = []

        def counted(*arguments):
            traces.append(1)
            return step_fn(*arguments)

        chunk, key = train.make_chunk(counted), jax.random.key(2)
        current, data = devices.place((start, data))
        current, _ = chunk(current, key, data, length=1)
        before = len(traces)
        current, metrics = chunk(current, key, data, length=2)
        assert len(traces) == before
    return current, metrics


def one_and_eight(folder: str) -> None:
    """What the test below asks of a process with eight devices."""
    (one, one_metrics), (eight, eight_metrics) = trained("simgan", 1), trained("simgan", 8)
    for lone, many in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
        # Sums in another order. An image in the history may then round to the next level, and where a gradient
        # is nearly zero Adam makes a whole step of its rounding: three steps of at most 4e-4 either way.
        tolerance = 1 if lone.dtype == jnp.uint8 else 2.4e-3
        lone, many = (np.asarray(leaf).astype(np.float64) for leaf in (lone, many))
        np.testing.assert_allclose(lone, many, atol=tolerance, rtol=1e-4)
    for metric, value in one_metrics.items():
        np.testing.assert_allclose(value, eight_metrics[metric], atol=1e-3, rtol=1e-3, err_msg=metric)
    assert all(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(eight))
    assert {shard.data.shape[0] for shard in eight.history.data.addressable_shards} == {32 // 8}
    # Saved by eight devices, continued by two.
    with checkpoints.Checkpoints(pathlib.Path(folder)) as saved:
        saved.save(3, eight)
    with jax.set_mesh(devices.mesh(2)), checkpoints.Checkpoints(pathlib.Path(folder)) as saved:
        template = devices.place(state.init(jax.random.key(9), config=CONFIG))
        restored = saved.restore(template)
    assert {shard.data.shape[0] for shard in restored.history.data.addressable_shards} == {32 // 2}
    for before, after in zip(jax.tree.leaves(eight), jax.tree.leaves(restored), strict=True):
        np.testing.assert_array_equal(np.asarray(before), np.asarray(after))


def test_one_and_eight_devices_train_the_same(tmp_path):
    # The number of CPU devices is read when JAX starts, before the settings of the tests come in.
    script = "import jax; assert jax.device_count() == 8; from tests import devices_test as t; import sys; "
    done = subprocess.run(
        [sys.executable, "-c", script + "t.one_and_eight(sys.argv[1])", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(jax.device_count() < 2, reason="a mesh takes two devices")
@pytest.mark.parametrize("name", ["classify", "adapt"])
def test_one_device_and_two_train_the_same_classifier(name):
    """What each image loses to dropout too, though two devices have half of the batch each."""
    (one, one_metrics), (two, two_metrics) = trained(name, 1), trained(name, 2)
    for lone, both in zip(jax.tree.leaves((one, one_metrics)), jax.tree.leaves((two, two_metrics)), strict=True):
        np.testing.assert_allclose(np.asarray(lone), np.asarray(both), atol=1e-3, rtol=1e-4)


def test_without_a_mesh_all_is_on_one_device_as_what_is_restored(tmp_path):
    tree = {"a": jnp.ones((3,)), "history": history.init(4, (2, 2, 1))}
    assert devices.spread(tree) is tree
    placed = devices.place(tree)
    jax.tree.map(np.testing.assert_array_equal, placed, tree)
    with checkpoints.Checkpoints(tmp_path) as saved:
        saved.save(1, placed)
        restored = saved.restore(placed)
    program: Any = jax.jit(lambda tree: jax.tree.map(jnp.negative, tree))
    for given in (placed, restored):
        program(given)
    assert program._cache_size() == 1


@pytest.mark.skipif(jax.device_count() < 2, reason="a mesh takes two devices")
def test_what_two_do_not_divide_stays_whole():
    with jax.set_mesh(devices.mesh(2)):
        odd = devices.place(history.init(3, (2, 2, 1)))
        assert odd.data.sharding.is_fully_replicated
        assert devices.place(history.init(4, (2, 2, 1))).data.sharding.shard_shape((4, 2, 2, 1)) == (2, 2, 2, 1)
        split, whole = (jax.jit(devices.spread)(jnp.ones((count, 3))) for count in (4, 3))
    assert split.sharding.shard_shape((4, 3)) == (2, 3)
    np.testing.assert_array_equal(whole, np.ones((3, 3)))


@pytest.mark.skipif(jax.device_count() != 2, reason="for two devices")
def test_what_is_trained_on_two_is_whole_on_the_first_afterwards():
    tree = {"a": jnp.arange(3.0), "history": history.init(4, (2, 2, 1))}
    with jax.set_mesh(devices.mesh(2)):
        collected = devices.collect(devices.place(tree))
    jax.tree.map(np.testing.assert_array_equal, collected, tree)
    assert all(leaf.devices() == {jax.devices()[0]} for leaf in jax.tree.leaves(collected))
    assert devices.collect(tree) is tree


@pytest.mark.skipif(jax.device_count() != 2 or jax.default_backend() != "cpu", reason="for a CPU of two devices")
def test_training_is_divided_over_a_cpu_where_its_devices_share_each_batch():
    assert devices.usual_count(Config()) == 2
    assert devices.usual_count(Config(classify=ClassifyConfig(batch_size=9))) == 1


def test_more_devices_than_there_are():
    with pytest.raises(ConfigError, match="99 devices: this machine has"):
        devices.mesh(99)
