import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simgan_jax import (
    alarms,
    arms,
    deciding,
    estimate,
    pipeline,
    predictor,
    presets,
    reading,
    rounds,
    session,
    stages,
    workdir,
)
from simgan_jax.config import AdaptConfig, FitConfig


def readings(probabilities, pose):
    probabilities = np.asarray(probabilities, np.float64)[None]
    return reading.Readings(probabilities, np.full((*probabilities.shape[:2], 3), pose))


def test_mean_of_readers_takes_the_surer_ones_pose():
    one = readings([[0.9, 0.1], [0.6, 0.4]], 1.0)
    two = readings([[0.2, 0.8], [0.0, 1.0]], 2.0)
    mean = rounds.mean_readings(one, two)
    np.testing.assert_allclose(mean.probabilities, [[[0.55, 0.45], [0.3, 0.7]]])
    np.testing.assert_array_equal(mean.poses, [[[1.0] * 3, [2.0] * 3]])


def test_the_arm_that_is_believed_most_answers():
    sure = np.tile(np.eye(2), (20, 1))[:, None]
    unsure = 0.6 * sure + 0.2
    same = np.broadcast_to(np.eye(2)[:1], sure.shape)

    def arm(probabilities):
        return reading.Readings(probabilities, np.zeros((*probabilities.shape[:2], 3)))

    assert deciding.choose_arm({"one": arm(unsure), "two": arm(sure)}) == "two"
    # One answer for all images is not believed, however sure the reader is of it.
    assert deciding.choose_arm({"one": arm(unsure), "two": arm(same)}) == "one"


ADAPTED = {"adapted": "adapt", **{f"adapted{number}": f"adapt/{number}" for number in (1, 2, 3)}}


def test_arm_names():
    assert rounds.adapted_arms(presets.CPU) == ADAPTED
    assert pipeline.arm_names(presets.CPU) == ("synthetic", "refined", "fitted0", "fitted1", *ADAPTED)
    plain = dataclasses.replace(presets.CPU, fit=FitConfig(rounds=0), adapt=AdaptConfig(steps=0))
    assert pipeline.arm_names(plain) == ("synthetic", "refined")


@pytest.fixture
def reopened(small_run, tmp_path):
    """A copy of the small run, in the middle of its work again: a function of the stage that is not done there."""

    def reopen(stage):
        folder = tmp_path / "run"
        shutil.copytree(small_run.workdir, folder)
        stages = [row for row in json.loads((folder / "stages.json").read_text()) if row["stage"] != stage]
        (folder / "stages.json").write_text(json.dumps(stages))
        identity = workdir.read_json(folder / "config.json")
        config = workdir.config_from(identity.pop("config"))
        return session.open_run(folder, small_run.challenges, config=config, identity=identity, seed=identity["seed"])

    return reopen


