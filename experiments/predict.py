"""Reads new images with a trained run; CSV `name,prediction,confidence` to stdout.

python -m experiments.predict --workdir=runs/mine --images=DIR
python -m experiments.predict --workdir=runs/mine --images=one.png,two.png
"""

import csv
import sys

from absl import flags

from experiments import _flags
from simgan_jax import predictor

_IMAGES = flags.DEFINE_list(
    "images", None, "Folder of captchas, contest file, or image files with commas.", required=True
)


def main() -> int:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    reader = predictor.load(_flags.workdir())
    writer.writerow(("name", "prediction", "confidence"))
    for names, texts, confidences in predictor.predict(reader, _IMAGES.value):
        for name, text, confidence in zip(names, texts, confidences, strict=True):
            writer.writerow((name, text, f"{confidence:.6f}"))
    return 0


if __name__ == "__main__":
    flags.mark_flag_as_required("workdir")
    _flags.run(main)
