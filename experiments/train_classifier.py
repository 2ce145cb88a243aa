"""Stages up to one arm's classifier, and the target read with it.

    python -m experiments.train_classifier --target=DIR --workdir=runs/mine --preset=cpu --arm=synthetic

Arms in the order of training, each on top of those before it:
  synthetic  on simulated captchas as they are drawn; needs no refiner
  refined    the same classifier and budget, on refined captchas
  fitted0, fitted1, ...  on captchas of a simulator that was fitted to what the arms so far read in the target
  adapted    self-training on the unlabelled target
  adapted1   once more, after another fit
  adapted2, ...  once more each, while fewer captchas than config.adapt.enough are believed to be read right and the
             last round is believed to have helped; the lines that are printed tell which arms there were

Writes predictions.ARM.csv of each arm on the way. `run` with the same flags continues from here, and chooses the arm
that answers. Prints one JSON line an arm: images, mean confidence, and believed accuracy.
"""

import json

from absl import flags

from experiments import _flags, _target
from simgan_jax import pipeline
from simgan_jax.config import ConfigError

_ARM = flags.DEFINE_string("arm", "refined", "The last arm to train: synthetic, refined, fitted0, ..., adapted.")


def main() -> int:
    arms = pipeline.arm_names(_flags.chosen_config())
    if _ARM.value not in arms:
        raise ConfigError(f"--arm={_ARM.value}: this configuration has {', '.join(arms)}")
    with _target.open_run() as (run, *_):
        for arm in pipeline.train_arms(run):
            facts = run.workdir.facts(f"predict/{arm.name}")
            shown = {key: facts[key] for key in ("images", "confidence", "estimate")}
            print(json.dumps({"arm": arm.name, **shown}), flush=True)
            if arm.name == _ARM.value:
                break
    return 0


if __name__ == "__main__":
    flags.mark_flag_as_required("workdir")
    _flags.run(main, multihost=True)
