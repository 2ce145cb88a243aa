import dataclasses

import numpy as np
import pytest

from simgan_jax import adoption, challenge, presets, session, target, workdir
from simgan_jax.studies import Arm
from simgan_jax.workbench import Workbench
from simgan_jax.workdir import Workdir, WorkdirError

CONFIG = presets.SMOKE
NAMES = ("one", "two")
STAGES = (
    *("classify/synthetic", "predict/synthetic", "pretrain/refiner", "pretrain/discriminator", "refine"),
    *("classify/refined", "predict/refined", "fit/0", "classify/fitted0", "predict/fitted0", "rescore/fitted"),
    *("adapt", "predict/adapted", "predict/final", "rescore/final", "report"),
)
ARMS = {
    "synthetic": Arm("wide raw"),
    "refined": Arm("wide refined", images="refined"),
    "fitted0": Arm("rounds", "fitted", "both", training="rounds"),
    "adapted": Arm("adapted", "fitted", "both", training="rounds", self_trained=True),
    "final": Arm("final", "fitted", "both", training="rounds", self_trained=True, shifted=True),
    "decided": Arm("decided", "fitted", "both", training="rounds", self_trained=True, decided=True),
}


def readings(arm):
    """One-hot probabilities of the text that this arm reads: 'aaaa' for the first, 'bbbb' for the second, and so on."""
    probabilities = np.zeros((2, 4, 36), np.float32)
    probabilities[:, :, list(ARMS).index(arm)] = 1.0
    return {"probabilities": probabilities, "poses": np.zeros((2, 4, 3), np.float32)}


def seen(names=NAMES, level=0):
    """Two captchas of one gray level."""
    scene = target.Scene(np.zeros((50, 100), np.float32), np.zeros((50, 100), bool), 255.0, None)
    stack = np.full((2, 50, 100), level, np.uint8)
    return session.Target(names, stack, stack, scene)


def make_run(path, *, stages=STAGES, captchas=None):
    """A run's folder as the main job leaves it, with files of no training in it."""
    captchas = captchas or seen()
    identity = {"seed": 1, "preset": "smoke", "config": dataclasses.asdict(CONFIG)}
    with Workdir(path, identity) as run:
        run.finish("target", 100.0, images=2, digest=session.digest_of(captchas))
        challenge.write_predictions(path / "predictions.csv", captchas.names, ["zzzz"] * 2, [1.0] * 2)
        for number, stage in enumerate(stages):
            kind, _, name = stage.partition("/")
            if kind == "predict":
                run.save(f"readings.{name}", **readings(name))
                file = path / f"predictions.{name}.csv"
                challenge.write_predictions(file, captchas.names, [name[:4]] * 2, [1.0] * 2)
            elif kind == "rescore":
                run.save(f"readings.rescored.{name}", **readings("decided"))
            elif kind == "fit":
                run.save(f"fit.{name}", atlas=np.zeros((1, 36, 4, 4)), poses=np.zeros((3, 4, 3)))
            elif kind != "report":
                checkpoint = session.checkpoint_folder(path, stage) / "4"
                checkpoint.mkdir(parents=True)
                (checkpoint / "data").write_text(stage)
            run.finish(stage, float(number), steps=4)
        workdir.write_json(path / "summary.json", {"best": "adapted"})


@pytest.fixture
def bench(tmp_path):
    def read_target(captcha, config):
        return seen()

    def make(seed=1):
        return Workbench(tmp_path / f"seed-{seed}", read_target, seed=seed)

    return make


def test_arms_of_a_run_need_no_training(tmp_path, bench):
    make_run(tmp_path / "run")
    for _ in range(2):
        assert adoption.adopt(tmp_path / "run", bench())
    for name, arm in ARMS.items():
        if name != "refined":
            letter = "abcdef"[list(ARMS).index(name)]
            assert bench().answer(arm, CONFIG).texts == [letter * 4] * 2
    # The classifier's own two stages.
    assert bench().answer(ARMS["synthetic"], CONFIG).seconds == 0.0 + 1.0
    # The arm that is not read at shifts does not count them, though they stand in its folder.
    plain = bench().answer(ARMS["adapted"], CONFIG)
    assert (plain.seconds, plain.seconds_with) == (10.0 + 11.0 + 12.0, sum(range(13)))
    # Deciding what to learn, adapting and reading twice; the rounds before it; both arms and the refiner before those.
    last = bench().answer(ARMS["final"], CONFIG)
    assert (last.seconds, last.seconds_with) == (10.0 + 11.0 + 12.0 + 13.0, sum(range(14)))
    answer = bench().answer(ARMS["decided"], CONFIG)
    assert (answer.seconds, answer.seconds_with) == (14.0, sum(range(15)))


def test_checkpoints_come_along(tmp_path, bench):
    make_run(tmp_path / "run")
    adoption.adopt(tmp_path / "run", bench())
    copies = {
        (path.parents[3].name.rpartition("-")[0], path.parents[1].name): path.read_text()
        for path in (tmp_path / "seed-1").rglob("data")
    }
    assert copies == {
        ("refiner-wide", "pretrain-refiner"): "pretrain/refiner",
        ("refiner-wide", "pretrain-discriminator"): "pretrain/discriminator",
        ("refiner-wide", "refine"): "refine",
        ("classifier-wide-raw", "classify-arm"): "classify/synthetic",
        ("classifier-wide-refined", "classify-arm"): "classify/refined",
        ("rounds-fitted", "classify-fitted0"): "classify/fitted0",
        ("adapted-fitted", "adapt"): "adapt",
    }


def test_answers_come_along(tmp_path, bench):
    make_run(tmp_path / "run")
    adoption.adopt(tmp_path / "run", bench())
    tables = {
        (path.parent.name.rpartition("-")[0], path.name): challenge.read_predictions(path).predictions[0]
        for path in (tmp_path / "seed-1").rglob("predictions.*.csv")
    }
    assert tables == {
        ("classifier-wide-raw", "predictions.arm.csv"): "synt",
        ("classifier-wide-refined", "predictions.arm.csv"): "refi",
        ("rounds-fitted", "predictions.fitted0.csv"): "fitt",
        ("adapted-fitted", "predictions.arm.csv"): "adap",
        ("adapted-fitted", f"predictions.shifted-{CONFIG.rescore.sure:g}.csv"): "fina",
    }


def test_runs_that_do_not_fit(tmp_path, bench):
    make_run(tmp_path / "run")
    assert not adoption.adopt(tmp_path / "run", bench(seed=0))
    assert not (tmp_path / "seed-0").exists()
    make_run(tmp_path / "early", stages=STAGES[:-1])
    with pytest.raises(WorkdirError, match="early: its run has not ended"):
        adoption.adopt(tmp_path / "early", bench())
    others = seen(names=("one", "three")), seen(level=1)
    for number, captchas in enumerate(others):
        make_run(tmp_path / f"other{number}", captchas=captchas)
        with pytest.raises(WorkdirError, match=f"other{number}: its run read other captchas"):
            adoption.adopt(tmp_path / f"other{number}", bench())
    with pytest.raises(WorkdirError, match="missing or broken"):
        adoption.adopt(tmp_path / "none", bench())
