"""Small data sets: images whose color tells their class, of patients with several images."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from densepath.core.result import Result

SIDE = 32


def write_images(folder: Path, patients: int = 6, each: int = 2, seed: int = 0, letter: str = "P") -> Path:
    """folder/CLASS/PATIENT_NUMBER.png, and ``labels.csv`` with file, label, patient."""
    rng, rows = np.random.default_rng(seed), []
    for k in range(2):
        (folder / "images" / "abc"[k]).mkdir(parents=True)
        for p in range(patients):
            for n in range(each):
                pixels = rng.integers(0, 130, (SIDE, SIDE, 3))
                pixels[..., k] += 120
                name = f"{'abc'[k]}/{letter}{k}{p}_{n}.png"
                Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / name)
                rows.append([name, "abc"[k], f"{letter}{k}{p}"])
    write_table(folder / "labels.csv", ["file", "label", "patient"], rows)
    return folder


def write_table(path: Path, heads: list[str], rows: list[list[Any]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([heads, *rows])
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """24 images of two classes and twelve patients."""
    return write_images(tmp_path / "data")


@pytest.fixture
def classify(tmp_path: Path) -> Callable[..., Result]:
    """Runs ``classify`` with a tiny network."""
    from densepath.transfer.classify.classify import classify as verb

    def run(**options: Any) -> Result:
        small = {"backbone": "test_resnet", "view_size": SIDE, "epochs": 2, "batch_size": 8, "devices": "cpu"}
        return verb(**{"out": tmp_path / "run", "workers": 0, "precision": "32", **small, **options})

    return run
