"""The main job: reads every captcha of a folder without one label.

    python -m experiments.run --target=embedded --workdir=runs/embedded
    python -m experiments.run --target=DIR --workdir=runs/mine --preset=cpu --seed=0 --config.refine.steps=300

DIR holds contest batches (JSON) or PNG/JPEG files; `embedded` draws and serves a contest of its own on loopback and
posts the answers to it. Writes predictions.csv, one predictions.ARM.csv for each arm, solutions.json, summary.json,
config.json, metrics.jsonl, report.html and checkpoints into the workdir. A killed run continues where it stopped.
"""

import contextlib
import json
import pathlib

from absl import flags

from experiments import _flags
from simgan_jax import contest, contest_client, pipeline, session

_TARGET = flags.DEFINE_string("target", None, "Folder of unlabelled captchas, or `embedded`.", required=True)
_USER = flags.DEFINE_string("user", "alice", "User of the embedded contest; decides its stripes and lines.")
_IMAGES = flags.DEFINE_integer("embedded_images", 4000, "Captchas of the embedded contest.", lower_bound=1)
BATCH = 1000


def main() -> int:
    config = _flags.chosen_config()
    workdir = _flags.workdir()
    target = _TARGET.value
    embedded = target == "embedded"
    identity = {"preset": _flags.PRESET.value, "seed": _flags.SEED.value, "target": target}
    with contextlib.ExitStack() as stack:
        captchas = pathlib.Path(target)
        if embedded:
            identity |= {"user": _USER.value, "embedded_images": _IMAGES.value}
            batch = min(BATCH, _IMAGES.value)
            game = contest.Contest(_USER.value, seed=_flags.SEED.value, size=_IMAGES.value, batch_size=batch)
            url = stack.enter_context(contest.serve(game))
            captchas = workdir.with_name(workdir.name + ".challenges")
            captchas.mkdir(parents=True, exist_ok=True)
            contest_client.download(url, -(-_IMAGES.value // batch), captchas)
        run = stack.enter_context(
            session.open_run(workdir, captchas, config=config, identity=identity, seed=_flags.SEED.value)
        )
        if run.workdir.done("report"):
            print(f"{workdir}: complete, nothing to do; see {workdir / 'report.html'}")
            return 0
        summary = pipeline.run_all(run, identity)
        print(json.dumps({key: summary[key] for key in ("images", "best", "estimate", "seconds")}))
        if embedded:
            answer = contest_client.submit(url, workdir / "solutions.json")
            print(json.dumps({"contest": answer}))
            return 0 if answer["passed"] else 1
    return 0


if __name__ == "__main__":
    flags.mark_flag_as_required("workdir")
    _flags.run(main)
