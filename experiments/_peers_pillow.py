"""The way in which the notebook drew its captchas: Pillow, one image at a time, drawn again until it looks separated.

Written anew from its description, to be timed beside the synthesizer. Images are 100 x 50 as there.
"""

import random

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from simgan_jax import glyphs

WIDTH, HEIGHT, TILE, LENGTH, POINTS = 100, 50, 40, 4, 26


def runs(picture: np.ndarray) -> int:
    """Inked runs of 8 columns or more, between columns that are (nearly) as empty as the emptiest."""
    columns = picture.astype(float).sum(axis=0)
    empty = np.flatnonzero(columns < columns.min() + 2).tolist()
    return sum(after - before >= 8 for before, after in zip(empty, empty[1:], strict=False))


class Drawer:
    """Draws as the notebook did. lines: bool `[50, 100]`, what all its captchas share."""

    def __init__(self, lines: np.ndarray, *, alphabet: str, font: str = "dejavu-bold", seed: int = 0) -> None:
        self.lines, self.alphabet = lines, alphabet
        self.face: ImageFont.FreeTypeFont = glyphs.load_font(font, POINTS)
        self.random, self.noise = random.Random(seed), np.random.default_rng(seed)
        self.attempts = 0

    def draw(self) -> tuple[np.ndarray, str]:
        """One captcha, bool `[50, 100]`, and its text."""
        while True:
            self.attempts += 1
            picture, text = self._attempt()
            if runs(np.asarray(picture)) == LENGTH:
                inked = np.bitwise_or(self.lines, np.asarray(picture)).astype(float)
                return self.noise.random(inked.shape) * inked > 0.0, text

    def _attempt(self) -> tuple[Image.Image, str]:
        uniform = self.random.random
        picture = Image.new("1", (WIDTH, HEIGHT))
        text = "".join(self.random.choice(self.alphabet) for _ in range(LENGTH))
        for i, character in enumerate(text):
            tile = Image.new("L", (TILE, TILE))
            ImageDraw.Draw(tile).text((0, 0), character, font=self.face, fill=255)
            if uniform() > 0.5:
                turned = tile.rotate(20 * (1 - uniform()), expand=True)
                corner = (i * 20 + int(25 * uniform()), int(25 - 30 * uniform()))
            else:
                turned = tile.rotate(-20 * (1 - uniform()), expand=True)
                corner = (i * 20 + int(25 * uniform()), int(20 * uniform()))
            picture.paste(turned, corner, turned)
        return picture, text
