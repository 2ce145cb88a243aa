"""Stages up to refinement: everything of `pretrain`, the first classifier if asked, then Algorithm 1 of the paper.

    python -m experiments.train_simgan --target=DIR --workdir=runs/mine --preset=cpu --config.refine.lambda_reg=0.05

Refiner against discriminator, with self-regularisation and a history of refined images; --config.refine.* has steps,
k_g, k_d, psi, learning rates and the history's size. With lambda_label above 0, as in the preset cpu, a classifier of
the simulated captchas is trained first, which holds refined ones to their labels. Ends with exit code 2 if the training
collapses. Writes refinement.png: simulated captchas, refined ones, what was changed, and real ones. A killed run
continues from its last checkpoint; `train_classifier` and `run` with the same flags continue from here.

Prints one JSON line: losses and accuracies of the last logged steps.
"""

from absl import flags

from experiments import _flags, _target
from simgan_jax import arms, atomic, figures, grids, pipeline, stages


def main() -> int:
    with _target.open_run() as (run, *_):
        pool = arms.simulated_pool(run)
        reader = arms.first_classifier(run, pool) if run.config.refine.lambda_label else None
        params = pipeline.refine_stages(run, pool, reader)
        shown = stages.take(pool, figures.SHOWN)
        refined = stages.refine_pool(run.keys["latents"], params, shown, config=run.config)
        picture = figures.refinement_picture(run, shown, refined)
        atomic.write_bytes(run.workdir.path / "refinement.png", grids.png(picture))
        _target.print_last_metrics(run, "refine")
    return 0


if __name__ == "__main__":
    flags.mark_flag_as_required("workdir")
    _flags.run(main, multihost=True)
