"""Losses, thresholds, scores and paired tests against other implementations."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score, r2_score, roc_auc_score

from densepath.core.errors import UserError
from densepath.core.scores import answer_text
from densepath.transfer.mil.choosing import choose_thresholds, macro_auc, predict_classes
from densepath.transfer.mil.cohort import Cohort
from densepath.transfer.mil.compare import holm, mcnemar, paired_auc
from densepath.transfer.mil.fold import _scale
from densepath.transfer.mil.number_scores import concordance, mean_concordance, number_scores
from densepath.transfer.mil.objectives import Classification, Regression, Survival
from densepath.transfer.mil.results import Outcome, describe, scores_of, scores_of_folds, write_results
from densepath.transfer.probe.curves import roc_curve
from densepath.transfer.probe.metrics import Score, measure, resampled


def an_outcome(seed: int = 0, count: int = 60, classes: int = 3, folds: int = 1) -> Outcome:
    """Answers for patients, with ties."""
    rng = np.random.default_rng(seed)
    truth = np.append(np.arange(classes), rng.integers(0, classes, count - classes))
    values = rng.integers(1, 6, (count, classes)) + 2.0 * (truth[:, None] == np.arange(classes))
    names = [f"P{number}" for number in range(count)]
    cohort = Cohort(
        names,
        np.arange(count),
        names,
        np.arange(count),
        truth[:, None].astype(float),
        tuple("abc"[:classes]),
        [(name,) for name in names],
        [],
        [""] * count,
        "grade",
        "case_id",
    )
    chances = values / values.sum(1, keepdims=True)
    return Outcome(cohort, np.arange(count), np.arange(count) % folds, chances, rng.permutation(truth))


def test_scores_are_those_of_scikit_learn() -> None:
    tested = an_outcome()
    truth, chances, predicted = tested.truth, tested.values, tested.predicted
    scores = scores_of(tested, "classification", 0)
    members = truth[:, None] == np.arange(3)
    expected = {
        "macro_auc": roc_auc_score(members, chances),
        "macro_ap": average_precision_score(members, chances),
        "accuracy": (truth == predicted).mean(),
        "balanced_accuracy": balanced_accuracy_score(truth, predicted),
        "macro_f1": f1_score(truth, predicted, average="macro"),
        **{f"auc_{name}": roc_auc_score(members[:, k], chances[:, k]) for k, name in enumerate("abc")},
        **{f"ap_{name}": average_precision_score(members[:, k], chances[:, k]) for k, name in enumerate("abc")},
    }
    assert {name: score.value for name, score in scores.items()} == pytest.approx(
        {name: 100 * value for name, value in expected.items()}
    )
    assert all(score.low <= score.value <= score.high for score in scores.values())
    weights = next(resampled(np.arange(60), 0, 3))
    found = measure(weights, truth, chances, np.zeros(60, np.int64), predicted)
    for sample in range(3):
        drawn = np.repeat(np.arange(60), weights[sample].astype(int))
        assert found["macro_f1"][sample] == pytest.approx(f1_score(truth[drawn], predicted[drawn], average="macro"))
        precision = average_precision_score(members[drawn], chances[drawn])
        assert found["macro_ap"][sample] == pytest.approx(precision)


def test_cases_of_different_folds_are_not_ranked_against_each_other() -> None:
    """Each fold's scores are shifted by a constant of its own, which changes nothing."""
    tested = an_outcome(folds=3)
    shifted = replace(tested, values=tested.values + tested.folds[:, None])
    one, other = (scores_of(each, "classification", 0) for each in (tested, shifted))
    assert one == other
    of_folds = [row["macro_auc"] for row in scores_of_folds(tested, "classification")]
    assert len(of_folds) == 3 and min(of_folds) <= one["macro_auc"].value <= max(of_folds)


def test_the_interval_of_accuracy_is_that_of_the_normal_approximation() -> None:
    """With one case for each patient the bootstrap of a share p of n has the standard error sqrt(p (1 - p) / n)."""
    tested = an_outcome(count=400)
    right = np.arange(400) % 4 != 0
    tested = replace(tested, predicted=np.where(right, tested.truth, (tested.truth + 1) % 3))
    score = scores_of(tested, "classification", 1)["accuracy"]
    error = 100 * 1.96 * (0.75 * 0.25 / 400) ** 0.5
    assert (score.value, score.high - score.value, score.value - score.low) == pytest.approx(
        (75, error, error), rel=0.1
    )


def test_thresholds_maximize_the_index_of_youden() -> None:
    rng = np.random.default_rng(3)
    labels = np.arange(40) % 2
    chance = np.round(rng.random(40) * 0.6 + 0.3 * labels, 2)
    chances = np.stack((1 - chance, chance), 1)
    thresholds = choose_thresholds(chances, labels)

    def youden(threshold: float) -> float:
        return (chance[labels == 1] > threshold).mean() - (chance[labels == 0] > threshold).mean()

    assert youden(thresholds[1]) == max(youden(t) for t in np.linspace(0, 1, 2001))
    assert thresholds[0] == 1 - thresholds[1]  # also where several cuts are equally good
    np.testing.assert_array_equal(predict_classes(chances, thresholds), chance > thresholds[1])
    assert choose_thresholds(chances, np.zeros(40, np.int64)).tolist() == [0.5, 0.5]


