"""Slides whose classes differ in the arrangement of their cells, and in nothing else."""

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial import KDTree
from sklearn.metrics import roc_auc_score

from densepath.annotations.cells.blobs import find_cells
from densepath.core.errors import UserError
from densepath.sources.slides.open import open_slide
from densepath.synthetic.arranged import CLUSTERED, SPREAD, ArrangedPainter, write_arranged

SIDE = 640


def test_only_the_arrangement_of_cells_tells_the_classes_apart() -> None:
    facts: dict[str, list[float]] = {}
    labels = []
    for seed in range(16):
        for label, arrangement in enumerate((SPREAD, CLUSTERED)):
            painter = ArrangedPainter((SIDE, SIDE), seed, arrangement)
            pixels, points = painter.part(0, 0, SIDE, SIDE), painter.cells()
            labels.append(label)
            tissue = np.ptp(pixels.astype(int), axis=2) > 30
            found = {f"mean of channel {c}": float(pixels[tissue][:, c].mean()) for c in range(3)}
            found |= {"tissue": float(tissue.mean()), "nuclei found": float(len(find_cells(pixels, 0.5)))}
            found |= {"cells": float(len(points))}
            tree = KDTree(points)
            found["neighbors within 10 µm"] = tree.count_neighbors(tree, 20.0) / len(points)
            for name, value in found.items():
                facts.setdefault(name, []).append(value)
    arranged = facts.pop("neighbors within 10 µm")
    assert roc_auc_score(labels, arranged) == 1
    for name, values in facts.items():
        assert abs(roc_auc_score(labels, values) - 0.5) <= 0.08, name  # one pair is 0.004


def test_pairs_of_slides_are_patients_of_one_part(tmp_path: Path) -> None:
    write_arranged(tmp_path / "A", pairs=3, test=0.34, side=512, seed=1)
    with (tmp_path / "A" / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["split"] for row in rows if row["patient"] == "pair002"} == {"test"}
    assert [row["split"] for row in rows].count("train") == 4
    for patient in {row["patient"] for row in rows}:
        assert {row["label"] for row in rows if row["patient"] == patient} == {SPREAD, CLUSTERED}
    for row in rows:
        slide = open_slide(tmp_path / "A" / f"{row['slide']}.tiff")
        assert slide.mpp == pytest.approx((0.5, 0.5)) and slide.levels[0].size == (512, 512)
    with pytest.raises(UserError, match="not empty"):
        write_arranged(tmp_path / "A", pairs=3)
    for wrong in ({"pairs": 1}, {"test": 0.0}, {"test": float("nan")}, {"side": 256}):
        with pytest.raises(UserError, match="pairs for both"):
            write_arranged(tmp_path / "B", **wrong)  # type: ignore[arg-type]
