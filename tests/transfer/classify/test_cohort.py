"""Patients, splits and files of the images, and what is refused; without training."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from densepath.core.errors import UserError
from densepath.sources.open import find_source
from densepath.sources.volumes.store import VolumeStore
from densepath.transfer.classify.cohort import Pool, read_pool
from densepath.transfer.classify.config import ClassifyConfig
from densepath.transfer.classify.splits import Study, check_labels, check_regions, divide, frequent_strata, make_study
from densepath.transfer.classify.targets import Targets
from densepath.transfer.trainings import backbone_of_run, sides_of, warn_of_copies

from .conftest import write_table


def read(data: Path, labels: Path | str, images: Any = None, **options: Any) -> Pool:
    config = ClassifyConfig(data=data, labels=labels, **{"out": "", **options})
    return read_pool(config, find_source(data) if images is None else images, data, labels)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four files of two classes, which nothing decodes."""
    for name in ("a/1.png", "a/2.png", "b/3.png", "b/4.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "images"


@pytest.mark.parametrize("link", [None, os.symlink, os.link])
def test_a_file_on_both_sides_of_the_test_is_refused_without_patients(folder: Path, tmp_path: Path, link: Any) -> None:
    pool, other = read(folder, "folders"), folder
    if link is not None:
        other = tmp_path / "other"
        for name in ("a", "b"):
            (other / name).mkdir(parents=True)
        link(folder / "a/1.png", other / "a/new.png")
        (other / "b/4.png").write_bytes(b"another image of the same name")
    with pytest.raises(UserError, match=r"leak: images that are both train and test images: a/(1|new).png"):
        make_study(pool, read(other, "folders"))


def test_copies_of_another_patient_or_label_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for copy in ("a/5.png", "b/6.png"):
        shutil.copy(folder / "a/1.png", folder / copy)
    warn_of_copies(make_study(read(folder, "folders"), None))
    said = capsys.readouterr().err
    assert "1 group of identical files" in said and "several labels: a/1.png = a/5.png = b/6.png; keep one" in said
    (folder / "b/6.png").unlink()
    warn_of_copies(make_study(read(folder, "folders", patient_regex="a|b"), None))  # of one patient and label
    assert "identical" not in capsys.readouterr().err
    (folder / "a/5.png").write_bytes(b"a/5.png")  # of the same size
    warn_of_copies(make_study(read(folder, "folders"), None))
    assert "identical" not in capsys.readouterr().err


def test_a_link_in_another_official_part_is_refused(folder: Path, tmp_path: Path) -> None:
    os.symlink(folder / "a/1.png", folder / "a/5.png")
    names = ["a/1.png", "a/2.png", "b/3.png", "b/4.png", "a/5.png"]
    splits = zip(names, "aabba", ("train", "val", "train", "test", "test"), strict=True)
    pool = read(folder, write_table(tmp_path / "t.csv", ["file", "label", "split"], [[*row] for row in splits]))
    with pytest.raises(UserError, match=r"both train and test images: a/5.png"):
        make_study(pool, None)


def test_images_that_are_left_out_need_neither_split_nor_patient(folder: Path, tmp_path: Path) -> None:
    table = [["a/2.png", "a", "train", "Q"], ["b/3.png", "b", "train", "R"], ["b/4.png", "b", "Test", "S"]]
    heads = ["file", "label", "split", "patient"]
    pool = read(folder, write_table(tmp_path / "t.csv", heads, table), unmatched="skip")
    assert (pool.names, pool.splits, pool.owners) == (
        ["a/2.png", "b/3.png", "b/4.png"],
        ["train", "train", "test"],
        ["Q", "R", "S"],
    )
    assert len(pool.images) == len(pool.targets) == len(pool.files) == 3
    read(folder, tmp_path / "t.csv", unmatched="skip", patient_regex="[234]")  # which 1.png lacks
    table[0][2], table[2][2] = "left", "right"
    with pytest.raises(UserError, match=r"a/2.png \('left'\), b/4.png \('right'\); correct the column split"):
        read(folder, write_table(tmp_path / "t.csv", heads, table), unmatched="skip")


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        ("NaN", r"images whose label in .* has NaN .*: b/4.png; fill it in"),
        ("Mass| n/a", r"images whose label in .* has NaN .*: b/4.png"),
        ("effusion", "labels in .* that differ in capitals, spaces or zeros: Effusion, effusion; spell each one way"),
    ],
)
def test_a_list_of_labels_has_no_unknown_or_misspelt_one(cell: str, says: str, folder: Path, tmp_path: Path) -> None:
    cells = ["Mass|Effusion", "", "No Finding", cell]
    rows = [[*row] for row in zip(("a/1.png", "a/2.png", "b/3.png", "b/4.png"), cells, strict=True)]
    table = write_table(tmp_path / "t.csv", ["file", "label"], rows)
    with pytest.raises(UserError, match=says):
        read(folder, table, target="label", separator="|")
    rows[3][1] = "None"
    targets = read(folder, write_table(table, ["file", "label"], rows), target="label", separator="|").targets
    assert targets.values.tolist() == [[1, 1], [0, 0], [0, 0], [0, 0]]


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_labels_may_be_numbers_with_a_point_or_a_comma(delimiter: str, folder: Path, tmp_path: Path) -> None:
    text = "file;Mass;Edema\na\\1.png;1,0;-1,0\na\\2.png;0,0;1.0\nb\\3.png;;0\nb\\4.png;1;yes\n"
    (tmp_path / "t.csv").write_text(text.replace(";", delimiter))
    values = read(folder, tmp_path / "t.csv", targets=("Mass", "Edema")).targets.values
    np.testing.assert_array_equal(values, [[1, np.nan], [0, 1], [np.nan, 0], [1, 1]])
    for wrong in ("1,0", "yes,0"):  # between commas, or not a number
        rows = [[f"{file}.png", wrong if file == "a/1" else "0"] for file in ("a/1", "a/2", "b/3", "b/4")]
        with pytest.raises(UserError, match=rf"not 0, 1, -1 or empty: a/1\.png \(Mass '{wrong}'\)"):
            read(folder, write_table(tmp_path / "t.csv", ["file", "Mass"], rows), targets=("Mass",))


