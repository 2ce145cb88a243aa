"""The main job: reads every captcha of a folder without one label.

    python -m experiments.run --target=embedded --workdir=runs/embedded
    python -m experiments.run --target=DIR --workdir=runs/mine --preset=cpu --seed=0 --config.refine.steps=300

DIR holds contest batches (JSON) or PNG/JPEG files; `embedded` draws and serves a contest of its own on loopback and
posts the answers to it. Writes predictions.csv, one predictions.ARM.csv for each arm, solutions.json, summary.json,
config.json, metrics.jsonl, report.html and checkpoints into the workdir. A killed run continues where it stopped, and
so does one that a stage script began (prepare_target, pretrain, train_simgan, train_classifier).

Prints one JSON line: images, the best arm, the believed share of right answers (no label is read to know it), seconds;
with the embedded contest a second one, its verdict, which a complete run asks for again. Exits 0 when complete, 1 if
the contest is not passed, 2 with one line if something is wrong.
"""

import json

from absl import flags

from experiments import _flags, _target
from simgan_jax import contest_client, pipeline


def main() -> int:
    with _target.open_run() as (run, identity, url, size):
        folder = run.workdir.path
        if run.workdir.done("report"):
            print(f"{folder}: complete, nothing to do; see {folder / 'report.html'}")
        else:
            summary = pipeline.run_all(run, identity)
            print(json.dumps({key: summary[key] for key in ("images", "best", "estimate", "seconds")}))
        if url is None:
            return 0
        answer = contest_client.submit(url, folder / "solutions.json", limit=size)
        print(json.dumps({"contest": answer}))
        return 0 if answer["passed"] else 1


if __name__ == "__main__":
    flags.mark_flag_as_required("workdir")
    _flags.run(main, multihost=True)