def test_a_simulator_of_another_range_is_refused_before_it_is_trained_on(reopened):
    with reopened("pretrain/refiner") as run:
        pool = arms.simulated_pool(run)
        gray = pool._replace(ink=pool.ink // 2 + 100)
        with pytest.raises(alarms.CollapseError, match="background is 100 in synthetic and 0 in real"):
            pipeline.pretrain_stages(run, gray)
        assert not run.workdir.done("pretrain/refiner")


def test_a_classifier_that_breaks_down_ends_the_run(reopened):
    with reopened("classify/refined") as run:
        pool = arms.simulated_pool(run)
        run.config = dataclasses.replace(run.config, classify=dataclasses.replace(run.config.classify, lr=1e30))
        with pytest.raises(alarms.CollapseError, match="^training collapsed: .* is (nan|inf): lower the learning"):
            arms.classify_stage(run, "broken", pool, None, total=4)
        assert not run.workdir.done("classify/broken")


def test_glyphs_of_a_fit_that_failed_decide_nothing(reopened):
    """Where an arm from before the fit is believed more, what the fitted one read is learned as it stands."""
    with reopened("rescore/fitted") as run:
        fitted = reading.Readings(**run.workdir.load("readings.fitted0"))
        # Each character once in each slot, surely or hardly.
        even = np.eye(4, dtype=np.float32)[np.arange(60) % 4][:, None].repeat(2, axis=1)
        sure, unsure = (reading.Readings(0.01 + even * share, fitted.poses) for share in (0.96, 0.3))
        atlas = deciding.last_glyphs(run)

        def decided(raw, refined, last, atlas=atlas):
            return deciding.decided_belief(run, {"synthetic": raw, "refined": refined, "fitted": last}, atlas)

        assert decided(sure, unsure, fitted) is decided(unsure, sure, fitted) is fitted
        # More certain than `adapt.sure` are every second, and none as certain as the answers must be.
        probabilities = np.where(np.arange(60)[:, None, None] % 2, 0.004 + even * 0.984, 0.05 + even * 0.8)
        believed = fitted._replace(probabilities=probabilities)
        assert run.config.adapt.sure < reading.certainty(probabilities)[1::2].min() < run.config.rescore.sure
        assert decided(unsure, unsure, believed, None) is believed
        assert not run.workdir.done("rescore/fitted")
        found = decided(unsure, unsure, believed)
        assert run.workdir.done("rescore/fitted")
        assert np.abs(found.probabilities - believed.probabilities)[::2].max() > 0.01
        np.testing.assert_array_equal(found.probabilities[1::2], believed.probabilities[1::2])
        assert run.workdir.facts("rescore/fitted")["images"] == 30


def test_self_training_goes_on_while_it_is_believed_to_help(reopened):
    """Up to `adapt.rounds` rounds, each on what the one before it read, decided by drawing."""
    with reopened("predict/final") as run:
        poses = run.workdir.load("readings.fitted0")["poses"]
        # All read as one text, which is hardly believed, and every character as often as the others, which is more.
        chance = np.full((60, 2, 4), 0.2, np.float32)
        one, even = chance.copy(), chance.copy()
        # Less sure than any reader that tells four characters apart at all.
        one[..., 0] = 0.26
        even[np.arange(60)[:, None], np.arange(2), np.arange(60)[:, None] % 4] = 0.4
        pool = arms.simulated_pool(run)
        params = predictor.load(run.workdir.path).params
        simulator = stages.fitted_simulator(run.config, **run.workdir.load("fit.0"))

        def trained(last, simulator=simulator, **settings):
            run.config = dataclasses.replace(run.config, adapt=dataclasses.replace(run.config.adapt, **settings))
            seen = dict.fromkeys(deciding.BEFORE_FIT, reading.Readings(chance, poses))
            seen = seen | {"fitted": reading.Readings(last, poses)}
            return list(rounds.adapt_rounds(run, seen, params, simulator, pool, pool))

        assert [arm.name for arm in trained(one, rounds=1)] == ["adapted"]
        # Nothing was fitted: there are no glyphs to decide with.
        assert [arm.glyphs for arm in trained(one, simulator=None, rounds=1)] == [None]
        assert not run.workdir.done("adapt/1")
        first, second = trained(one, rounds=2)
        assert (first.name, second.name) == ("adapted", "adapted1")
        assert run.workdir.done("rescore/adapted") and run.workdir.facts("adapt/1")["steps"] == 4
        # It was fitted anew before, and what drawings left came into the simulator.
        assert run.workdir.done("fit/1") and run.workdir.facts("pool/adapted1")["images"] == run.config.fit.pool
        assert first.glyphs is not None and second.glyphs is not None
        assert np.abs(second.glyphs - first.glyphs).max() > 0.0
        np.testing.assert_array_equal(second.glyphs, run.workdir.load("fit.1")["atlas"])
        assert (len(first.figures), len(second.figures)) == (0, 1)
        # There is a third round while less than enough is believed to be read, and more than before.
        believed = {}
        for better in (one, even):
            run.workdir.save("readings.adapted", probabilities=one, poses=poses)
            run.workdir.save("readings.adapted1", probabilities=better, poses=poses)
            believed = {
                arm.name: estimate.accuracy(arm.readings.probabilities).estimate for arm in trained(one, rounds=3)
            }
            assert ("adapted2" in believed) == (better is even)
        enough = believed["adapted1"]
        assert believed["adapted"] < enough < 1.0
        assert [arm.name for arm in trained(one, rounds=3, enough=enough)] == ["adapted", "adapted1"]
        # The second went on from the first, and is what a run that chose it predicts with.
        summary = workdir.read_json(run.workdir.path / "summary.json") | {"best": "adapted1"}
        workdir.write_json(run.workdir.path / "summary.json", summary)
        config = workdir.read_json(run.workdir.path / "config.json")
        config["config"]["adapt"]["rounds"] = 2
        workdir.write_json(run.workdir.path / "config.json", config)
        chosen = predictor.load(run.workdir.path).params
        same = jax.tree.map(lambda a, b: bool((a == b).all()), chosen, second.params)
        assert all(jax.tree.leaves(same))
        moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), first.params, second.params)
        assert 0.0 < max(jax.tree.leaves(moved)) < 0.1


def test_unsure_answers_of_a_fitted_arm_are_drawn_and_predicted_alike(small_run, reopened):
    """What the stage decided is loaded when asked again, and the predictor decides the same of the same images."""
    with reopened("rescore/final") as run:
        folder = run.workdir.path
        (folder / "rescore.final.npz").unlink(missing_ok=True)
        first = reading.Readings(**run.workdir.load("readings.fitted0"))
        atlas = deciding.last_glyphs(run)
        params = predictor.load(folder).params
        read = arms.read_arm(run, "again", params, first=arms.read_arm(run, "plain", params))
        decided = deciding.rescore_stage(run, "final", read, atlas)
        assert run.workdir.done("rescore/final")
        assert np.abs(decided.probabilities - read.probabilities).max() > 0.01
        np.testing.assert_allclose(decided.probabilities.sum(-1), 1.0, atol=1e-5)
        again = deciding.rescore_stage(run, "final", first, atlas)
        np.testing.assert_array_equal(again.probabilities, decided.probabilities)
    texts, confidences = reading.answers(decided.probabilities, run.config.captcha)
    (batch,) = predictor.predict(predictor.load(folder), [small_run.challenges])
    assert batch[1] == texts
    np.testing.assert_allclose(batch[2], confidences, atol=1e-5)
