"""COCO files as other tools write them: read as they are meant, or refused in words that name the cause."""

from __future__ import annotations

import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from densepath.annotations.coco import CocoImages, open_split
from densepath.annotations.coco_writing import write_coco
from densepath.annotations.splits import check_objects, check_splits, fit_window, match_categories, summarize_split
from densepath.core.errors import UserError
from densepath.sources import image_files
from densepath.sources.decode import read_header

SIZE = (60, 90)
SQUARES = ((10, 8, 30, 20), (45, 30, 25, 22))  # x y width height


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two images a split, with two squares each: a gland and a lumen."""
    for place, split in enumerate(("train", "test")):
        (tmp_path / "data" / split).mkdir(parents=True)
        (tmp_path / "data" / "annotations").mkdir(exist_ok=True)
        truth: dict[str, Any] = {"images": [], "annotations": []}
        truth["categories"] = [{"id": 1, "name": "gland"}, {"id": 2, "name": "lumen"}]
        for number in (1, 2):
            name = f"{split}_{number}.png"
            picture(10 * place + number).save(tmp_path / "data" / split / name)
            truth["images"].append({"id": number, "file_name": name, "width": SIZE[1], "height": SIZE[0]})
            for category, (x, y, w, h) in enumerate(SQUARES, 1):
                outline = [x, y, x + w, y, x + w, y + h, x, y + h]
                truth["annotations"].append(
                    {
                        "id": len(truth["annotations"]) + 1,
                        "image_id": number,
                        "category_id": category,
                        "bbox": [x, y, w, h],
                        "segmentation": [outline],
                    }
                )
        (tmp_path / "data" / "annotations" / f"{split}.json").write_text(json.dumps(truth))
    return tmp_path / "data"


def edit(data: Path, split: str, change: Callable[[dict[str, Any]], Any]) -> None:
    path = data / "annotations" / f"{split}.json"
    truth = json.loads(path.read_text())
    change(truth)
    path.write_text(json.dumps(truth))


def each(change: Callable[[dict[str, Any]], Any], part: str = "annotations") -> Callable[[dict[str, Any]], Any]:
    return lambda truth: [change(entry) for entry in truth[part]]


def both(data: Path, **options: Any) -> tuple[CocoImages, CocoImages]:
    return open_split(data, "train", **options), open_split(data, "test", **options)


def test_categories_are_matched_by_name(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def swap(truth: dict[str, Any]) -> None:
        truth["categories"] = [{"id": 1, "name": "lumen"}, {"id": 7, "name": "gland"}]
        for annotation in truth["annotations"]:
            annotation["category_id"] = {1: 7, 2: 1}[annotation["category_id"]]

    edit(data, "test", swap)
    train, test = both(data)
    check_splits(train, test)
    assert test.category_ids == [7, 1] and test.category_names == train.category_names == ["gland", "lumen"]
    np.testing.assert_array_equal(test[0]["labels"], train[0]["labels"])
    assert capsys.readouterr().err == ""


def test_other_categories_are_named(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(data, "test", lambda truth: truth["categories"][1].update(name="crypt"))
    train, test = both(data)
    with pytest.raises(UserError, match=r"test\.json has other categories than .*train\.json: it lacks lumen and"):
        check_splits(train, test)
    with pytest.raises(UserError, match="other categories than the detector in run: it lacks stroma"):
        match_categories(test, ("gland", "crypt", "stroma"), "the detector in run")
    edit(data, "test", lambda truth: truth["categories"][1].update(name="lumen"))
    edit(data, "test", each(lambda annotation: annotation.update(category_id=1)))
    check_splits(*both(data))
    assert "test.json has no object of lumen" in capsys.readouterr().err
    edit(data, "test", lambda truth: truth["categories"][1].update(name="gland"))
    assert [c["id"] for c in open_split(data, "test").coco_ground_truth()["categories"]] == [
        1
    ]  # the other has no object
    edit(data, "test", lambda truth: truth["annotations"][0].update(category_id=truth["categories"][1]["id"]))
    with pytest.raises(UserError, match="several categories of one name: gland"):
        open_split(data, "test")
    edit(data, "test", lambda truth: truth["categories"][1].update(name="lumen", id=1))
    edit(data, "test", each(lambda annotation: annotation.update(category_id=1)))
    with pytest.raises(UserError, match="several categories with one id: 1"):
        open_split(data, "test")


BOXES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "corners": (
        lambda a: a.update(bbox=[a["bbox"][0], a["bbox"][1], *np.add(a["bbox"][:2], a["bbox"][2:]).tolist()]),
        "disagree with their outlines: annotation 1, annotation 2, annotation 3 and 1 more; they are x1 y1 x2 y2",
    ),
    "half": (lambda a: a.update(bbox=[n / 2 for n in a["bbox"]]), "disagree with their outlines: annotation 1, "),
    "centers": (
        lambda a: a.update(bbox=[*np.add(a["bbox"][:2], np.divide(a["bbox"][2:], 2)).tolist(), *a["bbox"][2:]]),
        "disagree with their outlines: annotation 1, ",
    ),
    "y first": (lambda a: a.update(bbox=[a["bbox"][i] for i in (1, 0, 3, 2)]), "disagree .* annotation 2"),
    "outline outside": (
        lambda a: a.update(segmentation=[[200, 10, 220, 10, 220, 30]]),
        "outlines that cover no pixel: annotation 1, annotation 2",
    ),
    "thin outline": (lambda a: a.update(segmentation=[[10, 8, 40, 8, 10, 8]]), "outlines that cover no pixel"),
}


@pytest.mark.parametrize("kind", BOXES)
def test_boxes_and_outlines_that_disagree_are_refused(kind: str, data: Path) -> None:
    change, message = BOXES[kind]
    edit(data, "train", each(change))
    with pytest.raises(UserError, match=message) as error:
        open_split(data, "train")
    assert "\n" not in str(error.value)


def test_boxes_may_differ_from_outlines_as_conventions_do(data: Path) -> None:
    for change in ((0, 0, -1, -1), (-0.5, -0.5, 1, 1), (-2, 1, 3, -2)):
        edit(data, "train", each(lambda a, change=change: a.update(bbox=np.add(a["bbox"], change).tolist())))
        assert len(open_split(data, "train")[0]["boxes"]) == 2


def square(x: float, y: float, side: float) -> list[float]:
    return [x, y, x + side, y, x + side, y + side, x, y + side]


def many(data: Path, count: int) -> None:
    """Let the training images have ``count`` squares."""

    def fill(truth: dict[str, Any]) -> None:
        truth["annotations"] = [
            {
                "id": number + 1,
                "image_id": 1 + number % 2,
                "category_id": 1,
                "bbox": [number % 80, number % 50, 6, 6],
                "segmentation": [square(number % 80, number % 50, 6)],
            }
            for number in range(count)
        ]

    edit(data, "train", fill)


UNUSABLE: dict[str, tuple[dict[str, Any], str]] = {
    "no outline": ({"segmentation": []}, "no outlines"),
    "no points": ({"segmentation": [[]]}, "no outlines"),
    "two points": ({"segmentation": [[1, 2, 3, 4]]}, "no outlines"),
    "empty run lengths": ({"segmentation": {"size": list(SIZE), "counts": [60 * 90]}}, "outlines that cover no pixel"),
    "outline outside": ({"segmentation": [square(200, 200, 9)]}, "outlines that cover no pixel"),
    "a line": ({"segmentation": [[10, 8, 40, 8, 10, 8]]}, "outlines that cover no pixel"),
    "no width": ({"bbox": [3, 3, 0, 5]}, "boxes without area"),
    "box outside": ({"bbox": [300, 3, 5, 5]}, "boxes without area"),
    "no numbers": ({"bbox": [1, 2, None, 5]}, "boxes that are not x y width height"),
    "another box": ({"bbox": [60, 40, 9, 9]}, "boxes that disagree with their outlines"),
    "nothing": ({"bbox": None, "segmentation": None}, "annotations with neither a box nor an outline"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_few_unusable_objects_are_left_out(kind: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, fault = UNUSABLE[kind]
    many(data, 200)
    edit(data, "train", lambda truth: [truth["annotations"][n].update(change) for n in (7, 12)])
    assert open_split(data, "train").objects == 198
    assert (
        f"train.json: 2 of 200 objects are left out: {fault}: annotation 8, annotation 13\n" in capsys.readouterr().err
    )
    edit(data, "train", lambda truth: truth["annotations"][20].update(change))
    with pytest.raises(UserError, match=f"{fault}: annotation 8, annotation 13, annotation 21; correct or remove them"):
        open_split(data, "train")


def test_parts_of_two_points_are_left_out_of_outlines(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = open_split(data, "train")[0]["masks"]
    part = lambda truth: truth["annotations"][0]["segmentation"].extend([[3, 3, 7, 9], [4, 4], []])  # noqa: E731
    edit(data, "train", part)
    np.testing.assert_array_equal(open_split(data, "train")[0]["masks"], expected)
    assert "parts of 1 of 4 objects are left out: outlines with parts of fewer than three points: annotation 1\n" in (
        capsys.readouterr().err
    )
    edit(data, "train", each(lambda a: a["segmentation"].append([1, 2])))
    with pytest.raises(UserError, match=r"fewer than three points: annotation 1, .* and 1 more; remove these parts"):
        open_split(data, "train")


@pytest.mark.parametrize("box", ["missing", None, []])
def test_a_missing_box_is_that_of_its_outline(box: Any, data: Path) -> None:
    expected = [sample["boxes"] for sample in open_split(data, "train")]
    edit(data, "train", each(lambda a: a.pop("bbox") if box == "missing" else a.update(bbox=box)))
    for outlines in (True, False):
        images = open_split(data, "train", outlines=outlines)
        np.testing.assert_array_equal([sample["boxes"] for sample in images], expected)
    edit(data, "train", each(lambda a: a.update(iscrowd=1)))
    assert open_split(data, "train").crowds == 4


AMODAL: dict[str, Callable[[list[float]], list[float]]] = {
    "twice as high": lambda b: [b[0], b[1], b[2], min(2 * b[3], SIZE[0] - b[1])],
    "to the left and above": lambda b: [b[0] - 9, b[1] - 7, b[2] + 9, b[3] + 7],
    "far beyond the image": lambda b: [b[0], b[1], 120, b[3]],
    "whole numbers, beyond the image": lambda b: [b[0] - 9, b[1] - 7, 90 - b[0] + 10, 60 - b[1] + 8],
}


@pytest.mark.parametrize("kind", AMODAL)
def test_boxes_of_whole_objects_may_exceed_their_visible_outlines(kind: str, data: Path) -> None:
    edit(data, "train", each(lambda a: a.update(bbox=AMODAL[kind](a["bbox"]))))
    boxes = np.array([a["bbox"] for a in open_split(data, "train").coco_ground_truth()["annotations"]])
    np.testing.assert_array_equal(boxes, [AMODAL[kind](list(box)) for box in SQUARES] * 2)


def test_corners_are_found_among_boxes_of_whole_objects(data: Path) -> None:
    """Boxes x1 y1 x2 y2 contain their outlines, too, when read as x y width height."""
    many(data, 100)

    def corners(truth: dict[str, Any], share: int, amodal: int) -> None:
        for number, annotation in enumerate(truth["annotations"]):
            x, y, w, h = annotation["bbox"]
            high = 2 * h if number % amodal == 0 else h
            annotation["bbox"] = [x, y, x + w, y + high] if number % share == 0 else [x, y, w, high]

    edit(data, "train", lambda truth: corners(truth, 1, 4))
    with pytest.raises(UserError, match=r"disagree with their outlines: .*; they are x1 y1 x2 y2; write"):
        open_split(data, "train")
    many(data, 100)
    edit(data, "train", lambda truth: corners(truth, 5, 1000))
    with pytest.raises(UserError, match=r"disagree with their outlines: .*annotation \d+"):
        open_split(data, "train")


def test_backslashes_in_names_separate_folders(data: Path) -> None:
    (data / "train" / "images").mkdir()
    for path in [*(data / "train").glob("*.png")]:
        path.rename(path.parent / "images" / path.name)
    edit(data, "train", each(lambda i: i.update(file_name=f"images\\{i['file_name']}"), "images"))
    assert [sample["name"] for sample in open_split(data, "train")] == ["images/train_1.png", "images/train_2.png"]
    edit(data, "train", lambda truth: truth["images"][1].update(file_name="images\\train_9.png"))
    with pytest.raises(UserError, match=r"images missing: images\\train_9\.png; put them into"):
        open_split(data, "train")


def test_objects_are_counted_in_both_splits(data: Path) -> None:
    train = open_split(data, "train")
    assert (train.objects, train.crowds) == (4, 0)
    for split in ("train", "test"):
        shutil.copytree(data, data.parent / split)
        edit(data.parent / split, split, each(lambda a: a.update(iscrowd=1)))
        with pytest.raises(UserError, match=rf"{split}\.json has no object: all of its 4 annotations .* crowds; set"):
            check_splits(*both(data.parent / split))
    edit(data, "train", lambda truth: truth["annotations"][0].update(iscrowd=True))
    train = open_split(data, "train")
    assert (train.objects, train.crowds) == (3, 1)
    edit(data, "train", lambda truth: truth.update(annotations=[]))
    with pytest.raises(UserError, match=r"train\.json outlines no object"):
        check_objects(open_split(data, "train"))


def test_test_images_that_are_also_training_images_are_named(data: Path) -> None:
    shutil.copyfile(data / "train" / "train_2.png", data / "test" / "test_1.png")
    numbers, warning = check_splits(*both(data))
    assert numbers == "4 objects in 2 training images, 4 objects in 2 test images"
    assert warning.endswith(
        "1 of 2 test images are also training images, so scores are too high: test_1.png is train_2.png"
    )


SPELLINGS: dict[str, Callable[[Any], Any]] = {"1.0": float, '"1"': str, "1": int}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_whole_numbers_in_any_spelling(spelling: str, data: Path) -> None:
    expected = [sample["labels"].tolist() for sample in open_split(data, "train")]
    spell = SPELLINGS[spelling]

    def write(truth: dict[str, Any]) -> None:
        for part, keys in (("images", ("id", "width", "height")), ("categories", ("id",))):
            for entry in truth[part]:
                entry.update({key: spell(entry[key]) for key in keys})
        for annotation in truth["annotations"]:
            annotation.update({key: spell(annotation[key]) for key in ("id", "image_id", "category_id")}, iscrowd=0.0)

    edit(data, "train", write)
    images = open_split(data, "train")
    assert [sample["labels"].tolist() for sample in images] == expected
    assert images.category_ids == [1, 2] and images[0]["image_id"] == 1
    edit(data, "train", lambda truth: truth["images"][0].update(id=1.5))
    with pytest.raises(UserError, match=r"'id' of images\[0\] is not a whole number"):
        open_split(data, "train")


@pytest.mark.parametrize("empty", ["missing", None, [], {}, [[]]])
def test_a_box_detector_needs_boxes_only(empty: Any, data: Path) -> None:
    expected = [sample["boxes"] for sample in open_split(data, "train")]
    for split in ("train", "test"):
        edit(data, split, each(lambda a: a.pop("segmentation") if empty == "missing" else a.update(segmentation=empty)))
    with pytest.raises(UserError, match=r"segmentation|outlines"):
        open_split(data, "train")
    images = open_split(data, "train", outlines=False)
    np.testing.assert_array_equal([sample["boxes"] for sample in images], expected)
    np.testing.assert_array_equal(images.crop(0, 20, 0, 60)["boxes"], [[0, 8, 20, 28], [25, 30, 50, 52]])
    edit(data, "train", each(lambda a: a.update(bbox=[a["bbox"][0], a["bbox"][1], 80, 55])))
    with pytest.raises(UserError, match=r"annotation 1, .* they are x1 y1 x2 y2"):
        open_split(data, "train", outlines=False)
    edit(data, "train", each(lambda a: a.update(bbox=[0.1, 0.2, 0.5, 1])))
    with pytest.raises(UserError, match=r"annotation 1, .* they are shares of the image; write pixels"):
        open_split(data, "train", outlines=False)


@pytest.mark.parametrize("tag", range(2, 9))
@pytest.mark.parametrize("kind", ["jpeg", "png", "tiff", "webp"])
def test_images_with_an_orientation_tag_need_to_be_explained(kind: str, tag: int, data: Path) -> None:
    exif = Image.Exif()
    exif[274] = tag
    options = {"lossless": True} if kind == "webp" else {"quality": 95} if kind == "jpeg" else {}
    picture(1).save(data / "train" / "train_1.png", format=kind, exif=exif, **options)
    with pytest.raises(UserError, match=rf"tag: train_1\.png \(orientation {tag}\); say with --orientation"):
        open_split(data, "train")
    stored = open_split(data, "train", orientation="stored")[0]["image"]
    if tag > 4:
        edit(data, "train", lambda truth: truth["images"][0].update(width=SIZE[0], height=SIZE[1]))
        edit(data, "train", each(lambda a: a.update(bbox=[2, 2, 9, 9], segmentation=[[2, 2, 11, 2, 11, 11, 2, 11]])))
    viewed = open_split(data, "train", orientation="viewed")[0]["image"]
    plain = Image.fromarray(stored)
    plain.getexif()[274] = tag
    np.testing.assert_array_equal(viewed, np.asarray(ImageOps.exif_transpose(plain)))


def write_16_bits(data: Path, split: str, highest: int) -> None:
    for number, path in enumerate(sorted((data / split).iterdir())):
        pixels = np.random.default_rng(number).integers(0, highest + 1, SIZE).astype(np.uint16)
        pixels[0, 0] = highest
        Image.fromarray(pixels).save(path)


@pytest.mark.parametrize(("highest", "window"), [(4095, 4095), (2000, 2047), (65535, 255)])
def test_16_bit_files_of_fewer_bits_get_their_window(
    highest: int, window: int, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_16_bits(data, "train", highest)
    write_16_bits(data, "test", 300)
    train, test = both(data)
    spec = fit_window(train, test)
    assert spec.window == train.spec.window == test.spec.window == (0, window)
    assert (f"values up to {highest} only; the window is 0 to {window}" in capsys.readouterr().err) == (window > 255)
    stored = np.asarray(Image.open(data / "train" / "train_1.png"))
    expected = stored if window > 255 else stored >> 8
    np.testing.assert_array_equal(train[0]["image"][..., 0], expected)
    assert fit_window(train, test) == spec
    train.spec = test.spec = spec.override(window=(0, 1023))  # of weights
    assert fit_window(train, test).window == test.spec.window == (0, {4095: 4095, 2000: 2047, 65535: 65535}[highest])
    picture(1).save(data / "train" / "train_1.png")
    assert fit_window(*both(data)).window == (0, 255)


@pytest.mark.parametrize("split", ["train", "test"])
def test_files_of_12_bits_among_those_of_8_are_named(
    split: str, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each header is read once."""
    write_16_bits(data, split, 4095)
    picture(1).save(data / "train" / "train_1.png")
    read: list[str] = []
    monkeypatch.setattr(image_files, "read_header", lambda path, side: read.append(path) or read_header(path, side))
    fit_window(*both(data))
    assert "use only some of 16 bits" in capsys.readouterr().err.replace("uses", "use")
    assert len(read) == len({*read}) == 4


