"""Compares models on the same test cases, with paired tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import comb
from pathlib import Path

import numpy as np

from densepath.core.csv_files import table_writer
from densepath.transfer.mil.results import Outcome
from densepath.transfer.probe.metrics import Floats, measure, resampled, score_of

COMPARISON = "comparison.csv"


def mcnemar(first: Floats, second: Floats) -> float:
    """The exact two-sided p-value that two models are right equally often.

    It takes cases as independent, as slides of a patient that are cases of their own are not.

    Args:
        first, second: (M,) whether each is right.

    Source: McNemar 1947; the exact binomial test of the cases in which they differ.
    """
    only_first, only_second = int((first > second).sum()), int((second > first).sum())
    count, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(comb(count, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**count)


def holm(values: Sequence[float]) -> Floats:
    """P-values of several tests, corrected so that with 95% probability none below 0.05 is of a true null hypothesis.

    Args:
        values: (P,) the p-values.

    Source: Holm, Scandinavian Journal of Statistics 1979.
    """
    order = np.argsort(values)
    corrected = np.empty(len(order))
    corrected[order] = np.maximum.accumulate(np.array(values)[order] * np.arange(len(order), 0, -1)).clip(max=1)
    return corrected


def paired_auc(first: Outcome, second: Outcome, seed: int) -> tuple[float, float, float, float]:
    """The difference of two models' macro AUC in percent, its 95% interval, and the two-sided p-value of no difference.

    Both are measured on the same bootstrap samples of patients. The p-value is twice the share of samples on the other
    side of 0, at least 2 / (samples + 1).
    """
    samples: list[Floats] = []
    for weights in resampled(first.owners, seed):
        both = (measure(weights, each.truth, each.values, each.folds, each.predicted) for each in (first, second))
        one, other = (found["macro_auc"] for found in both)
        samples.append(one - other)
    one = np.ones((1, len(first.cases)))
    whole = [measure(one, each.truth, each.values, each.folds)["macro_auc"][0] for each in (first, second)]
    drawn = np.concatenate(samples)
    drawn = drawn[np.isfinite(drawn)]
    difference = score_of(whole[0] - whole[1], drawn)
    beyond = min((drawn <= 0).sum(), (drawn >= 0).sum())
    return difference.value, difference.low, difference.high, min(1.0, 2 * (int(beyond) + 1) / (len(drawn) + 1))


def write_comparison(models: Mapping[str, Outcome], out: Path, seed: int) -> Path:
    """A row for each pair of models: the difference of their macro AUC, and the p-values of both tests.

    Those of all pairs are also corrected for their number.
    """
    pairs = list(combinations(models, 2))
    areas = [paired_auc(models[one], models[other], seed) for one, other in pairs]
    right = {name: (each.predicted == each.truth).astype(np.float64) for name, each in models.items()}
    exact = [mcnemar(right[one], right[other]) for one, other in pairs]
    corrected = holm([area[-1] for area in areas]), holm(exact)
    path = out / COMPARISON
    with table_writer(path) as writer:
        head = ["model", "other", "macro_auc_difference", "low", "high", "p_auc", "p_accuracy_mcnemar"]
        writer.writerow([*head, "p_auc_holm", "p_accuracy_mcnemar_holm"])
        for pair, *numbers in zip(pairs, areas, exact, *corrected, strict=True):
            writer.writerow([*pair, *(f"{number:.4g}" for number in np.hstack(numbers))])
    return path
