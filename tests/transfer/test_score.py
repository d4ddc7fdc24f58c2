"""``densepath score``: label maps, data sets in COCO's layout and COCO results; what does not match is named."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from densepath.annotations.coco import open_split
from densepath.annotations.coco_writing import annotation_of, write_coco
from densepath.cli import main
from densepath.core.csv_files import read_rows
from densepath.core.errors import UserError
from densepath.transfer.detection.evaluation import evaluate
from densepath.transfer.detection.object_metrics import OBJECT_METRICS, compare, over_images
from densepath.transfer.score import score

SIZE = (40, 60)


def truth_map(seed: int) -> np.ndarray:
    labels = np.zeros(SIZE, np.int32)
    for number in range(3):
        labels[5 : 30 - 4 * number, 20 * number : 20 * number + 12 + seed] = number + 1
    return labels


TRUTH = [truth_map(seed) for seed in range(3)]
FOUND = [np.roll(labels, 3, axis=1) * (labels > 0) for labels in TRUTH]
EXPECTED = over_images([compare(*each) for each in zip(TRUTH, FOUND, strict=True)])


def write_maps(folder: Path, maps: list[np.ndarray], names: Sequence[str] = "abc") -> Path:
    """One of 8, one of 16 and one of 32 bits."""
    folder.mkdir(parents=True)
    for name, labels, dtype in zip(names, maps, (np.uint8, np.uint16, np.uint32), strict=True):
        if dtype == np.uint32:
            tifffile.imwrite(folder / f"{name}.tif", (labels * 100_000).astype(dtype))
        else:
            Image.fromarray(labels.astype(dtype)).save(folder / f"{name}.png")
    return folder


def results_of(maps: list[np.ndarray], scores: tuple[float, ...] = (0.9, 0.8, 0.7)) -> list[dict[str, Any]]:
    results = []
    for number, labels in enumerate(maps, 1):
        for label, each in zip(np.unique(labels[labels > 0]), scores, strict=False):
            outline = annotation_of(labels == label)
            kept = {name: outline[name] for name in ("segmentation", "bbox")}
            results.append({"image_id": number, "category_id": 1, "score": each, **kept})
    return results


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    pictures = [(name, np.zeros((*SIZE, 3), np.uint8), labels) for name, labels in zip("abc", TRUTH, strict=True)]
    write_coco(tmp_path / "data", {"train": [], "test": pictures})
    return tmp_path / "data"


def test_label_maps_are_compared_by_name(coco: Path, tmp_path: Path) -> None:
    found = write_maps(tmp_path / "found", FOUND)
    maps = write_maps(tmp_path / "truth" / "deep", TRUTH)
    out = tmp_path / "scores.json"
    assert score(data=maps, predictions=found, out=out) == EXPECTED
    assert json.loads(out.read_text()) == {"scale": "percent", **EXPECTED, "images": 3}
    rows = list(csv.DictReader((tmp_path / "scores.csv").open()))
    assert [row["image"] for row in rows] == ["a", "b", "c"]
    for row, *pair in zip(rows, TRUTH, FOUND, strict=True):
        assert {name: float(row[name]) for name in OBJECT_METRICS} == compare(*pair).metrics
        assert (row["true"], row["found"]) == ("3", str(len(np.unique(pair[1])) - 1))
    assert score(data=coco, predictions=found) == EXPECTED
    assert score(data=tmp_path / "truth", predictions=found) == EXPECTED  # leading folders do not matter


def test_names_that_are_not_text_are_written_as_they_are(tmp_path: Path) -> None:
    names = [f"{os.fsdecode(bytes([228]))}{number}" for number in range(3)]
    truth, found = (write_maps(tmp_path / which, maps, names) for which, maps in (("truth", TRUTH), ("found", FOUND)))
    assert score(data=truth, predictions=found, out=tmp_path / "scores.json") == EXPECTED
    assert [row["image"] for row in read_rows(tmp_path / "scores.csv", "")] == names


def test_coco_results_have_ap_too(coco: Path, tmp_path: Path) -> None:
    """As ``detect`` computes it; object metrics are those of detections with a score of at least 0.5."""
    results = results_of(FOUND) + results_of([np.ones(SIZE, np.int32)], (0.4,))
    by_image = {i: [r for r in results if r["image_id"] == i] for i in (1, 2, 3)}
    test = open_split(coco, "test")
    expected = evaluate(
        lambda sample: by_image[sample["image_id"]], lambda sample, found: found, test, tmp_path / "run", objects=True
    )
    assert {name: expected[name] for name in OBJECT_METRICS} == pytest.approx(EXPECTED)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == {"scale": "percent", **expected}
    assert 0 < expected["mask_ap"] < 100
    assert score(data=coco, predictions=tmp_path / "run" / "predictions.json") == expected
    low = score(data=coco, predictions=tmp_path / "run" / "predictions.json", score=0.3)
    assert low["object_f1"] < expected["object_f1"] and low["mask_ap"] == expected["mask_ap"]
    # Boxes only; and outlines without boxes.
    for result in (boxes := json.loads(json.dumps(results))):
        del result["segmentation"]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    assert score(data=coco, predictions=tmp_path / "boxes.json") == {k: expected[k] for k in expected if "box" in k}
    for result in results:
        del result["bbox"]
    (tmp_path / "outlines.json").write_text(json.dumps(results))
    assert score(data=coco, predictions=tmp_path / "outlines.json") == expected


def test_images_json_names_the_images_of_a_folder_of_predict(coco: Path, tmp_path: Path) -> None:
    """With ids in another order, another id of the category, and files in other folders."""
    folder = tmp_path / "predicted"
    folder.mkdir()
    results = results_of(FOUND, (0.9, 0.3, 0.7))
    plain = tmp_path / "plain.json"
    plain.write_text(json.dumps(results))
    listed = [
        {"id": 30 - number, "file_name": f"/elsewhere/{name}.jpg", "height": SIZE[0], "width": SIZE[1]}
        for number, name in reversed(list(enumerate("abc", 1)))
    ]
    moved = [{**result, "image_id": 30 - result["image_id"], "category_id": 9} for result in results]
    (folder / "predictions.json").write_text(json.dumps(moved))
    (folder / "images.json").write_text(json.dumps({"images": listed}))
    expected = score(data=coco, predictions=plain, score=0.0)
    assert expected["object_f1"] == EXPECTED["object_f1"]
    assert score(data=coco, predictions=folder) == expected
    maps = write_maps(tmp_path / "maps", TRUTH)
    assert score(data=maps, predictions=folder) == pytest.approx(expected)
    cut = score(data=coco, predictions=folder / "predictions.json")  # the second object has a score of 0.3
    assert cut["object_f1"] < expected["object_f1"] and cut["mask_ap"] == expected["mask_ap"]


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2)])
def test_true_objects_in_others_are_found_in_any_order(
    order: tuple[int, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An object that three others cover by more than half; two of these are equally large and overlap.

    Of the two, the outlines decide which true object is on top, and the scores which predicted one.
    """
    write_coco(tmp_path, {"train": [], "test": [("a", np.zeros((*SIZE, 3), np.uint8), TRUTH[0])]})
    places = (np.s_[2:38, 2:18], np.s_[5:15, 4:14], np.s_[5:15, 6:16], np.s_[16:30, 3:17])
    outlines = []
    for place in places:
        mask = np.zeros(SIZE, bool)
        mask[place] = True
        outlines.append(annotation_of(mask))
    path = tmp_path / "annotations/test.json"
    content = json.loads(path.read_text())
    known = {"image_id": 1, "category_id": content["categories"][0]["id"]}
    content["annotations"] = [outlines[k] | known | {"id": k + 1} for k in order]
    path.write_text(json.dumps(content))
    found = [outlines[k] | known | {"score": each} for k, each in enumerate((0.9, 0.7, 0.8, 0.6))]
    (tmp_path / "found.json").write_text(json.dumps(found))
    scores = score(data=tmp_path, predictions=tmp_path / "found.json")
    assert scores == pytest.approx({name: 0.0 if "px" in name else 100.0 for name in scores})
    assert "2 of 4 true objects lie by more than half under others" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["object", "Object", "nucleus"])
