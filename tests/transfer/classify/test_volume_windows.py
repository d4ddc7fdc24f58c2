"""Windows of volumes: which a classifier takes from a store and from an array, and which it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from densepath.core.errors import UserError
from densepath.datasets.volumes.conversion import FolderConversion
from densepath.datasets.volumes.folder import convert_folder
from densepath.sources.other_bits import seen_as
from densepath.sources.packing import write_store
from densepath.sources.pixel_source import PixelSpec
from densepath.sources.volumes.open_store import open_volumes
from densepath.transfer.classify.classifier import KEY, ClassifierNotes, save_classifier
from densepath.transfer.classify.classify import classify
from densepath.transfer.classify.trained import load_classifier
from densepath.transfer.predict import predict

CPU: dict[str, Any] = {"devices": "cpu", "precision": "32"}
UNIT = (-1000.0, 1000.0)


def volumes(folder: Path, window: Any) -> Path:
    """A store of two volumes of 16 x 32 x 32 voxels, with values from 0 to about 4."""
    (folder / "scans").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        fields = "ObjectType = Image\nNDims = 3\nDimSize = 32 32 16\nElementType = MET_SHORT\nElementSpacing = 1 1 1\n"
        (folder / "scans" / f"{name}.mhd").write_text(f"{fields}ElementDataFile = {name}.raw\n")
        values = rng.poisson(1, 32 * 32 * 16).astype(np.int16)
        (folder / "scans" / f"{name}.raw").write_bytes(values.tobytes())
    convert_folder(FolderConversion(folder / "scans", folder / "S", window=window))
    return folder / "S"


def write_classifier(path: Path, window: tuple[float, float], own_window: bool) -> Path:
    spec = PixelSpec.default(1, window, ndim=3).record()
    notes = ClassifierNotes("resnet10_3d_w4", "mean", ("x", "y"), True, (16, 32, 32), spec, own_window=own_window)
    save_classifier(path, notes.build(), notes)
    return path


def probability(out: Path) -> float:
    with (out / "predictions.csv").open() as file:
        return float(next(csv.DictReader(file))["p y"])


@pytest.mark.parametrize(
    ("stored", "window"), [("volume", (0.0, 1.0)), ("volume", (-0.2, 1.5)), ((0.0, 1.0), (0.0, 1.0))]
)
def test_an_array_is_seen_as_the_same_volume_of_the_training_store(stored: Any, window: Any, tmp_path: Path) -> None:
    run = write_classifier(tmp_path / "c.safetensors", window, own_window=stored == "volume")
    store = volumes(tmp_path / "data", stored)
    predict(run, data=store, out=tmp_path / "out", **CPU)
    raw = open_volumes(volumes(tmp_path / "raw", UNIT)).read(0)
    assert raw.dtype == np.int16
    for values in (raw, open_volumes(store).read(0)):
        assert load_classifier(run).predict(values)["y"] == pytest.approx(probability(tmp_path / "out"), abs=1e-5)


@pytest.mark.parametrize(("window", "own"), [((0.0, 1.0), True), (UNIT, False)])
def test_the_kind_of_window_is_recorded_or_follows_from_the_window(window: Any, own: bool, tmp_path: Path) -> None:
    path = write_classifier(tmp_path / "c.safetensors", window, own_window=not own)
    with safe_open(path, framework="pt") as file:
        state, known = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    assert load_classifier(path).notes.own_window is not own
    former = json.loads(known[KEY])
    del former["own_window"]  # as in files of earlier versions
    save_file(state, path, known | {KEY: json.dumps(former)})
    assert load_classifier(path).notes.own_window is own


@pytest.mark.parametrize(
    ("window", "own", "stored", "wanted"),
    [
        ((0.0, 1.0), True, UNIT, "--window volume"),
        ((-0.2, 1.5), True, UNIT, "--window volume"),
        ((0.0, 1.0), False, UNIT, "--window 0 1"),
        (UNIT, False, "volume", "--window -1000 1000"),
    ],
)
def test_predict_refuses_a_store_of_another_kind_of_window(
    window: Any, own: bool, stored: Any, wanted: str, tmp_path: Path
) -> None:
    run, store = write_classifier(tmp_path / "c.safetensors", window, own), volumes(tmp_path / "data", stored)
    with pytest.raises(UserError, match=f"windows of {store} are not those .* run its conversion again with {wanted}$"):
        predict(run, data=store, out=tmp_path / "out", **CPU)


def test_a_packed_store_of_another_window_has_no_conversion(tmp_path: Path) -> None:
    pixels, unit = [np.zeros((16, 32, 32, 1), np.float32)], PixelSpec.default(1, UNIT, ndim=3)
    write_store(tmp_path / "s.safetensors", pixels, ["a"], unit)
    run = write_classifier(tmp_path / "c.safetensors", (0.0, 1.0), own_window=True)
    with pytest.raises(UserError, match=r"s\.safetensors are not .* write it again with each volume as shares"):
        predict(run, data=tmp_path / "s.safetensors", out=tmp_path / "out", **CPU)


@pytest.mark.parametrize(("stored", "wanted"), [("volume", "volume"), (UNIT, "-1000 1000"), ((0.0, 1.0), "0 1")])
def test_test_volumes_of_another_kind_of_window_are_refused(stored: Any, wanted: str, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("file,label\na,x\nb,y\n")
    data, test = volumes(tmp_path / "data", stored), volumes(tmp_path / "test", "volume" if stored == UNIT else UNIT)
    with pytest.raises(UserError, match=f"windows of {test} are not those .* --window {wanted}$"):
        classify(data=data, labels=tmp_path / "labels.csv", test_data=test, out=tmp_path / "run", **CPU)


def test_weights_with_another_window_of_shares_see_their_store_as_in_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = open_volumes(volumes(tmp_path, "volume"))
    weights = store.spec.override(window=(-0.2, 1.5))  # of pretrain --window=-0.2,1.5
    capsys.readouterr()
    assert seen_as(weights, store) == weights and not capsys.readouterr().err
