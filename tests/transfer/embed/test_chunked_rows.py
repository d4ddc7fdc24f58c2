"""Datasets in small chunks, read around HDF5: equal to what HDF5 reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from densepath.transfer.embed import chunked_rows
from densepath.transfer.embed.chunked_rows import read_rows
from densepath.transfer.embed.slide_features import read_slide_features

VALUES = np.random.default_rng(0).standard_normal((203, 24)).astype(np.float32)


def appended(file: Any) -> None:
    """As CLAM writes: batches are appended, and other datasets lie between their chunks."""
    data = file.create_dataset("features", data=VALUES[:50], chunks=(1, 24), maxshape=(None, 24))
    for first in range(50, len(VALUES), 51):
        file[f"between{first}"] = np.arange(first)
        data.resize(min(len(VALUES), first + 51), axis=0)
        data[first:] = VALUES[first : first + 51]


def made(values: Any = VALUES, **options: Any) -> Any:
    return lambda file: file.create_dataset("features", data=values, **options)


# How features are written, and whether they can be read around HDF5.
LAYOUTS: dict[str, tuple[Any, bool]] = {
    "appended": (appended, True),
    "chunks of rows": (made(chunks=(8, 24)), True),
    "float16": (made(VALUES.astype("f2"), chunks=(1, 24)), True),
    "other byte order": (made(VALUES.astype(">f4"), chunks=(1, 24)), True),
    "compressed": (
        lambda file: file.create_dataset("features", data=VALUES, chunks=(1, 24), compression="gzip"),
        False,
    ),
    "checked": (made(chunks=(1, 24), fletcher32=True), False),
    "parts of rows": (made(chunks=(4, 12)), False),
    "contiguous": (made(), False),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_are_those_of_hdf5(layout: str, tmp_path: Path) -> None:
    write, direct = LAYOUTS[layout]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        write(file)
    with h5py.File(tmp_path / "a.h5") as file:
        expected = file["features"][:]
        found = read_rows(file["features"], tmp_path / "a.h5")
        assert (chunked_rows._plain_chunks(file["features"]) is not None) == direct
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == expected.dtype and found.shape == expected.shape
    np.testing.assert_array_equal(read_slide_features(tmp_path / "a.h5").features, expected)


def test_rows_that_were_never_written_are_zeros(tmp_path: Path) -> None:
    for name, options in (("a", {}), ("b", {"userblock_size": 512})):
        with h5py.File(tmp_path / f"{name}.h5", "w", **options) as file:
            data = file.create_dataset("features", (10, 24), "f4", chunks=(1, 24))
            data[:4] = VALUES[:4]
            if name == "b":
                data[4:] = VALUES[4:10]
        with h5py.File(tmp_path / f"{name}.h5") as file:
            found = read_rows(file["features"], tmp_path / f"{name}.h5")
        np.testing.assert_array_equal(found[:4], VALUES[:4])
        np.testing.assert_array_equal(found[4:], VALUES[4:10] if name == "b" else 0)
