import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simgan_jax import fit, layout, synthesizer
from simgan_jax.config import CaptchaConfig, FitConfig

CAPTCHA = CaptchaConfig(height=20, width=40, length=2, alphabet="abc")
CONFIG = FitConfig(batch_size=32, inner=3, styles=1, passes=20)
IMAGES, CELL = 64, 16


@jax.jit
def draw(atlas, labels, poses):
    rotation = poses[..., 2]
    matrix = layout.affine(rotation, jnp.ones_like(rotation), jnp.zeros_like(rotation))
    where = layout.Layout(labels, jnp.zeros_like(labels), poses[..., :2], matrix, rotation)
    coverage = synthesizer.render(atlas, where, height=CAPTCHA.height, width=CAPTCHA.width)
    return jnp.round(coverage * 255.0).astype(jnp.uint8)


RESIDUAL = jax.jit(fit.residual)


def shapes():
    """Three glyphs `[1, 3, S, S]`: a cross, a ring and a wedge."""
    y, x = np.mgrid[:CELL, :CELL] - (CELL - 1) / 2
    cross = (np.minimum(abs(y), abs(x)) < 1.5) & (np.maximum(abs(y), abs(x)) < 6)
    ring = (np.hypot(y, x) < 6) & (np.hypot(y, x) > 3)
    wedge = (x > -5) & (x < 5) & (y < x) & (y > -5)
    return jnp.asarray(np.stack([cross, ring, wedge])[None], jnp.float32)


@pytest.fixture(scope="module")
def made_up():
    """A target of known glyphs and poses: evidence with a tenth of its labels wrong, and a start that is off."""
    label_key, y_key, x_key, turn_key, wrong_key, error_key = jax.random.split(jax.random.key(1), 6)
    labels = jax.random.randint(label_key, (IMAGES, 2), 0, 3)
    y = jax.random.uniform(y_key, (IMAGES, 2), minval=8.0, maxval=12.0)
    x = jnp.asarray([[10.0, 30.0]]) + jax.random.uniform(x_key, (IMAGES, 2), minval=-2.0, maxval=2.0)
    turn = jax.random.uniform(turn_key, (IMAGES, 2), minval=-0.3, maxval=0.3)
    poses = jnp.stack([y, x, turn], -1)
    ink = draw(shapes(), labels, poses)
    wrong = jax.random.bernoulli(wrong_key, 0.1, labels.shape)
    guessed = jnp.where(wrong, (labels + 1) % 3, labels)
    evidence = fit.Evidence(ink, guessed, jnp.ones(ink.shape[1:]))
    error = jax.random.normal(error_key, poses.shape) * jnp.asarray([[[0.7, 0.7, 0.1]]])
    blob = np.hypot(*(np.mgrid[:CELL, :CELL] - (CELL - 1) / 2)) < 5
    start = fit.init(jnp.asarray(np.broadcast_to(blob, (2, 3, CELL, CELL)), jnp.float32), poses + error, config=CONFIG)
    return evidence, start, poses


def test_start_averages_the_styles(made_up):
    _, start, _ = made_up
    assert start.atlas.shape == (1, 3, CELL, CELL)
    two = fit.init(jnp.stack([jnp.zeros((3, 4, 4)), jnp.ones((3, 4, 4))]), jnp.zeros((5, 2, 3)), config=FitConfig())
    np.testing.assert_array_equal(two.atlas, np.full((2, 3, 4, 4), 0.5))


def test_glyphs_and_poses_are_found(made_up):
    evidence, start, poses = made_up
    step = jax.jit(functools.partial(fit.fit_step, captcha=CAPTCHA, config=CONFIG))
    state, residuals = start, []
    for _ in range(2 * CONFIG.passes):
        state, residual = step(state, evidence)
        residuals.append(float(residual))
    assert np.isfinite(residuals).all()
    assert np.mean(residuals[-2:]) < 0.4 * np.mean(residuals[:2])
    assert float(state.atlas.min()) >= 0.0 and float(state.atlas.max()) <= 1.0
    assert int(state.step) == 2 * CONFIG.passes

    def error(atlas):
        return np.asarray(jnp.abs(atlas - shapes()).mean(axis=(0, 2, 3)))

    assert (error(state.atlas) < 0.6 * error(start.atlas)).all()
    shift = np.asarray(jnp.abs(state.poses - poses)[..., :2])
    assert np.median(shift) < np.median(np.abs(np.asarray(start.poses - poses))[..., :2])


def test_residual_is_zero_where_the_guess_is_the_truth(made_up):
    evidence, _, poses = made_up
    labels = jnp.zeros((IMAGES, 2), jnp.int32)
    ink = draw(shapes(), labels, poses)
    exact = RESIDUAL(shapes(), poses, ink, labels, evidence.known)
    assert float(exact.max()) < 800 * (0.5 / 255) ** 2
    # By hand: unknown pixels do not count, and a blank drawing differs by all the ink.
    half = jnp.concatenate([jnp.ones((20, 20)), jnp.zeros((20, 20))], axis=1)
    blank = RESIDUAL(jnp.zeros_like(shapes()), poses, ink, labels, half)
    want = np.square(np.asarray(ink, np.float64)[:, :, :20] / 255).sum(axis=(1, 2))
    np.testing.assert_allclose(blank, want, rtol=1e-4)