def test_the_lowest_of_equally_good_thresholds_is_chosen() -> None:
    """As differences of means, 3/3 - 5/6, 2/3 - 3/6 and 1/3 - 1/6 are not equal."""
    labels = np.array([0, 1, 0, 0, 1, 0, 0, 1, 0])
    chance = np.arange(9) / 10
    assert choose_thresholds(np.stack((1 - chance, chance), 1), labels)[1] == pytest.approx(0.05)


def test_the_auc_of_an_epoch_is_that_of_scikit_learn() -> None:
    tested = an_outcome(5)
    expected = roc_auc_score(tested.truth[:, None] == np.arange(3), tested.values)
    assert macro_auc(tested.values, tested.truth) == pytest.approx(expected)
    assert macro_auc(tested.values, np.zeros(60, np.int64)) == 0


def test_the_loss_of_cox_is_the_partial_likelihood() -> None:
    rng = np.random.default_rng(0)
    risk, time, event = rng.standard_normal(9), rng.integers(1, 5, 9).astype(float), rng.integers(0, 2, 9)
    terms = [-np.log(np.exp(risk[i]) / np.exp(risk[time >= time[i]]).sum()) for i in range(9) if event[i]]
    targets = torch.from_numpy(np.stack((time, event), 1))
    assert float(Survival()(torch.from_numpy(risk)[:, None], targets)) == pytest.approx(np.mean(terms))
    none = Survival()(torch.zeros(3, 1, requires_grad=True), torch.tensor([[1.0, 0.0]] * 3))
    none.backward()
    assert float(none.detach()) == 0


def test_concordance_counts_comparable_pairs() -> None:
    rng = np.random.default_rng(1)
    time, event, risk = (
        rng.integers(1, 6, 25).astype(float),
        rng.integers(0, 2, 25).astype(float),
        rng.integers(0, 4, 25).astype(float),
    )
    won = pairs = 0.0
    for i in range(25):
        for j in range(25):
            if event[i] and (time[i] < time[j] or (time[i] == time[j] and not event[j])):
                pairs += 1
                won += 1.0 if risk[i] > risk[j] else 0.5 * (risk[i] == risk[j])
    one = np.ones((1, 25))
    assert concordance(one, time, event, risk) == pytest.approx(won / pairs)
    targets = np.stack((time, event), 1)
    assert mean_concordance(one, targets, risk, np.zeros(25, np.int64)) == pytest.approx(won / pairs)
    assert np.isnan(concordance(one, time, np.zeros(25), risk))


def test_weights_are_repeated_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densepath.transfer.mil.number_scores._ROWS", 7)
    rng = np.random.default_rng(3)
    targets = np.stack((rng.integers(1, 6, 25), rng.integers(0, 2, 25)), 1).astype(float)
    values, folds = rng.integers(0, 4, 25).astype(float), np.arange(25) % 2
    weights = rng.multinomial(25, np.full(25, 1 / 25), size=4).astype(float)
    drawn = [np.repeat(np.arange(25), row.astype(int)) for row in weights]
    expected = [mean_concordance(np.ones((1, 25)), targets[k], values[k], folds[k])[0] for k in drawn]
    np.testing.assert_allclose(mean_concordance(weights, targets, values, folds), expected, rtol=1e-12)
    scores = number_scores(weights, targets[:, 0], values)
    np.testing.assert_allclose(scores["r2"], [r2_score(targets[k, 0], values[k]) for k in drawn])
    np.testing.assert_allclose(scores["pearson"], [np.corrcoef(targets[k, 0], values[k])[0, 1] for k in drawn])


@pytest.mark.parametrize("level", [0.1, 0.5, 1e6 / 3])
def test_equal_numbers_have_no_correlation(level: float) -> None:
    """The standard deviation of some is not 0, but that of rounding; also in a sample of other numbers."""
    assert _scale(np.full(3, level)) == (pytest.approx(level), 1)
    numbers, others = np.array([level] * 5 + [3 * level]), np.arange(6.0)
    weights = np.array([[1.0, 1, 2, 1, 1, 0], [1, 1, 0, 0, 2, 1]])
    for pair, undefined in (((numbers, others), ["r2", "pearson"]), ((others, numbers), ["pearson"])):
        scores = number_scores(weights, *pair)
        assert [name for name, (first, _) in scores.items() if np.isnan(first)] == undefined
        assert np.isfinite([second for _, second in scores.values()]).all()


@pytest.mark.parametrize("exclusive", [False, True])
def test_probabilities_of_confident_models_keep_their_order(exclusive: bool) -> None:
    """In float32 all of these are 1."""
    outputs = torch.linspace(18.0, 30.0, 7)[:, None] * torch.tensor([1.0, 0.0])
    chances = Classification(2, exclusive).answers(outputs)[:, 0]
    assert (chances[1:] > chances[:-1]).all() and chances[-1] < 1


