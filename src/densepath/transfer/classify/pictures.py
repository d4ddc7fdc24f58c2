"""Pictures of the answers: ROC and precision-recall curves, calibration, and confusion matrices."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from densepath.core.files import atomic_write
from densepath.transfer.classify.label_scores import predicted
from densepath.transfer.classify.results import Outcome, Scores
from densepath.transfer.probe.curves import Ranked, draw_curves
from densepath.transfer.probe.metrics import Integers
from densepath.transfer.probe.record import draw_matrices

PICTURES = "pictures"
_CURVES = ("roc", "precision_recall", "calibration")
_MOST = 4  # labels whose confusion matrices are drawn


def draw_pictures(tested: Outcome, scores: Scores, out: Path) -> Path:
    """Draw them as PNG files; of several labels the confusion matrices of the first four. Returns the ROC curves."""
    folder = out / PICTURES
    folder.mkdir(exist_ok=True)
    names, matrix = tested.targets.names, tested.targets.matrix()
    ranked = []
    for t, name in enumerate(names):
        known = ~np.isnan(matrix[:, t])
        ranked.append(Ranked(name, tested.chances[known, t], matrix[known, t] > 0, tested.runs[known]))
    paths = draw_curves(ranked, scores.all, folder, _CURVES)
    said = predicted(tested.targets, tested.chances)
    if tested.targets.exclusive:
        matrices, classes = {"": _confusion(tested.targets.classes, said[:, 0], len(names))}, names
    else:
        classes = ("absent", "present")
        matrices = {
            name: _confusion(matrix[known, t].astype(np.int64), said[known, t], 2)
            for t, name in enumerate(names[:_MOST])
            for known in [~np.isnan(matrix[:, t])]
        }
    with atomic_write(folder / "confusion.png") as part:
        draw_matrices(matrices, classes, part)
    return paths["roc"]


def _confusion(truth: Integers, said: Integers, count: int) -> Integers:
    """(K, K) numbers by class and by predicted class."""
    return np.bincount(truth * count + said, minlength=count * count).reshape(count, count)
