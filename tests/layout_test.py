"""Where the laws put glyphs: ranges, the notebook's law against Pillow, its rejection against NumPy."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageDraw

from simgan_jax import glyphs, layout, synthesizer
from simgan_jax.config import CaptchaConfig, SynthesizerConfig

CAPTCHA = CaptchaConfig()
CONFIG = SynthesizerConfig()
COUNT, STYLES = 1500, 7


def draw(law: Callable[[jax.Array], layout.Layout], count: int = COUNT) -> Any:
    """A layout `[N, L]` of a law, as NumPy arrays."""
    keys = jax.random.split(jax.random.key(3), count)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(law))(keys))


def test_a_positive_turn_is_counter_clockwise_as_seen():
    turn = layout.affine(jnp.asarray(np.pi / 2), jnp.asarray(1.0), jnp.asarray(0.0))
    # Rows grow downwards: what points right points up, what points up points left.
    np.testing.assert_allclose(turn @ jnp.asarray([0.0, 1.0]), [-1.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(turn @ jnp.asarray([-1.0, 0.0]), [0.0, -1.0], atol=1e-6)


def test_affine_is_scale_times_turn_times_shear():
    rotation, scale, shear = 0.3, 1.2, 0.1
    turn = np.asarray([[np.cos(rotation), -np.sin(rotation)], [np.sin(rotation), np.cos(rotation)]])
    expected = scale * turn @ np.asarray([[1.0, 0.0], [shear, 1.0]])
    made = layout.affine(jnp.full((2, 3), rotation), jnp.full((2, 3), scale), jnp.full((2, 3), shear))
    assert made.shape == (2, 3, 2, 2)
    np.testing.assert_allclose(made[1, 2], expected, rtol=1e-6)


@pytest.fixture(scope="module")
def wide() -> Any:
    return draw(functools.partial(layout.wide_law, styles=STYLES, captcha=CAPTCHA, config=CONFIG))


@pytest.fixture(scope="module")
def seed() -> Any:
    return draw(functools.partial(layout.seed_law, styles=STYLES, captcha=CAPTCHA))


def filled(values: np.ndarray, low: float, high: float, tolerance: float = 0.02) -> None:
    """Asserts that values lie in a range and reach to both of its ends."""
    edge = tolerance * (high - low)
    assert low - 1e-4 <= values.min() <= low + edge and high - edge <= values.max() <= high + 1e-4


def test_wide_law_fills_its_ranges(wide):
    slots = 100 * (np.arange(4) + 0.5) / 4
    filled(wide.centre[..., 0], 50 * 0.2, 50 * 0.8)
    for slot in range(4):
        filled(wide.centre[:, slot, 1] - slots[slot], -11, 11)
    filled(np.rad2deg(wide.rotation), -32, 32)
    scale = np.sqrt(np.linalg.det(wide.matrix))
    filled(scale, 0.9, 1.1)
    turn = np.stack(
        [np.cos(wide.rotation), -np.sin(wide.rotation), np.sin(wide.rotation), np.cos(wide.rotation)], -1
    ).reshape(wide.matrix.shape)
    slant = np.swapaxes(turn, -1, -2) @ wide.matrix / scale[..., None, None]
    filled(slant[..., 1, 0], -0.1, 0.1)
    # One scale and shear for an image, so that its glyphs stay of one hand.
    np.testing.assert_allclose(slant, np.broadcast_to(slant[:, :1], slant.shape), atol=1e-5)
    np.testing.assert_allclose(scale, np.broadcast_to(scale[:, :1], scale.shape), rtol=1e-5)


@pytest.mark.parametrize("law", ["wide", "seed"])
def test_labels_and_styles_are_uniform(law, request):
    drawn = request.getfixturevalue(law)
    assert drawn.labels.dtype == drawn.style.dtype == np.int32
    for values, count in ((drawn.labels, 36), (drawn.style[:, 0], STYLES)):
        expected = values.size / count
        found = np.bincount(values.ravel(), minlength=count)
        assert len(found) == count
        # Chi square of count - 1 degrees of freedom: mean count - 1, six standard deviations.
        assert ((found - expected) ** 2 / expected).sum() < count - 1 + 6 * (2 * (count - 1)) ** 0.5
    assert (drawn.style == drawn.style[:, :1]).all()


def test_seed_law_is_the_notebooks(seed):
    left = seed.rotation > 0
    assert 0.45 < left.mean() < 0.55
    filled(np.rad2deg(np.abs(seed.rotation)), 0, 20)
    np.testing.assert_allclose(np.linalg.det(seed.matrix), 1.0, rtol=1e-5)
    # Back to where the turned tile of 40 pixels is pasted.
    middle = np.asarray([50 * 0.36 - 20, 50 * 0.14 - 20])
    corner = seed.centre - seed.matrix @ middle
    corner -= np.ceil(20 * (np.abs(np.cos(seed.rotation)) + np.abs(np.sin(seed.rotation))))[..., None]
    np.testing.assert_allclose(corner, np.round(corner), atol=1e-4)
    y, x = np.moveaxis(np.round(corner).astype(int), -1, 0)
    assert set(np.unique(y[left])) == set(range(-4, 25))
    assert set(np.unique(y[~left])) == set(range(0, 20))
    for slot in range(4):
        assert set(np.unique(x[:, slot])) == set(range(20 * slot, 20 * slot + 25))


def notebook(font: str, count: int) -> np.ndarray:
    """Gray `[N, H, W]` drawn as the notebook does, one character at a time, without its rejection."""
    generator = np.random.default_rng(0)
    face = glyphs.load_font(font, 26)
    images = []
    for _ in range(count):
        image = Image.new("L", (100, 50))
        for i, character in enumerate(generator.choice(list(CAPTCHA.alphabet), 4)):
            tile = Image.new("L", (40, 40))
            ImageDraw.Draw(tile).text((0, 0), character, font=face, fill=255)
            x, turn, y = i * 20 + int(25 * generator.random()), generator.random() - 1, generator.random()
            if generator.random() > 0.5:
                turned, top = tile.rotate(-20 * turn, Image.Resampling.BILINEAR, expand=True), int(25 + 30 * (y - 1))
            else:
                turned, top = tile.rotate(20 * turn, Image.Resampling.BILINEAR, expand=True), int(20 * y)
            image.paste(255, (x, top), turned)
        images.append(np.asarray(image))
    return np.stack(images).astype(float)


@pytest.mark.parametrize("font", ["lato-black", "roboto-bold"])
def test_seed_law_puts_ink_where_pillow_does(font):
    count = 600
    cells = glyphs.make_atlas((font,), alphabet=CAPTCHA.alphabet, height=50, cell=40, sizes=(0.52,), strokes=(0,)).cells
    drawn = jax.jit(jax.vmap(functools.partial(layout.seed_law, styles=1, captcha=CAPTCHA)))(
        jax.random.split(jax.random.key(5), count)
    )
    packed = jax.jit(synthesizer.pack)(jnp.asarray(cells, jnp.float32) / 255.0)
    ours = 255.0 * np.asarray(jax.jit(functools.partial(synthesizer.draw, height=50, width=100))(packed, drawn))
    theirs = notebook(font, count)
    assert abs(ours.mean() - theirs.mean()) < 0.06 * theirs.mean()
    for axis, length in ((1, 50), (2, 100)):
        place = np.arange(length).reshape((1, length, 1) if axis == 1 else (1, 1, length))
        mine, other = ((images * place).sum() / images.sum() for images in (ours, theirs))
        assert abs(mine - other) < 1.2
        spread = [
            np.sqrt((images * (place - m) ** 2).sum() / images.sum()) for images, m in ((ours, mine), (theirs, other))
        ]
        assert abs(spread[0] - spread[1]) < 0.8


def seg(image: np.ndarray) -> int:
    """The notebook's count of runs of inked columns, in loops."""
    columns = image.T.astype(float).sum(axis=1)
    blank = np.where(columns < columns.min() + 2)[0].tolist()
    return len([place for i, place in enumerate(blank[:-1]) if blank[i + 1] - place >= 8])


