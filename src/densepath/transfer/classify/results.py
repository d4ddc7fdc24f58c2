"""The answers for all test images, their scores, and the files of both."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from densepath.core.csv_files import write_rows
from densepath.core.files import atomic_write
from densepath.core.scores import SCALE, answer_text, without_nan
from densepath.transfer.classify.cohort import Pool
from densepath.transfer.classify.label_scores import predicted, score_targets, scores_of_run
from densepath.transfer.classify.targets import Targets
from densepath.transfer.classify.training import Answers
from densepath.transfer.probe.metrics import Floats, Integers, Score

METRICS, SCORES, PREDICTIONS = "metrics.json", "scores.csv", "predictions.csv"


@dataclass(frozen=True, eq=False)
class Outcome:
    """The answers of all trainings; an image that several of them test is there several times.

    Args:
        names, owners: (M,) of the images and their patients.
        targets: of the images.
        chances: (M, T) probabilities.
        runs: (M,) the number of the training.
        run_names: of these numbers.
    """

    names: list[str]
    owners: list[str]
    targets: Targets
    chances: Floats
    runs: Integers
    run_names: list[str]

    @property
    def patients(self) -> Integers:
        """(M,) patients, numbered from 0."""
        return np.unique(self.owners, return_inverse=True)[1].astype(np.int64)


def collect_answers(tests: Sequence[Pool], answers: Sequence[Answers], run_names: list[str]) -> Outcome:
    """The answers of all trainings for their test images."""
    names = [pool.names[p] for pool, each in zip(tests, answers, strict=True) for p in each.positions]
    owners = [pool.owners[p] for pool, each in zip(tests, answers, strict=True) for p in each.positions]
    values = np.concatenate([pool.targets.values[a.positions] for pool, a in zip(tests, answers, strict=True)])
    return Outcome(
        names,
        owners,
        Targets(tests[0].targets.names, values, tests[0].targets.exclusive),
        np.concatenate([each.chances for each in answers]),
        np.repeat(np.arange(len(answers)), [len(each.positions) for each in answers]),
        run_names,
    )


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of all trainings together, and of each.

    Args:
        all: with 95% intervals, in percent.
        runs: of each training, in percent.
    """

    all: dict[str, Score]
    runs: list[dict[str, float]]

    def mean(self, name: str) -> float:
        """The mean over the trainings in which it is defined; NaN without one."""
        known = self._known(name)
        return float(np.mean(known)) if known else float(np.nan)

    def spread(self, name: str) -> float:
        """The standard deviation over the trainings in which it is defined; NaN for a single one."""
        known = self._known(name)
        return float(np.std(known, ddof=1)) if len(known) > 1 else float(np.nan)

    def undefined(self, run_names: Sequence[str]) -> dict[str, list[str]]:
        """The scores that some trainings lack, as their test images lack a class or a label, and these trainings."""
        lacking = {
            score: [name for name, run in zip(run_names, self.runs, strict=True) if not np.isfinite(run[score])]
            for score in self.all
        }
        return {score: names for score, names in lacking.items() if names}

    def _known(self, name: str) -> list[float]:
        return [run[name] for run in self.runs if np.isfinite(run[name])]


def score(tested: Outcome, seed: int) -> Scores:
    """Score the answers."""
    runs = [
        scores_of_run(tested.targets.take(own), tested.chances[own])
        for own in (np.flatnonzero(tested.runs == run) for run in range(len(tested.run_names)))
    ]
    return Scores(score_targets(tested.targets, tested.chances, tested.runs, tested.patients, seed), runs)


def write_results(tested: Outcome, scores: Scores, notes: Mapping[str, Any], out: Path) -> None:
    """Write the predictions, the scores as JSON, and as a table."""
    labels, exclusive = tested.targets.names, tested.targets.exclusive
    said, truth = predicted(tested.targets, tested.chances), tested.targets.values
    rows: list[dict[str, Any]] = []
    for m, (name, owner, run) in enumerate(zip(tested.names, tested.owners, tested.runs, strict=True)):
        row: dict[str, Any] = {"image": name, "patient": owner, "run": tested.run_names[run]}
        if exclusive:
            row |= {"label": labels[int(truth[m, 0])], "predicted": labels[said[m, 0]]}
        else:
            row |= {f"label {n}": "" if np.isnan(v) else int(v) for n, v in zip(labels, truth[m], strict=True)}
        rows.append(row | {f"p {n}": answer_text(p) for n, p in zip(labels, tested.chances[m], strict=True)})
    write_rows(out / PREDICTIONS, list(rows[0]), rows)
    write_scores(scores, tested.run_names, notes, out)


def write_scores(scores: Scores, run_names: Sequence[str], notes: Mapping[str, Any], out: Path) -> None:
    """Write scores as JSON, with notes, and as a table."""
    table = [
        {
            "metric": name,
            **{part: f"{value:.4f}" for part, value in _summary(scores, name).items()},
            **{run: f"{own[name]:.4f}" for run, own in zip(run_names, scores.runs, strict=True)},
        }
        for name in scores.all
    ]
    write_rows(out / SCORES, list(table[0]), table)
    record = {
        **notes,
        **SCALE,
        "scores": {name: without_nan(_summary(scores, name)) for name in scores.all},
        "undefined": scores.undefined(run_names),
        "runs": {name: without_nan(row) for name, row in zip(run_names, scores.runs, strict=True)},
    }
    with atomic_write(out / METRICS) as part:
        part.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")


def _summary(scores: Scores, name: str) -> dict[str, float]:
    """A score of all trainings together with its interval, and the mean and the spread over these."""
    together = {part: getattr(scores.all[name], part) for part in ("value", "low", "high")}
    return {**together, "mean": scores.mean(name), "spread": scores.spread(name)}
