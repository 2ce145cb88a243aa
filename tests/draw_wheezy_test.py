import csv

import numpy as np
from PIL import Image

from simgan_jax.config import CaptchaConfig


def drawn(folder):
    with open(folder / "answers.csv", encoding="utf-8", newline="") as text:
        answers = {row["name"]: row["label"] for row in csv.DictReader(text)}
    return answers, {path.stem: np.asarray(Image.open(path)) for path in (folder / "challenges").iterdir()}


def test_captchas_and_their_texts_follow_from_the_seed(run_script, tmp_path):
    outs = {"one": 1, "same": 1, "other": 2}
    for name, seed in outs.items():
        done = run_script("experiments.draw_wheezy", "--images=3", f"--seed={seed}", f"--out={tmp_path / name}")
        assert done.returncode == 0, done.stderr
    (one, images), (same, again), (other, _) = (drawn(tmp_path / name) for name in outs)
    captcha = CaptchaConfig()
    assert one == same and one != other and sorted(images) == sorted(one) and len(one) == 3
    assert all(len(text) == captcha.length and set(text) <= set(captcha.alphabet) for text in one.values())
    for name, image in images.items():
        assert image.shape == (captcha.height, captcha.width, 3) and image.std() > 10
        np.testing.assert_array_equal(image, again[name])


def test_a_folder_that_is_there_is_left_alone(run_script, tmp_path):
    refused = run_script("experiments.draw_wheezy", "--images=1", f"--out={tmp_path}")
    assert refused.returncode == 2 and "there already" in refused.stderr and not list(tmp_path.iterdir())
