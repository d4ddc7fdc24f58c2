"""Purity and mutual information of concepts and glands."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import concept_purity
from densepath.synthetic.tissue import write_tissue


def test_purity_counts_the_most_frequent_class_of_each_concept() -> None:
    concepts, truth = np.array([0, 0, 0, 1, 1, 2]), np.array([True, True, False, False, False, True])
    assert concept_purity.purity(concepts, truth) == pytest.approx(5 / 6)
    assert concept_purity.purity(truth.astype(int), truth) == 1.0


def test_concepts_of_separate_points_are_these_points_and_places_are_compact() -> None:
    points = torch.eye(4).repeat_interleave(25, 0) + 0.01 * torch.rand(100, 4)
    concepts = concept_purity.cluster(points, 8, seed=0, image=3)
    assert concept_purity.purity(concepts, np.repeat(np.arange(4), 25)) == 1.0
    assert (concepts == concept_purity.cluster(points, 8, seed=0, image=3)).all()
    grid = concept_purity.cluster(concept_purity.places((8, 12)), 2, seed=0, image=0).reshape(8, 12)
    changes = (np.diff(grid, axis=0) != 0).sum() + (np.diff(grid, axis=1) != 0).sum()
    assert 0 < changes <= 20  # one border through the grid


def test_weights_are_compared_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_tissue(tmp_path / "d", train=1, test=2, size=96, seed=0)
    words = ["--data", str(data), "--weights", "random", "random", "--backbone", "test_resnet", "--concepts", "2", "4"]
    files = {name: tmp_path / name for name in ("p.png", "p.json")}
    words += ["--size", "96", "--out", str(files["p.png"]), "--json", str(files["p.json"])]
    monkeypatch.setattr(sys, "argv", ["concept_purity", *words])
    concept_purity.main()
    rows = json.loads(files["p.json"].read_text())["tables"]["purity"]
    assert {row["case"] for row in rows} == {"random", concept_purity.CONTROL} and files["p.png"].stat().st_size > 5000
    assert all(0.5 <= row["purity"] <= 1 and 0 <= row["NMI"] <= 1 for row in rows)
    assert {(row["stage"], row["K"]) for row in rows} >= {(stage, 4) for stage in (1, 2, 3, 4)}
    random = [row for row in rows if row["case"] == "random" and (row["stage"], row["K"]) == (2, 4)]
    assert [row["seed"] for row in random] == [0, 1] and random[0]["NMI"] != random[1]["NMI"]
