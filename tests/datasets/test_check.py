"""What ``data check`` finds in a data set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densepath.annotations.coco_writing import Outlined, write_coco
from densepath.core.errors import UserError
from densepath.datasets.check import check_data
from densepath.datasets.object_sizes import describe_sizes
from densepath.datasets.similar_images import similar, thumbnails

SIZE = (64, 96)


def picture(seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(SIZE[::-1], Image.Resampling.BICUBIC))


def labels(side: int = 16) -> np.ndarray:
    maps = np.zeros(SIZE, np.int32)
    maps[4 : 4 + side, 6 : 6 + side], maps[40:56, 60:76] = 1, 2
    return maps


@pytest.fixture
def data(tmp_path: Path) -> Path:
    splits = {"train": range(4), "test": range(4, 6)}
    samples = {
        split: [Outlined(f"{n}", picture(n), labels(), f"P{n // 2}", f"{n}.png") for n in numbers]
        for split, numbers in splits.items()
    }
    write_coco(tmp_path / "data", samples, "gland")
    return tmp_path / "data"


def test_a_sound_data_set(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_data(data, tmp_path / "sheet.png") == tmp_path / "sheet.png"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "train: 4 images of 2 patients, 96 x 64 px, 8 objects; 0 images without an object"
    assert lines[2].split() == ["objects", "train", "test"] and lines[3].split() == ["gland", "8", "4"]
    assert "5%: 16, 25%: 16, 50%: 16, 75%: 16, 95%: 16" in lines[4]
    assert lines[-5:] == [
        "objects that reach beyond their image by more than 2 px: 0",
        "objects that lie by more than half under others: 0",
        "patients in train and test: 0",
        "identical files in train and test: 0",
        "nearly identical images in train and test (correlation >= 0.99, turned or mirrored too): 0",
    ]
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert (sheet == (0, 255, 64)).all(axis=2).any(), "outlines"


def test_leaks_between_splits_are_named(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "test/4.png").write_bytes((data / "train/1.png").read_bytes())
    mirrored = picture(2)[:, ::-1] // 2 + 20  # darker, with less contrast
    Image.fromarray(np.ascontiguousarray(mirrored)).save(data / "test/5.png")
    truth = json.loads((data / "annotations/test.json").read_text())
    for image in truth["images"]:
        image["patient"] = "P1"
    outline = [60, 40, 110, 40, 110, 56, 60, 56]
    truth["annotations"][1].update(bbox=[60, 40, 50, 16], segmentation=[outline])
    truth["annotations"].append({**truth["annotations"][0], "id": 9})  # twice
    (data / "annotations/test.json").write_text(json.dumps(truth))
    (data / "manifest.csv").unlink()
    assert check_data(data, count=0) == data
    out = capsys.readouterr().out
    for line in (
        "beyond their image by more than 2 px: 1: annotation 2 of test/4.png; detectors see the part inside",
        "objects that lie by more than half under others: 1: annotation 1 of test/4.png;",
        "patients in train and test: 1: P1; scores are too high",
        "identical files in train and test: 1: 4.png is 1.png",
        "turned or mirrored too): 2: 4.png is like 1.png, 5.png is like 2.png",
    ):
        assert line in out
    check_data(data, count=0, patient_regex=r"^(\d)$")  # the name without suffix, as in the conversion
    assert "patients in train and test: 0" in capsys.readouterr().out
    for image, patient in zip(truth["images"], ("", "p1"), strict=True):
        image["patient"] = patient
    (data / "annotations/test.json").write_text(json.dumps(truth))
    check_data(data, count=0)
    out = capsys.readouterr().out
    assert "test: 2 images of 1 patient (1 without a known patient)" in out
    assert "patients in train and test: 0; not of the 1 without a known patient" in out
    assert "warning: patients that differ in capitals, spaces or zeros only, and count as different ones: P1, p1" in out


def test_a_folder_above_the_data_or_the_list_is_no_patient(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "P7").mkdir()
    data.rename(tmp_path / "P7/data")
    with pytest.raises(UserError, match="does not match the name 0; it"):
        check_data(tmp_path / "P7/data", count=0, patient_regex=r"P\d")
    rows = [f"data/{split}/{n}.png,{split}\n" for split, n in (("train", 0), ("test", 4))]
    (tmp_path / "P7/list.csv").write_text("file,split\n" + "".join(rows))
    with pytest.raises(UserError, match=r"does not match the name train/0\.png; it"):
        check_data(tmp_path / "P7/list.csv", count=0, patient_regex=r"P\d")
    rows = [f"P7/data/train/{n}.png,{split}\n" for n, split in enumerate(("train", "test"))]
    (tmp_path / "list.csv").write_text("file,split\n" + "".join(rows))
    check_data(tmp_path / "list.csv", count=0, patient_regex=r"(P\d)/")
    assert "patients in train and test: 1: P7; scores" in capsys.readouterr().out


def test_images_are_called_by_their_paths(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Images of subfolders may have equal names: in a data set, and in a list of images."""
    for split, number in (("train", 1), ("test", 4)):
        truth = json.loads((data / f"annotations/{split}.json").read_text())
        image = next(image for image in truth["images"] if image["file_name"] == f"{number}.png")
        image["file_name"] = f"s/{number}.png"
        (data / split / "s").mkdir()
        (data / split / f"{number}.png").rename(data / split / image["file_name"])
        own = next(each for each in truth["annotations"] if each["image_id"] == image["id"])
        own |= {"id": 8, "bbox": [60, 40, 50, 16], "segmentation": [[60, 40, 110, 40, 110, 56, 60, 56]]}
        truth["annotations"].append({**own, "id": 9})
        (data / f"annotations/{split}.json").write_text(json.dumps(truth))
    (data / "test/s/4.png").write_bytes((data / "train/s/1.png").read_bytes())
    check_data(data, count=0)
    out = capsys.readouterr().out
    for line in (
        "more than 2 px: 4: annotation 8 of train/s/1.png, annotation 9 of train/s/1.png, annotation 8 of test/s/4.png",
        "under others: 2: annotation 8 of train/s/1.png, annotation 8 of test/s/4.png",
        "identical files in train and test: 1: s/4.png is s/1.png",
        "turned or mirrored too): 1: s/4.png is like s/1.png",
    ):
        assert line in out
    rows = [f"{data}/{split}/s/{n}.png,{split}" for split, n in (("train", 1), ("test", 4))]
    (tmp_path / "l.csv").write_text("\n".join(["file,split", *rows]))
    check_data(tmp_path / "l.csv", count=0)
    out = capsys.readouterr().out
    for line in ("identical files: 1: train/s/1.png = test/s/4.png", "test/s/4.png is like train/s/1.png"):
        assert line in out


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("mirrored", [False, True])
def test_turned_images_are_alike_and_others_are_not(turns: int, mirrored: bool, tmp_path: Path) -> None:
    paths = [tmp_path / f"{n}.png" for n in range(5)]
    for n, path in enumerate(paths[:3]):
        Image.fromarray(picture(n)).save(path)
    same = np.rot90(picture(1)[:, :: -1 if mirrored else 1], turns)
    Image.fromarray(np.ascontiguousarray(same)).save(paths[3])
    Image.new("RGB", SIZE, "white").save(paths[4])
    small = thumbnails(paths)
    assert similar(small[:3], small[3:]) == [(1, 0)]
    assert similar(small[4:], small[4:]) == []  # nothing to see


