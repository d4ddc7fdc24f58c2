"""The scores of classes and labels are those of scikit-learn, and their intervals follow a closed form."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from densepath.core.errors import UserError
from densepath.transfer.classify.label_scores import macro_auc, rows_of, score_targets, scores_of_run
from densepath.transfer.classify.targets import Targets


def test_scores_of_several_labels_are_those_of_scikit_learn_on_the_known_ones() -> None:
    rng = np.random.default_rng(0)
    values = (rng.random((60, 3)) < (0.2, 0.5, 0.7)).astype(float)
    chances = np.round((values + rng.normal(0, 0.8, values.shape)).clip(0, 1), 2)
    values[rng.random(values.shape) < 0.2] = np.nan
    targets = Targets(("x", "y", "z"), values, False)
    found = scores_of_run(targets, chances)
    aucs, aps, f1s, balanced, hits = [], [], [], [], []
    for t, name in enumerate(targets.names):
        known = ~np.isnan(values[:, t])
        truth, chance = values[known, t].astype(int), chances[known, t]
        aucs.append(metrics.roc_auc_score(truth, chance))
        aps.append(metrics.average_precision_score(truth, chance))
        f1s.append(metrics.f1_score(truth, chance >= 0.5))
        balanced.append(metrics.balanced_accuracy_score(truth, chance >= 0.5))
        hits.append(truth == (chance >= 0.5))
        assert found[f"auc_{name}"] == pytest.approx(100 * aucs[-1])
        assert found[f"ap_{name}"] == pytest.approx(100 * aps[-1])
    wanted = {"macro_auc": np.mean(aucs), "macro_ap": np.mean(aps), "macro_f1": np.mean(f1s)}
    wanted |= {"balanced_accuracy": np.mean(balanced), "accuracy": np.mean(np.concatenate(hits))}
    assert {name: found[name] for name in wanted} == pytest.approx({n: 100 * v for n, v in wanted.items()})
    assert macro_auc(targets, chances) == pytest.approx(found["macro_auc"])


def test_scores_of_classes_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 3, 80)
    chances = rng.random((80, 3)) + np.eye(3)[truth] / 2
    chances /= chances.sum(1, keepdims=True)
    found = scores_of_run(Targets(("a", "b", "c"), truth[:, None].astype(float), True), chances)
    said = chances.argmax(1)
    assert found["accuracy"] == pytest.approx(100 * metrics.accuracy_score(truth, said))
    assert found["balanced_accuracy"] == pytest.approx(100 * metrics.balanced_accuracy_score(truth, said))
    assert found["macro_f1"] == pytest.approx(100 * metrics.f1_score(truth, said, average="macro"))
    assert found["macro_auc"] == pytest.approx(100 * metrics.roc_auc_score(truth, chances, multi_class="ovr"))


def test_images_of_one_class_say_nothing_on_ranks() -> None:
    """Average precision would be 1 whatever the order, as without a negative image there is no area."""
    rng = np.random.default_rng(2)
    one = scores_of_run(Targets(("a", "b"), np.ones((9, 1)), True), rng.random((9, 2)))
    undefined = {"macro_auc", "macro_ap", "auc_a", "auc_b", "ap_a", "ap_b"}
    assert {name for name, value in one.items() if np.isnan(value)} == undefined
    values, chances = np.append(rng.integers(0, 2, 20), np.ones(20)), rng.random(40)
    targets, runs = Targets(("x",), values[:, None], False), np.arange(40) // 20  # the second has no negative image
    both = score_targets(targets, chances[:, None], runs, np.arange(40), 0)
    assert both["ap_x"].value == pytest.approx(100 * metrics.average_precision_score(values[:20], chances[:20]))
    chances[[3, 5]] = np.nan, np.inf
    with pytest.raises(UserError, match="2 of 40 test cases are NaN or Inf"):
        score_targets(targets, chances[:, None], runs, np.arange(40), 0)


def test_the_interval_of_accuracy_is_that_of_a_binomial_of_patients() -> None:
    """Each patient's images are all right or all wrong: the bootstrap draws a binomial number of right patients."""
    from scipy.stats import binom

    right = np.repeat(np.arange(50) < 30, 3)  # of 50 patients with three images each
    truth = np.tile((0.0, 1.0), 75)
    chances = np.where(right, truth, 1 - truth)
    targets, patients = Targets(("x",), truth[:, None], False), np.repeat(np.arange(50), 3)
    found = score_targets(targets, chances[:, None], np.zeros(150, np.int64), patients, seed=0)["accuracy"]
    low, high = binom.ppf((0.025, 0.975), 50, 0.6) / 50 * 100
    assert found.value == pytest.approx(60) and abs(found.low - low) <= 2 and abs(found.high - high) <= 2


@pytest.mark.parametrize("exclusive", [False, True])
def test_the_written_probabilities_decide_what_is_predicted(exclusive: bool) -> None:
    """A probability is written as 0.5 from 5e-10 below it."""
    chances = np.array([[0.4999999999, 0.5000000001], [0.4999999, 0.5000001], [1 - 1e-7, 2e-7]])
    found = rows_of(("a", "b"), exclusive, chances)
    assert [[row["p a"], row["p b"]] for row in found] == [
        ["0.5", "0.5"],
        ["0.4999999", "0.5000001"],
        ["0.9999999", "2e-07"],
    ]
    assert [row["predicted"] for row in found] == ["a" if exclusive else "a|b", "b", "a"]
