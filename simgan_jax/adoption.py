"""Takes over what a finished run of the main job has trained, so that a study need not train it again (io)."""

import os
import pathlib
import shutil

from simgan_jax import parts, workdir
from simgan_jax.parts import Part
from simgan_jax.readers import ARM, DECIDED
from simgan_jax.session import checkpoint_folder, digest_of
from simgan_jax.studies import Arm
from simgan_jax.workbench import Workbench


def adopt(run: str | os.PathLike[str], bench: Workbench) -> bool:
    """Copies the parts of a finished run to a bench of its seed; False if it is another seed's.

    They stand under the run's own configuration: an arm of another configuration does not find them.

    Raises:
      WorkdirError: no finished run, or one of other captchas.
    """
    source = pathlib.Path(run)
    identity = workdir.read_json(source / workdir.CONFIG_FILE)
    rows = {row["stage"]: row for row in workdir.read_json(source / workdir.STAGES_FILE)}
    if "report" not in rows:
        raise workdir.WorkdirError(f"{source}: its run has not ended: let it, or leave it out")
    if identity["seed"] != bench.seed:
        return False
    config = workdir.config_from(identity["config"])
    if rows["target"].get("digest") != digest_of(bench.target(config)):
        raise workdir.WorkdirError(
            f"{source}: its run read other captchas, or an earlier version made it: give the target that it read, or "
            "leave it out"
        )
    rounds = config.fit.rounds
    wide = parts.refiner("wide", config)
    stages = {stage: stage for stage in ("pretrain/refiner", "pretrain/discriminator", "refine")}
    plans: list[tuple[Part, dict[str, str]]] = [(wide, stages)]
    for arm, images in (("synthetic", "raw"), ("refined", "refined")):
        plan = {f"classify/{arm}": f"classify/{ARM}", f"predict/{arm}": f"predict/{ARM}"}
        plans.append((parts.classifier("wide", images, 1.0, config), plan))
    names = {"synthetic": 1, "refined": 2}
    if rounds:
        plan = {}
        for number in range(rounds):
            for stage in (f"fit/{number}", f"classify/fitted{number}", f"predict/fitted{number}"):
                plan[stage] = stage
        plans.append((parts.rounds(config), plan))
        names[f"fitted{rounds - 1}"] = 3
        if config.adapt.steps:
            last = Arm("", "fitted", "both", training="rounds", self_trained=True)
            plan = {"rescore/fitted": "rescore/fitted", "adapt": "adapt", "predict/adapted": f"predict/{ARM}"}
            plans.append((parts.of_arm(last, config), plan))
            names["adapted"] = 4
    best = workdir.read_json(source / "summary.json")["best"]
    if best in names:
        plans[names[best]][1]["predict/final"] = f"predict/{parts.shifted(config)}"
        if names[best] > 2:
            answer = Arm("", "fitted", "both", training="rounds", self_trained=best == "adapted", decided=True)
            plans.append((parts.of_arm(answer, config), {"rescore/final": f"rescore/{DECIDED}"}))
    for part, plan in plans:
        with bench.open(part, config) as made:
            for old, new in plan.items():
                if old in rows and not made.workdir.done(new):
                    _copy(source, made.workdir.path, old, new)
                    facts = {key: value for key, value in rows[old].items() if key not in ("stage", "seconds")}
                    made.workdir.finish(new, rows[old]["seconds"], **facts)
            if part == parts.rounds(config) and not made.workdir.done(f"predict/{ARM}"):
                last_readings = f"readings.fitted{rounds - 1}"
                made.workdir.save(f"readings.{ARM}", **made.workdir.load(last_readings))
                made.workdir.finish(f"predict/{ARM}", 0.0)
    return True


def _copy(source: pathlib.Path, folder: pathlib.Path, old: str, new: str) -> None:
    """Copies the files of one stage."""
    kind, _, name = old.partition("/")
    if kind == "predict":
        renamed = new.partition("/")[2]
        shutil.copyfile(source / f"readings.{name}.npz", folder / f"readings.{renamed}.npz")
        shutil.copyfile(source / f"predictions.{name}.csv", folder / f"predictions.{renamed}.csv")
    elif kind == "rescore":
        shutil.copyfile(source / f"readings.rescored.{name}.npz", folder / f"readings.rescored.{name}.npz")
    elif kind == "fit":
        shutil.copyfile(source / f"fit.{name}.npz", folder / f"fit.{name}.npz")
    else:
        target = checkpoint_folder(folder, new)
        half = target.with_name(f".{target.name}.half")
        for there in (half, target):
            shutil.rmtree(there, ignore_errors=True)
        shutil.copytree(checkpoint_folder(source, old), half)
        half.rename(target)
