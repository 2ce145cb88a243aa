"""The faces of the simulator, and what becomes of fonts that are none."""

import dataclasses
import string

import numpy as np
import pytest

from simgan_jax import glyphs, synthesizer
from simgan_jax.config import ConfigError, SynthesizerConfig
from simgan_jax.contest import ContestConfig

CHARACTERS = string.ascii_lowercase + string.digits
HEIGHT = 50


def atlas(*fonts: str, alphabet: str = CHARACTERS, size: float = 0.5, stroke: int = 0, cell: int = 48) -> glyphs.Atlas:
    return glyphs.make_atlas(fonts, alphabet=alphabet, height=HEIGHT, cell=cell, sizes=(size,), strokes=(stroke,))


@pytest.mark.parametrize("face", glyphs.FACES)
def test_a_face_draws_every_character_differently(face):
    cells = atlas(face).cells
    assert cells.dtype == np.uint8 and cells.shape == (1, 36, 48, 48)
    assert len({cell.tobytes() for cell in cells[0]}) == 36


@pytest.mark.parametrize("face", glyphs.FACES)
def test_a_cell_holds_the_largest_glyph_however_turned_and_scaled(face):
    config = SynthesizerConfig()
    size = max(config.sizes)
    side = synthesizer.cell_size(HEIGHT, config.sizes)
    cells = atlas(face, size=size, stroke=max(config.strokes), cell=side).cells[0]
    y, x = np.indices((side, side)) - side // 2
    reach = np.hypot(y, x)[cells.max(axis=0) > 0].max()
    assert reach * (1 + config.scale) * (1 + config.shear / 2) <= side // 2 - 1


@pytest.mark.parametrize("face", glyphs.FACES)
def test_glyphs_stand_in_the_middle_on_one_line(face):
    cells = atlas(face, alphabet="onxzuvbdpq").cells[0] > 64
    columns, rows = cells.any(axis=1), cells.any(axis=2)
    middles = [np.flatnonzero(column)[[0, -1]].mean() + 0.5 - 24 for column in columns]
    assert np.abs(middles).max() <= 2.5 and abs(np.mean(middles)) <= 1
    bottoms = {c: np.flatnonzero(row)[-1] for c, row in zip("onxzuvbdpq", rows, strict=True)}
    assert max(bottoms[c] for c in "onxzuvbd") - min(bottoms[c] for c in "onxzuvbd") <= 1
    assert min(bottoms["p"], bottoms["q"]) > bottoms["b"] + 2
    tops = {c: np.flatnonzero(row)[0] for c, row in zip("onxzuvbdpq", rows, strict=True)}
    assert abs((tops["b"] + bottoms["p"] + 1) / 2 - 24) <= 2


def test_styles_are_faces_by_sizes_by_strokes():
    made = glyphs.make_atlas(
        ("lato-bold", "dejavu-bold"), alphabet="ab1", height=40, cell=40, sizes=(0.4, 0.6), strokes=(0, 2)
    )
    assert made.cells.shape == (8, 3, 40, 40)
    assert made.styles[:5] == ("lato-bold 0.4 +0", "lato-bold 0.4 +2", "lato-bold 0.6 +0", "lato-bold 0.6 +2") + (
        "dejavu-bold 0.4 +0",
    )
    ink = made.cells.sum(axis=(1, 2, 3), dtype=np.int64).reshape(2, 2, 2)
    assert (ink[:, 1] > ink[:, 0]).all() and (ink[:, :, 1] > ink[:, :, 0]).all()


def test_a_font_of_ones_own():
    path = str(glyphs.font_path("lato-black"))
    np.testing.assert_array_equal(atlas(path).cells, atlas("lato-black").cells)


def test_a_file_that_is_no_font_is_named(tmp_path):
    path = tmp_path / "captcha.ttf"
    path.write_text("no font")
    with pytest.raises(ConfigError, match=r"captcha\.ttf: not a font file"):
        atlas(str(path))


def test_a_font_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"missing\.ttf.*no such file"):
        atlas(str(tmp_path / "missing.ttf"))
    with pytest.raises(ConfigError, match="'lato-blod'.*lato-bold"):
        atlas("lato-blod")


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(glyphs.FACES, "other", ("font_of_nobody", "other.ttf"))
    with pytest.raises(ConfigError, match="font_of_nobody is not installed"):
        atlas("other")


@pytest.mark.parametrize("character", ["中", " ", "\u0e01"])
def test_a_character_that_a_font_lacks_is_named(character):
    with pytest.raises(
        ConfigError, match=f"Lato-Bold.*{character!a}" if character == " " else "Lato-Bold.*draws nothing"
    ):
        atlas("lato-bold", alphabet="a" + character)


def test_a_glyph_too_large_for_its_cell_is_named():
    with pytest.raises(ConfigError, match="'1' of size 0.9 overfills its cell of 30 pixels"):
        atlas("lato-black", alphabet="1w", size=0.9, cell=30)


def test_the_contests_font_is_no_face_of_the_simulator():
    names = [f"{package} {file}".lower() for package, file in glyphs.FACES.values()]
    assert not any("rhd" in name or "red" in name for name in names)
    default = {field.name: field.default for field in dataclasses.fields(ContestConfig)}
    assert default["font"] == ""
