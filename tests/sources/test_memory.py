"""Files that do not fit into memory are not taken for damaged ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import tifffile
import torch

from densepath.annotations.cells.cell_files import read_cells
from densepath.annotations.labels import read_labels
from densepath.nets.weights.files import load_torch
from densepath.sources.image_reader import ImageFile, open_file
from densepath.sources.slides.open import open_slide
from densepath.sources.tiff_parts import TiffParts
from densepath.sources.tiles.coords import given_size
from densepath.sources.tiles.tile_files import read_tiling
from densepath.sources.volumes.dicom_series import find_series
from densepath.sources.volumes.dicom_volume import read_series
from densepath.sources.volumes.read import read_volume
from densepath.transfer.embed.slide_features import read_slide_features
from tests.sources.test_dicom_image import STORED
from tests.sources.test_dicom_image import write as write_radiograph
from tests.sources.volumes.test_dicom_series import VALUES, write_slice


def _series(path: Path) -> Any:
    for number in range(2):
        write_slice(path / str(number), VALUES[number], float(number), "1.2")
    (series,), _ = find_series(path)
    return lambda: read_series(series)


def _radiograph(path: Path) -> Any:
    write_radiograph(path.with_suffix(".dcm"), STORED)
    return lambda: open_file(path.with_suffix(".dcm")).read(0, 0, 4, 4)


def _tiff(read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    def prepare(path: Path) -> Any:
        tifffile.imwrite(path, np.zeros((32, 32, 3), np.uint8), tile=(16, 16))
        return lambda: read(path)

    return prepare


def _matlab(path: Path) -> Any:
    scipy.io.savemat(path.with_suffix(".mat"), {"inst_map": np.eye(8)})
    return lambda: read_labels(path.with_suffix(".mat"))


def _blosc2(path: Path) -> Any:
    pytest.importorskip("blosc2")
    path.write_bytes(b"x")
    return lambda: read_volume(path.rename(path.with_suffix(".b2nd")))


def _hdf5(read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    def prepare(path: Path) -> Any:
        path = path.with_suffix(".h5")
        path.touch()
        return lambda: read(path)

    return prepare


def _weights(path: Path) -> Any:
    torch.save({"a": torch.zeros(1)}, path)
    return lambda: load_torch(path)


CASES = {
    "series": (_series, "pydicom.dcmread"),
    "radiograph": (_radiograph, "pydicom.dcmread"),
    "part of a TIFF": (_tiff(lambda path: TiffParts(path).read(0, 0, 4, 4)), "tifffile.TiffPage.decode"),
    "TIFF": (_tiff(open_file), "tifffile.TiffFile"),
    "resolution of a TIFF": (_tiff(lambda path: ImageFile(path).spacing), "tifffile.TiffFile"),
    "slide": (_tiff(open_slide), "densepath.sources.slides.open.open_tiff"),
    "label map": (_matlab, "scipy.io.loadmat"),
    "preprocessed volume": (_blosc2, "blosc2.open"),
    "cells": (_hdf5(read_cells), "h5py.File"),
    "coordinates": (_hdf5(lambda path: given_size(str(path))), "h5py.File"),
    "features of a slide": (_hdf5(read_slide_features), "h5py.File"),
    "tiles of a slide": (_hdf5(lambda path: read_tiling(path, "")), "h5py.File"),
    "weights": (_weights, "torch.load"),
}


@pytest.mark.parametrize("case", CASES)
def test_too_little_memory_is_not_damage(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise MemoryError

    prepare, place = CASES[case]
    read = prepare(tmp_path / "file")
    monkeypatch.setattr(place, fail)
    with pytest.raises(MemoryError):
        read()
