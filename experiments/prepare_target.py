"""First stage alone: reads the captchas of a folder and finds what they share.

    python -m experiments.prepare_target --target=DIR --workdir=runs/mine
    python -m experiments.prepare_target --target=embedded --workdir=runs/embedded

Checks every file, estimates the empty captcha, the pixels of its fixed lines and the gray of full ink from the stack,
and writes scene.npz and target.png into the workdir: look at target.png before you spend time on training. If its ink
is no clean text, change --config.target.* (another workdir then). Seconds for some thousands of captchas.

Prints one JSON line. `python -m experiments.run` with the same flags continues from here.
"""

import json

from absl import flags

from experiments import _flags, _target
from simgan_jax import atomic, figures, grids


def main() -> int:
    # The flags of a run hold here as well, --devices among them.
    _flags.divide_cpu()
    with _target.open_run() as (run, *_):
        scene = run.target.scene
        picture = run.workdir.path / "target.png"
        atomic.write_bytes(picture, grids.png(figures.target_picture(run)))
        facts = {
            "images": len(run.target.names),
            "ink_level": round(scene.level, 1),
            "line_share": round(float(scene.mask.mean()), 4),
            "ink_share": round(float((run.target.ink > 127).mean()), 4),
            "jpeg_table": scene.table is not None,
            "picture": str(picture),
        }
        print(json.dumps(facts))
    return 0


if __name__ == "__main__":
    flags.mark_flag_as_required("workdir")
    _flags.run(main)
