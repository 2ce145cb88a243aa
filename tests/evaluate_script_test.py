import json

import pytest

LABELS = "batch,name,label\nb-0,one,ab\nb-0,two,cd\nb-1,three,ef\n"
PREDICTIONS = "name,prediction,confidence\nthree,ef,0.9\nunlabelled,xy,0.3\ntwo,cc,0.5\none,ab,1.0\n"


@pytest.fixture
def evaluate(tmp_path, run_script):
    def evaluate(*args, labels=LABELS, predictions=PREDICTIONS):
        (tmp_path / "labels.csv").write_text(labels)
        (tmp_path / "predictions.csv").write_text(predictions)
        return run_script(
            "experiments.evaluate",
            f"--labels={tmp_path / 'labels.csv'}",
            f"--predictions={tmp_path / 'predictions.csv'}",
            *args,
        )

    return evaluate


def test_prints_one_object(evaluate):
    done = evaluate()
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert list(result)[:7] == ["n", "exact", "exact_low", "exact_high", "per_char", "per_slot", "confusions"]
    assert (result["n"], result["exact"], result["per_char"]) == (3, pytest.approx(2 / 3), pytest.approx(5 / 6))
    assert result["per_slot"] == [1.0, pytest.approx(2 / 3)]
    assert result["confusions"] == [{"true": "d", "predicted": "c", "count": 1}]
    # Confidence 0.9 and 1.0 are right, 0.5 is wrong: gaps 0.1, 0 and 0.5.
    assert result["calibration"]["ece"] == pytest.approx(0.2)
    assert [row["n"] for row in result["coverage"]] == [3, 3, 3]


def test_batches(evaluate):
    result = json.loads(evaluate("--batches=b-1").stdout)
    assert (result["n"], result["exact"]) == (1, 1.0)


def test_partial(evaluate):
    predictions = "name,prediction,confidence\ntwo,cc,0.5\n"
    refused = evaluate(predictions=predictions)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "no prediction for 2 of 3 labels, 'one' first" in refused.stderr
    result = json.loads(evaluate("--partial", predictions=predictions).stdout)
    assert (result["n"], result["exact"]) == (1, 0.0)
    assert evaluate("--partial", "--batches=b-1", predictions=predictions).returncode == 2


@pytest.mark.parametrize(
    ("args", "files", "part"),
    [
        (["--batches=b-0,b-9"], {}, "no batch 'b-9'"),
        (["--labels=missing.csv"], {}, "missing.csv: cannot be read"),
        (["--predictions=missing.csv"], {}, "missing.csv: no such file"),
        ([], {"labels": "name,text\none,ab\n"}, "no column 'label'"),
        ([], {"predictions": "name,prediction\none,ab\n"}, "header must be name,prediction,confidence"),
        ([], {"predictions": PREDICTIONS + "one,ab,0.5\n"}, "'one' was in line 5"),
        ([], {"labels": LABELS + "b-1,unlabelled,xyz\n"}, "one length"),
    ],
)
def test_one_line_if_something_is_wrong(evaluate, args, files, part):
    done = evaluate(*args, **files)
    assert (done.returncode, done.stdout) == (2, "")
    assert part in done.stderr
    assert len(done.stderr.splitlines()) == 1
