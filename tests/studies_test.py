import dataclasses

import pytest

from simgan_jax import parts, presets, studies
from simgan_jax.config import ConfigError
from simgan_jax.studies import Arm


def test_names():
    assert list(studies.STUDIES) == [
        *("route", "history", "adversary", "lambda", "labels", "psi", "pretraining", "k_g", "paper", "texture"),
        "smoke",
    ]


@pytest.mark.parametrize("name", studies.STUDIES)
@pytest.mark.parametrize("preset", ["smoke", "cpu", "seed"])
def test_every_arm_has_a_configuration(name, preset):
    config = presets.PRESETS[preset]
    study = studies.study(name, config=config)
    assert study.name == name and study.question.endswith("?")
    for arm in study.arms:
        if arm.simulator == "fitted" and not config.fit.rounds:
            with pytest.raises(ConfigError, match=f"arm {arm.name!r} needs at least one"):
                studies.arm_config(arm, config)
            continue
        own = studies.arm_config(arm, config)
        assert own.synthesizer.law == ("seed" if arm.simulator == "seed" else "wide")
        assert own.synthesizer.pool == config.synthesizer.pool


def test_route_ends_with_the_oracle():
    names = [arm.name for arm in studies.study("route", config=presets.CPU).arms]
    assert names[:4] == ["seed raw", "seed refined", "seed both", "seed both self-trained"]
    assert names[-4:] == [
        *("fitted in rounds decided", "fitted in rounds self-trained decided", "oracle", "oracle augmented"),
    ]


def test_sizes_follow_the_configuration():
    config = presets.override(presets.CPU, {"refine.history_size": 1000, "refine.batch_size": 32})
    sizes = [arm.overrides.get("refine.history_size") for arm in studies.study("history", config=config).arms]
    assert sizes == [None, 0, 100, 1000]
    # A tenth of 100 would be less than a batch.
    config = presets.override(config, {"refine.history_size": 100})
    assert studies.study("history", config=config).arms[2].overrides == {"refine.history_size": 32}


def test_raw_arms_come_first():
    for name in studies.STUDIES:
        assert studies.study(name, config=presets.CPU).arms[0].images == "raw"


def test_overrides_reach_the_configuration():
    arm = Arm("x", overrides={"refine.k_g": 4})
    assert studies.arm_config(arm, presets.CPU) == dataclasses.replace(
        presets.CPU, refine=dataclasses.replace(presets.CPU.refine, k_g=4)
    )
    # The synthesizer is that of the arm's simulator, but for what the arm sets itself.
    arm = Arm("x", "seed", overrides={"synthesizer.codec": True})
    assert studies.arm_config(arm, presets.CPU).synthesizer == dataclasses.replace(
        presets.SEED.synthesizer, codec=True, pool=presets.CPU.synthesizer.pool
    )


@pytest.mark.parametrize(
    "fields",
    [{"simulator": "other"}, {"images": "other"}, {"training": "other"}, {"training": "rounds"}, {"share": 0.0}],
)
def test_impossible_arms(fields):
    with pytest.raises(ConfigError, match="arm 'x'"):
        Arm("x", **fields)


def test_only():
    study = studies.study("smoke", config=presets.CPU)
    assert [arm.name for arm in studies.only(study, ["refined"]).arms] == ["refined"]
    with pytest.raises(ConfigError, match="no arm 'other'.*raw, refined"):
        studies.only(study, ["raw", "other"])


def test_unknown_study_and_names_twice():
    with pytest.raises(ConfigError, match="choose one of route, "):
        studies.study("other", config=presets.CPU)
    with pytest.raises(ConfigError, match="two arms"):
        studies.Study("x", "?", (Arm("a"), Arm("a")))


def test_held_out_is_a_fifth_that_only_names_decide():
    names = [f"captcha-{i}" for i in range(1000)]
    held = studies.held_out(names)
    assert sum(held) == 200
    backwards = studies.held_out(names[::-1])
    assert backwards == held[::-1]
    assert sum(studies.held_out(["a", "b", "c"])) == 1


def test_route_steps():
    assert studies.route_steps(presets.SMOKE) == 4 + 4 + 4
    assert studies.route_steps(presets.override(presets.SMOKE, {"fit.rounds": 0})) == 4 + 4


def folder(part, *args, **overrides):
    config = presets.override(presets.CPU, {"refine.lambda_label": 0.0} | overrides)
    return parts.folder(part(*args, config), config=config)


