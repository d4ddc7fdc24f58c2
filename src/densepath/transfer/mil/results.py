"""The answers for all test cases, their scores, and the files of both."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from densepath.core.csv_files import table_writer
from densepath.core.files import atomic_write
from densepath.core.scores import SCALE, answer_text, without_nan
from densepath.transfer.mil.cohort import Cohort
from densepath.transfer.mil.fold import Answers
from densepath.transfer.mil.number_scores import mean_concordance, number_scores
from densepath.transfer.mil.splits import Split
from densepath.transfer.probe.metrics import (
    ALL_METRICS,
    Floats,
    Integers,
    Score,
    check_finite,
    evaluate,
    intervals,
    measure,
    named,
)

PREDICTIONS, SCORES = "patient-preds.csv", "scores.json"
_SHOWN = ("macro_auc", "balanced_accuracy", "r2", "pearson", "concordance")


@dataclass(frozen=True, eq=False)
class Outcome:
    """The answers for the test cases of all folds; a case that several folds test is there several times.

    Args:
        cohort: the study.
        cases: (M,) positions of the cases.
        folds: (M,) the fold that tested each.
        values: (M, K) probabilities, numbers, or log risks.
        predicted: (M,) classes.
    """

    cohort: Cohort
    cases: Integers
    folds: Integers
    values: Floats
    predicted: Integers

    @property
    def truth(self) -> Integers:
        """(M,) classes."""
        return self.cohort.labels[self.cases]

    @property
    def owners(self) -> Integers:
        """(M,) patients, numbered from 0 among those that were tested."""
        return np.unique(self.cohort.owners[self.cases], return_inverse=True)[1].astype(np.int64)

    def confusion(self) -> Integers:
        """(K, K) numbers of cases by class and by predicted class."""
        count = len(self.cohort.classes)
        return np.bincount(self.truth * count + self.predicted, minlength=count * count).reshape(count, count)


def collect(cohort: Cohort, splits: Sequence[Split], answers: Sequence[Answers]) -> Outcome:
    """The answers of all folds."""
    return Outcome(
        cohort,
        np.concatenate([split.test for split in splits]),
        np.repeat(np.arange(len(splits)), [len(split.test) for split in splits]),
        np.concatenate([each.values for each in answers]),
        np.concatenate([each.predicted for each in answers]),
    )


def scores_of(tested: Outcome, task: str, seed: int) -> dict[str, Score]:
    """The scores of all folds together, with 95% intervals by a bootstrap over patients.

    Classes: AUC and average precision one against the rest and their means, accuracy, balanced accuracy and F1, in
    percent; cases of different folds are not ranked against each other. Regression: R2 and Pearson's correlation;
    survival: concordance within folds.

    Raises:
        UserError: an answer is NaN or Inf.
    """
    classes = tested.cohort.classes
    if classes:
        single = [f"{what}_{k}" for k in range(len(classes)) for what in ("auc", "ap")]
        found = evaluate(
            tested.truth,
            tested.values,
            tested.folds,
            tested.owners,
            seed,
            predicted=tested.predicted,
            metrics=(*ALL_METRICS, *single),
        )
        return {named(name, classes): score for name, score in found.items()}
    targets, values = tested.cohort.targets[tested.cases], tested.values[:, 0]
    check_finite(tested.values)
    return intervals(lambda w: _numbers(w, targets, values, tested.folds, task), tested.owners, seed)


def describe(scores: Mapping[str, Score]) -> str:
    """The main scores in a line."""
    shown = {metric: score for metric, score in scores.items() if metric in _SHOWN}
    return ", ".join(f"{name} {each if np.isfinite(each.value) else 'undefined'}" for name, each in shown.items())


def scores_of_folds(tested: Outcome, task: str) -> list[dict[str, float]]:
    """The scores of each fold, without intervals; NaN where one is undefined."""
    rows = []
    for fold in np.unique(tested.folds):
        own = tested.folds == fold
        one = np.ones((1, int(own.sum())))
        if tested.cohort.classes:
            found = measure(one, tested.truth[own], tested.values[own], tested.folds[own], tested.predicted[own])
            rows.append({named(name, tested.cohort.classes): 100 * float(value[0]) for name, value in found.items()})
        else:
            targets = tested.cohort.targets[tested.cases[own]]
            found = _numbers(one, targets, tested.values[own, 0], tested.folds[own], task)
            rows.append({name: 100 * float(value[0]) for name, value in found.items()})
    return rows


def answer_columns(target: str, classes: Sequence[str], task: str) -> list[str]:
    """The columns of answers: probabilities of classes, a number, or a log risk, which is higher for earlier events."""
    return [f"{target}_{name}" for name in classes] or [f"{target}_{'risk' if task == 'survival' else 'predicted'}"]


def write_results(tested: Outcome, scores: dict[str, Score], notes: dict[str, Any], out: Path, task: str) -> None:
    """Write the predictions (a row for each case, as STAMP has them) and the scores."""
    cohort = tested.cohort
    with table_writer(out / PREDICTIONS) as writer:
        slides = ["SLIDE"] if cohort.cases != cohort.patients and set(cohort.cases) != set(cohort.patients) else []
        columns = answer_columns(cohort.target, cohort.classes, task)
        predicted = ["pred"] if cohort.classes else []
        truth = [cohort.target, "event"] if task == "survival" else [cohort.target]
        writer.writerow(["PATIENT", *slides, *truth, *predicted, *columns, "fold"])
        for case, fold, values, chosen in zip(tested.cases, tested.folds, tested.values, tested.predicted, strict=True):
            target = [cohort.classes[cohort.labels[case]]] if cohort.classes else cohort.targets[case].tolist()
            writer.writerow(
                [
                    cohort.patients[cohort.owners[case]],
                    *([cohort.cases[case]] if slides else []),
                    *target,
                    *([cohort.classes[chosen]] if cohort.classes else []),
                    *map(answer_text, values),
                    fold,
                ]
            )
    record = {
        **notes,
        **SCALE,
        "scores": {name: without_nan({"value": s.value, "low": s.low, "high": s.high}) for name, s in scores.items()},
        "folds": [without_nan(row) for row in scores_of_folds(tested, task)],
    }
    with atomic_write(out / SCORES) as part:
        part.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")


def _numbers(weights: Floats, targets: Floats, values: Floats, folds: Integers, task: str) -> dict[str, Floats]:
    """Scores of weighted numbers or risks, (B,) each, as shares of 1."""
    if task == "survival":
        return {"concordance": mean_concordance(weights, targets, values, folds)}
    return number_scores(weights, targets[:, 0], values)
