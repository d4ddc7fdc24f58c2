"""Crops around the candidates of LUNA16, from a copy of its layout."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from densepath.core.csv_files import write_rows
from densepath.core.errors import UserError
from densepath.datasets.volumes.conversion import Conversion
from densepath.datasets.volumes.luna import convert_luna
from densepath.datasets.volumes.nodules import NodulesConversion, _corner, convert_nodules
from densepath.sources.volumes.open_store import open_volumes
from densepath.transfer.classify.classify import classify

SIZE = (10, 9, 8)  # of scans, D, H, W
STEP = (2.0, 0.5, 0.5)


def write_luna(folder: Path, each: int = 2) -> dict[str, np.ndarray]:
    """Ten subsets of scans in axes L, P, S, where each voxel has another value; scans by their UIDs."""
    head = f"NDims = 3\nDimSize = {SIZE[2]} {SIZE[1]} {SIZE[0]}\nElementSpacing = 0.5 0.5 2\nOffset = -10 -20 -30\n"
    scans, rows = {}, []
    for subset in range(10):
        (folder / f"subset{subset}").mkdir(parents=True)
        for number in range(each):
            uid = f"1.3.6.1.4.1.14519.5.2.1.6279.6001.{10**17 + 100 * subset + number}"
            values = np.arange(np.prod(SIZE), dtype="<i2").reshape(SIZE) - 1000 + subset
            (folder / f"subset{subset}/{uid}.raw").write_bytes(values.tobytes())
            text = f"{head}ElementType = MET_SHORT\nElementDataFile = {uid}.raw\n"
            (folder / f"subset{subset}/{uid}.mhd").write_text(text)
            scans[uid] = values[:, ::-1, ::-1]  # S, A, R
            # Voxels i, j, k of the file: one in the middle, one in a corner, and places without a nodule.
            for i, j, k, kind in [(4, 4, 5, 1), (0, 0, 0, 0), *((n % 8, n % 9, n % 10, 0) for n in range(1, 7))]:
                rows.append(f"{uid},{-10 + 0.5 * i},{-20 + 0.5 * j},{-30 + 2 * k},{kind}")
    (folder / "candidates_V2.csv").write_text("\n".join(["seriesuid,coordX,coordY,coordZ,class", *rows]))
    return scans


def test_crops_of_candidates(tmp_path: Path) -> None:
    scans = write_luna(tmp_path / "LUNA16")
    source = convert_luna(Conversion(tmp_path / "LUNA16", tmp_path / "S", window=(-1000, 1000)))
    dest = convert_nodules(NodulesConversion(source, tmp_path / "N", (4, 6, 6), negatives=3))
    store = open_volumes(dest)
    with (dest / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(store) == len(rows) == 20 * (1 + 3) and sum(row["label"] == "nodule" for row in rows) == 20
    assert store.index["window"] == [-1000, 1000]
    by_split = {split: {row["patient"] for row in rows if row["split"] == split} for split in ("train", "val", "test")}
    assert by_split["train"] | by_split["val"] | by_split["test"] == set(scans)
    assert [len(patients) for patients in by_split.values()] == [14, 2, 4]  # 70, 10 and 20%
    candidates = list(csv.DictReader((source / "candidates.csv").open()))
    padded = {uid: np.pad(values, 10, constant_values=-1000) for uid, values in scans.items()}
    for k, row in enumerate(store.rows):
        uid, _, number = row["name"].partition("/")
        place = [float(candidates[int(number)][axis]) for axis in "xyz"]
        first = np.linalg.inv(row["affine"]) @ [*place, 1.0]  # the candidate in voxels of the crop
        assert np.allclose(first[:3], [2.5, 2.5, 1.5], atol=0.51) and row["size"] == [4, 6, 6]
        x, y, z = (np.array(row["affine"])[:3, 3] - [6.5, 16.0, -30.0]) / STEP[::-1]  # its first voxel in the scan's
        low = [round(float(n)) + 10 for n in (z, y, x)]
        cut = padded[uid][tuple(slice(a, a + n) for a, n in zip(low, (4, 6, 6), strict=True))]
        np.testing.assert_array_equal(store.read(k)[..., 0], cut)
    names = [row["name"] for row in store.rows]
    assert convert_nodules(NodulesConversion(source, tmp_path / "N", (4, 6, 6), negatives=3)) == dest  # continued
    whole = open_volumes(convert_nodules(NodulesConversion(source, tmp_path / "all", (4, 6, 6), negatives=0)))
    assert len(whole) == 20 * 8 and set(names) < {row["name"] for row in whole.rows}
    assert len(open_volumes(source, ["subset7", "subset8", "subset9"])) == 14  # what a pre-training may see


def test_places_that_change_are_cut_again(tmp_path: Path) -> None:
    write_luna(tmp_path / "LUNA16", each=1)
    source = convert_luna(Conversion(tmp_path / "LUNA16", tmp_path / "S", window=(-1000, 1000)))
    how = NodulesConversion(source, tmp_path / "N", (4, 6, 6), negatives=1)
    before = open_volumes(convert_nodules(how))
    crops = {before.names(k): before.read(k) for k in range(len(before))}
    table = source / "candidates.csv"
    rows = list(csv.DictReader(table.open()))
    for row in rows:
        row["x"] = str(min(float(row["x"]) + 0.5, 10.0))
    write_rows(table, list(rows[0]), rows)
    after = open_volumes(convert_nodules(how))
    fresh = open_volumes(convert_nodules(NodulesConversion(source, tmp_path / "M", (4, 6, 6), negatives=1)))
    for k in range(len(fresh)):
        np.testing.assert_array_equal(after.read(k), fresh.read(k))
    assert any(not np.array_equal(crops[after.names(k)], after.read(k)) for k in range(len(after)))


@pytest.mark.parametrize("side", [4, 5])
def test_crops_lie_around_candidates_in_the_same_way(side: int) -> None:
    """Voxels 0, 1, 2, ... of a scan: with an even side the candidate is in the lower of the two middle voxels."""
    known = {"affine": np.eye(4).tolist(), "size": [9, 9, 9]}
    store: Any = SimpleNamespace(rows=[known])
    for n in range(9):
        row = {"x": f"{n}", "y": f"{n}", "z": f"{n - 1e-9}", "volume": "a"}
        assert _corner(store, 0, row, (side,) * 3) == [n - (side - 1) // 2] * 3


def test_classify_trains_on_the_crops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_luna(tmp_path / "LUNA16", each=1)
    source = convert_luna(Conversion(tmp_path / "LUNA16", tmp_path / "S", window=(-1000, 1000)))
    crops = convert_nodules(NodulesConversion(source, tmp_path / "N", (8, 8, 8), negatives=1))
    result = classify(
        data=crops, labels=crops / "labels.csv", out=tmp_path / "R", backbone="resnet10_3d_w4", view_size=(8, 8, 8),
        epochs=1, batch_size=4, seed=0, devices="cpu", workers=0, precision="32",
    )  # fmt: skip
    assert 0 <= result["macro_auc"] <= 100
    with (crops / "labels.csv").open() as file:
        counts = Counter(row["split"] for row in csv.DictReader(file))
    shown = f"{counts['train']} train, {counts['val']} validation, {counts['test']} test images"
    assert shown in capsys.readouterr().err


def test_a_store_without_candidates_is_refused(tmp_path: Path) -> None:
    write_luna(tmp_path / "LUNA16", each=1)
    (tmp_path / "LUNA16/candidates_V2.csv").unlink()
    source = convert_luna(Conversion(tmp_path / "LUNA16", tmp_path / "S"))
    with pytest.raises(UserError, match=r"put candidates_V2.csv beside the subsets"):
        convert_nodules(NodulesConversion(source, tmp_path / "N"))


def test_a_candidate_without_a_place_is_refused(tmp_path: Path) -> None:
    write_luna(tmp_path / "LUNA16", each=1)
    source = convert_luna(Conversion(tmp_path / "LUNA16", tmp_path / "S"))
    with (source / "candidates.csv").open("a") as file:
        file.write("1.2,3.5,nan,2,1\n")
    with pytest.raises(UserError, match=r"candidates.csv is not the table of candidates that densepath data luna"):
        convert_nodules(NodulesConversion(source, tmp_path / "N"))
