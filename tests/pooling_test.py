import copy
import json

import numpy as np
import pytest

from simgan_jax import pooling, tables
from simgan_jax.tables import Outcome

HELD = np.arange(12) % 3 == 0
ARMS = ("raw", "refined", "oracle")


def outcome(generator, arm):
    measured = {"shift": generator.random(), "lost": generator.random()} if arm == "refined" else {}
    characters, believed, seconds, seconds_with = generator.random(4)
    return Outcome(generator.random(12) < 0.6, characters, believed, seconds, seconds_with, measured)


def results_of(seeds, outcomes):
    rows, before = [], None
    for arm in ARMS:
        here = [outcomes[seed][arm] for seed in seeds]
        row = tables.row(arm, here, HELD, before=before, oracle=arm == "oracle")
        rows.append(row | {"recipe": {"name": arm}})
        before = (arm, here)
    return {
        **{"study": "route", "question": "?", "preset": "cpu", "target": "x", "command": f"ablate {seeds}"},
        **{"seeds": list(seeds), "labelled": 12, "held_out": int(HELD.sum()), "rows": rows, "config": {"a": 1}},
        "choices": tables.choices({arm: [outcomes[seed][arm] for seed in seeds] for arm in ARMS[:2]}),
        "versions": {"jax": "1"},
    }


@pytest.fixture
def outcomes():
    generator = np.random.default_rng(0)
    return [{arm: outcome(generator, arm) for arm in ARMS} for _ in range(4)]


def rounded(value):
    if isinstance(value, float):
        return pytest.approx(value)
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    return [rounded(part) for part in value] if isinstance(value, list) else value


@pytest.mark.parametrize("parts", [((0, 1), (2,)), ((2, 3), (1,), (0,))])
def test_seeds_pooled_are_seeds_run_together(outcomes, parts):
    together = results_of(sorted(sum(parts, ())), outcomes)
    pooled = pooling.pool({str(seeds): results_of(seeds, outcomes) for seeds in parts})
    for key in ("rows", "choices", "seeds", "study", "labelled", "config"):
        assert pooled[key] == rounded(together[key]), key
    assert [run["command"] for run in pooled["pooled"]] == [f"ablate {seeds}" for seeds in sorted(parts)]


def test_what_was_pooled_is_pooled_again(outcomes):
    one, two, three = (results_of((seed,), outcomes) for seed in range(3))
    again = pooling.pool({"both": pooling.pool({"1": one, "2": two}), "3": three})
    assert again == rounded(pooling.pool({"1": one, "2": two, "3": three}))
    assert [run["seeds"] for run in again["pooled"]] == [[0], [1], [2]]


def test_a_measure_that_is_missing_is_left_out(outcomes):
    one, two = results_of((0,), outcomes), results_of((1,), outcomes)
    one["rows"][1]["measures"]["shift"] = None
    pooled = pooling.pool({"1": one, "2": two})
    assert pooled["rows"][1]["measures"]["shift"] == two["rows"][1]["measures"]["shift"]
    assert pooled["rows"][0]["measures"] == {}


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"target": "y"}, "two: another target than one"),
        ({"config": {"a": 2}}, "two: another config than one"),
        ({"labelled": 11}, "two: another labelled than one"),
        ({"seeds": [0]}, "two: seed 0 is in one as well"),
        ({"rows": []}, "two: other arms than one"),
    ],
)
def test_what_does_not_belong_together(outcomes, change, part):
    with pytest.raises(pooling.PoolingError, match=part):
        pooling.pool({"one": results_of((0,), outcomes), "two": results_of((1,), outcomes) | change})


def test_too_few_foreign_and_collapsed_results(outcomes):
    one, two = results_of((0,), outcomes), results_of((1,), outcomes)
    with pytest.raises(pooling.PoolingError, match="1 result: give"):
        pooling.pool({"one": one})
    with pytest.raises(pooling.PoolingError, match="two: no 'study'"):
        pooling.pool({"one": one, "two": {"rows": []}})
    gone = copy.deepcopy(two)
    gone["rows"][0]["collapsed"] = 1
    with pytest.raises(pooling.PoolingError, match="two: 'raw' collapsed"):
        pooling.pool({"one": one, "two": gone})


def test_the_script(outcomes, run_script, tmp_path):
    paths = [tmp_path / "one.json", tmp_path / "two.json"]
    for seed, path in enumerate(paths):
        path.write_text(json.dumps(results_of((seed,), outcomes)))
    results = "--results=" + ",".join(map(str, paths))
    done = run_script("experiments.pool", results, f"--out={tmp_path / 'out.json'}")
    assert (done.returncode, done.stderr) == (0, "")
    pooled = json.loads((tmp_path / "out.json").read_text())
    assert (pooled["seeds"], done.stdout) == ([0, 1], tables.markdown(pooled["rows"]))
    missing = tmp_path / "missing" / "out.json"
    refused = run_script("experiments.pool", results, f"--out={missing}")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert str(missing) in refused.stderr and len(refused.stderr.splitlines()) == 1
    paths[1].write_text("[")
    refused = run_script("experiments.pool", results, f"--out={tmp_path / 'none.json'}")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert str(paths[1]) in refused.stderr and len(refused.stderr.splitlines()) == 1
    assert not (tmp_path / "none.json").exists()
