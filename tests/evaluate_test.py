import itertools
import string

import numpy as np
import pytest
from scipy import stats

from simgan_jax import evaluate
from simgan_jax.evaluate import EvaluationError


def test_wilson_by_hand():
    # z = 1.959964, z^2 / 10 = 0.3841459: (0.8 + 0.1920729 +- 1.959964 sqrt(0.016 + 0.00960365)) / 1.3841459.
    assert evaluate.wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    # None right: the upper end is z^2 / (n + z^2).
    assert evaluate.wilson(0, 10) == pytest.approx((0.0, 3.8414588 / 13.8414588), abs=1e-7)
    assert evaluate.wilson(10, 10) == pytest.approx((10 / 13.8414588, 1.0), abs=1e-7)
    assert (evaluate.wilson(0, 7)[0], evaluate.wilson(7, 7)[1]) == (0.0, 1.0)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.99])
def test_wilson_agrees_with_scipy(confidence):
    for n in (1, 7, 400):
        for correct in {0, 1, n // 3, n - 1, n}:
            expected = stats.binomtest(correct, n).proportion_ci(confidence, method="wilson")
            assert evaluate.wilson(correct, n, confidence=confidence) == pytest.approx(tuple(expected), abs=1e-12)


@pytest.mark.parametrize(("correct", "n", "confidence"), [(0, 0, 0.95), (3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0)])
def test_wilson_refuses(correct, n, confidence):
    with pytest.raises(EvaluationError):
        evaluate.wilson(correct, n, confidence=confidence)


def test_exact_match():
    right = evaluate.exact_match(["ab", "cd", "e", ""], ["ab", "ce", "ef", "gh"])
    assert right.dtype == bool
    assert right.tolist() == [True, False, False, False]


def test_score_by_hand():
    labels = ["il1", "il2", "ab3", "ab4", "zz5"]
    predictions = ["il1", "ll2", "lb3", "ab", "zz55"]
    result = evaluate.score(predictions, labels)
    assert list(result) == ["n", "exact", "exact_low", "exact_high", "per_char", "per_slot", "confusions"]
    low, high = evaluate.wilson(1, 5)
    assert (result["n"], result["exact"], result["exact_low"], result["exact_high"]) == (5, 0.2, low, high)
    # Wrong: i as l, a as l, and the missing 4; the surplus 5 makes its text wrong, but no slot.
    assert result["per_slot"] == [0.6, 1.0, 0.8]
    assert result["per_char"] == pytest.approx(12 / 15)
    assert result["confusions"] == [
        {"true": "4", "predicted": "", "count": 1},
        {"true": "a", "predicted": "l", "count": 1},
        {"true": "i", "predicted": "l", "count": 1},
    ]


def test_confusions_are_ranked_and_cut():
    result = evaluate.score(["a", "a", "b", "d"], ["b", "b", "a", "c"], top=2)
    assert result["confusions"] == [
        {"true": "b", "predicted": "a", "count": 2},
        {"true": "a", "predicted": "b", "count": 1},
    ]
    pairs = list(itertools.permutations(string.ascii_lowercase[:7], 2))
    assert len(evaluate.score([a for a, _ in pairs], [b for _, b in pairs])["confusions"]) == 30


@pytest.mark.parametrize(
    ("predictions", "labels", "part"),
    [
        ([], [], "nothing to score"),
        (["a"], ["a", "b"], "1 predictions, 2 labels"),
        (["ab", "abc"], ["ab", "abc"], "'abc'"),
        ([""], [""], "one length, above 0"),
    ],
)
def test_score_refuses(predictions, labels, part):
    with pytest.raises(EvaluationError, match=part):
        evaluate.score(predictions, labels)


def test_shuffled_labels_score_as_chance():
    characters = np.array(list(string.ascii_lowercase + string.digits))
    generator = np.random.default_rng(0)
    labels = ["".join(row) for row in generator.choice(characters, (5000, 4))]
    result = evaluate.score(list(generator.permutation(labels)), labels)
    # Five standard deviations of a share of 20,000.
    assert abs(result["per_char"] - 1 / 36) < 5 * (1 / 36 * 35 / 36 / 20_000) ** 0.5
    assert result["exact"] < 0.002


def test_mcnemar_by_hand():
    a = np.array([1, 0, 0, 0, 0, 0, 1, 0], bool)
    b = np.array([0, 1, 1, 1, 1, 1, 1, 0], bool)
    # One head in six tosses: 2 (1 + 6) / 64.
    assert evaluate.mcnemar(a, b) == {"b": 1, "c": 5, "p": pytest.approx(0.21875)}
    assert evaluate.mcnemar(b, a) == {"b": 5, "c": 1, "p": pytest.approx(0.21875)}
    assert evaluate.mcnemar(a, a) == {"b": 0, "c": 0, "p": 1.0}
    assert evaluate.mcnemar(a[:2], b[:2]) == {"b": 1, "c": 1, "p": 1.0}


@pytest.mark.parametrize(("b", "c"), [(0, 10), (3, 9), (40, 41), (900, 1100)])
def test_mcnemar_agrees_with_scipy(b, c):
    right_a = np.repeat([True, False], [b, c])
    assert evaluate.mcnemar(right_a, ~right_a)["p"] == pytest.approx(stats.binomtest(b, b + c).pvalue)


def test_mcnemar_refuses_other_captchas():
    with pytest.raises(EvaluationError, match="3 and 2 readings"):
        evaluate.mcnemar(np.ones(3, bool), np.ones(2, bool))


def test_calibration_by_hand():
    result = evaluate.calibration(np.array([0.2, 0.4, 0.5, 0.9]), np.array([0, 1, 1, 1]), bins=2)
    # (0, 0.5]: 3 of 4, says 11/30, is 2/3; (0.5, 1]: says 0.9, is 1.
    assert result["ece"] == pytest.approx(0.75 * 0.3 + 0.25 * 0.1)
    first, second = result["bins"]
    assert first == {"low": 0, "high": 0.5, "count": 3, "confidence": pytest.approx(11 / 30), "accuracy": 2 / 3}
    assert second == {"low": 0.5, "high": 1, "count": 1, "confidence": 0.9, "accuracy": 1}


def test_calibration_at_the_ends():
    result = evaluate.calibration(np.array([0.0, 1.0]), np.array([False, True]))
    assert result["ece"] == 0
    assert [(row["low"], row["high"]) for row in result["bins"]] == [(0.0, 1 / 15), (14 / 15, 1.0)]


def test_coverage_by_hand():
    confidences = np.array([0.1, 0.9, 0.8, 0.7])
    right = np.array([False, True, True, False])
    assert evaluate.coverage(confidences, right, levels=(0.5, 0.6, 1.0)) == [
        {"coverage": 0.5, "n": 2, "accuracy": 1.0, "threshold": 0.8},
        {"coverage": 0.6, "n": 3, "accuracy": pytest.approx(2 / 3), "threshold": 0.7},
        {"coverage": 1.0, "n": 4, "accuracy": 0.5, "threshold": 0.1},
    ]
    assert [row["coverage"] for row in evaluate.coverage(confidences, right)] == [0.9, 0.95, 0.99]


def test_coverage_does_not_depend_on_the_order_of_ties():
    confidences = np.array([1.0, 0.5, 0.5, 0.5])
    for right in ([1, 1, 0, 0], [1, 0, 0, 1]):
        # One of the three ties is answered, and one of three is right.
        (row,) = evaluate.coverage(confidences, np.array(right), levels=(0.5,))
        assert row["accuracy"] == pytest.approx((1 + 1 / 3) / 2)


def test_coverage_rounds_to_whole_readings():
    (row,) = evaluate.coverage(np.linspace(0, 1, 100), np.ones(100, bool), levels=(0.55,))
    assert row["n"] == 55


@pytest.mark.parametrize("measure", [evaluate.calibration, evaluate.coverage])
@pytest.mark.parametrize(("confidences", "right"), [([], []), ([0.5], [1, 0]), ([1.5], [1]), ([np.nan], [1])])
def test_confidences_are_checked(measure, confidences, right):
    with pytest.raises(EvaluationError):
        measure(np.array(confidences), np.array(right, bool))


def test_coverage_refuses_levels():
    with pytest.raises(EvaluationError, match="level 0"):
        evaluate.coverage(np.array([0.5]), np.array([True]), levels=(0.0,))


def test_auc_by_hand():
    # 3 > 1, 3 > 2, 2 > 1, and one tie: 3.5 of 4 pairs.
    assert evaluate.auc(np.array([3.0, 2.0]), np.array([1.0, 2.0])) == 0.875
    assert evaluate.auc(np.array([1.0, 2.0]), np.array([3.0])) == 0.0
    assert evaluate.auc(np.zeros(5), np.zeros(3)) == 0.5


def test_auc_agrees_with_scipy():
    generator = np.random.default_rng(0)
    positive, negative = generator.integers(0, 20, 200), generator.integers(0, 15, 150)
    expected = stats.mannwhitneyu(positive, negative).statistic / (200 * 150)
    assert evaluate.auc(positive, negative) == pytest.approx(expected)


@pytest.mark.parametrize(("positive", "negative"), [([], [1.0]), ([1.0], []), ([np.nan], [1.0])])
def test_auc_refuses(positive, negative):
    with pytest.raises(EvaluationError):
        evaluate.auc(np.array(positive), np.array(negative))