def test_what_a_drawing_leaves_is_what_is_not_the_glyphs(made_up):
    """A stain is left where it lies, a hole in a glyph below zero; nothing where ink is not known or is hardly off."""
    atlas, labels = shapes(), jnp.asarray([[0, 1], [2, 0]])
    poses = jnp.asarray([[[10.0, 10.0, 0.0], [10.0, 29.0, 0.2]]] * 2)
    plain = np.asarray(draw(atlas, labels, poses)).astype(int)
    seen, known = plain.copy(), np.ones((CAPTCHA.height, CAPTCHA.width), np.float32)
    full = tuple(np.argwhere(plain[1] == 255)[0])
    seen[0, 1:3, 3:6], seen[0, 18, 36], seen[1][full], seen[1, 0, 0] = 255, 20, 51, 255
    known[0, 0] = 0.0
    assert (plain[0, 1:3, 3:6] == 0).all() and plain[0, 18, 36] == plain[1, 0, 0] == 0
    ink = jnp.asarray(seen, jnp.uint8)
    left = np.asarray(fit.left_over(atlas, poses, ink, labels, jnp.asarray(known), config=CONFIG))
    want = np.zeros(plain.shape)
    want[0, 1:3, 3:6], want[1][full] = 127, round((51 - 255) / 255 * 127)
    assert left.dtype == np.int8
    np.testing.assert_array_equal(left, want)


def test_gradient_is_finite_on_the_pixel_grid():
    poses = jnp.asarray([[[10.0, 10.0, 0.0], [10.0, 30.0, 0.0]]])
    labels = jnp.zeros((1, 2), jnp.int32)
    ink = jnp.zeros((1, 20, 40), jnp.uint8)

    def total(atlas, poses):
        return fit.residual(atlas, poses, ink, labels, jnp.ones((20, 40))).sum()

    for gradient in jax.jit(jax.grad(total, argnums=(0, 1)))(shapes(), poses):
        assert np.isfinite(gradient).all()


def test_choose_takes_the_surest_of_every_character():
    # Certainty of an image is that of its least sure character: 0.9, 0.6, 0.8, 0.7. The last alone shows 'b'.
    rows = [[[0.9, 0.1], [1.0, 0.0]], [[0.6, 0.4], [0.9, 0.1]], [[0.8, 0.2], [0.8, 0.2]], [[0.3, 0.7], [0.9, 0.1]]]
    chosen = fit.choose(np.array(rows), config=FitConfig(images=2, share=1.0))
    assert chosen.tolist() == [0, 3]
    assert fit.choose(np.array(rows), config=FitConfig(images=10, share=0.75)).tolist() == [0, 2, 3]
    assert fit.choose(np.array(rows), config=FitConfig(images=10, share=0.01)).tolist() == [0]


def test_clean_drops_specks():
    np.testing.assert_allclose(
        fit.clean(jnp.asarray([0.0, 0.05, 0.1, 0.7]), config=FitConfig(faintest=0.1)), [0, 0, 0.1, 0.7]
    )


PITCH = fit.ASIDE[-1] * CAPTCHA.height


def comb(middle):
    """A glyph of three stems `[S, S]`, as far apart as the farthest place that is tried."""
    y, x = np.mgrid[:CELL, :CELL] - (CELL - 1) / 2
    stems = [np.clip(1.5 - abs(x - middle - offset * PITCH), 0.0, 1.0) for offset in (-1, 0, 1)]
    return jnp.asarray((abs(y) < 5) * np.max(stems, axis=0), jnp.float32)


def test_like_strokes_are_not_left_on_one_another():
    """Half of the images have settled one stem apart from the others; the atlas shows both, the one as plain."""
    x = jnp.asarray([[11.0, 29.0]]) + jax.random.uniform(jax.random.key(2), (16, 2), minval=-1.0, maxval=1.0)
    poses = jnp.stack([jnp.full_like(x, 10.0), x, jnp.zeros_like(x)], -1)
    labels = jnp.zeros((16, 2), jnp.int32)
    ink = draw(comb(0.0)[None, None], labels, poses)
    side = jnp.where(jnp.arange(16) % 2, 0.5, -0.5)[:, None] * PITCH
    atlas = 0.5 * (comb(-PITCH / 2) + comb(PITCH / 2))[None, None]
    moved = jax.jit(fit.step_aside)(atlas, poses.at[..., 1].add(side), ink, labels, jnp.ones(ink.shape[1:]))
    np.testing.assert_allclose(moved, poses.at[..., 1].add(-PITCH / 2), atol=1e-3)


def test_what_stands_right_stays_and_what_is_off_comes_back():
    x, y = jnp.asarray([[10.0, 30.0]] * 6), jnp.asarray([[9.0, 11.0]] * 6)
    poses = jnp.stack([y, x, jnp.full_like(x, 0.2)], -1)
    labels = jnp.asarray([[0, 1], [1, 2], [2, 0]] * 2)
    ink = draw(shapes(), labels, poses)
    step = fit.ASIDE[3] * CAPTCHA.height
    off = poses.at[3:, 1, 1].add(step)
    moved = jax.jit(fit.step_aside)(shapes(), off, ink, labels, jnp.ones(ink.shape[1:]))
    np.testing.assert_allclose(moved, poses, atol=1e-4)


def test_one_character_alone_is_tried_aside_too():
    poses = jnp.asarray([[[10.0, 20.0, 0.0]]] * 3)
    labels = jnp.asarray([[0], [1], [2]])
    ink = draw(shapes(), labels, poses)
    off = poses.at[..., 1].add(fit.ASIDE[3] * CAPTCHA.height)
    moved = jax.jit(fit.step_aside)(shapes(), off, ink, labels, jnp.ones(ink.shape[1:]))
    np.testing.assert_allclose(moved, poses, atol=1e-4)
