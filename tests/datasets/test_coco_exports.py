"""COCO exports of annotation tools give their objects, whatever their folders, names and outlines."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps
from pycocotools import mask as oracle

from densepath.annotations.coco import CocoImages, open_split
from densepath.annotations.patients import patients_of
from densepath.core.errors import UserError
from densepath.datasets import find_files
from densepath.datasets.categories import odd_categories
from densepath.datasets.check import check_data
from densepath.datasets.coco import convert_coco
from densepath.datasets.find_files import FileIndex, split_named

SIZE = (40, 64)
BOXES = ((4, 5, 20, 12), (30, 20, 16, 14))  # x y width height
CATEGORIES = ({"id": 0, "name": "project"}, {"id": 1, "name": "Gland"}, {"id": 2, "name": "Lumen"})


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def mask_of(box: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    mask[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = 1
    return mask


def polygon(box: tuple[int, ...]) -> list[list[int]]:
    x, y, w, h = box
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def plain_runs(box: tuple[int, ...]) -> dict[str, Any]:
    flat = mask_of(box).T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [0]])))
    counts = np.diff([0, *edges, len(flat)]).tolist()
    return {"size": list(SIZE), "counts": counts if counts[-1] else counts[:-1]}


def packed_runs(box: tuple[int, ...]) -> dict[str, Any]:
    encoded = oracle.encode(np.asfortranarray(mask_of(box)))
    return {"size": list(SIZE), "counts": encoded["counts"].decode()}


def truth(names: list[str], outline: Callable[[Any], Any] = polygon, first: int = 1) -> dict[str, Any]:
    """A gland and a lumen in each image."""
    images = [{"id": i, "file_name": n, "width": SIZE[1], "height": SIZE[0]} for i, n in enumerate(names, first)]
    annotations = [
        {"id": 2 * i + k, "image_id": image["id"], "category_id": k, "bbox": list(box), "segmentation": outline(box)}
        for i, image in enumerate(images)
        for k, box in enumerate(BOXES, 1)
    ]
    return {"images": images, "annotations": annotations, "categories": [dict(c) for c in CATEGORIES]}


def place(path: Path, content: dict[str, Any], images: dict[str, int]) -> None:
    """Write a JSON file, and images next to the given paths."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    root = path.parents[1] if path.parent.name == "annotations" else path.parent
    for name, seed in images.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(seed)).save(root / name)


def both(dest: Path) -> dict[str, CocoImages]:
    return {split: open_split(dest, split) for split in ("train", "test")}  # type: ignore[arg-type]


def check(images: CocoImages, seeds: list[int]) -> None:
    assert images.category_names == ["Gland", "Lumen"]
    assert len(images) == len(seeds)
    for sample, seed in zip(images, seeds, strict=True):
        np.testing.assert_array_equal(sample["image"], pixels(seed))
        np.testing.assert_array_equal(sample["masks"], [mask_of(box) for box in BOXES])
        assert sample["labels"].tolist() == [1, 2]


