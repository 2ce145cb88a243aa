"""The image contract, the seed's threshold, filling of lines, and the JPEG codec against Pillow's."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from simgan_jax import images


def test_levels_survive_the_device():
    levels = np.arange(256, dtype=np.uint8).reshape(2, 8, 16)
    unit = images.to_unit(jnp.asarray(levels))
    assert unit.shape == (2, 8, 16, 1) and unit.dtype == jnp.float32
    assert unit.min() == -1.0 and unit.max() == 1.0
    back = images.to_uint8(unit)
    assert back.dtype == jnp.uint8
    np.testing.assert_array_equal(back, levels)


def test_values_outside_the_contract_are_cut():
    unit = jnp.asarray([-3.0, -1.0, 0.0, 1.0, 1.5]).reshape(1, 1, 5, 1)
    assert images.to_uint8(unit).tolist() == [[[0, 0, 128, 255, 255]]]


def test_binarise_is_the_seeds_rule():
    gray = jnp.asarray([[[0, 1, 200, 201, 255]]], jnp.uint8)
    assert images.binarise(gray, threshold=200).tolist() == [[[255, 0, 0, 255, 255]]]


def test_binarise_twice_is_binarise_once():
    generator = np.random.default_rng(0)
    gray = jnp.asarray(generator.integers(0, 256, (8, 6, 9), dtype=np.uint8))
    once = images.binarise(gray, threshold=200)
    assert set(np.unique(once)) == {0, 255}
    np.testing.assert_array_equal(images.binarise(once, threshold=200), once)


@pytest.mark.parametrize(("background", "level"), [(100.0, 200.0), (200.0, 50.0)])
def test_ink_is_the_share_of_the_way_to_full_ink(background, level):
    shares = np.asarray([[[-0.5, 0.0, 0.25, 1.0, 1.2]]], np.float32)
    gray = jnp.asarray(background + shares * (level - background))
    ink = images.extract_ink(gray, np.full((1, 5), background, np.float32), np.zeros((1, 5), bool), level=level)
    np.testing.assert_allclose(ink, [[[0.0, 0.0, 0.25, 1.0, 1.0]]], atol=1e-6)


def test_a_masked_pixel_is_the_mean_of_its_known_neighbours():
    ink = np.arange(25, dtype=np.float32).reshape(1, 5, 5)
    mask = np.zeros((5, 5), bool)
    mask[2, 2] = mask[0, 0] = mask[0, 4] = mask[1, 4] = True
    filled = np.asarray(images.inpaint(jnp.asarray(ink), mask))
    expected = ink.copy()
    expected[0, 0, 0] = (1 + 5 + 6) / 3
    expected[0, 2, 2] = (6 + 7 + 8 + 11 + 13 + 16 + 17 + 18) / 8
    expected[0, 0, 4] = (3 + 8) / 2
    expected[0, 1, 4] = (3 + 8 + 13 + 14) / 4
    np.testing.assert_allclose(filled, expected, rtol=1e-6)


def test_wide_masks_are_filled_ring_by_ring_and_then_with_nothing():
    ink = np.zeros((2, 1, 9), np.float32)
    ink[:, 0, 0] = [0.5, 1.0]
    mask = np.ones((1, 9), bool)
    mask[0, 0] = False
    filled = images.inpaint(jnp.asarray(ink), mask, rounds=3)
    np.testing.assert_allclose(filled, [[[0.5] * 4 + [0.0] * 5], [[1.0] * 4 + [0.0] * 5]])


def test_what_lies_under_the_mask_does_not_matter():
    generator = np.random.default_rng(1)
    ink = generator.random((2, 7, 8)).astype(np.float32)
    mask = generator.random((7, 8)) < 0.4
    other = np.where(mask, generator.random((7, 8)), ink).astype(np.float32)
    np.testing.assert_array_equal(images.inpaint(jnp.asarray(ink), mask), images.inpaint(jnp.asarray(other), mask))


def test_dct_is_orthonormal():
    matrix = images.dct_matrix()
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(8), atol=1e-12)
    np.testing.assert_allclose(matrix[0], np.full(8, 8**-0.5))
    assert (np.diff(matrix[1]) < 0).all()


def pillow_jpeg(gray: np.ndarray, quality: int) -> tuple[np.ndarray, np.ndarray]:
    """The image after Pillow's encoder and decoder, and the quantisation table of the file."""
    file = io.BytesIO()
    Image.fromarray(gray).save(file, "JPEG", quality=quality)
    image = Image.open(file)
    assert isinstance(image, Image.Image) and hasattr(image, "quantization")
    return np.asarray(image), np.asarray(image.quantization[0]).reshape(8, 8)


def picture(height: int, width: int) -> np.ndarray:
    """Stripes, a bright disc with a hard edge, and a little noise."""
    y, x = np.mgrid[:height, :width]
    gray = 60.0 + 80.0 * (x // 10 % 2) + 0.8 * y
    gray[np.hypot(y - height / 2, x - width / 2) < height / 3] = 250.0
    return (gray + np.random.default_rng(0).normal(0, 3, gray.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(("height", "width", "quality"), [(50, 100, 50), (16, 24, 90)])
def test_codec_is_pillows(height, width, quality):
    gray = picture(height, width)
    expected, table = pillow_jpeg(gray, quality)
    coded = jax.jit(images.codec)(jnp.asarray(gray[None], jnp.float32), jnp.asarray(table))
    difference = np.abs(np.asarray(coded[0]) - expected)
    assert np.abs(gray.astype(float) - expected).mean() > 2.0
    # Pillow's transform is in whole numbers: a coefficient near a half may fall to the other side.
    assert (difference <= 2).mean() > 0.98 and difference.mean() < 0.1


def test_codec_keeps_a_flat_image_on_its_grid():
    table = jnp.full((8, 8), 16)
    flat = jnp.full((1, 10, 12), 128.0 + 2 * 7)
    np.testing.assert_array_equal(images.codec(flat, table), flat)
    # 7.5 steps of the mean: encoders round halves away from 0.
    np.testing.assert_array_equal(images.codec(flat + 1.0, table), flat + 2.0)
    np.testing.assert_array_equal(images.codec(256.0 - flat - 1.0, table), 256.0 - flat - 2.0)


def test_codec_does_not_depend_on_the_batch():
    gray = jnp.asarray(np.random.default_rng(2).integers(0, 256, (9, 20, 28)), jnp.float32)
    table = jnp.asarray(pillow_jpeg(picture(16, 16), 50)[1])
    together = images.codec(gray, table)
    for i in range(9):
        np.testing.assert_array_equal(images.codec(gray[i : i + 1], table)[0], together[i])
