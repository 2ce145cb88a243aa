"""Fonts to a glyph atlas, once before a run (io)."""

import dataclasses
import importlib.util
import pathlib

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from simgan_jax.config import ConfigError

# Package and file of each face of the default mix: bold, sans serif and slab, none of them a contest's own.
FACES: dict[str, tuple[str, str]] = {
    "lato-bold": ("font_lato", "files/Lato-Bold.ttf"),
    "lato-black": ("font_lato", "files/Lato-Black.ttf"),
    "roboto-bold": ("font_roboto", "files/Roboto-Bold.ttf"),
    "roboto-black": ("font_roboto", "files/Roboto-Black.ttf"),
    "manrope-extrabold": ("font_manrope", "files/Manrope-ExtraBold.ttf"),
    "source-sans-bold": ("font_source_sans_pro", "files/SourceSansPro-Bold.ttf"),
    "source-sans-black": ("font_source_sans_pro", "files/SourceSansPro-Black.ttf"),
    "hanken-bold": ("font_hanken_grotesk", "files/HankenGrotesk-Bold.otf"),
    "dejavu-bold": ("matplotlib", "mpl-data/fonts/ttf/DejaVuSans-Bold.ttf"),
    "dejavu-mono-bold": ("matplotlib", "mpl-data/fonts/ttf/DejaVuSansMono-Bold.ttf"),
}

# What a font draws for this it draws for all that it lacks.
NOT_A_CHARACTER = "\uffff"


@dataclasses.dataclass(frozen=True)
class Atlas:
    """Glyph cells uint8 `[K, V, S, S]`: K styles (face x size x stroke), V characters, glyph in the middle."""

    cells: np.ndarray
    styles: tuple[str, ...]


def font_path(font: str) -> pathlib.Path:
    """The file of a face of the default mix, or the path itself of any other font.

    Raises:
      ConfigError: no such face or file.
    """
    if font in FACES:
        package, file = FACES[font]
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError(f"font {font!r}: package {package} is not installed: run `make setup`")
        root = pathlib.Path(next(iter(spec.submodule_search_locations)))
        return root / file
    path = pathlib.Path(font)
    if not path.is_file():
        raise ConfigError(f"font {font!r}: no such file, nor one of the known faces ({', '.join(FACES)})")
    return path


def load_font(font: str, size: int) -> ImageFont.FreeTypeFont:
    """A face at a size in pixels.

    Raises:
      ConfigError: the file is no font.
    """
    path = font_path(font)
    try:
        return ImageFont.truetype(str(path), size)
    except OSError as error:
        raise ConfigError(f"font {path}: not a font file ({error}): give a TrueType or OpenType file") from error


def draw_cell(face: ImageFont.FreeTypeFont, character: str, *, size: int, stroke: int) -> np.ndarray:
    """One glyph in the middle of a cell, uint8 `[size, size]`; the line of type, not the ink, is centred vertically.

    Glyphs of a face keep their heights to one another ('p' hangs lower than 'b'), as in a drawn text.
    """
    cell = Image.new("L", (size, size))
    middle = size / 2
    ascent, descent = face.getmetrics()
    baseline = middle + (ascent - descent) / 2 * 0.8
    ImageDraw.Draw(cell).text(
        (middle, baseline), character, fill=255, font=face, anchor="ms", stroke_width=stroke, stroke_fill=255
    )
    return np.asarray(cell)


def make_atlas(
    fonts: tuple[str, ...],
    *,
    alphabet: str,
    height: int,
    cell: int,
    sizes: tuple[float, ...],
    strokes: tuple[int, ...],
) -> Atlas:
    """The atlas of all faces, sizes (shares of the image height) and strokes (pixels).

    Raises:
      ConfigError: a font that does not exist, is no font, lacks a character of the alphabet, or overfills a cell.
    """
    cells, styles = [], []
    for font in fonts:
        for size in sizes:
            face = load_font(font, max(1, round(size * height)))
            for stroke in strokes:
                unknown = draw_cell(face, NOT_A_CHARACTER, size=cell, stroke=stroke)
                row = [draw_cell(face, character, size=cell, stroke=stroke) for character in alphabet]
                for character, image in zip(alphabet, row, strict=True):
                    if not image.any() or np.array_equal(image, unknown):
                        raise ConfigError(f"font {font_path(font)}: draws nothing for {character!r}: use another font")
                    if image[0].any() or image[-1].any() or image[:, 0].any() or image[:, -1].any():
                        raise ConfigError(
                            f"font {font_path(font)}: {character!r} of size {size:g} overfills its cell of {cell} "
                            "pixels: use a smaller size or another font"
                        )
                cells.append(np.stack(row))
                styles.append(f"{font} {size:g} +{stroke}")
    return Atlas(np.stack(cells), tuple(styles))