def test_an_image_that_the_manifest_lacks_has_no_patient(folder: Path) -> None:
    write_table(folder / "manifest.csv", ["file", "person"], [["a/1.png", "x"], ["a/2.png", "y"], ["b/3.png", "z"]])
    with pytest.raises(UserError, match=r"images without a person in .*: b/4.png"):
        read(folder, "folders", patient="person")
    heads, rows = ["file", "patient"], [["a/1.png", "7"], ["a/2.png", "007"], ["b/3.png", "NA"]]
    write_table(folder / "manifest.csv", heads, rows)
    with pytest.raises(UserError, match=r"images without a patient in .*: b/3\.png, b/4\.png; fill"):
        read(folder, "folders", patient="patient")
    with pytest.raises(UserError, match=r"manifest\.csv that differ in .* zeros: 007, 7;"):  # with unknown ones, too
        read(folder, "folders")
    (folder.parent / "run").mkdir()
    (folder.parent / "run/config.yaml").touch()  # of an earlier version, which is resumed
    assert read(folder, "folders", out=folder.parent / "run").owners == ["7", "007", "b/3.png", "b/4.png"]


@pytest.mark.parametrize("empty", ["", "NA"])
def test_an_empty_patient_of_a_column_that_was_not_named_is_unknown(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], empty: str
) -> None:
    names = ["a/1.png", "a/2.png", "b/3.png", "b/4.png"]
    rows = [[name, name[0], "P" if name in names[::2] else empty] for name in names]
    labels = write_table(tmp_path / "t.csv", ["file", "label", "case"], rows)
    pool = read(folder, labels)
    assert (pool.owners, pool.by_patient) == (["P", "a/2.png", "P", "b/4.png"], "")
    assert "2 images have no case in" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"images without a case in .*: a/2\.png, b/4\.png; fill"):
        read(folder, labels, patient="case")


