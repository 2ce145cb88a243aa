"""Drawing against a slow NumPy oracle, its gradient, and that a captcha depends on its key alone."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simgan_jax import backend, glyphs, images, layout, synthesizer
from simgan_jax.config import CaptchaConfig, Config, SynthesizerConfig
from simgan_jax.target import Scene

HEIGHT, WIDTH, SIZE = 20, 33, 16
CONFIG = Config(
    captcha=CaptchaConfig(height=24, width=44, length=3, alphabet="abc1"),
    synthesizer=SynthesizerConfig(fonts=("lato-black",), sizes=(0.5,), strokes=(0, 1)),
)
TABLE = np.add.outer(np.arange(8), np.arange(8)) * 6.0 + 12.0


@pytest.fixture(scope="module")
def atlas() -> np.ndarray:
    """Float32 `[2, 3, 16, 16]`: noise in a disc of radius 5."""
    y, x = np.indices((SIZE, SIZE)) - SIZE // 2
    levels = np.random.default_rng(0).integers(0, 256, (2, 3, SIZE, SIZE)) * (np.hypot(y, x) <= 5)
    return (levels / 255.0).astype(np.float32)


@pytest.fixture(scope="module")
def glyph_layout() -> layout.Layout:
    """Six images of three glyphs: overlapping, turned all the way round, over the edges and outside."""
    generator = np.random.default_rng(1)
    centre = generator.uniform((-4, -4), (HEIGHT + 4, WIDTH + 4), (6, 3, 2))
    centre[0] = [[9.1, 12.2], [9.6, 15.3], [10.2, 18.1]]
    rotation = generator.uniform(-np.pi, np.pi, (6, 3))
    rotation[0] = [0.1, 0.3, -0.3]
    scale, shear = generator.uniform(0.8, 1.1, (6, 3)), generator.uniform(-0.2, 0.2, (6, 3))
    return layout.Layout(
        labels=jnp.asarray(generator.integers(0, 3, (6, 3)), jnp.int32),
        style=jnp.asarray(generator.integers(0, 2, (6, 3)), jnp.int32),
        centre=jnp.asarray(centre, jnp.float32),
        matrix=layout.affine(*(jnp.asarray(x, jnp.float32) for x in (rotation, scale, shear))),
        rotation=jnp.asarray(rotation, jnp.float32),
    )


def oracle(atlas: np.ndarray, drawn: layout.Layout) -> np.ndarray:
    """Coverage `[B, H, W]` in float64, glyph by glyph, from the sum over all pixels of a cell that defines bilinear."""
    bare = np.ones((len(drawn.labels), HEIGHT, WIDTH))
    pixels = np.arange(SIZE)
    for image, slot in np.ndindex(*drawn.labels.shape):
        cell = atlas[drawn.style[image, slot], drawn.labels[image, slot]].astype(float)
        inverse = np.linalg.inv(np.asarray(drawn.matrix[image, slot], float))
        offset = np.moveaxis(np.indices((HEIGHT, WIDTH)), 0, -1) - np.asarray(drawn.centre[image, slot], float)
        place = offset @ inverse.T + SIZE // 2
        near = np.maximum(0.0, 1.0 - np.abs(place[..., None] - pixels))
        bare[image] *= 1.0 - np.einsum("hwi,ij,hwj->hw", near[:, :, 0], cell, near[:, :, 1])
    return 1.0 - bare


@pytest.fixture(scope="module")
def expected(atlas, glyph_layout) -> np.ndarray:
    return oracle(atlas, jax.tree.map(np.asarray, glyph_layout))


def test_render_is_the_oracle(atlas, glyph_layout, expected):
    drawn = jax.jit(functools.partial(synthesizer.render, height=HEIGHT, width=WIDTH))(jnp.asarray(atlas), glyph_layout)
    assert expected.mean() > 0.1 and (expected[:, [0, -1]] > 0.2).any() and (expected[:, :, [0, -1]] > 0.2).any()
    np.testing.assert_allclose(drawn, expected, atol=1e-4)


def test_a_packed_atlas_is_rendered_as_its_levels(atlas, glyph_layout):
    """In value and in slope, on levels that a byte holds."""
    levels = np.round(atlas * 255.0).astype(np.float32) / np.float32(255.0)
    weights = jnp.asarray(np.random.default_rng(2).normal(size=(6, HEIGHT, WIDTH)), jnp.float32)

    @jax.jit
    def both(cells, centre):
        def total(centre):
            drawn = synthesizer.render(cells, glyph_layout._replace(centre=centre), height=HEIGHT, width=WIDTH)
            return jnp.sum(drawn * weights), drawn

        return jax.grad(total, has_aux=True)(centre)

    slope, drawn = both(synthesizer.pack(jnp.asarray(levels)), glyph_layout.centre)
    expected_slope, expected_drawn = both(jnp.asarray(levels), glyph_layout.centre)
    assert np.abs(expected_slope).max() > 1.0
    np.testing.assert_allclose(drawn, expected_drawn, atol=1e-5)
    np.testing.assert_allclose(slope, expected_slope, atol=1e-3)


def test_draw_is_the_oracle_in_whole_numbers(atlas, glyph_layout, expected):
    packed = synthesizer.pack(jnp.asarray(atlas))
    drawn = jax.jit(functools.partial(synthesizer.draw, height=HEIGHT, width=WIDTH))(packed, glyph_layout)
    np.testing.assert_allclose(drawn, expected, atol=3 / 255)
    assert np.abs(drawn - expected).mean() < 0.1 / 255


def test_slots_are_laid_one_over_the_other(atlas, glyph_layout):
    packed = synthesizer.pack(jnp.asarray(atlas))
    draw = jax.jit(functools.partial(synthesizer.draw, height=HEIGHT, width=WIDTH))
    bare = np.ones((6, HEIGHT, WIDTH))
    for slot in range(3):
        one = draw(packed, jax.tree.map(lambda leaf, slot=slot: leaf[:, slot : slot + 1], glyph_layout))
        bare *= 1.0 - np.asarray(one, np.float64)
    drawn = np.asarray(draw(packed, glyph_layout), np.float64)
    # To the rounding of single precision, and so the same bytes of ink.
    np.testing.assert_allclose(drawn, 1.0 - bare, atol=3e-7)
    np.testing.assert_array_equal(np.round(255.0 * drawn), np.round(255.0 * (1.0 - bare)))


def test_a_glyph_turns_counter_clockwise():
    cells = np.zeros((1, 1, SIZE, SIZE), np.float32)
    cells[0, 0, SIZE // 2, SIZE // 2 : SIZE // 2 + 6] = 1.0
    quarter = jnp.full((1, 1), np.pi / 2)
    turned = layout.Layout(
        labels=jnp.zeros((1, 1), jnp.int32),
        style=jnp.zeros((1, 1), jnp.int32),
        centre=jnp.asarray([[[10.0, 12.0]]]),
        matrix=layout.affine(quarter, jnp.ones((1, 1)), jnp.zeros((1, 1))),
        rotation=quarter,
    )

    @jax.jit
    def both(cells: jax.Array) -> tuple[jax.Array, jax.Array]:
        shape = {"height": HEIGHT, "width": WIDTH}
        return synthesizer.render(cells, turned, **shape), synthesizer.draw(synthesizer.pack(cells), turned, **shape)

    for image in both(jnp.asarray(cells)):
        # A bar to the right of the centre becomes one above it.
        rows, columns = np.nonzero(np.asarray(image[0]) > 0.5)
        assert set(rows) == set(range(5, 11)) and set(columns) == {12}


def test_nothing_of_a_neighbouring_cell_is_drawn():
    cells = np.zeros((2, 3, SIZE, SIZE), np.float32)
    cells[0, :, 1:-1, 1:-1] = 1.0
    cells[0, 1] = 0.0
    empty = layout.Layout(
        labels=jnp.ones((1, 1), jnp.int32),
        style=jnp.zeros((1, 1), jnp.int32),
        centre=jnp.asarray([[[9.5, 12.5]]]),
        matrix=jnp.eye(2).reshape(1, 1, 2, 2),
        rotation=jnp.zeros((1, 1)),
    )
    packed = synthesizer.pack(jnp.asarray(cells))
    drawn = jax.jit(functools.partial(synthesizer.draw, height=HEIGHT, width=WIDTH))
    assert drawn(packed, empty).max() == 0.0
    assert drawn(packed, empty._replace(labels=jnp.zeros((1, 1), jnp.int32))).sum() == (SIZE - 2) ** 2


def test_gradient_is_the_oracles_slope(atlas, glyph_layout):
    weights = np.random.default_rng(2).normal(size=(6, HEIGHT, WIDTH))

    def total(atlas: jax.Array, centre: jax.Array, matrix: jax.Array) -> jax.Array:
        moved = glyph_layout._replace(centre=centre, matrix=matrix)
        return jnp.sum(synthesizer.render(atlas, moved, height=HEIGHT, width=WIDTH) * jnp.asarray(weights, jnp.float32))

    gradients = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(
        jnp.asarray(atlas), glyph_layout.centre, glyph_layout.matrix
    )
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    still = jax.tree.map(lambda x: np.asarray(x, float) if x.dtype == jnp.float32 else np.asarray(x), glyph_layout)
    generator = np.random.default_rng(3)
    for field, gradient in zip(("atlas", "centre", "matrix"), gradients, strict=True):
        start = {"atlas": atlas.astype(float), "centre": still.centre, "matrix": still.matrix}[field]
        direction = generator.normal(size=start.shape)
        if field == "atlas":
            direction *= atlas > 0
        ends = []
        for sign in (-1, 1):
            moved = start + sign * 1e-6 * direction
            ends.append(
                oracle(moved, still)
                if field == "atlas"
                else oracle(atlas.astype(float), still._replace(**{field: moved}))
            )
        slope = ((ends[1] - ends[0]) * weights).sum() / 2e-6
        np.testing.assert_allclose((np.asarray(gradient, float) * direction).sum(), slope, rtol=5e-3)


@pytest.fixture(scope="module")
def packed() -> jax.Array:
    captcha, settings = CONFIG.captcha, CONFIG.synthesizer
    made = glyphs.make_atlas(
        settings.fonts,
        alphabet=captcha.alphabet,
        height=captcha.height,
        cell=synthesizer.cell_size(captcha.height, settings.sizes),
        sizes=settings.sizes,
        strokes=settings.strokes,
    )
    return synthesizer.pack(jnp.asarray(made.cells, jnp.float32) / 255.0)


@pytest.fixture(scope="module")
def scene() -> Scene:
    captcha = CONFIG.captcha
    background = np.where(np.arange(captcha.width) // 11 % 2, 70.0, 110.0) * np.ones((captcha.height, 1))
    mask = np.zeros((captcha.height, captcha.width), bool)
    mask[15, 3:40] = True
    background[mask] = 255.0
    return Scene(background.astype(np.float32), mask, 253.0, TABLE.astype(np.float32))


LAWS = {
    "wide": functools.partial(layout.wide_law, styles=2, captcha=CONFIG.captcha, config=CONFIG.synthesizer),
    "seed": functools.partial(layout.seed_law, styles=2, captcha=CONFIG.captcha),
    "fitted": functools.partial(
        layout.fitted_law,
        styles=2,
        poses=jnp.asarray(np.random.default_rng(0).uniform((8, 5, -0.3), (16, 39, 0.3), (9, 3, 3)), jnp.float32),
        captcha=CONFIG.captcha,
        config=CONFIG.synthesizer,
    ),
}


def keys(*index: int) -> jax.Array:
    return jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(4)))(jnp.asarray(index))


@pytest.mark.parametrize("law", ["seed", "fitted"])
def test_a_layout_is_the_same_alone_and_in_a_batch(law):
    draw = jax.jit(jax.vmap(LAWS[law]))
    together = draw(keys(*range(40)))
    assert len(np.unique(together.centre, axis=0)) == 40
    for i in (0, 17, 39):
        jax.tree.map(np.testing.assert_array_equal, draw(keys(i)), jax.tree.map(lambda x, i=i: x[i : i + 1], together))


@pytest.fixture(scope="module")
def make(packed, scene) -> Callable[[jax.Array], synthesizer.Synthetic]:
    return jax.jit(lambda keys: synthesizer.synthesize(keys, packed, scene, law=LAWS["wide"], config=CONFIG))


def test_a_captcha_is_the_same_alone_and_in_a_batch(make):
    block = backend.drawings()
    count = block + block // 3
    together = make(keys(*range(count)))
    assert together.ink.dtype == jnp.uint8 and together.ink.shape == (count, 24, 44)
    assert together.labels.shape == (count, 3) and together.poses.shape == (count, 3, 3)
    for i in (0, block - 1, block, count - 1):
        jax.tree.map(np.testing.assert_array_equal, make(keys(i)), jax.tree.map(lambda x, i=i: x[i : i + 1], together))
    assert len({image.tobytes() for image in np.asarray(together.ink)}) == count
    assert len(np.unique(together.labels, axis=0)) > 20


def test_what_drawings_left_is_laid_over_captchas(packed, scene):
    """One of several at random, the same alone and in a batch; layouts do not depend on what it is."""
    black = Scene(np.zeros_like(scene.background), np.zeros_like(scene.mask), 255.0, None)
    size = CONFIG.captcha.height, CONFIG.captcha.width

    @jax.jit
    def make(keys, left):
        return synthesizer.synthesize(keys, packed, black, law=LAWS["wide"], config=CONFIG, left=left)

    nothing, stain = np.zeros((2, *size), np.int8), np.zeros((2, *size), np.int8)
    stain[0, :3, :5], stain[1] = 127, -127
    bare, stained = (make(keys(*range(40)), left) for left in (nothing, stain))
    np.testing.assert_array_equal(stained.labels, bare.labels)
    np.testing.assert_array_equal(stained.poses, bare.poses)
    want = np.asarray(bare.ink).copy()
    wiped = ~np.asarray(stained.ink).any(axis=(1, 2))
    assert 5 < wiped.sum() < 35 and want.any(axis=(1, 2)).all()
    want[:, :3, :5], want[wiped] = 255, 0
    np.testing.assert_array_equal(stained.ink, want)
    alone = make(keys(7), stain)
    np.testing.assert_array_equal(alone.ink[0], stained.ink[7])


def test_vmap_of_one_is_a_batch_and_an_atlas_may_come_unpacked(make, packed, scene):
    def one(key: jax.Array, atlas: jax.Array) -> synthesizer.Synthetic:
        made = synthesizer.synthesize(key[None], atlas, scene, law=LAWS["wide"], config=CONFIG)
        return jax.tree.map(lambda x: x[0], made)

    atlas = (packed & 255).astype(jnp.float32) / 255.0
    singly = jax.jit(jax.vmap(one, in_axes=(0, None)))(keys(*range(40)), atlas)
    jax.tree.map(np.testing.assert_array_equal, singly, make(keys(*range(40))))


@pytest.fixture(scope="module")
def coverage(packed) -> jax.Array:
    """Coverage of eight captchas of the wide law."""
    draw = functools.partial(synthesizer.draw, height=CONFIG.captcha.height, width=CONFIG.captcha.width)
    return jax.jit(lambda keys: draw(packed, jax.vmap(LAWS["wide"])(keys)))(keys(*range(8)))


def developed(coverage: jax.Array, scene: Scene, config: Config) -> np.ndarray:
    return np.asarray(jax.jit(lambda coverage: synthesizer.develop(coverage, scene, config=config))(coverage))


def test_on_black_and_without_a_codec_ink_is_coverage(coverage, scene):
    assert coverage.max() > 0.99 and coverage.min() == 0.0
    black = Scene(np.zeros_like(scene.background), np.zeros_like(scene.mask), 255.0, None)
    np.testing.assert_array_equal(developed(coverage, black, CONFIG), images.to_uint8(2.0 * coverage[..., None] - 1.0))


def test_what_follows_does_not_draw_again(packed, scene):
    plain = dataclasses.replace(CONFIG, synthesizer=dataclasses.replace(CONFIG.synthesizer, codec=False))
    drawn = jax.jit(jax.vmap(LAWS["wide"]))(keys(*range(40)))
    draw = functools.partial(synthesizer.draw, height=CONFIG.captcha.height, width=CONFIG.captcha.width)

    def flops(function: Callable[..., jax.Array], *arguments: object) -> float:
        return (jax.jit(function).lower(*arguments).compile().cost_analysis() or {})["flops"]

    def develop(coverage: jax.Array) -> jax.Array:
        return synthesizer.develop(coverage, scene, config=plain)

    apart = flops(draw, packed, drawn) + flops(develop, draw(packed, drawn))
    assert flops(lambda *arguments: develop(draw(*arguments)), packed, drawn) < 1.2 * apart


def test_developing_codes_an_image_as_the_target_is(coverage, scene):
    plain = dataclasses.replace(CONFIG, synthesizer=dataclasses.replace(CONFIG.synthesizer, codec=False))
    clean, coded = (developed(coverage, scene, config).astype(float) for config in (plain, CONFIG))
    share, known = np.asarray(coverage), ~scene.mask
    # One level of gray is up to 255 / 143 levels of ink.
    np.testing.assert_allclose(clean[:, known], 255.0 * share[:, known], atol=2.0)
    assert 1.0 < np.abs(coded - clean)[:, known].mean() < 25.0
    by_hand = np.round(scene.background + share * (scene.level - scene.background))
    gray = np.asarray(jax.jit(images.codec)(jnp.asarray(by_hand), jnp.asarray(scene.table)))
    ink = np.clip((gray - scene.background) / np.where(scene.mask, 1.0, scene.level - scene.background), 0.0, 1.0)
    np.testing.assert_allclose(coded[:, known], np.round(255.0 * ink)[:, known], atol=1.0)


def test_poses_are_where_the_ink_is(packed):
    captcha = dataclasses.replace(CONFIG.captcha, length=1, alphabet="ab")
    config = dataclasses.replace(CONFIG, captcha=captcha)
    law = functools.partial(layout.wide_law, styles=2, captcha=captcha, config=config.synthesizer)
    black = Scene(np.zeros((24, 44), np.float32), np.zeros((24, 44), bool), 255.0, None)
    make = jax.jit(lambda keys: synthesizer.synthesize(keys, packed[:, :2], black, law=law, config=config))
    made = jax.tree.map(np.asarray, make(keys(*range(60))))
    ink = made.ink.astype(float)
    found = np.stack([(ink * place).sum(axis=(1, 2)) for place in np.indices((24, 44))], -1)
    found /= ink.sum(axis=(1, 2))[:, None]
    inside = (ink[:, [0, -1]] == 0).all(axis=(1, 2))
    assert inside.sum() > 30
    assert np.abs(found - made.poses[:, 0, :2])[inside].max() < 2.5
