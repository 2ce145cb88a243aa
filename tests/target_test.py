"""What a made-up stack of captchas tells about its scene, and how its images become ink."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simgan_jax import target
from simgan_jax.config import ConfigError, TargetConfig

HEIGHT, WIDTH, COUNT = 20, 36, 300
CONFIG = TargetConfig()


def stack(*, bright: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gray images, their ink in [0, 1], the background, and the lines: stripes, a line, one soft block each."""
    generator = np.random.default_rng(0)
    level = 250 if bright else 10
    stripes = np.where(np.arange(WIDTH) // 9 % 2, 60.0, 110.0)
    background = np.broadcast_to(stripes if bright else 255.0 - stripes, (HEIGHT, WIDTH)).copy()
    lines = np.zeros((HEIGHT, WIDTH), bool)
    lines[11, 4:30] = True
    background[lines] = level
    ink = np.zeros((COUNT, HEIGHT, WIDTH))
    for i, (y, x) in enumerate(generator.integers((0, 0), (HEIGHT - 8, WIDTH - 8), (COUNT, 2))):
        ink[i, y : y + 8, x : x + 8] = 0.5
        ink[i, y + 1 : y + 7, x + 1 : x + 7] = 1.0
    gray = np.round(background + ink * (level - background)).astype(np.uint8)
    return gray, ink, background, lines


@pytest.mark.parametrize("bright", [True, False])
def test_scene_of_a_stack(bright):
    gray, _, background, lines = stack(bright=bright)
    before = gray.copy()
    table = np.arange(64).reshape(8, 8)
    scene = target.estimate_scene(gray, table=table, config=CONFIG)
    np.testing.assert_array_equal(scene.background, background)
    np.testing.assert_array_equal(scene.mask, lines)
    assert scene.level == (250 if bright else 10)
    assert scene.table is not None and scene.table.dtype == np.float32
    np.testing.assert_array_equal(scene.table, table)
    np.testing.assert_array_equal(gray, before)


@pytest.mark.parametrize("bright", [True, False])
def test_ink_is_found_again(bright):
    gray, ink, _, lines = stack(bright=bright)
    scene = target.estimate_scene(gray, table=None, config=CONFIG)
    found = np.asarray(target.to_ink(jnp.asarray(gray), scene, config=CONFIG)).astype(float)
    np.testing.assert_allclose(found[:, ~lines], 255.0 * ink[:, ~lines], atol=2.0)
    # A line is filled from above and below, so ink that crosses it is closed.
    crossed = (ink[:, 10] == 1.0) & (ink[:, 12] == 1.0)
    inner = crossed[:, :-2] & crossed[:, 1:-1] & crossed[:, 2:] & lines[11, 1:-1]
    assert inner.any()
    np.testing.assert_array_equal(found[:, 11, 1:-1][inner], 255.0)
    assert found[:, 11][(ink[:, 10:13] == 0).all(axis=1) & lines[11]].mean() < 32


@pytest.mark.parametrize("bright", [True, False])
def test_binary_ink_keeps_the_lines(bright):
    gray, ink, _, lines = stack(bright=bright)
    config = TargetConfig(representation="binary", threshold=200)
    scene = target.estimate_scene(gray, table=None, config=config)
    found = np.asarray(target.to_ink(jnp.asarray(gray), scene, config=config))
    np.testing.assert_array_equal(found, np.where((ink == 1.0) | lines[None], 255, 0))


@pytest.mark.parametrize("bright", [True, False])
def test_binary_ink_on_a_ground_that_is_black_or_white(bright):
    """Black counts as ink on other grounds alone."""
    blocks = stack(bright=True)[1]
    gray = np.round(255 * blocks if bright else 255 * (1 - blocks)).astype(np.uint8)
    config = TargetConfig(representation="binary", threshold=200)
    scene = target.estimate_scene(gray, table=None, config=config)
    found = np.asarray(target.to_ink(jnp.asarray(gray), scene, config=config))
    np.testing.assert_array_equal(found, np.where(blocks == 1.0, 255, 0))


def test_a_ground_as_bright_as_ink_is_a_line_at_any_level():
    gray, _, _, lines = stack(bright=True)
    config = TargetConfig(line_level=1.0)
    scene = target.estimate_scene(gray, table=None, config=config)
    np.testing.assert_array_equal(scene.mask, lines)
    assert np.isfinite(np.asarray(target.to_ink(jnp.asarray(gray), scene, config=config))).all()


@pytest.mark.parametrize("count", [1, 5, 12])
def test_a_stack_is_prepared_in_batches_and_left_as_it_is(count):
    gray = stack(bright=True)[0]
    scene = target.estimate_scene(gray, table=None, config=CONFIG)
    few, before = gray[:count], gray[:count].copy()
    prepared = target.prepare(few, scene, config=CONFIG, batch_size=5)
    np.testing.assert_array_equal(few, before)
    assert prepared.dtype == np.uint8
    together = jax.jit(lambda batch: target.to_ink(batch, scene, config=CONFIG))(jnp.asarray(few))
    np.testing.assert_array_equal(prepared, together)


def test_images_that_look_alike_are_refused():
    noise = np.random.default_rng(0).integers(0, 3, (40, 10, 12))
    with pytest.raises(ConfigError, match="40 image.s. look alike"):
        target.estimate_scene((100 + noise).astype(np.uint8), table=None, config=CONFIG)
    with pytest.raises(ConfigError, match="1 image.s. look alike"):
        target.estimate_scene(stack(bright=True)[0][:1], table=None, config=CONFIG)


def test_average_background_by_hand():
    gray = np.array([[[10, 200]], [[20, 100]], [[30, 0]]], np.uint8)
    np.testing.assert_array_equal(target.average(gray), np.array([[20.0, 100.0]], np.float32))
    scene = target.estimate_scene(gray, table=None, config=TargetConfig(background="average"))
    np.testing.assert_array_equal(scene.background, target.average(gray))
