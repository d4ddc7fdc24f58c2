"""Pictures of the answers: ROC and precision-recall curves, the confusion matrix, calibration."""

from __future__ import annotations

from pathlib import Path

from densepath.core.files import atomic_write
from densepath.transfer.mil.results import Outcome
from densepath.transfer.probe.curves import Ranked, draw_curves
from densepath.transfer.probe.metrics import Score
from densepath.transfer.probe.record import draw_matrices

_CURVES = ("roc", "precision_recall", "calibration")


def draw_pictures(tested: Outcome, scores: dict[str, Score], out: Path) -> dict[str, Path]:
    """Draw the curves and the confusion matrix as PNG files; returns their paths."""
    classes = tested.cohort.classes
    ranked = [Ranked(name, tested.values[:, k], tested.truth == k, tested.folds) for k, name in enumerate(classes)]
    paths = draw_curves(ranked, scores, out, _CURVES) | {"confusion": out / "confusion.png"}
    with atomic_write(paths["confusion"]) as part:
        draw_matrices({"": tested.confusion()}, classes, part)
    return paths
