"""The scores of all test images, with 95% intervals by patient, and their files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from densepath.core.csv_files import write_rows
from densepath.transfer.classify.results import Scores, write_scores
from densepath.transfer.probe.metrics import Floats, Integers, intervals, mean_of_known, named
from densepath.transfer.segment.case_scores import dice, iou

CASES = "cases.csv"
SHOWN = ("mean_dice", "mean_iou", "mean_hd95")
_HUNDRED = 100.0


@dataclass(frozen=True, eq=False)
class Outcome:
    """The scored cases of all trainings; an image that several of them test is there several times.

    Args:
        names, owners: (M,) of the images and their patients.
        columns: (M, R, 4) of :func:`~densepath.transfer.segment.case_scores.score_case`.
        regions: the names of what is scored.
        runs: (M,) the number of the training.
        run_names: of these numbers.
        unit: of distances.
    """

    names: list[str]
    owners: list[str]
    columns: Floats
    regions: tuple[str, ...]
    runs: Integers
    run_names: list[str]
    unit: str


def score(tested: Outcome, seed: int) -> Scores:
    """The scores of all cases together with intervals, and of each training.

    In percent: dice_NAME and iou_NAME, means over the cases that have the region in truth or prediction; and
    pooled_iou_NAME of all pixels of all cases together; mean_dice, mean_iou and pooled_iou, means over regions. In mm
    or pixels: hd95_NAME, the mean over the cases that have it in truth and prediction, and mean_hd95.

    Intervals are percentiles of a bootstrap over patients.
    """
    patients = np.unique(tested.owners, return_inverse=True)[1].astype(np.int64)
    together = intervals(lambda weights: _measure(weights, tested.columns), patients, seed)
    runs = []
    for run in range(len(tested.run_names)):
        own = tested.columns[tested.runs == run]
        found = _measure(np.ones((1, len(own))), own)
        runs.append({named(name, tested.regions): _HUNDRED * float(value[0]) for name, value in found.items()})
    return Scores({named(name, tested.regions): each for name, each in together.items()}, runs)


def failures(columns: Floats, regions: Sequence[str]) -> dict[str, dict[str, int]]:
    """For each region the cases that have it, those in which all of it was missed, those in which it was predicted
    although it is not there, and those that lack it in both, which count in no mean."""
    true, predicted = columns[..., 2] > 0, columns[..., 1] > 0
    return {
        name: {
            "present": int(true[:, r].sum()),
            "missed": int((true & ~predicted)[:, r].sum()),
            "false": int((predicted & ~true)[:, r].sum()),
            "absent": int((~predicted & ~true)[:, r].sum()),
        }
        for r, name in enumerate(regions)
    }


def write_results(tested: Outcome, scores: Scores, notes: Mapping[str, Any], out: Path) -> dict[str, dict[str, int]]:
    """Write the scores of each case, all scores as JSON, and as a table. Returns the failures."""
    failed = failures(tested.columns, tested.regions)
    write_rows(out / CASES, list(rows_of(tested)[0]), rows_of(tested))
    write_scores(scores, tested.run_names, {**notes, "distances": tested.unit, "failures": failed}, out)
    return failed


def rows_of(tested: Outcome) -> list[dict[str, Any]]:
    """A line for each case and region."""
    shares, ious = dice(tested.columns), iou(tested.columns)
    rows = []
    for m, (name, owner, run) in enumerate(zip(tested.names, tested.owners, tested.runs, strict=True)):
        for r, region in enumerate(tested.regions):
            overlap, predicted, true, far = tested.columns[m, r]
            rows.append(
                {
                    "image": name,
                    "patient": owner,
                    "run": tested.run_names[run],
                    "region": region,
                    "dice": _text(_HUNDRED * shares[m, r]),
                    "iou": _text(_HUNDRED * ious[m, r]),
                    f"hd95_{tested.unit}": _text(far),
                    "overlap": int(overlap),
                    "predicted": int(predicted),
                    "true": int(true),
                }
            )
    return rows


def describe(scores: Scores, failed: Mapping[str, Mapping[str, int]], unit: str, several: bool) -> str:
    """The main scores and the failures in a line."""
    shown = []
    for name in SHOWN:
        end = f" {unit}" if name == "mean_hd95" else ""
        spread = f", {scores.mean(name):.1f} ± {scores.spread(name):.1f} over trainings" if several else ""
        shown.append(f"{name} {scores.all[name]}{end}{spread}")
    wrong = [
        f"{name} missed in {each['missed']} of {each['present']}"
        + (f", false in {each['false']}" if each["false"] else "")
        for name, each in failed.items()
        if each["missed"] or each["false"]
    ]
    return "; ".join([*shown, *wrong])


def _measure(weights: Floats, columns: Floats) -> dict[str, Floats]:
    """All metrics of weighted cases (B, M), (B,) each: shares from 0 to 1, and distances divided by 100."""
    tables = {"dice": dice(columns), "iou": iou(columns), "hd95": columns[..., 3] / _HUNDRED}
    found = {what: _weighted_means(weights, table) for what, table in tables.items()}  # (B, R)
    sums = np.stack([weights @ columns[..., k] for k in range(3)], axis=-1)  # (B, R, 3)
    found["pooled_iou"] = np.where(sums[..., 1] + sums[..., 2] > 0, iou(sums), np.nan)
    mean = {"pooled_iou" if what == "pooled_iou" else f"mean_{what}": mean_of_known(v) for what, v in found.items()}
    return mean | {f"{what}_{r}": values[:, r] for what, values in found.items() for r in range(values.shape[1])}


def _weighted_means(weights: Floats, table: Floats) -> Floats:
    """(B, R) means over the cases (M, R) in which a value is known."""
    known = np.isfinite(table)
    with np.errstate(invalid="ignore", divide="ignore"):
        means: Floats = (weights @ np.where(known, table, 0)) / (weights @ known.astype(np.float64))
    return means


def _text(value: float) -> str:
    return f"{value:.4f}" if np.isfinite(value) else ""
