"""Small data sets: discs and balls whose brightness tells their class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from densepath.core.result import Result

SIDE = 40  # pixels; images are 8 wider


def write_images(folder: Path, patients: int = 4, each: int = 2, seed: int = 0, letter: str = "P") -> Path:
    """images/PATIENT_NUMBER.png and labels/ with the same names: a red disc (10) and a blue one (20) on noise."""
    rng = np.random.default_rng(seed)
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    y, x = np.mgrid[:SIDE, : SIDE + 8]
    for k in range(patients * each):
        labels = np.zeros(y.shape, np.uint8)
        for value, left in ((10, 0), (20, 24)):
            cy, cx, r = rng.integers(10, SIDE - 10), left + rng.integers(8, 16), rng.integers(6, 9)
            labels[(y - cy) ** 2 + (x - cx) ** 2 < r * r] = value
        pixels = rng.integers(0, 40, (*y.shape, 3))
        pixels[labels == 10, 0] += 200
        pixels[labels == 20, 2] += 200
        name = f"{letter}{k // each}_{k}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / name)
        Image.fromarray(labels).save(folder / "labels" / name)
    return folder


def write_store(folder: Path, count: int = 6, spacing: tuple[float, ...] = (1.0, 2.0, 1.5), shear: float = 0.0) -> Path:
    """folder/scans with NIfTI volumes in axes L, P, S, and folder/S, their store: a ball (1) with a core (4).

    ``shear``: of the third axis, in mm along y.
    """
    nibabel = pytest.importorskip("nibabel")
    from densepath.datasets.volumes.conversion import FolderConversion
    from densepath.datasets.volumes.folder import convert_folder

    rng = np.random.default_rng(0)
    for part in ("images", "labels"):
        (folder / "scans" / part).mkdir(parents=True)
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    affine[:3, 3] = 30, 20, -10
    affine[1, 2] = shear
    for k in range(count):
        shape = (20 + k, 16, 18)
        place = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
        far = np.linalg.norm(place - rng.integers(7, 11, 3), axis=-1)
        labels = np.where(far < 3, 4, far < 6).astype(np.uint8)
        pixels = rng.integers(0, 60, shape) + 300 * (labels > 0) + 300 * (labels == 4)
        for part, values in (("images", pixels.astype(np.int16)), ("labels", labels)):
            nibabel.save(nibabel.Nifti1Image(values, affine), folder / "scans" / part / f"v{k}.nii.gz")
    how = FolderConversion(folder / "scans", folder / "S", images="images", labels="labels", patient_regex=r"(v\d)")
    convert_folder(how)
    return folder / "S"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Eight images of four patients."""
    return write_images(tmp_path / "data")


@pytest.fixture
def segment(tmp_path: Path) -> Callable[..., Result]:
    """Runs ``segment`` with a tiny network."""
    from densepath.transfer.segment.segment import segment as verb

    def run(**options: Any) -> Result:
        small = {"backbone": "test_resnet", "view_size": 32, "epochs": 2, "batch_size": 4, "devices": "cpu"}
        small |= {"patient_regex": r"^([PQv]\d+)", "pictures": 1}
        return verb(**{"out": tmp_path / "run", "workers": 0, "precision": "32", **small, **options})

    return run