def test_roboflow_keeps_its_splits_and_drops_its_project(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, split in enumerate(("train", "valid", "test")):
        name = "a_png.rf.0123.png"  # the same in all splits
        place(tmp_path / "in" / split / "_annotations.coco.json", truth([name], first=0), {name: number})
    dest = convert_coco(tmp_path / "in", tmp_path / "out")
    splits = {**both(dest), "val": CocoImages(dest / "val", dest / "annotations/val.json")}
    for split, seed in (("train", 0), ("val", 1), ("test", 2)):
        check(splits[split], [seed])
    out, err = capsys.readouterr()
    assert "train: 1 image, 2 objects (1 Gland, 1 Lumen)\nval: 1 image," in out
    assert "no object of project; left out of the categories" in err


def test_validation_images_are_the_test_images_where_there_are_no_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """COCO's own layout, with files for other tasks next to the instances."""
    for number, split in enumerate(("train2017", "val2017")):
        name = f"{number}.png"
        place(tmp_path / f"in/annotations/instances_{split}.json", truth([name]), {f"{split}/{name}": number})
        place(tmp_path / f"in/annotations/person_keypoints_{split}.json", truth([name]), {})
    (tmp_path / "in/annotations/captions_val2017.json").write_text("[]")
    splits = both(convert_coco(tmp_path / "in", tmp_path / "out"))
    check(splits["train"], [0])
    check(splits["test"], [1])
    assert "has no test images; its validation images become the test images" in capsys.readouterr().err


NAMES: dict[str, tuple[str, Callable[[str], str]]] = {
    "CVAT": ("annotations/instances_default.json", lambda name: name),
    "CVAT with folders": ("annotations/instances_default.json", lambda name: f"set/{name}"),
    "Label Studio": ("result.json", lambda name: f"images/{name}"),
    "Label Studio on Windows": ("result.json", lambda name: f"images\\1/{name}"),
    "Label Studio, local files": ("result.json", lambda name: f"/data/local-files/?d=some%20where/{name}"),
    "Label Studio with media": ("result.json", lambda name: f"..\\..\\label-studio\\media\\upload\\4\\{name}"),
    "another machine": ("coco.json", lambda name: f"C:\\scans\\{name}"),
}


@pytest.mark.parametrize("tool", NAMES)
@pytest.mark.parametrize("outline", [polygon, plain_runs, packed_runs])
def test_one_set_of_images_is_split(tool: str, outline: Callable[[Any], Any], tmp_path: Path) -> None:
    place_of, spell = NAMES[tool]
    names = [f"p{patient}_{tile}.png" for patient in range(3) for tile in range(2)]
    folder = "images/set/" if "folders" in tool else "images/"
    content = truth([spell(name) for name in names], outline)
    place(tmp_path / "in" / place_of, content, {folder + name: seed for seed, name in enumerate(names)})
    with pytest.raises(UserError, match="has no test images of its own; split it with --test_share"):
        convert_coco(tmp_path / "in", tmp_path / "out")
    dest = convert_coco(tmp_path / "in", tmp_path / "out", test_share=0.3, patient_regex=r"^p\d")
    splits = both(dest)
    seeds = {split: [names.index(Path(s["name"]).name) for s in images] for split, images in splits.items()}
    for split, images in splits.items():
        check(images, seeds[split])
    assert sorted(seeds["train"] + seeds["test"]) == list(range(6)) and len(seeds["test"]) == 2
    assert len({names[seed][:2] for seed in seeds["test"]}) == 1
    with (dest / "manifest.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [(row["file"], row["patient"]) for row in rows if row["split"] == "test"] == [
        (f"test/{Path(names[seed]).name}", names[seed][:2]) for seed in seeds["test"]
    ]
    assert splits["test"].coco_ground_truth()["images"][0]["patient"] == names[seeds["test"][0]][:2]
    again = convert_coco(tmp_path / "in", tmp_path / "again", splits=dest / "manifest.csv")
    assert [s["name"] for s in both(again)["test"]] == [s["name"] for s in splits["test"]]


def one_set(tmp_path: Path, count: int = 4, **change: Any) -> Path:
    names = [f"{number}.png" for number in range(count)]
    content = truth(names)
    for annotation in content["annotations"]:
        annotation.update(change)
    place(tmp_path / "in/result.json", content, {f"images/{name}": seed for seed, name in enumerate(names)})
    return tmp_path / "in"


def test_one_set_in_a_folder_called_test_is_split(tmp_path: Path) -> None:
    source = one_set(tmp_path).rename(tmp_path / "my_test")
    assert len(open_split(convert_coco(source, tmp_path / "out", test_share=0.5), "train")) == 2


def test_validation_images_are_drawn_by_patient_too(tmp_path: Path) -> None:
    source = one_set(tmp_path, 8)
    content = json.loads((source / "result.json").read_text())
    for image in content["images"]:
        image["patient_id"] = image["id"] // 2
    (source / "result.json").write_text(json.dumps(content))
    dest = convert_coco(source, tmp_path / "out", test_share=0.25, val_share=0.25)
    with (dest / "manifest.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    patients = {split: {r["patient"] for r in rows if r["split"] == split} for split in ("train", "val", "test")}
    assert all(patients.values()) and sum(map(len, patients.values())) == len(set().union(*patients.values())) == 5
    with pytest.raises(UserError, match="leave no training images"):
        convert_coco(source, tmp_path / "no", test_share=0.5, val_share=0.5)


def test_patients_that_a_split_has_in_its_folder_only(tmp_path: Path) -> None:
    names = ["train/P0/t0.png", "train/P1/t1.png", "test/P3/t2.png"]
    for split in ("train", "test"):
        own = {name: seed for seed, name in enumerate(names) if name.startswith(split)}
        place(tmp_path / f"in/instances_{split}.json", truth(list(own)), own)
    dest = convert_coco(tmp_path / "in", tmp_path / "out", patient_regex=r"^(P\d)/")
    assert [image["patient"] for image in both(dest)["test"].coco_ground_truth()["images"]] == ["P3"]


def test_patients_of_a_manifest_beside_the_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = one_set(tmp_path)
    (source / "images").rename(tmp_path / "images")
    rows = "".join(f"{number}.png,P{number // 2}\n" for number in range(4))
    (source / "manifest.csv").write_text(f"file,patient\n{rows}")
    convert_coco(source, tmp_path / "out", images=tmp_path / "images", test_share=0.5)
    assert capsys.readouterr().out.count(" of 1 patient,") == 2


def test_categories_are_renamed_merged_and_dropped(tmp_path: Path) -> None:
    source = one_set(tmp_path)
    merged = convert_coco(source, tmp_path / "merged", categories=["Gland=gland", "Lumen=gland"], test_share=0.5)
    images = open_split(merged, "train")
    assert images.category_names == ["gland"] and images.objects == 4
    dropped = open_split(convert_coco(source, tmp_path / "out", categories=["Gland="], test_share=0.5), "train")
    assert dropped.category_names == ["Lumen"] and dropped.objects == 2
    for rules, message in (
        (["gland=x"], "names 'gland', which no object has; did you mean Gland"),
        (["Gland"], "'Gland' is not OLD=NEW"),
        (["Gland=a", "Gland=b"], "gives 'Gland' two names"),
        (["Gland=", "Lumen="], "has no object; outline some, or check --categories"),
    ):
        with pytest.raises(UserError, match=message):
            convert_coco(source, tmp_path / "no", categories=rules, test_share=0.5)


def test_blanks_around_names_of_categories_do_not_count(tmp_path: Path) -> None:
    source = one_set(tmp_path)
    content = json.loads((source / "result.json").read_text())
    content["categories"][1]["name"] = "Lumen "
    (source / "result.json").write_text(json.dumps(content))
    merged = convert_coco(source, tmp_path / "out", categories=["Lumen =cell"], test_share=0.5)
    assert open_split(merged, "train").category_names == ["cell"]


def test_what_makes_scores_wrong_silently_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Classes that differ in capitals, and unknown patients."""
    source = one_set(tmp_path)
    content = json.loads((source / "result.json").read_text())
    content["categories"][1]["name"] = "lumen"
    content["annotations"][0]["iscrowd"] = False
    (source / "result.json").write_text(json.dumps(content))
    dest = convert_coco(source, tmp_path / "out", test_share=0.5)
    text = "capitals, spaces or zeros only, and count as different ones: Lumen, lumen; merge them with --categories"
    err = capsys.readouterr().err
    assert f"{text} Lumen=lumen" in err and "warning: the patients are unknown" in err
    check_data(dest, count=0)
    assert text.replace("--cat", f"densepath data coco {dest} NEW --cat") in capsys.readouterr().out
    assert "false" not in (dest / "annotations" / "train.json").read_text()


@pytest.mark.parametrize(
    ("counts", "advice"),
    [
        ({"Tumor": 9, "tumor": 2, "TUMOR": 1}, "merge them with --categories TUMOR=Tumor tumor=Tumor"),
        ({"A=b": 9, "a=b": 1}, "give them one name"),
        ({"A": 1, "b": 2}, None),
    ],
)
def test_the_most_frequent_of_similar_categories_gives_its_name(counts: dict[str, int], advice: str | None) -> None:
    assert [line.rpartition("; ")[2] for line in odd_categories(counts)] == [advice] * (advice is not None)


def test_a_file_in_other_capitals_is_taken_if_it_is_the_only_one(tmp_path: Path, capsys: Any) -> None:
    source = one_set(tmp_path)
    (source / "result.json").write_text((source / "result.json").read_text().replace(".png", ".PNG"))
    convert_coco(source, tmp_path / "out", test_share=0.5)
    assert "4 names in other capitals than the file: " in capsys.readouterr().err
    for path in sorted(source.rglob("*.png"))[:1]:
        path.with_name(path.name.upper().replace(".PNG", ".pnG")).write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="that are missing: "):
        convert_coco(source, tmp_path / "no", test_share=0.5)


def test_images_of_one_name_may_come_into_one_split(tmp_path: Path) -> None:
    """From the folder of a split and from one beside it."""
    for folder in ("train", "extra"):
        place(tmp_path / "in" / folder / "result.json", truth(["a.png"]), {"a.png": 0})
    place(tmp_path / "in/val/result.json", truth(["v.png"]), {"v.png": 1})
    dest = convert_coco(tmp_path / "in", tmp_path / "out")
    assert sorted(str(path.relative_to(dest)) for path in dest.rglob("*.png")) == [
        "test/v.png",
        "train/extra/a.png",
        "train/train/a.png",
    ]


def test_other_ids_in_each_file_mean_the_same_names(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "test")):
        content = truth(["a.png"])
        if split == "test":
            content["categories"] = [{"id": 2, "name": "Gland"}, {"id": 1, "name": "Lumen"}]
            for annotation in content["annotations"]:
                annotation["category_id"] = 3 - annotation["category_id"]
        place(tmp_path / "in" / split / "labels.json", content, {"a.png": number})
    for images, seed in zip(both(convert_coco(tmp_path / "in", tmp_path / "out")).values(), (0, 1), strict=True):
        check(images, [seed])


def test_crowds_and_boxes_stay_what_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    crowds = one_set(tmp_path / "crowds", iscrowd=1)
    assert open_split(convert_coco(crowds, tmp_path / "kept", test_share=0.5), "train").crowds == 4
    assert "if they are single objects, give --crowds objects" in capsys.readouterr().err
    assert open_split(convert_coco(crowds, tmp_path / "single", crowds="objects", test_share=0.5), "train").objects == 4
    boxes = convert_coco(one_set(tmp_path / "boxes", segmentation=[[]]), tmp_path / "out", test_share=0.5)
    assert "8 of 8 objects have a box and no outline" in capsys.readouterr().err
    images = open_split(boxes, "train", outlines=False)
    np.testing.assert_array_equal(images[0]["boxes"], [[4, 5, 24, 17], [30, 20, 46, 34]])
    with pytest.raises(UserError, match="no outlines"):
        open_split(boxes, "train")


@pytest.mark.parametrize("degrees", [0, 30.0, 90, -135.5, 330])
def test_turned_boxes_of_cvat_become_the_boxes_that_bound_them(degrees: float, tmp_path: Path) -> None:
    source = one_set(tmp_path, segmentation=[], attributes={"occluded": False, "rotation": degrees})
    images = open_split(convert_coco(source, tmp_path / "out", test_share=0.5), "train", outlines=False)
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    expected = []
    for x, y, wide, high in BOXES:
        corners = np.array([[-wide, -high], [wide, -high], [wide, high], [-wide, high]]) / 2
        turned = corners @ np.array([[cosine, sine], [-sine, cosine]]) + np.array([x + wide / 2, y + high / 2])
        expected.append(np.concatenate([turned.min(0), turned.max(0)]).clip(0, SIZE[::-1] * 2))
    np.testing.assert_allclose(images[0]["boxes"], expected, atol=1e-3)


def test_turned_boxes_without_area_are_no_objects(tmp_path: Path) -> None:
    source = one_set(tmp_path, bbox=[10, 10, 0, 20], segmentation=[], attributes={"rotation": 45.0})
    with pytest.raises(UserError, match="boxes without area"):
        convert_coco(source, tmp_path / "out", test_share=0.5)


@pytest.mark.parametrize("outline", [polygon, packed_runs, lambda box: []], ids=["polygon", "runs", "box"])
def test_repeated_objects_count_once(outline: Callable[[Any], Any], tmp_path: Path, capsys: Any) -> None:
    content = truth(["a.png", "b.png"], outline)
    content["annotations"] += [a | {"id": 90 + a["id"]} for a in content["annotations"]]
    content["annotations"][0]["category_id"] = 2  # which its copy has not
    place(tmp_path / "in/labels.json", content, {"a.png": 0, "b.png": 1})
    dest = convert_coco(tmp_path / "in", tmp_path / "out", test_share=0.5)
    assert "labels.json: 3 repeated objects left out" in capsys.readouterr().err
    assert sum(open_split(dest, split, outlines=False).objects for split in ("train", "test")) == 5  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", " ", None])
def test_a_category_without_a_name_is_called_by_its_id(name: Any, tmp_path: Path) -> None:
    source = one_set(tmp_path)
    content = json.loads((source / "result.json").read_text())
    content["categories"][1]["name"] = name
    (source / "result.json").write_text(json.dumps(content))
    assert open_split(convert_coco(source, tmp_path / "out", test_share=0.5), "train").category_names == ["1", "Lumen"]


@pytest.mark.parametrize("orientation", ["stored", "viewed"])
def test_orientation_tags_are_explained(orientation: Any, tmp_path: Path) -> None:
    source = one_set(tmp_path)
    exif = Image.Exif()
    exif[274] = 3
    Image.fromarray(pixels(1)).save(source / "images/1.png", exif=exif)
    with pytest.raises(UserError, match=r"orientation tag: 1\.png \(orientation 3\); say with --orientation"):
        convert_coco(source, tmp_path / "out", test_share=0.5)
    splits = both(convert_coco(source, tmp_path / "out", test_share=0.5, orientation=orientation))
    (sample,) = [s for images in splits.values() for s in images if s["name"] == "1.png"]
    seen = np.asarray(ImageOps.exif_transpose(Image.open(source / "images/1.png")))
    np.testing.assert_array_equal(sample["image"], pixels(1) if orientation == "stored" else seen)
    np.testing.assert_array_equal(sample["masks"], [mask_of(box) for box in BOXES])


def test_excluded_images_need_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = one_set(tmp_path)
    (source / "images/2.png").unlink()
    with pytest.raises(UserError, match=r"images of .*result\.json that are missing: 2\.png; put them next to it"):
        convert_coco(source, tmp_path / "out", test_share=0.5)
    dest = convert_coco(source, tmp_path / "out", test_share=0.4, exclude=["2.*", "3?"])
    err = capsys.readouterr().err
    assert "1 of 4 images are left out by --exclude" in err and "that --exclude 3? matches" in err
    assert sorted(s["name"] for images in both(dest).values() for s in images) == ["0.png", "1.png", "3.png"]
    with pytest.raises(UserError, match="--exclude leaves out all images"):
        convert_coco(source, tmp_path / "no", test_share=0.4, exclude=["*"])


def test_files_of_one_name_are_told_apart_or_refused(tmp_path: Path) -> None:
    images = {f"{folder}/images/tile.png": number for number, folder in enumerate(("a", "b"))}
    place(tmp_path / "in/all.json", truth(["a/images/tile.png", "b/images/tile.png"]), images)
    dest = convert_coco(tmp_path / "in", tmp_path / "out", test_share=0.5)
    found = {s["name"]: s["image"] for split in both(dest).values() for s in split}
    for name, seed in (("a/images/tile.png", 0), ("b/images/tile.png", 1)):
        np.testing.assert_array_equal(found[name], pixels(seed))
    (tmp_path / "in/all.json").write_text(json.dumps(truth(["tile.png"])))
    with pytest.raises(UserError, match=r"files are not clear: tile\.png \(.*a/images/tile\.png or .*b/images"):
        convert_coco(tmp_path / "in", tmp_path / "no", test_share=0.5)
    (tmp_path / "in/all.json").write_text(json.dumps(truth(["x/a/images/tile.png", "y/a/images/tile.png"])))
    with pytest.raises(UserError, match=r"lists more than once: .*a/images/tile\.png"):
        convert_coco(tmp_path / "in", tmp_path / "no", test_share=0.5)


@pytest.mark.parametrize("given", ["json", "table"])
def test_an_image_in_another_folder_than_its_neighbours_is_refused(given: str, tmp_path: Path) -> None:
    names = [f"train/{number}.png" for number in range(3)]
    places = {name: seed for seed, name in enumerate((*names[:2], "val/2.png"))}
    place(tmp_path / "in/all.json", truth(names if given == "json" else list(places)), places)
    (tmp_path / "s.csv").write_text("file,split\ntrain/0.png,train\ntrain/1.png,test\nval/2.png,test\n")
    if given == "table":
        convert_coco(tmp_path / "in", tmp_path / "out", splits=tmp_path / "s.csv")
        (tmp_path / "s.csv").write_text("file,split\ntrain/0.png,train\nother/1.png,test\nval/2.png,test\n")
        how, message = (
            {"splits": tmp_path / "s.csv"},
            r"name another folder .*: .*train/1\.png \(other/1\.png\); correct",
        )
    else:
        how, message = {"test_share": 0.5}, r"not in the folder of the others: train/2\.png \(.*/val/2\.png\); put them"
    with pytest.raises(UserError, match=message):
        convert_coco(tmp_path / "in", tmp_path / "no", **how)  # type: ignore[arg-type]


def test_percent_signs_are_those_of_a_name_or_of_a_url(tmp_path: Path) -> None:
    names = {"a%20b.png": 0, "c d.png": 1}
    place(tmp_path / "in/all.json", truth(["a%20b.png", "x/c%20d.png"]), names)
    dest = convert_coco(tmp_path / "in", tmp_path / "out", test_share=0.5)
    found = {s["name"]: s["image"] for split in both(dest).values() for s in split}
    for name, seed in names.items():
        np.testing.assert_array_equal(found[name], pixels(seed))
    place(tmp_path / "in/all.json", truth(list(names)), {"a b.png": 2})
    dest = convert_coco(tmp_path / "in", tmp_path / "both", test_share=0.5)
    assert {s["name"] for split in both(dest).values() for s in split} == set(names)


def test_images_keep_their_pixel_size(tmp_path: Path) -> None:
    """As the JSON says it, or as a TIFF that becomes a PNG."""
    content = truth(["a.png", "b.tif"])
    content["images"][0]["mpp"] = 0.5
    place(tmp_path / "in/all.json", content, {"a.png": 0})
    options = {"resolution": (40000, 40000), "resolutionunit": "CENTIMETER", "photometric": "rgb"}
    tifffile.imwrite(tmp_path / "in/b.tif", pixels(1), extratags=[(274, "H", 1, 3, True)], **options)
    dest = convert_coco(tmp_path / "in", tmp_path / "out", test_share=0.5, orientation="stored")
    found = {split[0]["name"]: split.mpp(0) for split in both(dest).values()}
    assert found == {"a.png": 0.5, "b.png": 0.25}


def test_the_data_set_goes_into_an_empty_folder_or_a_linked_one_only(tmp_path: Path) -> None:
    source = one_set(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    dest = convert_coco(source, tmp_path / "link", test_share=0.5)
    assert sorted(path.name for path in (tmp_path / "empty").iterdir()) == [
        "annotations",
        "manifest.csv",
        "test",
        "train",
    ]
    with pytest.raises(UserError, match="already exists and is not empty"):
        convert_coco(source, dest, test_share=0.5)


def test_what_is_not_an_export_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    source = one_set(tmp_path)
    for given, message in (
        ({"source": tmp_path / "nowhere"}, "does not exist; give the folder of a COCO export"),
        ({"images": tmp_path / "nowhere"}, "is not a folder; give the one that holds the images"),
        ({"source": source / "images"}, "holds no JSON file with COCO instances"),
        ({"source": source / "images/0.png"}, "is not JSON"),
        ({"splits": source / "result.json"}, "has no columns file and split"),
        ({"source": one_set(tmp_path / "5", segmentation=5)}, "neither polygons nor run lengths .*: annotation 1,"),
    ):
        with pytest.raises(UserError, match=message):
            convert_coco(**{"source": source, "dest": tmp_path / "out", **given})  # type: ignore[arg-type]
    (tmp_path / "s.csv").write_text("file,split\n0.png,train\n1.png,test\n2.png,oops\n")
    with pytest.raises(UserError, match=r"splits other than train, val and test: 2\.png: oops"):
        convert_coco(source, tmp_path / "out", splits=tmp_path / "s.csv")
    (tmp_path / "s.csv").write_text("file_name,split\n0.png,train\n1.png,testing\n")
    with pytest.raises(UserError, match=r"s\.csv does not list: .*2\.png, .*3\.png"):
        convert_coco(source, tmp_path / "out", splits=tmp_path / "s.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["5", "in", "s.csv"]


SPLIT_OF = {
    **dict.fromkeys(("instances_train2017", "training-set", "Train"), "train"),
    **dict.fromkeys(("valid", "coco_validation", "val"), "val"),
    **dict.fromkeys(("Test", "test_v2"), "test"),
    **dict.fromkeys(("instances_default", "contest", "trainer", "latest"), None),
}


@pytest.mark.parametrize("name", SPLIT_OF)
def test_splits_are_words_of_names(name: str) -> None:
    assert split_named(name) == SPLIT_OF[name]


def test_folders_with_names_in_any_encoding(tmp_path: Path) -> None:
    """The manifest names them, and is read again as a table of splits."""
    source = one_set(tmp_path).rename(tmp_path / os.fsdecode(b"Gewebe\xe4"))
    dest = convert_coco(source, tmp_path / "out", test_share=0.5)
    saved = tmp_path / "saved.csv"  # by a spreadsheet
    saved.write_bytes((dest / "manifest.csv").read_bytes().replace(b",", b";"))
    for number, table in enumerate((dest / "manifest.csv", saved)):
        again = convert_coco(source, tmp_path / f"again{number}", splits=table)
        for split in ("train", "test"):
            name = f"annotations/{split}.json"
            assert (again / name).read_bytes() == (dest / name).read_bytes()
    assert patients_of(dest, ["a"]) == {}


def test_a_table_with_an_empty_name_is_no_bug(tmp_path: Path) -> None:
    (tmp_path / "splits.csv").write_text("file,split\n,train\n" + "".join(f"{n}.png,train\n" for n in range(4)))
    with pytest.raises(UserError, match="has no test image"):
        convert_coco(one_set(tmp_path), tmp_path / "out", splits=tmp_path / "splits.csv")


def test_a_data_set_within_its_source_is_refused(tmp_path: Path) -> None:
    """The next conversion would find each image twice."""
    source = one_set(tmp_path)
    (tmp_path / "pictures").mkdir()
    for dest, given in (
        (source / "out", {}),
        (tmp_path / "pictures" / "out", {"images": tmp_path / "pictures"}),
        (source / "out", {"source": next(source.rglob("*.json")), "images": source}),
    ):
        with pytest.raises(UserError, match=r"out lies in .*; use another path"):
            convert_coco(**{"source": source, "dest": dest, "test_share": 0.5, **given})  # type: ignore[arg-type]
        assert not dest.exists()
    convert_coco(source, tmp_path / "out", test_share=0.5)


@pytest.mark.parametrize("above", ["", "img/", "img/20x/"])
def test_files_of_one_name_in_many_folders_are_not_compared_one_by_one(
    monkeypatch: pytest.MonkeyPatch, above: str
) -> None:
    names = [f"slide_{number}/{above}tile.png" for number in range(30)]
    index = FileIndex([Path("/data") / name for name in names])
    agree, compared = find_files._agreeing, []
    monkeypatch.setattr(find_files, "_agreeing", lambda *parts: compared.append(parts) or agree(*parts))
    assert [index.find(f"other/{name}") for name in names] == [[Path("/data") / name] for name in names]
    assert len(compared) == len(names)
    assert len(index.find(f"slide/{above}tile.png")) == len(names)
    assert index.find(f"slide/{above}TILE.png") == []
