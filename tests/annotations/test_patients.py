"""Patients are found for the images that a table means, and for no others."""

from __future__ import annotations

from pathlib import Path

import pytest

from densepath.annotations.patients import check_spelling, owners_by_name, patient_in_name, patients_of, stated_patient
from densepath.core.errors import UserError


def fill(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("entry", "name", "known"),
    [
        ("v0", "v0.nii.gz", True),
        ("v0.nii", "v0.nii.gz", True),
        ("v0.nii.gz", "v0.nii.gz", True),
        ("a", "a.ome.tif", True),
        ("a.svs", "a.h5", True),
        ("a.svs", "a.svs.h5", True),
        *((f"t0{suffix}", "t0.png", True) for suffix in (".xml", ".csv", ".npz", ".zarr", ".mask", ".JSON")),
        ("case.1", "case.png", False),
        ("case_0.5x", "case_0.png", False),
        ("case", "case.1", False),
        ("sub/a.png", "sub/a.png", True),
        ("a.png", "sub/a.png", True),
        ("other/a.png", "sub/a.png", False),
    ],
)
def test_names_with_and_without_suffix(
    entry: str, name: str, known: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path, {"manifest.csv": f"file,patient\n{entry},P\n"})
    path = str(tmp_path / name)
    assert patients_of(tmp_path, [path]) == ({path: "P"} if known else {})
    said = f"lists none of 1 image: its first file is {entry}, the first image {path}"
    assert (said in capsys.readouterr().err) != known


def test_a_file_next_to_the_manifest_is_not_one_in_another_folder(tmp_path: Path) -> None:
    fill(tmp_path, {"manifest.csv": "file,patient\n1.png,P\n2.png,Q\n", "1.png": "", "mine/1.png": ""})
    mine = [str(tmp_path / f"mine/{number}.png") for number in (1, 2)]
    assert patients_of(tmp_path / "mine", mine) == {mine[1]: "Q"}
    assert patients_of(tmp_path, [str(tmp_path / "1.png"), *mine]) == {str(tmp_path / "1.png"): "P", mine[1]: "Q"}


@pytest.mark.parametrize(
    "text",
    [
        "name,file_path,patient\n0.png,x.png,P\n",
        "file_path,image_name,patient\n0.png,x.png,P\n",
        "slide_id,patient\n0,P\n",
        "slide,image,patient\nx,0.png,P\n",
    ],
)
def test_the_first_usual_column_of_a_manifest_names_its_files(text: str, tmp_path: Path) -> None:
    name = str(fill(tmp_path, {"manifest.csv": text}) / "0.png")
    assert patients_of(tmp_path, [name]) == {name: "P"}


@pytest.mark.parametrize("head", ["#id,file,patient", "#,file,patient", "# id,file,patient"])
@pytest.mark.parametrize("name", ["list.csv", "manifest.csv"])
def test_a_comment_that_is_the_header_names_the_patients(head: str, name: str, tmp_path: Path) -> None:
    fill(tmp_path, {name: f"{head}\n0,a.png,P\n1,b.png,P\n", "a.png": "", "b.png": ""})
    paths = [str(tmp_path / image) for image in ("a.png", "b.png")]
    given = tmp_path / name if name == "list.csv" else tmp_path
    assert patients_of(given, paths) == dict.fromkeys(paths, "P")


def test_a_list_names_files_by_their_paths_only(tmp_path: Path) -> None:
    fill(tmp_path, {"list.csv": "file,patient\n1.png,P1\nB/1.png,\nB/2.png,P2\n"})
    names = [str(tmp_path / name) for name in ("1.png", "B/1.png", "B/2.png")]
    assert patients_of(tmp_path / "list.csv", names) == {names[0]: "P1", names[2]: "P2"}


def test_manifests_of_the_source_and_of_its_images_elsewhere(tmp_path: Path) -> None:
    fill(tmp_path, {"in/manifest.csv": "file,patient\ns/0.json,P0\n1,P1\n", "images/manifest.csv": "file,patient\n"})
    fill(tmp_path, {"images/s/manifest.csv": "file,patient\n0.png,other\n2.png,P2\n"})
    names = [str(tmp_path / f"images/s/{number}.png") for number in range(4)]
    found = patients_of(tmp_path / "in", names, images=tmp_path / "images")
    assert found == {names[0]: "P0", names[1]: "P1", names[2]: "P2"}


def test_manifests_below_a_relative_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, {"in/s/manifest.csv": "file,patient\n0.png,P\n"})
    monkeypatch.chdir(tmp_path)
    name = str(tmp_path / "in/s/0.png")
    assert patients_of("in", [name]) == {name: "P"}


@pytest.mark.parametrize("empty", ["", " ", "NA", "nan", "NULL", "n/a"])
def test_an_empty_patient_is_unknown(empty: str, tmp_path: Path) -> None:
    for table in ("manifest.csv", "list.csv"):
        fill(tmp_path, {table: f"file,patient\n0.png,{empty}\n1.png,P\n"})
        names = [str(tmp_path / name) for name in ("0.png", "1.png")]
        assert patients_of(tmp_path / "list.csv" if table == "list.csv" else tmp_path, names) == {names[1]: "P"}
    assert stated_patient({"patient": empty}) is None
    assert stated_patient({"patient": empty, "patient_id": 7}) == "7"


@pytest.mark.parametrize("table", ["manifest.csv", "list.csv"])
def test_a_patient_in_another_encoding_is_refused(table: str, tmp_path: Path) -> None:
    (tmp_path / table).write_bytes(b"file,patient\n0.png,P\n1.png,M\xfcller\n")
    with pytest.raises(UserError, match=rf"line 3 of .*{table} is not UTF-8"):
        patients_of(tmp_path / "list.csv" if table == "list.csv" else tmp_path, [str(tmp_path / "0.png")])


def test_dates_are_not_patients_of_chestxray14() -> None:
    assert owners_by_name("", ["20240115_001.png", "20240115_002.png"])[0] == ["20240115_001.png", "20240115_002.png"]
    assert owners_by_name("", ["00030805_001.png"]) == (["00030805"], "names as of ChestX-ray14 and CheXpert")


@pytest.mark.parametrize(
    ("name", "pattern", "place", "owner"),
    [
        ("P7/a_p1", r"_(p\d)$", "", "p1"),
        ("P7/a_p1.png", r"_(p\d)$", "", "p1"),
        ("P7/a_p1.png", r"_(p\d)\.png$", "", "p1"),
        ("P7/t0", r"^(P\d)/", "", "P7"),
        ("t0", r"^(P\d)/", "test/P3/t0.png", "P3"),
        ("P7/t0", r"(\d)/", "test9/P7/t0.png", "7"),
    ],
)
def test_a_pattern_finds_the_patient_in_a_name(name: str, pattern: str, place: str, owner: str) -> None:
    assert patient_in_name(name, pattern, place) == owner


def test_unknown_patients_have_no_spelling() -> None:
    check_spelling(["A.png", "a.png", "7"], ["A.png", "a.png"])
    with pytest.raises(UserError, match="differ in capitals, spaces or zeros: 007, 7;"):
        check_spelling(["7", "007", "a.png"], ["a.png"])