def test_arms_share_what_does_not_depend_on_their_difference():
    raw, refined, both = (("wide", images, 1.0) for images in ("raw", "refined", "both"))
    of = parts.classifier
    assert folder(of, *raw) == folder(of, *raw, **{"refine.lambda_reg": 0.5, "fit.images": 10})
    assert folder(of, *refined) != folder(of, *refined, **{"refine.lambda_reg": 0.5})
    assert folder(parts.refiner, "wide") == folder(parts.refiner, "wide", **{"classify.steps": 7})
    assert folder(of, *raw) != folder(of, *raw, **{"classify.steps": 7})
    assert folder(of, *raw) != folder(of, *refined) != folder(of, *both)


@pytest.mark.parametrize("simulator", ["wide", "fitted"])
def test_a_refiner_held_to_labels_depends_on_the_reader_that_holds_it(simulator):
    held = {"refine.lambda_label": 1.0}
    assert folder(parts.refiner, simulator, **held) != folder(parts.refiner, simulator, **held, **{"classify.steps": 7})
    config = presets.override(presets.CPU, held)
    assert parts.classifier(simulator, "raw", 1.0, config) in parts.refiner(simulator, config).needs


def test_self_training_goes_on_from_the_same_classifier():
    base, adapted = Arm("a", images="both"), Arm("b", images="both", self_trained=True)
    assert parts.of_arm(adapted, presets.CPU).needs == (parts.of_arm(base, presets.CPU),)
    assert folder(parts.of_arm, base) == folder(parts.of_arm, base, **{"adapt.steps": 7})
    assert folder(parts.of_arm, adapted) != folder(parts.of_arm, adapted, **{"adapt.steps": 7})


def test_deciding_goes_on_from_the_same_readings():
    for self_trained in (False, True):
        base = Arm("a", "fitted", training="rounds", self_trained=self_trained)
        decided = Arm("b", "fitted", training="rounds", self_trained=self_trained, decided=True)
        assert parts.of_arm(decided, presets.CPU).needs == (parts.of_arm(base, presets.CPU),)
        assert folder(parts.of_arm, decided) != folder(parts.of_arm, decided, **{"rescore.texts": 7})
    # Self-training learns from decided readings, the rounds do not.
    assert folder(parts.rounds) == folder(parts.rounds, **{"rescore.texts": 7})
    assert folder(parts.of_arm, base) != folder(parts.of_arm, base, **{"rescore.texts": 7})


def test_what_is_read_at_shifts_depends_on_what_is_sure():
    assert parts.shifted(presets.CPU) != parts.shifted(presets.override(presets.CPU, {"rescore.sure": 0.9}))


def test_a_refiner_is_measured_by_the_reader_of_the_configuration():
    other = presets.override(presets.CPU, {"classify.steps": 7})
    assert parts.measure("wide", presets.CPU) != parts.measure("wide", other)
    assert parts.measure("wide", presets.CPU) != parts.measure("seed", presets.CPU)


@pytest.mark.parametrize("field", ["fit.rounds", "rescore.rounds"])
def test_an_arm_that_a_configuration_has_no_rounds_for_is_refused(field):
    arm = Arm("last", "fitted", "both", training="rounds", decided=True)
    with pytest.raises(ConfigError, match=f"config.{field}=0: arm 'last' needs at least one"):
        studies.arm_config(arm, presets.override(presets.CPU, {field: 0}))


def test_fitted_arms_build_on_the_rounds():
    arm = Arm("a", "fitted", "refined")
    kinds = [part.kind for part in parts.closure(parts.of_arm(arm, presets.CPU))]
    assert kinds[0] == "classifier" and {"rounds", "refiner"} <= set(kinds)
    assert folder(parts.of_arm, arm) != folder(parts.of_arm, arm, **{"fit.passes": 1})
    in_rounds = Arm("b", "fitted", "both", training="rounds")
    assert parts.of_arm(in_rounds, presets.CPU) == parts.rounds(presets.CPU)


def test_parts_with_the_same_needs_in_time_are_named_apart():
    # Two folders of one digest would let an arm take another one's classifier for its own.
    seen: dict[str, tuple[str, str]] = {}
    for name in studies.STUDIES:
        for arm in studies.study(name, config=presets.CPU).arms:
            if not arm.oracle:
                config = studies.arm_config(arm, presets.CPU)
                part = parts.of_arm(arm, config)
                content = (part.kind, repr(parts.depends(part, config=config)))
                assert seen.setdefault(parts.folder(part, config=config), content) == content
