"""Converters of volumes on copies of the data sets as published: every name, a missing file, a duplicate, counts."""

from __future__ import annotations

import csv
import gzip
import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from isal import igzip
from PIL import Image

from densepath.cli import main
from densepath.core.errors import UserError
from densepath.core.remains import temporary_name
from densepath.datasets.check import check_data
from densepath.datasets.volumes import convert as convert_
from densepath.datasets.volumes import luna
from densepath.datasets.volumes.brats import convert_brats
from densepath.datasets.volumes.conversion import Conversion, DicomConversion, FolderConversion
from densepath.datasets.volumes.dicom import convert_dicom
from densepath.datasets.volumes.folder import convert_folder
from densepath.datasets.volumes.lits import convert_lits
from densepath.datasets.volumes.luna import LUNA, convert_luna
from densepath.datasets.volumes.msd import convert_msd
from densepath.datasets.volumes.nnunet import convert_nnunet
from densepath.sources.volumes import volume as volume_
from densepath.sources.volumes.open_store import open_volumes
from densepath.sources.volumes.prepare import resampled
from densepath.sources.volumes.store import VolumeStore
from densepath.sources.volumes.volume import spacing_of
from densepath.transfer.detection.object_colors import PALETTE
from tests.sources.volumes.test_dicom_series import VALUES as SLICES
from tests.sources.volumes.test_dicom_series import write_slice