def test_patients_of_training_and_test_data_have_one_spelling(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    names = ["a/1.png", "a/2.png", "b/3.png", "b/4.png"]
    pools = [
        read(data, write_table(data.with_suffix(".csv"), ["file", "label", "patient"], [[n, n[0], o] for n in names]))
        for data, o in ((folder, "7"), (other, "007"))
    ]
    with pytest.raises(UserError, match="patients that differ in capitals, spaces or zeros: 007, 7; spell each one"):
        make_study(*pools)
    make_study(*(replace(pool, by_patient="") for pool in pools))  # names of files may differ in zeros


def test_only_validation_images_are_said_to_be_the_test(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["a/1.png", "a/2.png", "b/3.png", "b/4.png"]
    rows = [[name, name[0], ("train", "val")[k % 2]] for k, name in enumerate(names)]
    study = make_study(read(folder, write_table(tmp_path / "t.csv", ["file", "label", "split"], rows)), None)
    assert study.tested.tolist() == [1, 3] and not len(study.held)
    said = "".join(capsys.readouterr())
    assert "the 2 validation images are the test" in said
    rows[3][2] = "test"
    make_study(read(folder, write_table(tmp_path / "t.csv", ["file", "label", "split"], rows)), None)
    assert "are the test" not in "".join(capsys.readouterr())


def store(folder: Path, patients: list[str | None], splits: list[str]) -> VolumeStore:
    """What a store says of volumes; nothing reads them."""
    fixed = {"size": [2, 2, 2], "affine": np.eye(4).tolist(), "start": 0, "crc": [0], "labels": None, "bytes": 0}
    scales = [{"slope": 1.0, "intercept": 0.0}]
    rows = [
        {**fixed, "name": f"v{k}", "file": f"v{k}.vol", "scales": scales, "patient": patient, "split": split}
        for k, (patient, split) in enumerate(zip(patients, splits, strict=True))
    ]
    return VolumeStore(folder, {"window": None, "channels": 1}, rows)


def test_volumes_have_the_patients_and_splits_of_their_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = write_table(tmp_path / "t.csv", ["file", "label"], [[f"v{k}", "ab"[k % 2]] for k in range(4)])
    parts = ["train", "train", "test", "test"]
    pool = read(tmp_path, labels, store(tmp_path, ["A", "B", "C", "D"], parts))
    assert (pool.owners, pool.splits, pool.by_patient) == (["A", "B", "C", "D"], parts, str(tmp_path))
    assert [*make_study(pool, None).tested] == [2, 3]
    with pytest.raises(UserError, match="leak: patients with train and test images: A;"):
        make_study(read(tmp_path, labels, store(tmp_path, ["A", "B", "A", "D"], parts)), None)
    assert read(tmp_path, labels, store(tmp_path, ["A", "B", "C", "D"], ["subset0", "subset8"] * 2)).splits == []
    pool = read(tmp_path, labels, store(tmp_path, ["A", None, "C", "D"], [""] * 4))
    assert (pool.owners, pool.splits, pool.by_patient) == (["A", "v1", "C", "D"], [], "")  # v1 on its own
    with pytest.raises(UserError, match="leak: patients with train and test images: A;"):
        make_study(read(tmp_path, labels, store(tmp_path, ["A", None, "A", "D"], parts)), None)
    ranks = [f"patient_000{k}" for k in range(4)]  # of two conversions of DICOM series: other people in each
    first, second = (read(tmp_path, labels, store(tmp_path, ranks, [""] * 4)) for _ in range(2))
    second = replace(second, files=[f"other {k}" for k in range(4)])
    assert [*make_study(first, second).tested] == [0, 1, 2, 3]
    assert "patients of DICOM files are numbered within each source" in capsys.readouterr().err
    write_table(labels, ["file", "label", "patient"], [[f"v{k}", "ab"[k % 2], "PQRS"[k]] for k in range(4)])
    assert read(tmp_path, labels, store(tmp_path, ["A", "B", "C", "D"], parts)).owners == ["P", "Q", "R", "S"]
    write_table(labels, ["file", "label", "patient"], [[f"v{k}", "ab"[k % 2], ["P", ""][k % 2]] for k in range(4)])
    for stored, owners in (
        (["A", "B", "C", "D"], ["A", "B", "C", "D"]),
        (["A", "B", "C", None], ["P", "v1", "P", "v3"]),
    ):
        assert read(tmp_path, labels, store(tmp_path, stored, parts)).owners == owners  # of one source


def test_networks_have_the_dimensions_of_the_images_by_default() -> None:
    config = ClassifyConfig(data="d", out="o")
    assert [backbone_of_run(config, ndim) for ndim in (2, 3)] == ["resnet18", "resnet18_3d"]
    assert backbone_of_run(replace(config, backbone="resnet10_3d"), 3) == "resnet10_3d"
    assert [sides_of(*given) for given in ((8, 3), ((8,), 2), ((4, 8), 2))] == [(8, 8, 8), (8, 8), (4, 8)]


def test_official_validation_images_that_become_the_test_are_reported(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["a/1.png", "a/2.png", "b/3.png", "b/4.png"]
    rows = [[*row] for row in zip(names, "aabb", ("train", "val", "train", "val"), strict=True)]
    study = make_study(read(folder, write_table(tmp_path / "t.csv", ["file", "label", "split"], rows)), None)
    assert len(study.tested) == 2 and not len(study.held)
    line = "no images are of the split test: the 2 validation images are the test, and a share of the training images"
    assert line in capsys.readouterr().err


LABELS = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], *[[1, 0, 0], [0, 1, 0]] * 4])


