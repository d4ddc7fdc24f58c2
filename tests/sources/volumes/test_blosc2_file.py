"""Files that nnU-Net and nnssl have preprocessed."""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from densepath.core.errors import UserError
from densepath.sources.corrupt import CorruptImage
from densepath.sources.volumes.read import files_of, read_volume
from densepath.sources.volumes.volume import spacing_of

VALUES = np.random.default_rng(0).normal(size=(2, 4, 5, 6)).astype(np.float32)  # channels, z, y, x


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of blosc2, or where that is not installed a file that a module of the same name opens."""
    file = tmp_path / "case.b2nd"
    try:
        import blosc2

        blosc2.asarray(VALUES, urlpath=str(file))
    except ImportError:
        with file.open("wb") as opened:
            np.save(opened, VALUES)
        monkeypatch.setitem(sys.modules, "blosc2", SimpleNamespace(open=lambda name, mode: np.load(name)))
    return file


@pytest.mark.parametrize("protocol", [4, 5])
def test_a_preprocessed_volume_has_the_spacing_of_its_properties(path: Path, protocol: int) -> None:
    properties: Any = {"spacing": [9.0, 9.0, 9.0], "sitk_stuff": {"origin": (0.0, 1.0)}, "shape": np.array([4, 5, 6])}
    for missing in (lambda: None, lambda: path.with_suffix(".pkl").write_bytes(pickle.dumps(properties, protocol))):
        missing()  # no properties, then a spacing that may be that of the raw file
        with pytest.raises(CorruptImage, match=r"--spacing X Y Z"):
            read_volume(path, channels=True)
    assert spacing_of(read_volume(path, (1.0, 2.0, 3.0), channels=True).affine) == (1.0, 2.0, 3.0)
    properties |= {"spacing_after_resampling": np.array([2.5, 0.8, 0.7]), "classes": OrderedDict(a=np.float64(1))}
    path.with_suffix(".pkl").write_bytes(pickle.dumps(properties, protocol))
    volume = read_volume(path, channels=True)
    assert spacing_of(volume.affine) == (0.7, 0.8, 2.5)
    assert np.array_equal(volume.channels[1].values, VALUES[1].transpose(2, 1, 0))
    with pytest.raises(CorruptImage, match="not a volume"):
        read_volume(path)


@pytest.mark.parametrize("order", [None, (0, 1, 2), (1, 2, 0), (2, 0, 1)])
def test_a_resampled_volume_has_the_spacing_and_the_axes_that_its_plans_tell(path: Path, order: Any) -> None:
    (folder := path.parent / "nnUNetPlans_3d_fullres" / "gt").mkdir(parents=True)
    path = path.rename(folder / path.name)
    axes = order or (0, 1, 2)  # of the raw volume, which are z, y, x
    raw_spacing, factors = (2.0, 0.2, 0.3), (0.5, 5.0, 4.0)
    shape = tuple(round(n * factors[axis]) for n, axis in zip(VALUES.shape[1:], axes, strict=True))
    properties = {"spacing": list(raw_spacing), "shape_after_cropping_and_before_resampling": shape}
    path.with_suffix(".pkl").write_bytes(pickle.dumps(properties))
    plans = folder.parents[1] / "nnUNetPlans.json"
    if order:
        plans.write_text(json.dumps({"transpose_forward": order}))
    volume = read_volume(path, channels=True)
    expected = [side * shape[k] / VALUES.shape[1 + k] for side, k in zip(raw_spacing, np.argsort(axes), strict=True)]
    assert spacing_of(volume.affine) == pytest.approx(expected[::-1])
    zyx = volume.channels[1].values.transpose(2, 1, 0)
    assert np.array_equal(zyx.transpose(axes), VALUES[1])
    assert ("no plans" in str(volume.notes)) == (order is None)
    assert files_of(path) == (path, path.with_suffix(".pkl"), *([plans] if order else []))


def test_plans_without_an_order_of_axes_are_refused(path: Path) -> None:
    (folder := path.parent / "P_3d").mkdir()
    (path.parent / "P.json").write_text('{"transpose_forward": [0, 1, 1]}')
    with pytest.raises(CorruptImage, match="transpose_forward"):
        read_volume(path.rename(folder / path.name), (1.0, 1.0, 1.0), channels=True)


def test_no_code_of_the_properties_is_run(path: Path, tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "made"),)

    path.with_suffix(".pkl").write_bytes(pickle.dumps({"spacing": Code()}))
    with pytest.raises(CorruptImage, match=r"it contains posix\.mkdir"):
        read_volume(path, channels=True)
    assert not (tmp_path / "made").exists()


def test_the_package_is_named_where_it_is_missing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "blosc2", None)
    with pytest.raises(UserError, match=r"densepath\[blosc2\]"):
        read_volume(path)