RNG = np.random.default_rng(0)
CT = RNG.integers(-1000, 500, (4, 5, 6)).astype(np.int16)
MR = RNG.integers(0, 900, (4, 5, 6)).astype(np.int16)
LABELS = (np.arange(120).reshape(4, 5, 6) % 3).astype(np.uint8)
AFFINE = np.diag([0.5, 0.5, 2.0, 1.0])


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests need not survive a power failure."""
    monkeypatch.setattr("densepath.core.files._sync", lambda path: None)


def nifti(values: np.ndarray, affine: np.ndarray = AFFINE) -> bytes:
    return nibabel.Nifti1Image(values, affine).to_bytes()


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def splits(store: VolumeStore) -> dict[str, int]:
    return dict(Counter(row["split"] for row in store.rows))


def test_msd(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, test = [f"hippocampus_{n:03d}" for n in range(1, 27)], [f"hippocampus_{n:03d}" for n in range(27, 40)]
    files = {f"imagesTr/{name}.nii.gz": nifti(MR) for name in train}
    files |= {f"labelsTr/{name}.nii.gz": nifti(LABELS) for name in train}
    files |= {f"imagesTs/{name}.nii.gz": nifti(MR) for name in test} | {"imagesTr/._hippocampus_001.nii.gz": b"macOS"}
    listed = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in train]
    facts: dict[str, Any] = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "Anterior", "2": "Posterior"}}
    facts |= {"numTraining": 26, "numTest": 13, "training": listed}
    facts |= {"test": [f"./imagesTs/{n}.nii.gz" for n in test]}
    source = fill(tmp_path / "Task04", files | {"dataset.json": json.dumps(facts).encode()})
    (source / "imagesTr" / "hippocampus_007.nii.gz").unlink()
    store = open_volumes(convert_msd(Conversion(source, tmp_path / "S")))
    told = capsys.readouterr()
    assert "38 volumes, 25 with labels; window: each volume's own" in told.out
    assert splits(store) == {"train": 25, "test": 13} and told.err.count("damaged volume: hippocampus_007") == 1
    assert store.index["label_names"] == {"0": "background", "1": "Anterior", "2": "Posterior"}
    assert np.array_equal(store.labels(0), LABELS.transpose(2, 1, 0))
    # Once it is there, only the missing one is converted
    before = (tmp_path / "S" / "volumes" / "hippocampus_001.vol").stat().st_mtime_ns
    fill(source, {"imagesTr/hippocampus_007.nii.gz": nifti(MR)})
    assert len(open_volumes(convert_msd(Conversion(source, tmp_path / "S")))) == 39
    assert (tmp_path / "S" / "volumes" / "hippocampus_001.vol").stat().st_mtime_ns == before
    assert "dataset.json" not in capsys.readouterr().err
    facts["training"].append(listed[0])
    fill(source, {"dataset.json": json.dumps(facts).encode()})
    with pytest.raises(UserError, match=r"more than once: hippocampus_001 \("):
        convert_msd(Conversion(source, tmp_path / "T"))
    assert "27 train volumes are listed, and dataset.json counts 26" in capsys.readouterr().err


def test_four_sequences_in_one_file_are_channels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sequences = np.stack([MR * k for k in range(1, 5)], axis=-1)
    facts: dict[str, Any] = {"modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}, "labels": {"0": "no"}}
    facts |= {"training": [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}], "test": []}
    files = {"imagesTr/a.nii.gz": nifti(sequences), "labelsTr/a.nii.gz": nifti(LABELS)}
    source = fill(tmp_path / "Task01", files | {"dataset.json": json.dumps(facts).encode()})
    store = open_volumes(convert_msd(Conversion(source, tmp_path / "S", window="shared")))
    assert store.spec.channels == 4 and store.index["channel_names"] == ["FLAIR", "T1w", "t1gd", "T2w"]
    assert np.array_equal(store.read(0), sequences.transpose(2, 1, 0, 3))
    assert np.array_equal(store.labels(0), LABELS.transpose(2, 1, 0))
    (source / "dataset.json").write_text(json.dumps(facts | {"modality": {"0": "FLAIR", "1": "T1w"}}))
    assert "warning: volumes have" not in capsys.readouterr().err
    convert_msd(Conversion(source, tmp_path / "T"))
    assert "warning: volumes have 4 channels, and the data set names 2 (FLAIR, T1w)" in capsys.readouterr().err


def test_lits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {f"Training Batch {1 + (n > 27)}/volume-{n}.nii": nifti(CT) for n in range(131)}
    files |= {f"Training Batch {1 + (n > 27)}/segmentation-{n}.nii": nifti(LABELS) for n in range(131) if n != 5}
    files |= {f"Test/test-volume-{n}.nii": nifti(CT) for n in range(70) if n != 4}
    source = fill(tmp_path / "LiTS", files)
    store = open_volumes(convert_lits(Conversion(source, tmp_path / "S", window=(-200, 250))))
    told = capsys.readouterr()
    assert splits(store) == {"train": 131, "test": 69} and "200 volumes, 130 with labels" in told.out
    assert "1 number has no labels: 5" in told.err and "it has 69 test images, not 70" in told.err
    assert store.spec.window == (-200, 250) and store.index["label_names"] == {"1": "liver", "2": "tumor"}
    fill(source, {"Test/test-volume-3.nii.gz": nifti(CT)})
    with pytest.raises(UserError, match=r"more than once: test-volume-3"):
        convert_lits(Conversion(source, tmp_path / "T"))


@pytest.mark.parametrize(
    ("case", "parts", "count", "validation"),
    [
        ("BraTS20_Training_{:03d}", ("_flair", "_t1", "_t1ce", "_t2", "_seg"), 20, 0),
        ("BraTS-GLI-{:05d}-000", ("-t2f", "-t1n", "-t1c", "-t2w", "-seg"), 20, 4),
    ],
)
def test_brats(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str, parts: tuple[str, ...], count: int, validation: int
) -> None:
    *sequences, seg = parts
    contents = [nifti(MR + 10 * k) for k in range(4)] + [nifti(LABELS)]
    files = {}
    for number in range(1, count + validation + 1):
        name, own = case.format(number), parts if number <= count else sequences
        files |= {f"{name}/{name}{part}.nii": data for part, data in zip(own, contents, strict=False)}
    source = fill(tmp_path / "BraTS", files)
    odd = case.format(17)  # as one case of 2020 is named
    (source / odd / f"{odd}{seg}.nii").rename(source / odd / "W39_1998.09.19_Segm.nii")
    lacking = case.format(3)
    (source / lacking / f"{lacking}{sequences[2]}.nii").unlink()
    store = open_volumes(convert_brats(Conversion(source, tmp_path / "S", window=(0, 1000))))
    told = capsys.readouterr()
    assert splits(store) == {"train": count - 1} | ({"test": validation} if validation else {})
    assert f"damaged volume: {lacking}: it lacks T1Gd" in told.err
    assert store.index["channel_names"] == ["FLAIR", "T1", "T1Gd", "T2"]
    assert np.array_equal(store.read(0)[..., 2], (MR + 20).transpose(2, 1, 0))
    assert sum(row["labels"] is not None for row in store.rows) == count - 1
    assert len({row["patient"] for row in store.rows}) == len(store)
    fill(source, {f"{odd}/{odd}{sequences[0]}.nii.gz": contents[0]})
    with pytest.raises(UserError, match="has two files of FLAIR"):
        convert_brats(Conversion(source, tmp_path / "T"))


def test_visits_of_a_patient_belong_together(tmp_path: Path) -> None:
    parts = ("-t2f", "-t1n", "-t1c", "-t2w", "-seg")
    names = ("BraTS-GLI-00001-000", "BraTS-GLI-00001-001", "BraTS-GLI-00002-000")
    source = fill(tmp_path / "in", {f"{n}/{n}{p}.nii.gz": nifti(LABELS) for n in names for p in parts})
    store = open_volumes(convert_brats(Conversion(source, tmp_path / "S")))
    assert [row["patient"] for row in store.rows] == ["BraTS-GLI-00001", "BraTS-GLI-00001", "BraTS-GLI-00002"]


def test_luna(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert LUNA.images == {"CT": 888}
    monkeypatch.setattr(luna, "LUNA", replace(LUNA, images={"CT": 88}))
    head = "NDims = 3\nDimSize = 4 5 6\nElementSpacing = 0.5 0.5 2\nOffset = -10 -20 -30\nElementType = MET_SHORT\n"
    uids = [f"1.3.6.1.4.1.14519.5.2.1.6279.6001.{10**17 + n}" for n in range(88)]
    files = {}
    for number, uid in enumerate(uids):
        place = f"subset{number % 10}/{uid}"
        files |= {f"{place}.mhd": f"{head}ElementDataFile = {uid}.raw\n".encode(), f"{place}.raw": CT.tobytes("F")}
    lungs = head.replace("MET_SHORT", "MET_UCHAR") + "ElementDataFile = LOCAL\n"
    files |= {f"seg-lungs-LUNA16/{uid}.mhd": lungs.encode() + LABELS.tobytes("F") for uid in uids[:20]}
    rows = [f"{uid},-9.5,-18,-26,{n}" for n, uid in enumerate(uids)]
    files["annotations.csv"] = "\n".join(["seriesuid,coordX,coordY,coordZ,diameter_mm", *rows]).encode()
    files["candidates_V2.csv"] = "\n".join(["seriesuid,coordX,coordY,coordZ,class", *rows[:3]]).encode()
    source = fill(tmp_path / "LUNA16", files)
    (source / "subset7" / f"{uids[7]}.raw").unlink()
    store = open_volumes(convert_luna(Conversion(source, tmp_path / "S")))
    told = capsys.readouterr()
    assert len(store) == 87 and f"damaged volume: {uids[7]} (" in told.err and "differs" not in told.err
    assert splits(store) == {f"subset{n}": 9 - (n > 7) - (n == 7) for n in range(10)}
    assert sum(row["labels"] is not None for row in store.rows) == 19
    with (tmp_path / "S" / "nodules.csv").open() as file:
        nodules = list(csv.DictReader(file))
    assert len(nodules) == 87 and "nodules.csv: 87 places (1 of other volumes)" in told.err
    place = [float(nodules[0][axis]) for axis in "xyz"]
    k, j, i = 2, 4, 1  # the voxel of the store at it: 1 column, 4 rows, 2 slices into the file
    row = store.rows[[store.names(p) for p in range(len(store))].index(nodules[0]["volume"])]
    assert np.allclose(np.linalg.inv(row["affine"]) @ [*place, 1], [4 - 1 - i, 5 - 1 - j, k, 1])
    assert store.read(0)[k, 5 - 1 - j, 4 - 1 - i, 0] == CT[i, j, k]
    (source / "candidates_V2.csv").unlink()
    convert_luna(Conversion(source, tmp_path / "S"))
    assert {path.name for path in (tmp_path / "S").glob("*.csv")} == {"nodules.csv"}
    fill(source, {f"subset1/{uids[0]}.mhd": files[f"subset0/{uids[0]}.mhd"]})
    with pytest.raises(UserError, match="more than once"):
        convert_luna(Conversion(source, tmp_path / "T"))


def test_a_table_of_luna_may_have_decimal_commas(tmp_path: Path) -> None:
    (tmp_path / "annotations.csv").write_text("seriesuid;coordX;coordY;coordZ;diameter_mm\nu;-9,5;18;-26,25;4,5\n")
    expected = {"volume": "u", "x": 9.5, "y": -18.0, "z": -26.25, "diameter_mm": "4.5"}
    assert list(luna._places(tmp_path / "annotations.csv", "diameter_mm")) == [expected]


@pytest.mark.parametrize(("column", "text"), [("coordX", "nan"), ("coordY", ""), ("coordZ", "1_0"), ("class", "x")])
def test_a_field_of_luna_that_is_not_a_number_is_named(column: str, text: str, tmp_path: Path) -> None:
    row = {"seriesuid": "u", "coordX": "1", "coordY": "2", "coordZ": "3", "class": "0"}
    lines = [",".join(row), ",".join(row.values()), ",".join({**row, column: text}.values())]
    (tmp_path / "candidates.csv").write_text("\n".join(lines))
    with pytest.raises(UserError, match=rf"line 3 of .*candidates.csv has '{text}' as {column.lower()}, which is not"):
        list(luna._places(tmp_path / "candidates.csv", "class"))


def test_nnunet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = {"channel_names": {"0": "T2", "1": "ADC"}, "labels": {"background": 0, "PZ": 1, "all": [1, 2]}}
    facts |= {"numTraining": 6, "file_ending": ".nii.gz"}
    files = {f"imagesTr/p_{n:02d}_000{c}.nii.gz": nifti(MR * (1 + c)) for n in range(6) for c in range(2)}
    files |= {f"labelsTr/p_{n:02d}.nii.gz": nifti(LABELS) for n in range(7) if n != 4}
    files |= {f"imagesTs/p_{n}_000{c}.nii.gz": nifti(MR) for n in (8, 9) for c in range(2)}
    source = fill(tmp_path / "Dataset005", files | {"dataset.json": json.dumps(facts).encode()})
    (source / "imagesTr" / "p_02_0001.nii.gz").unlink()
    store = open_volumes(convert_nnunet(Conversion(source, tmp_path / "S")))
    told = capsys.readouterr().err
    assert splits(store) == {"train": 5, "test": 2} and "p_02: it lacks the channels 0001" in told
    assert "1 training case has no labels: p_04" in told and "1 label file has no volume: p_06" in told
    assert store.spec.channels == 2 and store.index["label_names"] == {"0": "background", "1": "PZ"}
    fill(source, {"imagesTr/p_03_0002.nii.gz": nifti(MR)})
    assert len(open_volumes(convert_nnunet(Conversion(source, tmp_path / "more", exclude=["p_02"])))) == 6
    assert "p_03: dataset.json does not name its channels 0002" in capsys.readouterr().err
    fill(source, {"imagesTr/p_01_0000.nii": nifti(MR)})
    with pytest.raises(UserError, match="more than once"):
        convert_nnunet(Conversion(source, tmp_path / "T"))
    (source / "imagesTr" / "p_01_0000.nii").rename(source / "imagesTr" / "p_01.nii")
    with pytest.raises(UserError, match="rename it to p_01_0000"):
        convert_nnunet(Conversion(source, tmp_path / "T"))


def test_nnssl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = fill(tmp_path / "raw", {name: nifti(MR) for name in ("a.nii.gz", "b.nii.gz", "m.nii.gz")})
    masks = {"anatomy_mask": "$nnssl_raw/m.nii.gz", "anonymization_mask": None}
    images = [
        {"name": "a.nii.gz", "modality": "T1", "image_path": "$nnssl_raw/a.nii.gz", "associated_masks": masks},
        {"name": "b.nii.gz", "modality": "T2", "image_path": str(source / "b.nii.gz")},
    ]
    sessions = {"ses-1": {"session_id": "ses-1", "images": images}}
    dataset = {"dataset_index": 1, "subjects": {"sub-1": {"subject_id": "sub-1", "sessions": sessions}}}
    collection = {"collection_index": 745, "collection_name": "Dataset745", "datasets": {"1": dataset}}
    fill(source, {"pretrain_data.json": json.dumps(collection).encode()})
    how = FolderConversion(source / "pretrain_data.json", tmp_path / "S")
    with pytest.raises(UserError, match=r"\$nnssl_raw; set this environment variable"):
        convert_folder(how)
    monkeypatch.setenv("nnssl_raw", str(source))
    store = open_volumes(convert_folder(how))
    assert [store.names(k) for k in range(2)] == ["1/sub-1/ses-1/a", "1/sub-1/ses-1/b"]
    assert {row["patient"] for row in store.rows} == {"1/sub-1"} and store.labels(1) is None
    assert np.array_equal(store.labels(0), MR.transpose(2, 1, 0))


@pytest.fixture
def dicom(tmp_path: Path) -> Callable[..., Path]:
    def write(patient: str, series: str, places: Any, **changes: Any) -> Path:
        folder = tmp_path / "PACS" / f"Doe_Jane_{patient}" / series
        for number, z in enumerate(places):
            write_slice(folder / f"IM{number}", SLICES[number], z, series, PatientID=patient, **changes)
        return tmp_path / "PACS"

    return write


def test_dicom_copies_nothing_that_identifies_a_patient(
    dicom: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dicom("MRN4711", "1.2.826.111", 2.5 * np.arange(8))
    dicom("MRN4711", "1.2.826.222", 2.5 * np.arange(8))
    dicom("MRN0815", "1.2.826.333", 2.5 * np.arange(8), PatientName="Roe^Richard")
    source = dicom("MRN0816", "1.2.826.444", [0, 2.5, 7.5, 10])
    assert main(["data", "dicom", str(source), str(tmp_path / "S"), "--spacing", "native"]) == 0
    told = capsys.readouterr()
    assert "3 volumes of 2 patients" in told.out and told.err.count("1 step between slices is not 2.5 mm") == 1
    store = open_volumes(tmp_path / "S")
    assert store.index["modality"] == "CT" and store.spec.window[0] < -900
    assert np.array_equal(store.read(0)[..., 0], (SLICES - 1024)[:, ::-1, ::-1])
    key = tmp_path / "key.csv"
    for _ in range(2):  # a key is replaced by that of the same command
        assert main(["data", "dicom", str(source), str(tmp_path / "S"), "--key", str(key)]) == 0
    with key.open() as file:
        rows = {row["volume"]: row for row in csv.DictReader(file)}
    assert [*rows] == [row["name"] for row in store.rows] and key.stat().st_mode & 0o077 == 0
    assert {(row["patient_id"], row["series_uid"], row["folder"]) for row in rows.values()} == {
        (patient, series, str(source / f"Doe_Jane_{patient}" / series))
        for patient, series in (("MRN4711", "1.2.826.111"), ("MRN4711", "1.2.826.222"), ("MRN0815", "1.2.826.333"))
    }
    assert [rows[row["name"]]["patient"] for row in store.rows] == [row["patient"] for row in store.rows]
    secrets = ("key.csv", "MRN", "Doe", "Jane", "Roe", "Richard", "19610203", "1.2.826", "PACS")
    for path in (tmp_path / "S").rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        found = [secret for secret in secrets if secret.encode() in content or secret in path.name]
        assert found == [], path
    (tmp_path / "other.csv").write_text("file,patient\n")
    for place, why in ((tmp_path / "S" / "key.csv", "lies in the store"), (tmp_path / "other.csv", "is not a key")):
        with pytest.raises(UserError, match=why):
            convert_dicom(DicomConversion(source, tmp_path / "S", key=place))
    resampled = DicomConversion(source, tmp_path / "T", gaps="resample", spacing=(1.0, 1.0, 5.0))
    assert len(open_volumes(convert_dicom(resampled))) == 4


def test_volumes_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = fill(
        tmp_path / "in",
        {
            "images/a.nii.gz": nifti(CT),
            "images/sub/b.nii": nifti(CT[:-1]),
            "images/c.nii.gz": nifti(CT)[:400],
            "images/far.nii": nifti(CT),
            "images/other.nii": nifti(CT),
            "images/float.nii": nifti(CT),
            "labels/a.nii": nifti(LABELS),
            "labels/far.nii": nifti(LABELS, AFFINE + np.outer([0, 0, 3, 0], [0, 0, 0, 1])),
            "labels/other.nii": nifti(LABELS[:-1]),
            "labels/float.nii": nifti(LABELS + np.float32(0.3)),
            "manifest.csv": b"file,patient\nimages/a.nii.gz,P1\nimages/sub/b.nii,P1\n",
        },
    )
    words = ["data", "volumes", str(source), str(tmp_path / "S"), "--images", "images", "--labels", "labels"]
    assert main([*words, "--window", "shared"]) == 0
    told = capsys.readouterr().err
    for name, why in (
        ("c", "truncated"),
        ("far", "it lies up to 3 mm from far"),
        ("other", "it has 3 x 5 x 6 voxels, and other 4 x 5 x 6"),
        ("float", "not whole numbers"),
    ):
        assert [why in line for line in told.splitlines() if f"damaged volume: {name} (" in line] == [True], name
    store = open_volumes(tmp_path / "S")
    assert [(row["name"], row["patient"]) for row in store.rows] == [("a", "P1"), ("sub/b", "P1")]
    assert np.array_equal(store.read(1)[..., 0], CT[:-1].transpose(2, 1, 0))
    assert main([*words, "--spacing", "1", "1", "1"]) == 2
    assert "made with other values of spacing" in capsys.readouterr().err
    assert main(["data", "volumes", str(tmp_path / "none"), str(tmp_path / "T")]) == 2
    assert main(["data", "volumes", str(source / "labels"), str(tmp_path / "T"), "--window", "5", "2"]) == 2
    assert "the smaller first" in capsys.readouterr().err


@pytest.mark.filterwarnings("error")
def test_compressed_floats_are_resampled_without_a_warning(tmp_path: Path) -> None:
    source = fill(tmp_path / "in", {"a.nii.gz": gzip.compress(nifti(CT.astype(np.float32)))})
    store = open_volumes(convert_folder(FolderConversion(source, tmp_path / "S", (1.0, 1.0, 1.0))))
    assert store.sizes([0]).tolist() == [[12, 2, 2]]  # type: ignore[arg-type]


def test_resampling_keeps_the_place_of_the_volume_and_its_mean(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.arange(12.0)[:, None, None] * 10, (12, 10, 8))
    labels = (ramp >= 60).astype(np.uint8)
    turned = np.array([[0, -0.5, 0, 7], [0.5, 0, 0, -3], [0, 0, 2.0, 1], [0, 0, 0, 1.0]])
    files = {"images/a.nii": nifti(ramp.astype(np.int16), turned), "labels/a.nii": nifti(labels, turned)}
    source = fill(tmp_path / "in", files)
    how = FolderConversion(source, tmp_path / "S", (1.0, 1.0, 1.0), "shared", images="images", labels="labels")
    store = open_volumes(convert_folder(how))
    # The file's i axis points anterior: 12 voxels of 0.5 mm become 6 rows; its z axis 16 slices
    assert store.sizes([0]).tolist() == [[16, 6, 5]]  # type: ignore[arg-type]
    values = store.read(0)[..., 0]
    affine = np.array(store.rows[0]["affine"])
    assert np.array_equal(values, np.broadcast_to(values[:1, :, :1], values.shape))
    assert np.allclose(values[0, 1:-1, 0], [25, 45, 65, 85], atol=1)  # means of two voxels, but for the filter
    low = affine @ [-0.5, -0.5, -0.5, 1]
    assert np.allclose(low[:3], [7 - 0.5 * 9.5, -3 - 0.25, 1 - 1]) and np.allclose(np.diag(affine), 1)
    found = store.labels(0)
    assert found is not None and np.array_equal(found[0, :, 0], [0, 0, 0, 1, 1, 1])


@pytest.mark.parametrize("shape, old, new", [((6, 6, 2), 1.0, 5.0), ((6, 6, 1), 2.0, 5.0), ((3, 6, 6), 1.0, 7.0)])
def test_a_volume_thinner_than_a_voxel_keeps_its_mean_and_its_place(shape: Any, old: float, new: float) -> None:
    thin, values = int(np.argmin(shape)), np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    target: Any = tuple(new if axis == thin else old for axis in range(3))
    made, affine = resampled("x", values, np.diag([old] * 3 + [1.0]), target)
    np.testing.assert_allclose(made, values.mean(axis=thin, keepdims=True), rtol=1e-5)
    thick = shape[thin] * old
    assert spacing_of(affine) == tuple(thick if axis == thin else old for axis in range(3))
    assert affine[thin, 3] == (thick - old) / 2  # its center is that of the volume
    labels, at = resampled("x", values, np.diag([old] * 3 + [1.0]), target, nearest=True)
    assert np.array_equal(labels, values.take([shape[thin] // 2], axis=thin)) and np.array_equal(at, affine)


@pytest.mark.parametrize("shape", [(8, 9, 1), (1, 9, 8), (8, 1, 9)])
def test_a_mirrored_axis_may_have_one_voxel(shape: Any) -> None:
    values = np.asfortranarray(np.random.default_rng(0).random(shape, dtype=np.float32))
    flip = tuple(slice(None, None, -1 if side == 1 else 1) for side in shape)
    made, affine = resampled("x", values[flip], np.eye(4), (2.0, 2.0, 2.0))
    plain, same = resampled("x", values, np.eye(4), (2.0, 2.0, 2.0))
    assert np.array_equal(made, plain) and np.array_equal(affine, same)


@pytest.mark.parametrize(
    ("kind", "old", "new", "needed"),
    [
        # Of doubles: a copy of the 32 x 32 x 32 voxels, twice the result, or two results of resizing an axis
        ("uint16", (1.0, 1.0, 1.0), (0.5, 0.5, 0.5), 8 * 32**3 * (1 + 2 * 8)),
        ("int16", (1.0, 1.0, 1.0), (0.5, 0.5, 0.5), 4 * 32**3 * (1 + 2 * 8)),
        ("int16", (1.0, 1.0, 4.0), (2.0, 2.0, 1.0), 4 * 32**3 * (1 + 2 + 1)),
        ("float64", (1.0, 1.0, 1.0), (1.0, 1.0, 0.25), 8 * 32**3 * (4 + 4)),
        ("uint8", (1.0, 1.0, 1.0), (2.0, 2.0, 2.0), 8 * 32**3 * (1 + 1 / 2 + 1 / 4)),
    ],
)
def test_memory_of_resampling_depends_on_the_type_of_voxels(
    monkeypatch: pytest.MonkeyPatch, kind: str, old: Any, new: Any, needed: float
) -> None:
    values, affine = np.zeros((32, 32, 32), kind, order="F"), np.diag([*old, 1.0])
    monkeypatch.setattr(volume_, "available_memory", lambda: needed)
    resampled("x", values, affine, new)
    monkeypatch.setattr(volume_, "available_memory", lambda: needed - 1)
    with pytest.raises(UserError, match="too many for"):
        resampled("x", values, affine, new)
    monkeypatch.setattr(volume_, "available_memory", lambda: 32**3 * np.prod(old) / np.prod(new) * values.itemsize)
    resampled("x", values, affine, new, nearest=True)


def test_volumes_are_divided_by_the_patients_of_a_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {
        f"{kind}/s/v{k}.nii.gz": nifti(array) for k in range(4) for kind, array in (("ct", CT), ("labels", LABELS))
    }
    manifest = [f"v{k},P{k % 2}\n" for k in range(4)]
    source = fill(tmp_path / "in", files | {"manifest.csv": ("file,patient\n" + "".join(manifest)).encode()})
    (tmp_path / "link").symlink_to(source)
    source = tmp_path / "link"
    words = ["data", "volumes", str(source), str(tmp_path / "S"), "--images", "ct", "--labels", "labels"]
    assert main([*words, "--test_share", "0.5", "--exclude", "v3x"]) == 0
    assert "has no volumes that --exclude v3x matches" in capsys.readouterr().err
    by_patient = {row["patient"]: row["split"] for row in open_volumes(tmp_path / "S").rows}
    assert sorted(by_patient) == ["P0", "P1"] and sorted(by_patient.values()) == ["test", "train"]
    fill(source, {"manifest.csv": ("file,patient\n" + "".join(manifest[:3])).encode()})
    assert main([*words, "--test_share", "0.5"]) == 0
    assert "warning: 1 volume has no known patient, and each counts as one of its own: s/v3" in capsys.readouterr().err
    fill(source, {"manifest.csv": b"file,patient\nv0,7\nv1,007\nv2,7.0\nv3,8\n"})
    assert main([*words, "--test_share", "0.5"]) == 2
    assert "patients that differ in capitals, spaces or zeros: 007, 7, 7.0;" in capsys.readouterr().err


def test_a_volume_without_a_patient_hides_no_shared_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert_folder(FolderConversion(fill(tmp_path / "in", {f"{n}.nii": nifti(CT) for n in "abcd"}), tmp_path / "S"))
    index = json.loads((tmp_path / "S/volumes.json").read_text())
    known = [("P0", "train"), ("P0", "test"), ("P1", "train"), (None, "train")]
    for row, (patient, split) in zip(index["volumes"], known, strict=True):
        row["patient"], row["split"] = patient, split
    (tmp_path / "S/volumes.json").write_text(json.dumps(index))
    check_data(tmp_path / "S", count=0)
    line = "patients in train and test: 1: P0; scores are too high; not of the 1 without a known patient"
    assert line in capsys.readouterr().out.splitlines()


def test_check_reports_and_draws_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("BraTS-GLI-00001-000", "BraTS-GLI-00001-001", "BraTS-GLI-00002-000", "BraTS-GLI-00003-000")
    parts = ("-t2f", "-t1n", "-t1c", "-t2w", "-seg")
    big = np.kron(LABELS, np.ones((4, 4, 4))).astype(np.uint8)
    scans = {f"{n}/{n}{p}.nii.gz": nifti(big + 7 * (k // 2)) for k, n in enumerate(names) for p in parts[:4]}
    files = scans | {f"{n}/{n}-seg.nii.gz": nifti(big) for n in names[1:]}
    store = convert_brats(Conversion(fill(tmp_path / "in", files), tmp_path / "S"))
    path = store / "volumes" / f"{names[3]}.vol"
    path.write_bytes(path.read_bytes()[:-1] + b"\x09")
    capsys.readouterr()
    assert check_data(store, tmp_path / "sheet.png") == tmp_path / "sheet.png"
    lines = capsys.readouterr().out.splitlines()
    assert "test: 1 volume of 1 patient, 0 with labels" in lines
    assert "train: 3 volumes of 3 patients, 3 with labels" in lines
    assert "patients in test and train: 1: BraTS-GLI-00001; scores are too high" in lines
    (one,) = [line.split() for line in lines if line.startswith("1 necrotic core")]
    assert one[3:] == ["3", "1,280", "1,280", "1,280"]  # 40 x 64 voxels of 0.5 mm^3
    assert f"identical volumes: 2: {names[0]} = {names[1]}, {names[2]} = {names[3]}" in lines
    assert any(line.startswith("damaged volumes: 1: ") and "checksum" in line for line in lines)
    assert not any("outside" in line for line in lines)
    index = json.loads((store / "volumes.json").read_text())
    index["volumes"][2]["scales"][0]["window"] = [0.0, 1.0]
    (store / "volumes.json").write_text(json.dumps(index))
    check_data(store, count=0)
    assert "1 volume with over 10% of the values outside of the window" in capsys.readouterr().out
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape[1] == 2 * 488 + 8 and (sheet == (0, 255, 255)).all(axis=2).any()
    with pytest.raises(UserError, match="would lie among"):
        check_data(store, store / "sheet.png")
    for path in (store / "volumes").glob("*.vol"):
        path.write_bytes(path.read_bytes()[:-1] + b"\x09")
    assert check_data(store, tmp_path / "none.png") == store and not (tmp_path / "none.png").exists()
    assert "no picture is drawn: all volumes for it are damaged" in capsys.readouterr().err


def stamps(store: Path) -> dict[str, int]:
    return {path.stem: path.stat().st_mtime_ns for path in (store / "volumes").iterdir()}


def test_what_changed_in_the_source_is_converted_again(tmp_path: Path) -> None:
    head = b"NDims = 3\nDimSize = 4 5 6\nElementSpacing = 1 1 2\nElementType = MET_SHORT\nElementDataFile = m.raw\n"
    files = {"i/a.nii": nifti(CT), "i/b.nii": nifti(CT), "i/c.nii": nifti(CT), "l/c.nii": nifti(LABELS)}
    source = fill(tmp_path / "in", files | {"i/m.mhd": head, "i/m.raw": CT.tobytes("F")})
    how = FolderConversion(source, tmp_path / "S", images="i", labels="l")
    before = stamps(convert_folder(how))
    # A label file that is added, one that is taken away, an image and the voxels beside a header that are corrected
    fill(source, {"l/b.nii": nifti(LABELS), "i/m.raw": MR.tobytes("F"), "i/new.nii": nifti(CT)})
    (source / "l" / "c.nii").unlink()
    store = open_volumes(convert_folder(how))
    after = stamps(tmp_path / "S")
    assert {name for name in before if after[name] == before[name]} == {"a"} and after.keys() - before == {"new"}
    by_name = {str(row["name"]): position for position, row in enumerate(store.rows)}
    assert [store.labels(by_name[name]) is not None for name in "abc"] == [False, True, False]
    assert np.array_equal(store.read(by_name["m"])[..., 0], MR[::-1, ::-1].transpose(2, 1, 0))
    assert stamps(convert_folder(how)) == after


def test_a_store_is_unfinished_from_the_first_volume_that_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its table would have the scale and the window of the former volume."""
    source = fill(tmp_path / "in", {"a.nii": nifti(CT), "b.nii": nifti(CT)})
    how = FolderConversion(source, tmp_path / "S")

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    def convert_until_the_table() -> None:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("densepath.datasets.volumes.convert._index", stop)
            convert_folder(how)

    convert_folder(how)
    fill(source, {"c.nii": nifti(CT)})
    convert_until_the_table()
    assert len(open_volumes(tmp_path / "S")) == 2  # an addition changes nothing that the table describes
    fill(source, {"b.nii": nifti(MR)})
    convert_until_the_table()
    with pytest.raises(UserError, match="unfinished; continue with the same"):
        open_volumes(tmp_path / "S")
    assert len(open_volumes(convert_folder(how))) == 3


