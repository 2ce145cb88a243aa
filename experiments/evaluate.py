"""Scores the predictions of a run against labels and prints one JSON object.

    python -m experiments.evaluate --predictions=runs/first/predictions.csv --labels=labels.csv

Keys: n, exact, exact_low, exact_high (95 % Wilson interval), per_char, per_slot, confusions; also calibration and
coverage (accuracy of the most confident 90, 95 and 99 %). Shares are fractions of 1. Labels are CSV with the columns
name and label; with a column batch, --batches scores some of them. Besides this only `experiments.ablate` reads
labels: after its arms are trained, and to train its oracle. Exits 2 with one line if something is wrong.
"""

import json
import sys

from absl import app, flags

from simgan_jax import challenge, evaluate, labels

_PREDICTIONS = flags.DEFINE_string("predictions", None, "CSV name,prediction,confidence of a run.", required=True)
_LABELS = flags.DEFINE_string("labels", None, "CSV with name,label or batch,name,label.", required=True)
_BATCHES = flags.DEFINE_list(
    "batches", None, "Score these batches alone, e.g. challenge-8,challenge-9; all if not given."
)
_PARTIAL = flags.DEFINE_boolean("partial", False, "Leave labels without a prediction out instead of refusing.")
_TOP = flags.DEFINE_integer("top", 30, "The number of confusions to name.", lower_bound=0)


def main(argv: list[str]) -> int:
    if argv[1:]:
        raise app.UsageError(f"unknown argument {argv[1]!r}")
    try:
        truth = labels.read_labels(_LABELS.value, batches=_BATCHES.value or None)
        table = challenge.read_predictions(_PREDICTIONS.value)
        rows = {name: i for i, name in enumerate(table.names)}
        missing = [name for name in truth if name not in rows]
        if missing and not (_PARTIAL.value and len(missing) < len(truth)):
            raise evaluate.EvaluationError(
                f"{_PREDICTIONS.value}: no prediction for {len(missing)} of {len(truth)} labels, {missing[0]!r} first: "
                "predict every image, choose --batches, or leave labels out with --partial"
            )
        names = [name for name in truth if name in rows]
        texts = [table.predictions[rows[name]] for name in names]
        confidences = table.confidences[[rows[name] for name in names]]
        answers = [truth[name] for name in names]
        right = evaluate.exact_match(texts, answers)
        result = evaluate.score(texts, answers, top=_TOP.value)
        result["calibration"] = evaluate.calibration(confidences, right)
        result["coverage"] = evaluate.coverage(confidences, right)
    except (challenge.ChallengeError, labels.LabelsError, evaluate.EvaluationError) as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    app.run(main)
