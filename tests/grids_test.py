import io

import numpy as np
import pytest
from PIL import Image

from simgan_jax import grids
from simgan_jax.grids import GAP, GROUND


def stack(*values, height=4, width=6):
    return np.stack([np.full((height, width), value, np.uint8) for value in values])


def cell(image, column, row, *, above, scale, height=4, width=6):
    """Pixels where a grid shows an image, and nothing of its surroundings."""
    x, y = GAP + column * (scale * width + GAP), above + GAP + row * (scale * height + GAP)
    return np.asarray(image)[y : y + scale * height, x : x + scale * width]


def test_difference_has_a_colour_for_each_sign():
    before = np.array([[[0, 255, 100, 0]]], np.uint8)
    after = np.array([[[255, 0, 100, 64]]], np.uint8)
    added, removed, same, little = grids.difference(before, after)[0, 0]
    assert added.tolist() == list(grids.ADDED)
    assert removed.tolist() == list(grids.REMOVED)
    assert same.tolist() == [0, 0, 0]
    # The root of 64 / 255 is 0.501.
    assert little.tolist() == [128, 75, 25]


def test_grid_places_columns_and_rows():
    image = grids.grid([stack(10, 20), stack(30, 40, 50)], scale=3)
    assert image.size == (GAP + 2 * (18 + GAP), GAP + 2 * (12 + GAP))
    for column, row, value in ((0, 0, 10), (0, 1, 20), (1, 0, 30), (1, 1, 40)):
        assert (cell(image, column, row, above=0, scale=3) == value).all()
    assert image.getpixel((0, 0)) == GROUND
    assert image.getpixel((GAP + 18, GAP)) == GROUND


def test_pixels_are_enlarged_as_they_are():
    pixels = np.random.default_rng(0).integers(0, 256, (1, 4, 6, 3), np.uint8)
    image = grids.grid([pixels], scale=2)
    np.testing.assert_array_equal(cell(image, 0, 0, above=0, scale=2), pixels[0].repeat(2, 0).repeat(2, 1))


def test_titles_and_notes_stand_beside_the_images():
    plain = grids.grid([stack(10, 20)], scale=4)
    image = grids.grid([stack(10, 20)], titles=["title"], notes=["note"], scale=4)
    above = image.height - plain.height
    assert above > 0 and image.width > plain.width
    assert (cell(image, 0, 1, above=above, scale=4) == 20).all()
    ground = np.array(GROUND)
    assert (np.asarray(image)[:above] != ground).any()
    assert (np.asarray(image)[above:, plain.width :] != ground).any()


def test_refinement_has_four_columns():
    image = grids.refinement(stack(0, 0), stack(255, 0), stack(7, 8), scale=1)
    above = image.height - (GAP + 2 * (4 + GAP))
    assert (cell(image, 1, 0, above=above, scale=1) == 255).all()
    assert (cell(image, 2, 0, above=above, scale=1) == grids.ADDED).all()
    assert (cell(image, 2, 1, above=above, scale=1) == 0).all()
    assert (cell(image, 3, 1, above=above, scale=1) == 8).all()


def test_scene_shows_background_and_lines():
    mask = np.zeros((4, 6), bool)
    mask[1] = True
    image = grids.scene(np.full((4, 6), 99.6, np.float32), mask, stack(10, 20), stack(30, 40), scale=1)
    above = image.height - (GAP + 2 * (4 + GAP))
    assert (cell(image, 0, 0, above=above, scale=1) == 100).all()
    np.testing.assert_array_equal(cell(image, 0, 1, above=above, scale=1)[..., 0], 255 * mask)
    assert (cell(image, 2, 1, above=above, scale=1) == 40).all()


def test_sheets_wrap():
    image = grids.sheet(stack(1, 2, 3), across=2, scale=1)
    assert image.size == (GAP + 2 * (6 + GAP), GAP + 2 * (4 + GAP))
    assert (cell(image, 0, 1, above=0, scale=1) == 3).all()


def test_readings_have_captions():
    images = stack(1, 2, height=20, width=60)
    plain, image = grids.sheet(images, scale=1), grids.readings(images, ["ab", "cd"], np.array([0.5, 1.0]), scale=1)
    assert image.height > plain.height
    assert (np.asarray(image)[plain.height :] != np.array(GROUND)).any()
    with pytest.raises(ValueError):
        grids.readings(images, ["ab"], np.array([0.5]))


@pytest.mark.parametrize(
    ("columns", "part"),
    [
        ([], "0 sizes"),
        ([np.empty((0, 4, 6), np.uint8)], "0 sizes"),
        ([stack(1), stack(1, width=7)], "2 sizes"),
        ([stack(1).astype(np.float32)], "float32"),
        ([stack(1)[0]], "give uint8"),
    ],
)
def test_refuses(columns, part):
    with pytest.raises(ValueError, match=part):
        grids.grid(columns)


def test_png_round_trip():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    for picture in (pixels, Image.fromarray(pixels)):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(grids.png(picture)))), pixels)
    assert Image.open(io.BytesIO(grids.png(pixels[..., 0]))).mode == "L"
