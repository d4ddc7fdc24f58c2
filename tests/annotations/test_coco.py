"""COCO data sets: what is written is what is read, whatever the outline's form; what does not fit is refused."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as oracle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from skimage.measure import regionprops
from torch.utils.data import DataLoader

from densepath.annotations import coco
from densepath.annotations.coco import CocoImages, open_split
from densepath.annotations.coco_writing import annotation_of, write_coco
from densepath.annotations.outlines import _run_lengths, mostly_hidden, paint, run_lengths
from densepath.core.errors import UserError

# pycocotools' way to make arrays is older than NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIZE = (20, 31)


def picture(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def blobs(seed: int) -> np.ndarray:
    """Labels with gaps in their numbers and in their pixels, up to the borders."""
    return np.random.default_rng(seed).choice(np.array([0, 0, 0, 2, 5, 300], np.int32), SIZE)


def column_runs(mask: np.ndarray) -> list[int]:
    """COCO's run lengths, by the book: down the columns, beginning with the background."""
    runs, value = [0], False
    for pixel in mask.T.ravel():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return runs


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    train = [(f"im_{i}", picture(i), blobs(i)) for i in range(3)]
    test = [("only", picture(9), np.zeros(SIZE, np.int32))]
    assert write_coco(tmp_path / "data", {"train": train, "test": test}) == {"train": (3, 9), "test": (1, 0)}
    return tmp_path / "data"


@pytest.fixture
def edit(dataset: Path) -> Callable[[Callable[[dict], Any]], CocoImages]:
    """Change the training JSON, then open it."""

    def change_and_open(change: Callable[[dict], Any]) -> CocoImages:
        path = dataset / "annotations" / "train.json"
        truth = json.loads(path.read_text())
        change(truth)
        path.write_text(json.dumps(truth))
        return open_split(dataset, "train")

    return change_and_open


def test_samples_hold_the_images_and_each_label(dataset: Path) -> None:
    images = open_split(dataset, "train")
    assert len(images) == 3
    for index, sample in enumerate(images):
        truth = blobs(index)
        np.testing.assert_array_equal(sample["image"], picture(index))
        np.testing.assert_array_equal(sample["masks"], truth == np.array([2, 5, 300])[:, None, None])
        regions = regionprops(truth)
        boxes = [[r.bbox[1], r.bbox[0], r.bbox[3], r.bbox[2]] for r in regions]
        np.testing.assert_array_equal(sample["boxes"], np.array(boxes, np.float32))
        np.testing.assert_array_equal(sample["labels"], [1, 1, 1])
        assert {k: sample[k].dtype for k in ("boxes", "masks", "labels")} == {
            "boxes": np.float32,
            "masks": np.bool_,
            "labels": np.int64,
        }
        assert (sample["image_id"], sample["name"]) == (index + 1, f"im_{index}.png")
        np.testing.assert_array_equal(images.label_map(index), np.searchsorted([0, 2, 5, 300], truth))
        areas = [a["area"] for a in images.coco_ground_truth()["annotations"] if a["image_id"] == index + 1]
        assert areas == [r.area for r in regions]


@settings(max_examples=50, deadline=None)
@given(arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 40))))
def test_run_lengths_are_those_of_coco(mask: np.ndarray) -> None:
    mask[0, 0] = True
    annotation = annotation_of(mask)
    encoded = annotation["segmentation"]
    np.testing.assert_array_equal(oracle.decode(encoded), mask)
    assert annotation["area"] == mask.sum()
    assert annotation["bbox"] == oracle.toBbox(encoded).tolist()
    np.testing.assert_array_equal(_run_lengths(encoded["counts"]), column_runs(mask))