def test_the_window_is_that_of_images_from_first_to_last(tmp_path: Path) -> None:
    maps = np.ones((4, 4), np.int32)
    images = [(f"{n:02d}", np.full((4, 4), 4000 if n == 39 else 900, np.uint16), maps) for n in range(40)]
    write_coco(tmp_path / "D", {"train": images, "test": images[:1]})
    assert fit_window(*both(tmp_path / "D")).window == (0, 4095)


def test_names_that_differ_by_unicode_normalization_are_found(data: Path) -> None:
    name = "drüse.png"
    forms = [unicodedata.normalize(form, name) for form in ("NFC", "NFD")]
    for on_disk, in_json in (forms, forms[::-1]):
        (data / "train" / "train_1.png").replace(data / "train" / on_disk)
        edit(data, "train", lambda truth, written=in_json: truth["images"][0].update(file_name=written))
        assert open_split(data, "train")[0]["name"] == on_disk
        (data / "train" / on_disk).replace(data / "train" / "train_1.png")


def test_images_of_any_suffix_and_place_are_counted(data: Path) -> None:
    """JPEG files are also called .jfif; a JSON may name files outside of its folder."""
    for name in ("train_1", "train_2"):
        (data / f"train/{name}.png").rename(data / f"train/{name}.jfif")
    edit(data, "train", lambda t: [i.update(file_name=i["file_name"].replace("png", "jfif")) for i in t["images"]])
    assert summarize_split(open_split(data, "train"), "training").endswith("kept in memory")
    for name in ("test_1.png", "test_2.png"):
        (data / f"test/{name}").rename(data / name)
    edit(data, "test", lambda t: [i.update(file_name=str(data / i["file_name"])) for i in t["images"]])
    assert summarize_split(open_split(data, "test"), "test").startswith("2 test images in 1 folder, 60-90 px")
