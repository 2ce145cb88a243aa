"""Stages up to pretraining: target, simulated captchas, refiner, discriminator.

    python -m experiments.pretrain --target=DIR --workdir=runs/mine --preset=cpu

The refiner learns to leave images as they are (self-regularisation alone), then the discriminator learns to tell its
images from real ones (paper, Algorithm 1, before the loop). How long: --config.refine.refiner_pretrain_steps and
--config.refine.discriminator_pretrain_steps. Checkpoints and metrics.jsonl stand in the workdir; `train_simgan`,
`train_classifier` and `run` with the same flags continue from here.

Prints one JSON line: the discriminator's accuracy on simulated and real patches, of the last logged steps.
"""

from absl import flags

from experiments import _flags, _target
from simgan_jax import pipeline


def main() -> int:
    with _target.open_run() as (run, *_):
        pipeline.pretrain_stages(run, pipeline.simulated_pool(run))
        _target.print_last_metrics(run, "pretrain/refiner", "pretrain/discriminator")
    return 0


if __name__ == "__main__":
    flags.mark_flag_as_required("workdir")
    _flags.run(main, multihost=True)
