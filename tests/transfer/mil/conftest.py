"""Small studies: features of slides with a planted signal, and their table."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

DIM = 12


def write_study(folder: Path, patients: int = 24, slides: int = 1, signal: float = 3.0, tiles: int = 12) -> Path:
    """Features (.pt) of slides and ``table.csv`` in CLAM's columns: in a tumour a fifth of the tiles is shifted."""
    rng = np.random.default_rng(0)
    (folder / "features").mkdir(parents=True)
    rows = []
    for patient in range(patients):
        tumour = patient % 2
        for number in range(slides):
            values = rng.standard_normal((tiles + patient % 5, DIM)).astype(np.float32)
            values[: len(values) // 5, 0] += signal * tumour
            name = f"P{patient:02d}_{number}"
            torch.save(torch.from_numpy(values), folder / "features" / f"{name}.pt")
            rows.append([f"P{patient:02d}", name, ("benign", "tumour")[tumour], f"site{patient // 4}"])
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["case_id", "slide_id", "label", "hospital"], *rows])
    return folder


@pytest.fixture
def study(tmp_path: Path) -> Callable[..., Path]:
    """Writes a study below a folder of the test."""

    def write(**options: float) -> Path:
        return write_study(tmp_path / f"study{len(list(tmp_path.iterdir()))}", **options)  # type: ignore[arg-type]

    return write


@pytest.fixture(scope="module")
def shared_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of twelve patients that the tests of a module do not change."""
    return write_study(tmp_path_factory.mktemp("shared") / "study", patients=12)