def study_of(values: Any, exclusive: bool, parts: str) -> Study:
    """Images of a patient each, without pixels; the letters of ``parts`` are f (fit), h (held) and t (tested)."""
    targets = Targets(("x", "y", "z"), np.array(values, float), exclusive)
    names = [str(k) for k in range(len(targets))]
    images: Any = None
    pool = Pool(images, names, targets, names, "", [], [*names])
    return Study(pool, pool, *(np.array([k for k, part in enumerate(parts) if part == each], int) for each in "fht"))


@pytest.mark.parametrize(
    ("exclusive", "check", "message"),
    [
        (True, check_labels, "classes that the training images of here lack: z;"),
        (False, check_labels, "labels that all or none of the training images of here have: z;"),
        (False, check_regions, "classes that the training images of here lack: z;"),
    ],
)
def test_what_no_training_image_has_is_refused(exclusive: bool, check: Any, message: str) -> None:
    values = LABELS.argmax(1)[:, None] if exclusive else LABELS
    for parts in ("ffffhhhhhtttt", "fffftttttthhh"):
        study = study_of(values, exclusive, parts)
        with pytest.raises(UserError, match=message):
            check(study, divide(study, None, 0.2, 1.0, 0)[0], "here")
    study = study_of(values, exclusive, "fffffhhhhtttt")
    check(study, divide(study, None, 0.2, 1.0, 0)[0], "here")


def test_a_fraction_that_is_too_small_is_what_the_message_says() -> None:
    """Three of twenty patients: one class has one of them, or none."""
    study = study_of(np.tile([[0], [1]], (12, 1)), True, "f" * 20 + "t" * 4)
    said = set()
    for seed in range(8):
        for folds in (0, 2):
            with pytest.raises(UserError, match="use a larger --fraction") as error:
                divide(study, folds, 0.2, 0.15, seed)
            said |= {word for word in ("validation needs", "fewer than the 2 folds") if word in str(error.value)}
    assert len(said) == 2
    few = study_of([[0], [0], [0], [1], [0], [1]], True, "fffftt")
    with pytest.raises(UserError, match=r"y has training images of one patient, .*; add images, or leave"):
        divide(few, 0, 0.2, 1.0, 0)


def test_what_no_image_has_at_all_is_not_missing_in_training() -> None:
    study = study_of(LABELS * [1, 1, 0], False, "ffffhhhhhtttt")
    check_regions(study, divide(study, None, 0.2, 1.0, 0)[0], "")


def test_labels_of_few_patients_join_the_stratum_of_most_patients() -> None:
    values = np.zeros((21, 1))
    values[:12] = 1  # all of one patient, who has most of the images
    owners = ["A"] * 12 + [f"P{k}" for k in range(9)]
    assert not np.ptp(frequent_strata(Targets(("x",), values, False), owners, 5))


def test_the_only_image_with_a_label_is_trained_on_or_tested_but_chooses_no_epoch() -> None:
    study = study_of(LABELS, False, "f" * len(LABELS))
    for seed in range(10):
        for split in divide(study, 2, 0.3, 1.0, seed):
            assert len(split.validation) and 4 not in split.validation
            if 4 in split.test:
                with pytest.raises(UserError, match="of fold_0 have: z; take these labels out"):
                    check_labels(study, split, "fold_0")
