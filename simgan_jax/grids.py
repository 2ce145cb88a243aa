"""Pictures of many images at once, as PNG (io).

Symbols: `N` images of `[H, W]`, uint8 at rest: gray, or `[N, H, W, 3]` in colour. Pixels are enlarged as they are.
"""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GROUND = (22, 24, 29)
TEXT = (214, 217, 222)
ADDED, REMOVED = (255, 150, 50), (70, 150, 255)
GAP = 6
FONT_SIZE = 13


def difference(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Colours `[N, H, W, 3]` of the change from `before` to `after`, both gray `[N, H, W]`.

    Black where nothing changed, orange where ink was added, blue where it was removed; brightness is the root of the
    change, so that small ones show.
    """
    change = after.astype(np.float32) - before.astype(np.float32)
    share = np.sqrt(np.abs(change) / 255.0)[..., None]
    colours = np.where(change[..., None] > 0, np.array(ADDED, np.float32), np.array(REMOVED, np.float32))
    return np.rint(share * colours).astype(np.uint8)


def grid(
    columns: Sequence[np.ndarray], *, titles: Sequence[str] = (), notes: Sequence[str] = (), scale: int = 2
) -> Image.Image:
    """Columns of images of one size side by side, as many rows as the shortest has.

    Args:
      columns: gray `[N, H, W]` or colour `[N, H, W, 3]` each.
      titles: texts above the columns; notes: texts to the right of the rows.
      scale: screen pixels per pixel.

    Raises:
      ValueError: no images, or images of different sizes.
    """
    columns = [_colour(column) for column in columns]
    rows = min((len(column) for column in columns), default=0)
    cells = [(column[row], "") for row in range(rows) for column in columns]
    tiles = _sheet(cells, len(columns), scale)
    above = FONT_SIZE + 2 * GAP if titles else 0
    font = ImageFont.load_default(FONT_SIZE)
    beside = max((int(font.getlength(note)) + 2 * GAP for note in notes[:rows]), default=0)
    out = Image.new("RGB", (tiles.width + beside, tiles.height + above), GROUND)
    out.paste(tiles, (0, above))
    draw = ImageDraw.Draw(out)
    step_x, step_y = (tiles.width - GAP) // len(columns), (tiles.height - GAP) // rows
    for i, title in enumerate(titles[: len(columns)]):
        draw.text((GAP + i * step_x, GAP), title, TEXT, font)
    for i, note in enumerate(notes[:rows]):
        draw.text((tiles.width + GAP // 2, above + GAP + i * step_y + (step_y - GAP) // 2), note, TEXT, font, "lm")
    return out


def refinement(
    simulated: np.ndarray, refined: np.ndarray, real: np.ndarray, *, notes: Sequence[str] = (), scale: int = 2
) -> Image.Image:
    """Simulated | refined | difference | real, each gray `[N, H, W]`; notes to the right, such as the labels.

    Raises:
      ValueError: as `grid`.
    """
    columns = [simulated, refined, difference(simulated, refined), real]
    titles = ["simulated", "refined", "ink added / removed", "real"]
    return grid(columns, titles=titles, notes=notes, scale=scale)


def scene(
    background: np.ndarray, mask: np.ndarray, gray: np.ndarray, ink: np.ndarray, *, scale: int = 2
) -> Image.Image:
    """The empty captcha `[H, W]` over its line pixels, bool `[H, W]`; then real images over their ink, `[N, H, W]`.

    Raises:
      ValueError: as `grid`.
    """
    empty = np.stack([np.clip(np.rint(background), 0, 255).astype(np.uint8), np.where(mask, 255, 0).astype(np.uint8)])
    pairs = [np.stack(pair) for pair in zip(gray, ink, strict=True)]
    titles = ["empty; lines below", "real; ink below"]
    return grid([empty, *pairs], titles=titles, scale=scale)


def sheet(images: np.ndarray, *, captions: Sequence[str] = (), across: int = 6, scale: int = 2) -> Image.Image:
    """Images `[N, H, W]` or `[N, H, W, 3]` row by row, each above its caption.

    Raises:
      ValueError: no images, or another number of captions than none or N.
    """
    return _sheet(list(zip(_colour(images), captions or [""] * len(images), strict=True)), across, scale)


def readings(
    images: np.ndarray,
    texts: Sequence[str],
    confidences: Sequence[float] | np.ndarray,
    *,
    across: int = 6,
    scale: int = 2,
) -> Image.Image:
    """`sheet` with what was read in each image and how sure the reader is.

    Raises:
      ValueError: no images, or other numbers of texts or confidences.
    """
    captions = [f"{text}  {100 * confidence:.1f} %" for text, confidence in zip(texts, confidences, strict=True)]
    return sheet(images, captions=captions, across=across, scale=scale)


def beside(*pictures: Image.Image) -> Image.Image:
    """Pictures side by side, tops aligned."""
    out = Image.new("RGB", (sum(p.width for p in pictures), max(p.height for p in pictures)), GROUND)
    left = 0
    for picture in pictures:
        out.paste(picture, (left, 0))
        left += picture.width
    return out


def png(image: Image.Image | np.ndarray) -> bytes:
    """PNG file of a picture, or of an array uint8 `[H, W]` or `[H, W, 3]`."""
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, "PNG", optimize=True)
    return out.getvalue()


def _colour(images: np.ndarray) -> np.ndarray:
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise ValueError(f"images {images.dtype}{list(images.shape)}: give uint8 [N, H, W] or [N, H, W, 3]")
    return images if images.ndim == 4 else np.repeat(images[..., None], 3, axis=-1)


def _sheet(cells: Sequence[tuple[np.ndarray, str]], across: int, scale: int) -> Image.Image:
    """Cells row by row, a gap around each, and its text below it."""
    sizes = {image.shape[:2] for image, _ in cells}
    if len(sizes) != 1:
        raise ValueError(f"images of {len(sizes)} sizes: give at least one image, all of one size")
    height, width = (scale * side for side in sizes.pop())
    below = FONT_SIZE + GAP if any(text for _, text in cells) else 0
    step_x, step_y = width + GAP, height + below + GAP
    across = min(across, len(cells))
    out = Image.new("RGB", (GAP + across * step_x, GAP + -(-len(cells) // across) * step_y), GROUND)
    draw, font = ImageDraw.Draw(out), ImageFont.load_default(FONT_SIZE)
    for i, (image, text) in enumerate(cells):
        corner = (GAP + i % across * step_x, GAP + i // across * step_y)
        out.paste(Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST), corner)
        draw.text((corner[0], corner[1] + height + GAP // 2), text, TEXT, font)
    return out
