"""What there is to see of a run: the target, what the refiner does, the fitted simulator (io)."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image

from simgan_jax import classify, grids, reporting, stages
from simgan_jax.session import Run

SHOWN = 10


def target_picture(run: Run) -> Image.Image:
    """The empty captcha and its lines as found in the stack, and the first images with their ink."""
    seen = run.target
    return grids.scene(seen.scene.background, seen.scene.mask, seen.gray[:SHOWN], seen.ink[:SHOWN])


def of_target(run: Run) -> reporting.Figure:
    """What the stack of target images told."""
    caption = "Empty captcha and its lines, found in the stack; images and their ink."
    return picture("The target", caption, target_picture(run))


def refinement_picture(run: Run, pool: classify.Pool, refined: classify.Pool) -> Image.Image:
    """Simulated captchas, refined ones, the difference, and real ones."""
    return grids.refinement(np.asarray(pool.ink[:SHOWN]), np.asarray(refined.ink[:SHOWN]), run.target.ink[:SHOWN])


def of_refinement(run: Run, pool: classify.Pool, refined: classify.Pool) -> reporting.Figure:
    """What the refiner does."""
    caption = "Simulated captchas before and after the refiner, beside real ones."
    return picture("Refinement", caption, refinement_picture(run, pool, refined))


def of_simulator(run: Run, number: int, simulator: stages.Simulator, fitted: classify.Pool) -> reporting.Figure:
    """The glyphs that were found in the target, and captchas drawn with them."""
    glyphs = np.asarray(jnp.round(simulator.atlas[0] * 255.0), np.uint8)
    sheet = grids.sheet(glyphs, captions=list(run.config.captcha.alphabet), across=12)
    pair = grids.grid([np.asarray(fitted.ink[:SHOWN]), run.target.ink[:SHOWN]], titles=["simulated", "real"])
    return picture(
        f"The simulator after fit {number}",
        "Glyph shapes found in the unlabelled target by drawing what was read; captchas drawn with them; real ones.",
        grids.beside(sheet, pair),
    )


def picture(title: str, caption: str, image: Any) -> reporting.Figure:
    """A figure of the report with visible pixels."""
    return reporting.Figure(title, caption, grids.png(image), pixelated=True)