def test_the_only_categories_are_compared_whatever_their_names(
    name: str, coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder = coco / "annotations/test.json", tmp_path / "predicted"
    folder.mkdir()
    content = json.loads(path.read_text())
    (own,) = content["categories"]
    (folder / "predictions.json").write_text(json.dumps([r | {"category_id": 9} for r in results_of(TRUTH)]))
    (folder / "images.json").write_text(json.dumps(content | {"categories": [{"id": 9, "name": name}]}))
    assert score(data=coco, predictions=folder)["mask_ap"] == pytest.approx(100)
    said = f"AP compares the only categories: {name} of {folder}"
    assert (said in capsys.readouterr().err) == (name != own["name"])


@pytest.mark.parametrize(
    ("names", "ap", "says"),
    [
        (("gland", "nucleus"), 100, ""),
        (("nucleus", "gland"), 0, ""),
        (("gland", "vessel"), None, "test.json lacks the categories vessel of "),
        ((), 0, ""),  # ids of the data
    ],
)
def test_ap_compares_categories_by_their_names(
    names: tuple[str, ...], ap: float | None, says: str, coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The detector has the gland as category 1 and the nucleus as 2, or the other way round; the data 2 and 1."""
    path, folder = coco / "annotations/test.json", tmp_path / "predicted"
    folder.mkdir()
    content = json.loads(path.read_text())
    content["categories"] = [{"id": 2, "name": "gland"}, {"id": 1, "name": "nucleus"}]
    results = results_of(TRUTH, (0.9, 0.8, 0.7))
    for k, (annotation, result) in enumerate(zip(content["annotations"], results, strict=True)):
        annotation["category_id"], result["category_id"] = 2 - k % 2, 1 + k % 2
    path.write_text(json.dumps(content))
    (folder / "predictions.json").write_text(json.dumps(results))
    listed = {"images": content["images"], "categories": [{"id": k, "name": name} for k, name in enumerate(names, 1)]}
    (folder / "images.json").write_text(json.dumps(listed))
    assert score(data=coco, predictions=folder).scores.get("mask_ap") == (ap if ap is None else pytest.approx(ap))
    assert says in capsys.readouterr().err


def test_the_verb_prints_the_metrics(coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_maps(tmp_path / "out" / "labels", TRUTH)
    Image.new("L", (5, 5)).save(tmp_path / "out" / "no_label_map.png")
    assert main(["score", "--data", str(coco), "--predictions", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert dict(line.split() for line in printed.out.splitlines())["object_dice"] == "100"
    assert "3 images  |  objects F1 100.0" in printed.err


def _without_an_image(folder: Path) -> None:
    (folder / "found" / "b.png").unlink()


def _another_image(folder: Path) -> None:
    Image.new("L", (5, 5)).save(folder / "found" / "d.png")


def _another_size(folder: Path) -> None:
    Image.new("L", (5, 6)).save(folder / "found" / "a.png")


def _twice(folder: Path) -> None:
    write_maps(folder / "found" / "more", FOUND)
    write_maps(folder / "found" / "again", FOUND)
    for name in ("a.png", "b.png", "c.tif"):
        (folder / "found" / name).unlink()


def _color(folder: Path) -> None:
    Image.new("RGB", SIZE[::-1]).save(folder / "found" / "a.png")


def _results(folder: Path, **changed: Any) -> None:
    results = results_of(FOUND)
    results[2] = {name: value for name, value in {**results[2], **changed}.items() if value is not None}
    (folder / "r.json").write_text(json.dumps(results))


@pytest.mark.parametrize(
    ("break_it", "options", "says"),
    [
        (_without_an_image, {}, r"found lacks: b; predict"),
        (_another_image, {}, r"found has images that .*test\.json lacks: d; "),
        (_another_size, {}, r"another size: a \(5 x 6 px, true 60 x 40 px\); "),
        (_twice, {}, r"found has more than once: a, b, c; "),
        (_color, {}, "a.png is a color image"),
        (None, {"score": 0.3}, "label maps of .*found have no scores"),
        (None, {"score": 2.0}, "score is 2.0"),
        (None, {"data": "maps", "split": "train"}, "split: only for data sets with splits, not label maps"),
        (None, {"classes": ("0:no", "1:yes"), "split": "train"}, "split: only for objects, not classes of pixels"),
        (None, {"out": "scores.csv"}, "ends in .json"),
        (None, {"predictions": "nothing"}, "nothing does not exist"),
        (None, {"predictions": "r.json"}, "r.json does not exist"),
        (lambda f: (f / "r.json").write_text("[1"), {"predictions": "r.json"}, "r.json is not JSON"),
        (lambda f: (f / "r.json").write_text("[" * 10**5), {"predictions": "r.json"}, "r.json is not JSON"),
        (
            lambda f: (f / "found" / "legend.json").write_text("{"),
            {"data": "maps"},
            r"legend.json is not JSON \(.*\); give the classes of a prediction$",
        ),
        (None, {"data": "maps/a.png"}, "a.png is not a folder; give a folder of label maps"),
        (lambda f: (f / "r.json").write_text("{}"), {"predictions": "r.json"}, "not a list of COCO results"),
        (
            lambda f: (f / "r.json").write_text("[1]"),
            {"predictions": "r.json"},
            "result 0 of .*r.json is not an object",
        ),
        (lambda f: _results(f, score=None), {"predictions": "r.json"}, "result 2 of .*r.json has no score"),
        (lambda f: _results(f, image_id="1"), {"predictions": "r.json"}, "has the image_id '1', not a whole number"),
        (lambda f: _results(f, image_id=7), {"predictions": "r.json"}, "the image_id 7, which no image has"),
        (
            lambda f: _results(f, score=float("nan")),
            {"predictions": "r.json"},
            "result 2 of .*r.json has the score nan",
        ),
        (lambda f: _results(f, bbox=[1, 1, -3, 2]), {"predictions": "r.json"}, "a bbox of negative width or height"),
        (
            lambda f: np.save(f / "found" / "a.npy", -np.ones(SIZE, int)) or (f / "found" / "a.png").unlink(),
            {},
            "a.npy holds negative numbers",
        ),
        (lambda f: _results(f, bbox=[1]), {"predictions": "r.json"}, "a bbox that is not four numbers"),
        (
            lambda f: _results(f, segmentation=[[1, 2, 3]]),
            {"predictions": "r.json"},
            "has outlines that are neither polygons",
        ),
        (lambda f: _results(f), {"predictions": "r.json", "data": "maps"}, "images.json is missing"),
    ],
)
def test_what_does_not_match_is_named_in_one_line(
    break_it: Any, options: dict[str, Any], says: str, coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_maps(tmp_path / "found", FOUND)
    write_maps(tmp_path / "maps", TRUTH)
    if break_it is not None:
        break_it(tmp_path)
    with pytest.raises(UserError, match=says):
        score(**{"data": coco, "predictions": "found"} | options)
    assert not (tmp_path / "scores.json").exists()


def test_turned_images_are_compared_as_the_user_says(coco: Path, tmp_path: Path) -> None:
    data = shutil.copytree(coco, tmp_path / "turned")
    path = next((data / "test").iterdir())
    exif = Image.Exif()
    exif[274] = 3
    Image.open(path).save(path, exif=exif)
    for number in range(len(images := open_split(coco, "test"))):
        (tmp_path / "maps").mkdir(exist_ok=True)
        Image.fromarray(images.label_map(number)).save(tmp_path / "maps" / f"{images.paths()[number].stem}.tif")
    with pytest.raises(UserError, match="say with --orientation"):
        score(data=data, predictions=tmp_path / "maps")
    assert score(data=data, predictions=tmp_path / "maps", orientation="viewed")["object_f1"] == 100


@pytest.mark.parametrize(
    "out",
    [
        *("predictions.json", "images.json", "objects.json", "legend.json", "sizes.json"),
        "../data/annotations/test.json",
        "../classes.json",
    ],
)
def test_scores_do_not_replace_what_is_read(out: str, coco: Path, tmp_path: Path) -> None:
    """objects.json and sizes.json would have the scores of each image in the tables of ``predict``."""
    folder = tmp_path / "predicted"
    folder.mkdir()
    listed = json.loads((coco / "annotations/test.json").read_text())["images"]
    (folder / "predictions.json").write_text(json.dumps(results_of(FOUND)))
    (folder / "images.json").write_text(json.dumps({"images": listed}))
    for name in ("objects.csv", "sizes.csv", "legend.json", "../classes.json"):
        (folder / name).write_text("{}\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="is read, and the result would replace it"):
        score(data=coco, predictions=folder, out=folder / out, classes=(str(folder / "../classes.json"),))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("classes", [(), ("0:no", "1:yes", "100000:other")])
def test_the_table_of_scores_replaces_no_other_table(classes: tuple[str, ...], coco: Path, tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("mine")
    with pytest.raises(UserError, match=r"s\.csv exists, and the table of .*s\.json would replace it"):
        score(data=coco, predictions=tmp_path, out=tmp_path / "s.json", classes=classes)
    write_maps(tmp_path / "found", [np.minimum(labels, 1) for labels in FOUND] if classes else FOUND)
    data = tmp_path / "found" if classes else coco
    for _ in range(2):  # its own former table
        score(data=data, predictions=tmp_path / "found", out=tmp_path / "t.json", classes=classes)
    assert (tmp_path / "t.csv").read_text().startswith("image,region,dice,iou" if classes else "image,true,found")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([0, 0.6], r"labels of .*found.a\.nii: they are not whole numbers; replace the file"),
        ([0, 2.0**32], r"they range from 0 to 4.29497e\+09, beyond 32 bits"),
        ([0, 1], r"volumes of .*found that differ only in the ends of their names: a\.nii, a\.nii\.gz; keep one"),
    ],
)
def test_volumes_of_other_numbers_are_not_rounded_to_labels(values: list[float], says: str, tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    for folder, own in (("true", [0, 1]), ("found", values)):
        (tmp_path / folder).mkdir()
        image = nibabel.Nifti1Image(np.resize(own, (4, 4, 4)).astype(np.float64), np.eye(4))
        nibabel.save(image, tmp_path / folder / "a.nii")
    if values == [0, 1]:
        with pytest.raises(UserError, match=r"true holds volumes, .* not objects; name the classes .* with --classes"):
            score(data=tmp_path / "true", predictions=tmp_path / "found")
        options: dict[str, Any] = {"predictions": tmp_path / "found", "classes": ("0:no", "1:yes")}
        assert score(data=tmp_path / "true", **options)["dice_yes"] == 100
        nibabel.save(image, tmp_path / "found/a.nii.gz")
    with pytest.raises(UserError, match=says):
        score(data=tmp_path / "true", predictions=tmp_path / "found", classes=("0:no", "1:yes"))


def test_distances_in_volumes_follow_sheared_axes(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    affine = np.diag([0.8, 0.8, 3.0, 1.0])
    affine[1, 2] = -1.09  # a gantry tilted by 20 degrees
    for folder, place in (("true", (3, 3, 1)), ("found", (3, 4, 2))):
        values = np.zeros((6, 6, 4), np.uint8)
        values[place] = 1
        (tmp_path / folder).mkdir()
        nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / folder / "a.nii")
    scores = score(data=tmp_path / "true", predictions=tmp_path / "found", classes=("0:no", "1:yes"))
    assert scores["hd95_yes"] == pytest.approx(np.hypot(0.8 - 1.09, 3))


def test_masks_of_a_class_as_predictions_are_reported(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_maps(tmp_path / "found", FOUND)
    score(data=coco, predictions=tmp_path / "found")
    assert "separate regions" not in capsys.readouterr().err
    write_maps(tmp_path / "masks", [(labels > 0) * 255 for labels in FOUND])
    score(data=coco, predictions=tmp_path / "masks")
    assert "no label map of" in (said := capsys.readouterr().err) and "separate regions of the number 255" in said


def test_a_threshold_below_that_of_the_predictions_is_reported(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "predicted"
    folder.mkdir()
    (folder / "predictions.json").write_text(json.dumps(results_of(FOUND)))
    listed = [{"id": k, "file_name": f"{n}.png", "height": SIZE[0], "width": SIZE[1]} for k, n in enumerate("abc", 1)]
    (folder / "images.json").write_text(json.dumps({"images": listed}))
    (folder / "config.yaml").write_text("# densepath 1\nscore: 0.5\n")
    for path in (folder, folder / "predictions.json"):
        score(data=coco, predictions=path, score=0.2)
        assert f"{path} was made with --score 0.5, so it has no object of a lower score" in capsys.readouterr().err
        score(data=coco, predictions=path, score=0.6)
        score(data=coco, predictions=path)
        assert "was made with" not in capsys.readouterr().err


def test_intervals_of_classes_are_by_patient(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Four images of two patients each; those of one are right, and those of the other wrong."""
    for folder in ("true", "found"):
        (tmp_path / folder).mkdir()
    names = [f"P{patient}_{k}.png" for patient in range(2) for k in range(4)]
    for name in names:
        true = np.zeros((8, 8), np.uint8)
        true[:4] = 1
        Image.fromarray(true).save(tmp_path / "true" / name)
        Image.fromarray(true if name.startswith("P0") else true[::-1].copy()).save(tmp_path / "found" / name)

    def told(**how: Any) -> tuple[str, Any]:
        given: dict[str, Any] = {"classes": ("0:no", "1:yes"), "out": tmp_path / "s.json", **how}
        score(data=tmp_path / "true", predictions=tmp_path / "found", **given)
        return capsys.readouterr().err, json.loads((tmp_path / "s.json").read_text())["patients"]

    unknown, count = told()
    assert "warning: the patients are unknown, so intervals count each image as one" in unknown and count is None
    assert "mean_dice 50.0 (0.0 to 100.0)" not in unknown
    by_name, count = told(patient_regex=r"^(P\d)")
    assert "warning" not in by_name and "mean_dice 50.0 (0.0 to 100.0)" in by_name and count == 2
    (tmp_path / "true/manifest.csv").write_text("file,patient,who\n" + "".join(f"{n},{n[:2]},all\n" for n in names))
    by_manifest, count = told()
    assert by_manifest.splitlines()[0] == by_name.splitlines()[0] and count == 2
    assert told(patient="who")[1] == 1
    (tmp_path / "true/manifest.csv").rename(tmp_path / "manifest.csv")
    assert told(patient="who")[1] == 1
    text = (tmp_path / "manifest.csv").read_text()
    (tmp_path / "manifest.csv").write_text(text.replace("P0_0.png,P0", "P0_0.png,p0"))
    spelled, count = told()
    assert "differ in capitals, spaces or zeros count as different ones: p0" in spelled.lower() and count == 3
    with pytest.raises(UserError, match="both name the patients"):
        told(patient="who", patient_regex="P")
    with pytest.raises(UserError, match="patient: only for images with classes, not objects"):
        score(data=tmp_path / "true", predictions=tmp_path / "found", patient="who")