def test_separated_is_the_notebooks_rejection():
    generator = np.random.default_rng(0)
    images = np.zeros((400, 50, 100), np.float32)
    for image in images:
        for _ in range(generator.integers(1, 7)):
            width, x = generator.integers(3, 24), generator.integers(0, 95)
            image[10 : 12 + generator.integers(0, 12), x : x + width] = 1.0
        image += 0.4 * generator.random(image.shape)
    images = images.clip(0, 1)
    runs = np.asarray([seg(image > 0.5) for image in images])
    assert (np.bincount(runs)[:5] > 5).all()
    for length in (1, 2, 4):
        np.testing.assert_array_equal(layout.separated(jnp.asarray(images), length=length), runs == length)


def test_fitted_law_draws_each_slot_from_the_bank():
    bank = np.stack(np.meshgrid(np.arange(5), np.arange(4), indexing="ij"), -1)
    bank = np.concatenate([bank, bank[..., :1] / 10], -1).astype(np.float32)
    still = SynthesizerConfig(fitted_shift=0.0, fitted_turn=0.0, fitted_scale=0.0)
    law = functools.partial(layout.fitted_law, styles=STYLES, poses=jnp.asarray(bank), captcha=CAPTCHA, config=still)
    drawn = draw(law)
    row = np.round(drawn.centre[..., 0]).astype(int)
    np.testing.assert_allclose(drawn.centre, bank[row, np.arange(4), :2], atol=1e-6)
    np.testing.assert_allclose(drawn.rotation, bank[row, np.arange(4), 2], atol=1e-6)
    np.testing.assert_allclose(np.linalg.det(drawn.matrix), 1.0, rtol=1e-5)
    pairs = np.zeros((5, 5))
    np.add.at(pairs, (row[:, 0], row[:, 3]), 1)
    # 60 of each pair are expected: slots are drawn on their own.
    assert pairs.min() > 25 and pairs.max() < 110


def test_fitted_law_shakes_what_it_draws():
    bank = jnp.zeros((1, 4, 3))
    law = functools.partial(layout.fitted_law, styles=STYLES, poses=bank, captcha=CAPTCHA, config=CONFIG)
    drawn = draw(law)
    filled(drawn.centre, -3, 3)
    filled(np.rad2deg(drawn.rotation), -5, 5)
    filled(np.sqrt(np.linalg.det(drawn.matrix)), 0.95, 1.05)