def test_the_short_side_lets_nine_of_ten_objects_match_the_smallest_anchor() -> None:
    sides = np.arange(1.0, 101.0)
    text = " ".join(describe_sizes([sides[:60], sides[60:]], [500, 500]))
    tenth = np.percentile(sides, 10)
    assert (tenth * short_side(text) / 500) ** 2 / 32**2 == pytest.approx(0.7, abs=0.01)
    assert "more than twice the images' size" in text
    assert "twice" not in " ".join(describe_sizes([sides + 50], [500]))


def short_side(text: str) -> int:
    return int(text.partition("short side of ")[2].split()[0])


def test_each_object_is_resized_with_its_own_image() -> None:
    """Half of the objects are in ten large images, where they become small."""
    images = [2000] * 10 + [200] * 90
    sides = [np.full(90 if image == 2000 else 10, 50.0) for image in images]
    asked = short_side(" ".join(describe_sizes(sides, images)))
    resized = np.concatenate([own * asked / image for own, image in zip(sides, images, strict=True)])
    assert np.percentile(resized, 10) == pytest.approx(32 * 0.7**0.5, rel=0.01)


@pytest.mark.parametrize("of", ["images", "list"])
def test_images_of_few_of_16_bits_are_seen(of: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bits = [picture(number)[..., 0].astype(np.uint16) * 6 for number in (0, 1, 2, 0)]  # 11 bits
    bits[3] += 1
    if of == "images":
        parts = {"train": range(3), "test": range(3, 4)}
        write_coco(tmp_path / "D", {part: [(f"{n}", bits[n], labels()) for n in own] for part, own in parts.items()})
    else:
        (tmp_path / "D").mkdir()
        for number, pixels in enumerate(bits):
            Image.fromarray(pixels).save(tmp_path / f"D/{number}.png")
        rows = "".join(f"{number}.png,{'test' if number == 3 else 'train'}\n" for number in range(4))
        (tmp_path / "D/labels.csv").write_text(f"file,split\n{rows}")
    check_data(tmp_path / "D", tmp_path / "sheet.png")
    out = capsys.readouterr().out
    assert "turned or mirrored too): 1: 3.png is like 0.png" in out
    assert of == "images" or "nearly uniform images (all black, or all of one value): 0\n" in out
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    panel = sheet[sheet.shape[0] // 4 : sheet.shape[0] // 4 + 20, 30:80]
    assert panel.std() > 30, "visible"


def test_what_cannot_be_checked_is_named(data: Path, tmp_path: Path) -> None:
    for given, message in (
        ({"data": tmp_path}, "has no annotations/train.json or labels.csv; give a folder as densepath data writes it"),
        ({"data": tmp_path / "none"}, "none does not exist; give a folder"),
        ({"data": data / "train/1.png"}, r"1.png is not a list \(.txt, .csv, .tsv\); give a folder"),
        ({"patient_regex": "zz"}, "--patient_regex 'zz' does not match the name 0; it must match"),
        ({"out": tmp_path / "sheet.jpg"}, "use a file name that ends in .png"),
        ({"out": data / "train/sheet.png"}, "would lie among the images"),
        ({"out": data / "annotations/train.json/sheet.png"}, "is not a folder; use another path"),
        ({"count": -1}, "count is -1"),
        ({"patient_regex": "("}, "is not a regular expression"),
    ):
        with pytest.raises(UserError, match=message):
            check_data(**{"data": data, "out": tmp_path / "sheet.png", **given})  # type: ignore[arg-type]


def test_a_list_of_labelled_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["file,label,split,patient"]
    for number in range(8):
        pixels = picture(number) if number else np.zeros((*SIZE, 3), np.uint8)
        path = tmp_path / f"{number}.png"
        Image.fromarray(pixels if number == 2 else pixels[..., 0]).save(path)
        lines.append(f"{path},{'ab'[number % 2]},{'test' if number > 4 else 'train'},P{number // 2}")
    (tmp_path / "7.png").write_bytes((tmp_path / "1.png").read_bytes())
    Image.fromarray(picture(3)[::-1, :, 0]).save(tmp_path / "6.png")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    assert check_data(tmp_path / "labels.csv", tmp_path / "sheet.png") == tmp_path / "sheet.png"
    assert capsys.readouterr().out.splitlines() == [
        "train: 5 images of 3 patients, 96 x 64 px",
        "test: 3 images of 2 patients, 96 x 64 px",
        "nearly uniform images (all black, or all of one value): 1: 0.png",
        "warning: 1 image has three channels, the others one: 2.png",
        "identical files: 1: 1.png = 7.png",
        "patients in train and test: 1: P2; scores are too high",
        "identical files in train and test: 1: 7.png is 1.png",
        "nearly identical images in train and test (correlation >= 0.99, turned or mirrored too): 2: 6.png is like "
        "3.png, 7.png is like 1.png",
    ]
    assert np.asarray(Image.open(tmp_path / "sheet.png")).shape[1] > 4 * 96
    check_data(tmp_path / "labels.csv", count=0, patient_regex=r"^(\d)\.png")
    assert "patients in train and test: 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "text", "encoding"),
    [
        ("l.csv", "file;split;patient\n1.png;train;P\n2.png;test;P\n", "utf-8"),
        ("l.csv", "File, Split, Patient\n1.png, Train, P\n2.png, Test, P\n", "utf-8"),
        ("l.csv", "# exported\nsep=,\nfile,split,PatientID\n1.png,train,P\n# all\n2.png,test,P\n", "utf-8"),
        ("l.csv", "file\tsplit\tpatient\n1.png\ttrain\tP\n2.png\ttest\tP\n", "utf-16"),
        ("l.tsv", "img\tsplit\tpatient id\n1.png\ttrain\tP\n2.png\ttest\tP\n", "utf-8"),
    ],
)
def test_lists_of_spreadsheets_have_splits_and_patients(
    name: str, text: str, encoding: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 2):
        Image.fromarray(picture(number)).save(tmp_path / f"{number}.png")
    (tmp_path / name).write_text(text, encoding=encoding)
    check_data(tmp_path / name, count=0)
    out = capsys.readouterr().out
    assert out.startswith("train: 1 image of 1 patient, ") and "patients in train and test: 1: P; scores" in out