def test_what_a_killed_conversion_has_left_is_removed_also_where_the_volumes_are_a_link(tmp_path: Path) -> None:
    how = FolderConversion(fill(tmp_path / "in", {"a.nii": nifti(CT)}), tmp_path / "S")
    volumes = convert_folder(how) / "volumes"
    volumes.rename(tmp_path / "disk")
    volumes.symlink_to(tmp_path / "disk")
    left = volumes / temporary_name("a.dpv").replace(f".{os.getpid()}@", ".4194305@")  # above the largest number
    left.touch()
    convert_folder(how)
    assert volumes.is_symlink() and not left.exists()


def test_a_store_is_searched_for_remains_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[str | Path] = []
    monkeypatch.setattr(convert_, "remove_remains", lambda folder, shared: searched.append(folder))
    dest = convert_folder(FolderConversion(fill(tmp_path / "in", {"a.nii": nifti(CT)}), tmp_path / "S"))
    assert searched == [dest]


def test_volumes_are_excluded_from_a_store_without_converting_the_others_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = fill(tmp_path / "in", {f"{name}.nii": nifti(CT) for name in "abc"})
    words = ["data", "volumes", str(source), str(tmp_path / "S")]
    assert main(words) == 0
    before = stamps(tmp_path / "S")
    assert main([*words, "--exclude", "b"]) == 0
    assert [row["name"] for row in open_volumes(tmp_path / "S").rows] == ["a", "c"]
    assert main(words) == 0 and stamps(tmp_path / "S") == before and len(open_volumes(tmp_path / "S")) == 3
    other = fill(tmp_path / "other", {"d.nii": nifti(CT)})
    capsys.readouterr()
    assert main(["data", "volumes", str(other), str(tmp_path / "S")]) == 2
    assert f"holds volumes that {other} does not have: a, b, c; use another folder" in capsys.readouterr().err


