"""Draws captchas with a generator that this project did not write, wheezy.captcha, to try the route on.

    pip install -e .[test]
    python -m experiments.draw_wheezy --images=4000 --out=data/wheezy

Warped characters of two faces that no simulator here draws with, a random curve through each, dots, and smoothing, in
the order of the generator's own example; fonts and strokes are scaled to captchas of the default size. Writes
OUT/challenges/NAME.jpg and OUT/answers.csv. Prints one JSON line. Exits 0, or 2 with one line if OUT is there already.
"""

import csv
import json
import pathlib
import random
import sys

import matplotlib
from absl import app, flags
from wheezy.captcha import image

from simgan_jax.config import CaptchaConfig

_IMAGES = flags.DEFINE_integer("images", 4000, "Captchas to draw.", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "Folder to make.", required=True)
_SEED = flags.DEFINE_integer("seed", 0, "Decides the captchas.")

FACES = ("DejaVuSerif-Bold.ttf", "DejaVuSans-BoldOblique.ttf")


def main(argv: list[str]) -> int:
    if argv[1:]:
        raise app.UsageError(f"unknown argument {argv[1]!r}")
    captcha, out = CaptchaConfig(), pathlib.Path(_OUT.value)
    if out.exists():
        print(f"{out}: there already: remove it or choose another --out", file=sys.stderr)
        return 2
    random.seed(_SEED.value)
    fonts = [str(pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf", face)) for face in FACES]
    sizes = tuple(round(share * captcha.height) for share in (0.6, 0.66, 0.72))
    characters = image.text(fonts, sizes, drawings=[image.warp(), image.rotate(), image.offset()])
    drawings = [image.background(), characters, image.curve(width=2), image.noise(30), image.smooth()]
    draw = image.captcha(drawings, captcha.width, captcha.height)
    (out / "challenges").mkdir(parents=True)
    with open(out / "answers.csv", "w", encoding="utf-8", newline="") as text:
        rows = csv.writer(text)
        rows.writerow(["name", "label"])
        for number in range(_IMAGES.value):
            name = f"{number:06d}"
            label = "".join(random.choices(captcha.alphabet, k=captcha.length))
            draw(label).save(out / "challenges" / f"{name}.jpg", quality=85)
            rows.writerow([name, label])
    print(json.dumps({"images": _IMAGES.value, "out": str(out)}))
    return 0


if __name__ == "__main__":
    app.run(main)
