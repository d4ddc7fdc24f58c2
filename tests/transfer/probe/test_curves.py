"""Pictures of scores."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from densepath.transfer.probe.curves import Ranked, draw_curves
from densepath.transfer.probe.record import draw_matrices


def test_any_name_can_be_drawn_and_a_single_class_without_a_word(tmp_path: Path) -> None:
    """Folders of classes may have bytes that are not text, and dollars are no formulas."""
    chance, ones = np.linspace(0, 1, 4), np.ones(4)
    for positive in (chance > 0.5, ones > 0):
        ranked = [Ranked(name, chance, positive.astype(float), 0 * ones) for name in ("Dr\udcfcse", r"$\frac$")]
        with warnings.catch_warnings(action="error"):
            made = draw_curves(ranked, {}, tmp_path, ["roc", "precision_recall", "calibration"])
            draw_matrices({"\udcfc": np.eye(2, dtype=np.int64)}, ["\udcfc", "$$"], tmp_path / "matrix.png")
        assert all(path.is_file() for path in made.values())