def test_volumes_with_other_channels_are_named_before_any_is_converted(tmp_path: Path) -> None:
    listed = [{"image": f"imagesTr/{n}.nii.gz", "label": f"labelsTr/{n}.nii.gz"} for n in "abc"]
    files = {f"labelsTr/{n}.nii.gz": nifti(LABELS) for n in "abc"}
    files |= {f"imagesTr/{n}.nii.gz": nifti(np.stack([MR] * (1 + (n == "b")), axis=-1)) for n in "abc"}
    source = fill(tmp_path / "in", files | {"dataset.json": json.dumps({"training": listed}).encode()})
    with pytest.raises(UserError, match=r"2 have 1, 1 have 2; leave some out with --exclude, e\.g\. b$"):
        convert_msd(Conversion(source, tmp_path / "S"))
    assert not (tmp_path / "S").exists()
    assert len(open_volumes(convert_msd(Conversion(source, tmp_path / "S", exclude=("b",))))) == 2


def test_segmentations_and_mixed_modalities_are_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    big, mr = RNG.integers(-1000, 900, (9, 9, 9)).astype(np.int16), RNG.integers(0, 900, (9, 9, 9)).astype(np.int16)
    classes = (np.arange(729).reshape(9, 9, 9) % 100).astype(np.int16)
    files = {"ct.nii": big, "ct_seg.nii": classes, "p/x.nii": big, "p/organs.nii": classes, "alone/x.nii": classes}
    source = fill(tmp_path / "in", {name: nifti(values) for name, values in files.items()})
    convert_folder(FolderConversion(source, tmp_path / "S"))
    assert "2 volumes look like segmentations: ct_seg, p/organs; leave them out with --exclude" in (
        capsys.readouterr().err
    )
    fill(source, {"mr.nii": nifti(mr)})
    how = FolderConversion(source, tmp_path / "S", window=(-500.0, 500.0), exclude=("*seg*", "*organs", "alone*"))
    convert_folder(how)
    told = capsys.readouterr().err
    assert "2 volumes have values as CT (ct, p/x), 1 has none below zero, as MR (mr)" in told
    assert "look like" not in told
    convert_folder(replace(how, window="volume"))
    assert "as CT" not in capsys.readouterr().err