@settings(max_examples=30, deadline=None)
@given(arrays(np.bool_, st.tuples(st.integers(0, 4), st.integers(1, 12), st.integers(1, 20))))
def test_objects_are_painted_by_size(masks: np.ndarray) -> None:
    """Smaller ones on top, whatever their order; masks may be empty or equal."""
    masks = np.unique(masks, axis=0)
    areas = masks.sum((1, 2))
    outlines = [annotation_of(mask)["segmentation"] for mask in masks]
    labels = paint(outlines, *masks.shape[1:])
    np.testing.assert_array_equal(labels > 0, masks.any(0))
    for number, (mask, area) in enumerate(zip(masks, areas, strict=True), 1):
        top = labels[mask]
        assert (areas[top - 1] <= area).all() and masks[top - 1, mask.nonzero()[0], mask.nonzero()[1]].all()
        assert mostly_hidden(labels, outlines)[number - 1] == (2 * (top == number).sum() < area)
    turned = paint(outlines[::-1], *masks.shape[1:])
    np.testing.assert_array_equal(turned, np.where(labels > 0, len(masks) + 1 - labels, 0))


def test_runs_longer_than_a_character() -> None:
    mask = np.zeros((300, 200), bool)
    mask[70:, 50:90] = mask[3, 3] = True
    np.testing.assert_array_equal(_run_lengths(annotation_of(mask)["segmentation"]["counts"]), column_runs(mask))


def test_an_image_without_objects(dataset: Path) -> None:
    sample = open_split(dataset, "test")[0]
    assert (sample["boxes"].shape, sample["masks"].shape, sample["labels"].shape) == ((0, 4), (0, *SIZE), (0,))
    assert not open_split(dataset, "test").label_map(0).any()


def test_polygons_and_plain_run_lengths(edit: Callable[..., CocoImages]) -> None:
    plain = blobs(0) == 5

    def replace(truth: dict) -> None:
        corners = [[3, 2, 9, 2, 9, 6, 3, 6], [20, 10, 22, 10, 22, 15, 20, 15]]
        truth["annotations"][0] |= {"segmentation": corners, "bbox": [3, 2, 19, 13]}
        truth["annotations"][1]["segmentation"] = {"size": list(SIZE), "counts": column_runs(plain)}

    rectangles = np.zeros(SIZE, bool)
    rectangles[2:6, 3:9] = rectangles[10:15, 20:22] = True
    masks = edit(replace)[0]["masks"]
    np.testing.assert_array_equal(masks[0], rectangles)
    np.testing.assert_array_equal(masks[1], plain)


def test_crowds_are_not_objects_but_belong_to_the_truth(edit: Callable[..., CocoImages]) -> None:
    images = edit(lambda truth: truth["annotations"][1].update(iscrowd=1))
    assert len(images[0]["masks"]) == 2
    np.testing.assert_array_equal(images.label_map(0) > 0, np.isin(blobs(0), [2, 300]))
    assert [a["iscrowd"] for a in images.coco_ground_truth()["annotations"]][:3] == [0, 1, 0]


def test_labels_count_the_categories_in_the_order_of_their_ids(edit: Callable[..., CocoImages]) -> None:
    def rename(truth: dict) -> None:
        truth["categories"] = [{"id": 90, "name": "gland"}, {"id": 7, "name": "cyst"}]
        for place, annotation in enumerate(truth["annotations"]):
            annotation["category_id"] = 7 if place == 0 else 90

    images = edit(rename)
    assert images.category_ids == [7, 90]
    np.testing.assert_array_equal(images[0]["labels"], [1, 2, 2])


def test_boxes_end_at_the_image(edit: Callable[..., CocoImages]) -> None:
    outline = [[-0.5, 1.5, 99.5, 1.5, 99.5, 5.75, -0.5, 5.75]]
    images = edit(lambda truth: truth["annotations"][0].update(bbox=[-0.5, 1.5, 100, 4.25], segmentation=outline))
    np.testing.assert_array_equal(images[0]["boxes"][0], [0, 1.5, SIZE[1], 5.75])


def test_a_crop_has_what_it_shows_of_an_object_beyond_its_box(edit: Callable[..., CocoImages]) -> None:
    """Boxes drawn by hand may be smaller than their outlines, up to 30% of these."""
    outline = [[8, 2, 26, 2, 26, 18, 8, 18]]
    only = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": outline, "bbox": [11, 2, 13, 16], "iscrowd": 0}
    images = edit(lambda truth: truth.update(annotations=[only]))
    for left, top, box in ((0, 0, [8, 2, 10, 10]), (20, 10, [0, 0, 6, 8]), (25, 0, [0, 2, 1, 10])):
        crop = images.crop(0, left, top, 10)
        np.testing.assert_array_equal(crop["boxes"], [box])
        assert crop["masks"].sum() == (box[2] - box[0]) * (box[3] - box[1])
    assert len(images.crop(0, 26, 0, 5)["boxes"]) == len(images.crop(0, 0, 0, 8)["boxes"]) == 0


