"""Shows what each part adds: trains the arms of a study under several seeds and compares them on real labels.

    python -m experiments.ablate --study=route --seeds=3 --target=DIR --labels=CSV --workdir=runs/studies

Studies: route, history, adversary, lambda, labels, psi, pretraining, k_g, paper, texture, smoke (studies.py).
One workdir serves several studies of one target: arms that they share are trained once, and a killed run goes on where
it stopped. Labels are opened after the last arm is trained; then alone is an oracle trained on four fifths of them.
Prints the table in Markdown; it, the numbers in JSON and a report with pictures stand in WORKDIR/STUDY.
"""

import pathlib
import sys

from absl import flags

from experiments import _flags
from simgan_jax import ablation, devices, evaluate, labels, studies, workdir

_STUDY = flags.DEFINE_enum("study", None, sorted(studies.STUDIES), "What to compare.", required=True)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Number of seeds, from --seed on.", lower_bound=1)
_ARMS = flags.DEFINE_list("arms", None, "Names of the arms to run; all of the study if not given.")
_TARGET = flags.DEFINE_string("target", None, "Folder of captchas.", required=True)
_LABELS = flags.DEFINE_string("labels", None, "CSV with name,label, opened when all arms are trained.", required=True)
_RUNS = flags.DEFINE_list("runs", [], "Workdirs of finished experiments.run on this target, not to be trained again.")
_OUT = flags.DEFINE_string("out", None, "Also write the numbers to this JSON file.")
# What stands for a place of this machine in the command that a result tells; nothing for what does not change it.
PLACES = {"target": "DIR", "labels": "CSV", "workdir": "DIR", "runs": "DIR,...", "out": "", "compilation_cache": ""}


def command() -> str:
    """The command line without the places of this machine."""
    words, arguments = [], iter(sys.argv[1:])
    for word in arguments:
        name, equals, _ = word.lstrip("-").partition("=")
        if name in PLACES:
            if not equals:
                # The place is a word of its own.
                next(arguments, None)
            word = f"--{name}={PLACES[name]}" if PLACES[name] else ""
        if word:
            words.append(word)
    return " ".join(["python -m experiments.ablate", *words])


def main() -> int:
    _flags.divide_cpu()
    config = _flags.chosen_config()
    count = _flags.device_count(config)
    devices.check_batches(config, count)
    study = studies.study(_STUDY.value, config=config)
    if _ARMS.value:
        study = studies.only(study, _ARMS.value)
    facts = {"command": command(), "preset": _flags.PRESET.value, "target": pathlib.Path(_TARGET.value).name}
    try:
        result = ablation.run(
            _flags.workdir(),
            _TARGET.value,
            study,
            config=config,
            seeds=range(_flags.SEED.value, _flags.SEED.value + _SEEDS.value),
            read_labels=lambda: labels.read_labels(_LABELS.value),
            facts=facts,
            announce=lambda text: print(text, file=sys.stderr, flush=True),
            runs=_RUNS.value,
            devices=count,
        )
    except (labels.LabelsError, evaluate.EvaluationError, ablation.AblationError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print((_flags.workdir() / study.name / ablation.TABLE_FILE).read_text(), end="")
    if _OUT.value:
        workdir.write_json(pathlib.Path(_OUT.value), result)
    return 0


if __name__ == "__main__":
    flags.mark_flag_as_required("workdir")
    _flags.run(main)