def test_a_folder_of_labels_beside_that_of_images_is_pointed_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The parent of both was given; the command that the warning names takes the labels as labels."""
    files = {f"imagesTr/{name}.nii": nifti(CT) for name in "ab"} | {
        f"labelsTr/{name}.nii": nifti(LABELS) for name in "ab"
    }
    source = fill(tmp_path / "in", files)
    convert_folder(FolderConversion(source, tmp_path / "S"))
    told = capsys.readouterr().err
    assert (
        "2 volumes look like segmentations: labelsTr/a, labelsTr/b; to use them as labels, convert again with" in told
    )
    assert "--images imagesTr --labels labelsTr" in told
    again = FolderConversion(source, tmp_path / "T", images="imagesTr", labels="labelsTr")
    store = open_volumes(convert_folder(again))
    assert len(store) == 2 and store.labels(0) is not None
    assert "look like" not in capsys.readouterr().err


def test_the_picture_of_many_volumes_has_bounds(tmp_path: Path) -> None:
    files = {f"{number:02}.nii": nifti(RNG.integers(0, 900, (5, 5, 5)).astype(np.int16)) for number in range(30)}
    store = convert_folder(FolderConversion(fill(tmp_path / "in", files), tmp_path / "S"))
    pictures = {count: check_data(store, tmp_path / f"{count}.png", count).read_bytes() for count in (None, 24, 30)}
    assert pictures[None] == pictures[24] != pictures[30]


def test_an_outlier_that_takes_up_the_range_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = RNG.random((9, 9, 9)).astype(np.float32)
    files = {"plain.nii": nifti(values), "hot.nii": nifti(np.where(values == values[0, 0, 0], np.float32(1e6), values))}
    convert_folder(FolderConversion(fill(tmp_path / "in", files), tmp_path / "S"))
    assert "1 volume has outliers: 99% of their values lie within fewer than 256" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../../x", "/x", "."])
def test_names_in_a_list_stay_in_the_store(tmp_path: Path, name: str) -> None:
    images = [{"name": "a", "image_path": "a.nii"}]
    datasets = {"1": {"subjects": {name: {"sessions": {"s": {"images": images}}}}}}
    source = fill(tmp_path / "in", {"a.nii": nifti(MR), "l.json": json.dumps({"datasets": datasets}).encode()})
    with pytest.raises(UserError, match="names of volumes that are not those of files"):
        convert_folder(FolderConversion(source / "l.json", tmp_path / "S"))


def test_few_volumes_are_in_memory_where_they_are_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = fill(tmp_path / "in", {f"{name}.nii": nifti(CT) for name in "abcdefgh"})
    size, used = len(nifti(CT)), []
    whole = convert_.in_threads

    def threads(function: Any, items: Any, count: int, what: str) -> Any:
        used.append(count)
        return whole(function, items, count, what)

    monkeypatch.setattr(convert_, "usable_cores", lambda: 16)
    monkeypatch.setattr(convert_, "in_threads", threads)
    for number, memory in enumerate((10**12, 40 * size, 1)):
        monkeypatch.setattr(convert_, "available_memory", lambda memory=memory: memory)
        convert_folder(FolderConversion(source, tmp_path / f"S{number}"))
    assert used == [4, 2, 1]


def test_a_share_of_the_patients_becomes_the_test(tmp_path: Path) -> None:
    names = [f"p{n:02d}_{visit}" for n in range(8) for visit in "ab"]
    files = {f"images/{name}.nii": nifti(MR + k) for k, name in enumerate(names)}
    files |= {f"labels/{name}.nii": nifti(LABELS) for name in names if name != "p03_b"}
    how = FolderConversion(
        fill(tmp_path / "in", files), tmp_path / "S", patient_regex=r"^(p\d+)", images="images", labels="labels"
    )
    store = open_volumes(convert_folder(replace(how, test_share=0.25)))
    assert splits(store) == {"train": 12, "test": 4}
    of_test = {row["patient"] for row in store.rows if row["split"] == "test"}
    assert len(of_test) == 2 and of_test.isdisjoint(row["patient"] for row in store.rows if row["split"] == "train")
    assert {row["patient"] for row in open_volumes(tmp_path / "S", ["test"]).rows} == {
        f"p{n:02d}" for n in range(8)
    } - of_test
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "S/volumes").iterdir()}
    more = open_volumes(convert_folder(replace(how, test_share=0.5)))  # divided in another way, and not written again
    assert of_test < {row["patient"] for row in more.rows if row["split"] == "test"} and splits(more)["test"] == 8
    assert written == {path: path.stat().st_mtime_ns for path in written}
    with pytest.raises(UserError, match="number between 0 and 1"):
        replace(how, test_share=1.0)
    lits = fill(tmp_path / "one", {"volume-0.nii": nifti(CT), "segmentation-0.nii": nifti(LABELS)})
    with pytest.raises(UserError, match="at least two patients; there are 1"):
        convert_lits(Conversion(lits, tmp_path / "L", test_share=0.5))


def test_too_little_memory_ends_a_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: Any) -> bytes:
        raise MemoryError

    source = fill(tmp_path / "in", {"a.nii.gz": gzip.compress(nifti(CT))})
    monkeypatch.setattr(igzip.GzipFile, "read", read)
    with pytest.raises(UserError, match="not enough memory to convert a;"):
        convert_folder(FolderConversion(source, tmp_path / "S"))


def test_a_spacing_whose_voxels_do_not_fit_into_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = fill(tmp_path / "in", {"a.nii": nifti(CT)})
    monkeypatch.setattr(volume_, "available_memory", lambda: 10**9)
    too_large = r"a: at 0\.001 x 0\.001 x 0\.001 mm it would have 2,000 x 2,500 x 12,000 voxels, .* change --spacing"
    with pytest.raises(UserError, match=too_large):
        convert_folder(FolderConversion(source, tmp_path / "S", (0.001, 0.001, 0.001)))


def test_labels_below_zero_are_reported_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    big = np.kron(LABELS.astype(np.int16) - 1, np.ones((4, 4, 4), np.int16))
    files = {"i/a.nii": nifti(np.kron(MR, np.ones((4, 4, 4), np.int16))), "l/a.nii": nifti(big)}
    store = convert_folder(FolderConversion(fill(tmp_path / "in", files), tmp_path / "S", images="i", labels="l"))
    assert "1 volume has labels below 0, which densepath segment takes only with --ignore: a" in capsys.readouterr().err
    check_data(store, tmp_path / "sheet.png")
    assert (np.asarray(Image.open(tmp_path / "sheet.png")) == PALETTE[-1]).all(axis=2).any()


def test_what_is_passed_over_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = b"NDims = 3\nDimSize = 4 5 6\nElementSpacing = 1 1 2\nElementType = MET_SHORT\nElementDataFile = m.raw\n"
    others = dict.fromkeys(("a.hdr", "a.img", "b.nrrd", "c.nrrd"), b"x")
    files = {"m.mhd": head, "m.raw": CT.tobytes("F"), "manifest.csv": b"file,patient\nm.mhd,P1\n"}
    convert_folder(FolderConversion(fill(tmp_path / "in", files | others), tmp_path / "S"))
    assert "passed over: 2 .nrrd files, 1 .hdr file, 1 .img file\n" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"\.b2nd\), only 2 \.nrrd files, 1 \.hdr file"):
        convert_folder(FolderConversion(fill(tmp_path / "none", others), tmp_path / "T"))


def test_a_folder_without_series_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    write_slice(tmp_path / "in" / "a", SLICES[0], 0.0, "1.2")
    with pytest.raises(UserError, match=r"holds no DICOM series .* only 1 image outside of a volume; check the path"):
        convert_dicom(DicomConversion(tmp_path / "in", tmp_path / "S"))
    with pytest.raises(UserError, match=r"convert DICOM with densepath data dicom .*in .*S$"):
        convert_folder(FolderConversion(tmp_path / "in", tmp_path / "S"))
    source = fill(tmp_path / "nifti", {"a.nii": nifti(CT)})
    with pytest.raises(UserError, match=r"convert 1 file of volumes with densepath data volumes .*nifti .*S$"):
        convert_dicom(DicomConversion(source, tmp_path / "S"))


def test_another_layout_is_named_with_its_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {f"imagesTr/{name}_0000.nii": nifti(CT) for name in "ab"} | {
        f"labelsTr/{name}.nii": nifti(LABELS) for name in "ab"
    }
    facts = {"channel_names": {"0": "CT"}, "labels": {"background": 0}}
    source = fill(tmp_path / "in", files | {"dataset.json": json.dumps(facts).encode()})
    convert_folder(FolderConversion(source, tmp_path / "S"))
    assert "as this is nnU-Net's layout, convert it with densepath data nnunet" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"name of a volume: a, b in .*labelsTr, .* with densepath data nnunet"):
        convert_folder(FolderConversion(source, tmp_path / "T", images="imagesTr", labels="labelsTr"))
    with pytest.raises(UserError, match="that of nnU-Net's layout; convert it with densepath data nnunet"):
        convert_msd(Conversion(source, tmp_path / "T"))
    files = {"images/a_ct.nii": nifti(CT), "labels/a_seg.nii": nifti(LABELS)}
    source = fill(tmp_path / "other", files)
    (source / "none").mkdir()
    for labels, why in (("labels", "give the files of a volume and of its labels one name"), ("none", "no volume")):
        with pytest.raises(UserError, match=why):
            convert_folder(FolderConversion(source, tmp_path / "T", images="images", labels=labels))
    msd = {"imagesTr/a.nii": nifti(CT), "dataset.json": b'{"training": []}'}
    with pytest.raises(UserError, match=r"layout of MSD, .* with densepath data msd"):
        convert_nnunet(Conversion(fill(tmp_path / "msd", msd), tmp_path / "T"))
    (tmp_path / "msd" / "dataset.json").write_text("{}")
    with pytest.raises(UserError, match=r"a task of MSD \(it has no 'training'\); restore it"):
        convert_msd(Conversion(tmp_path / "msd", tmp_path / "T"))


@pytest.mark.parametrize("facts", [[], {"training": [], "modality": ["CT"]}, {"training": [], "labels": [1]}])
@pytest.mark.parametrize("convert", [convert_nnunet, convert_msd])
def test_a_dataset_json_of_another_form_is_refused(tmp_path: Path, convert: Any, facts: Any) -> None:
    source = fill(tmp_path / "in", {"dataset.json": json.dumps(facts).encode()})
    with pytest.raises(UserError, match=r"dataset\.json is not .*; restore it"):
        convert(Conversion(source, tmp_path / "S"))