def test_crops_of_an_image_share_the_bounds_of_its_outlines(
    edit: Callable[..., CocoImages], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take tens of milliseconds for a thousand outlines."""
    images, rle = edit(lambda truth: None), run_lengths()
    compute, computed = rle.toBbox, []
    monkeypatch.setattr(rle, "toBbox", lambda outlines: computed.append(len(outlines)) or compute(outlines))
    crops = [images.crop(index, left, 0, 10)["image"].shape for index in (0, 1, 0, 1) for left in (0, 5)]
    assert len(crops) == 8 and computed == [images.sample(index, masks=False)["labels"].size for index in (0, 1)]


def test_the_truth_evaluates_as_perfect_with_pycocotools(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = open_split(dataset, "train").coco_ground_truth()
    truth_api = COCO()
    truth_api.dataset = truth
    truth_api.createIndex()
    keys = ("image_id", "category_id", "segmentation")
    results = truth_api.loadRes([{k: a[k] for k in keys} | {"score": 0.9} for a in truth["annotations"]])
    evaluation = COCOeval(truth_api, results, "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)


def test_samples_do_not_share_their_pixels(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = open_split(dataset, "train")
    images[0]["image"][:] = 0
    (dataset / "train" / "im_0.png").unlink()
    np.testing.assert_array_equal(images[0]["image"], picture(0))  # small data sets stay in RAM
    monkeypatch.setattr(coco, "CACHED_BYTES", 10)
    large = CocoImages(dataset / "test", dataset / "annotations" / "test.json")
    assert len(large[0]["image"]) == SIZE[0]
    (dataset / "test" / "only.png").unlink()
    with pytest.raises(UserError, match=r"only\.png"):
        large[0]


def test_worker_processes_give_the_same_samples(dataset: Path) -> None:
    images = open_split(dataset, "train")
    loader: DataLoader = DataLoader(images, batch_size=1, num_workers=1, collate_fn=list)
    for (sample,), expected in zip(loader, images, strict=True):
        np.testing.assert_array_equal(sample["masks"], expected["masks"])


def test_image_files_are_copied_byte_by_byte(tmp_path: Path) -> None:
    Image.fromarray(picture(0)).save(tmp_path / "a.JPG", quality=90)
    write_coco(tmp_path / "data", {"train": [("a", tmp_path / "a.JPG", blobs(0))]})
    assert (tmp_path / "data/train/a.jpg").read_bytes() == (tmp_path / "a.JPG").read_bytes()


def test_writing_labels_of_another_size_leaves_nothing(tmp_path: Path) -> None:
    samples = [("good", picture(0), blobs(0)), ("bad", picture(1, (9, 8)), blobs(1))]
    with pytest.raises(UserError, match="bad: the labels are 31 x 20 px but the image is 8 x 9 px"):
        write_coco(tmp_path / "data", {"train": samples})
    assert not list(tmp_path.iterdir())


EYE = np.eye(20, 31)
FAULTS = {
    "fractions": (("a", picture(0), 1.5 * EYE), "the label map of a holds fractions"),
    "NaN": (("a", picture(0), EYE * np.nan), "the label map of a holds fractions"),
    "axes": (("a", picture(0), EYE[..., None]), "a: the labels are an array of 3 axes but the image is 31 x 20 px"),
    "outside": (("../../a", picture(0), blobs(0)), "'../../a' is not the name of a file in train; rename the image"),
    "absolute": (("/a", picture(0), blobs(0)), "'/a' is not the name of a file in train"),
    "floats": (("a", picture(0) / 255, blobs(0)), r"a: the image is float64 of the shape \(20, 31, 3\); give uint8 or"),
    "channels": (("a", picture(0)[..., :1], blobs(0)), r"a: the image is uint8 of the shape \(20, 31, 1\)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_arrays_that_are_no_images_or_labels_are_refused(fault: str, tmp_path: Path) -> None:
    sample, message = FAULTS[fault]
    with pytest.raises(UserError, match=message):
        write_coco(tmp_path / "sub/data", {"train": [sample]})
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def of(truth: dict, number: int) -> dict:
    return truth["annotations"][number]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("categories"), "no list 'categories'"),
        (lambda t: t["images"][1].pop("width"), r"images\[1\] has no 'width'"),
        (
            lambda t: [of(t, 2).pop(key) for key in ("bbox", "segmentation")],
            "neither a box nor an outline: annotation 3;",
        ),
        (lambda t: t["images"].append(5), r"images\[3\] has no 'id'"),
        (lambda t: t.update(images=[], annotations=[]), "lists no image"),
        (lambda t: t["images"][1].update(id=1), "same id"),
        (
            lambda t: [i.update(file_name=f"x{i['id']}.png") for i in t["images"]],
            "missing: x1.png, x2.png, x3.png; put",
        ),
        (lambda t: t["images"][0].update(width=30), r"im_0.png \(31 x 20 px, not 30 x 20\)"),
        (lambda t: of(t, 3).update(image_id=77), "unlisted images: annotation 4;"),
        (lambda t: of(t, 3).update(category_id=2), "unknown categories: annotation 4;"),
        (
            lambda t: [a.update(bbox=[1, 1, 0, 5]) for a in t["annotations"]],
            "boxes without area: annotation 1, annotation 2, annotation 3 and 6 more;",
        ),
        (lambda t: of(t, 0).update(bbox=[40, 1, 5, 5]), "boxes without area"),
        (lambda t: of(t, 0).update(bbox=[1, 1, float("nan"), 5]), "boxes that are not x y width height"),
        (lambda t: of(t, 0).update(bbox=[1, 1, 5]), "boxes that are not x y width height"),
        (lambda t: of(t, 0).update(segmentation=[[1, 2, 3, 4]]), "outlines"),
        (lambda t: of(t, 0).update(segmentation=[]), "outlines"),
        (lambda t: of(t, 0)["segmentation"].update(size=[31, 20]), "outlines"),
        (lambda t: of(t, 0)["segmentation"].update(counts=[5, 5]), "outlines"),
        (lambda t: of(t, 0)["segmentation"].update(counts="garbage!!"), "outlines"),
        (lambda t: of(t, 0)["segmentation"].update(counts=""), "outlines"),
        (lambda t: of(t, 0)["segmentation"].update(counts=of(t, 0)["segmentation"]["counts"][:-4]), "outlines"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    edit: Callable[..., CocoImages], change: Callable[[dict], Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        edit(change)
    assert "\n" not in str(error.value) and "train.json" in str(error.value)


def test_an_unreadable_image_is_refused(dataset: Path) -> None:
    (dataset / "train" / "im_1.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"images that differ from its entries: im_1.png \("):
        open_split(dataset, "train")


def test_a_file_that_is_not_json(dataset: Path) -> None:
    path = dataset / "annotations" / "train.json"
    for content, message in [("{", "is not JSON"), ("[]", "not a COCO instances JSON")]:
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            open_split(dataset, "train")
    with pytest.raises(UserError, match="does not exist"):
        CocoImages(dataset / "train", dataset / "nowhere.json")


def test_an_error_about_another_layout_names_the_expected_one(tmp_path: Path) -> None:
    expected = re.escape("it needs test/ with the images and annotations/test.json")
    with pytest.raises(UserError, match=expected):
        open_split(tmp_path, "test")


def test_a_crop_draws_no_mask_of_a_whole_image(
    edit: Callable[..., CocoImages], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of 50 cells in a window of 256 pixels would take 2 seconds in an image of 4,000 x 4,000 pixels."""
    images = edit(lambda truth: None)
    masks = images[0]["masks"]
    monkeypatch.setattr(CocoImages, "_mask", None)
    crop = images.crop(0, 1, 2, 15)
    expected = masks[:, 2:17, 1:16]
    np.testing.assert_array_equal(crop["masks"], expected[expected.any(axis=(1, 2))])
    assert len(crop["masks"])