def test_losses_of_classes_and_numbers() -> None:
    outputs, targets = torch.randn(5, 3), torch.tensor([[0.0], [1], [2], [1], [0]])
    weights = torch.tensor([1.0, 2.0, 0.5])
    log = outputs.log_softmax(1)[torch.arange(5), targets[:, 0].long()]
    weighted = -(log * weights[targets[:, 0].long()]).mean()
    torch.testing.assert_close(Classification(3, True, weights)(outputs, targets), weighted)
    chances = Classification(3, False).answers(outputs).float()
    one_hot = targets.long() == torch.arange(3)
    binary = -torch.where(one_hot, chances, 1 - chances).log().mean()
    torch.testing.assert_close(Classification(3, False)(outputs, targets), binary)
    numbers = torch.tensor([[10.0], [20.0]])
    objective = Regression(15.0, 5.0)
    torch.testing.assert_close(objective(torch.tensor([[-1.0], [1.0]]), numbers), torch.tensor(0.0))
    torch.testing.assert_close(objective.answers(torch.tensor([[-1.0], [1.0]])), numbers)
    exact = number_scores(np.ones((1, 3)), np.array([1.0, 2, 3]), np.array([2.0, 4, 6]))
    assert exact == pytest.approx({"r2": 1 - 14 / 2, "pearson": 1})


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_an_answer_that_is_nan_has_no_score(task: str) -> None:
    tested = an_outcome(classes=3)
    values = tested.values.copy()
    values[4] = np.nan
    tested = replace(tested, values=values)
    if task == "regression":
        tested = replace(tested, cohort=replace(tested.cohort, classes=()), values=values[:, :1])
    with pytest.raises(UserError, match="1 of 60 test cases are NaN or Inf"):
        scores_of(tested, task, 0)


def test_large_numbers_are_written_whole() -> None:
    values = (1234567891.4, -1234567.4, 0.12345678912, float(np.float32(0.35832956)), float(np.float32(0.35832986)))
    texts = ["1234567891", "-1234567.4", "0.123456789", "0.358329564", "0.358329862"]
    assert [answer_text(value) for value in values] == texts


def test_probabilities_near_1_are_not_tied_in_tables() -> None:
    values = [1.0, *(1 - np.logspace(-15, -6, 30)), 0.999, *np.logspace(-6, -15, 30), 0.0]
    assert [float(text) for text in map(answer_text, values[:31])] == values[:31]
    read = [float(answer_text(value)) for value in values]
    assert read == sorted({*read}, reverse=True) and len(read) == len(values)


def test_paired_tests() -> None:
    first, second = np.array([1.0] * 9 + [0] * 3 + [1] * 5), np.array([0.0] * 9 + [1] * 3 + [1] * 5)
    assert mcnemar(first, second) == pytest.approx(binomtest(3, 12).pvalue)
    assert mcnemar(first, first) == 1
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    tested = an_outcome(2, count=80)
    worse = replace(tested, values=np.random.default_rng(0).random(tested.values.shape))
    difference, low, high, p = paired_auc(tested, worse, 0)
    truth = tested.truth[:, None] == np.arange(3)
    expected = roc_auc_score(truth, tested.values) - roc_auc_score(truth, worse.values)
    assert difference == pytest.approx(100 * expected) and 0 < low < difference < high and p < 0.01
    same = paired_auc(tested, tested, 0)
    assert same[:3] == (0, 0, 0) and same[3] == 1


def test_roc_curves_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import roc_curve as reference

    tested = an_outcome(4)
    false, true, _ = reference(tested.truth == 1, tested.values[:, 1], drop_intermediate=False)
    found = roc_curve(tested.values[:, 1], tested.truth == 1)
    np.testing.assert_allclose(found[0], false)
    np.testing.assert_allclose(found[1], true)


def test_a_score_that_is_undefined_is_null(tmp_path: Path) -> None:
    """Each fold has one class, so no two cases are ranked; no warning of NumPy reaches the user."""
    tested = an_outcome(classes=2, count=8)
    tested = replace(tested, folds=tested.truth)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = scores_of(tested, "classification", 0)
        write_results(tested, scores, {}, tmp_path, "classification")
    written = json.loads((tmp_path / "scores.json").read_text(), parse_constant=pytest.fail)
    assert written["scores"]["macro_auc"] == {"value": None, "low": None, "high": None}
    assert written["scores"]["accuracy"]["value"] is not None


def test_a_score_that_is_undefined_is_called_so() -> None:
    scores = {
        "macro_auc": Score(np.nan, np.nan, np.nan),
        "accuracy": Score(1, 0, 2),
        "balanced_accuracy": Score(1, 0, 2),
    }
    assert describe(scores) == "macro_auc undefined, balanced_accuracy 1.0 (0.0 to 2.0)"
