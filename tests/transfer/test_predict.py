"""Predictions on new images: the files, resuming, sizes and sources of images."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageOps

import densepath
from densepath.annotations.coco import open_split
from densepath.annotations.coco_writing import write_coco
from densepath.core.errors import UserError
from densepath.core.output_names import output_names
from densepath.sources import decode, other_bits, patience
from densepath.sources.corrupt import CorruptImage
from densepath.sources.decode import read_image
from densepath.sources.image_reader import ImageFile, open_file
from densepath.sources.packing import write_store
from densepath.sources.pixel_source import PixelSpec
from densepath.sources.tiff_parts import TiffParts
from densepath.transfer.detection.detector_file import DetectorNotes, save_detector
from densepath.transfer.detection.evaluation import evaluate_detector
from densepath.transfer.detection.instances import decode_mask
from densepath.transfer.predict import predict
from densepath.transfer.predict_records import identity_of_file, is_done, is_same_image, record_of
from densepath.transfer.slides.slide_work import SlideWork

ALL: dict[str, Any] = {"score": 0.0, "devices": "cpu", "precision": "32"}


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector with random weights and many finds."""
    torch.manual_seed(0)
    pixels = ((0.5,) * 3, (0.2,) * 3)
    classes = ((3, 8), ("gland", "vessel"))
    notes = DetectorNotes("mask_rcnn_fpn_small", "test_resnet", *classes, 64, *pixels, (8, 16, 32, 48, 64), 6)
    path = tmp_path_factory.mktemp("run") / "exported" / "detector.safetensors"
    save_detector(path, notes.build(), notes)
    return path.parent.parent


def images(folder: Path, count: int = 3, size: tuple[int, int] = (50, 64)) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(count)]
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{number}.png")
    return pixels


def results_of(out: Path) -> list[dict[str, Any]]:
    return json.loads((out / "predictions.json").read_text())


def test_predictions_are_those_of_the_evaluation(detector: Path, tmp_path: Path) -> None:
    pixels = images(tmp_path / "unused")
    labels = np.zeros((50, 64), np.int32)
    labels[10:30, 20:40] = 1
    write_coco(tmp_path / "data", {"train": [], "test": [(f"{k}", p, labels) for k, p in enumerate(pixels)]})
    loaded = densepath.load_detector(detector)
    test = open_split(tmp_path / "data", "test")
    notes = loaded.notes
    evaluate_detector(loaded.detector, notes, test, tmp_path / "scores", pictures=0)
    out = predict(detector, data=tmp_path / "data" / "test", out=tmp_path / "out", **ALL)
    expected = [each for each in results_of(tmp_path / "scores") if decode_mask(each["segmentation"]).any()]
    assert len(expected) > 3
    assert results_of(out) == expected


def in_bits(image: np.ndarray, bits: int) -> np.ndarray:
    """A grey image with 8 bits, or with as many of 16."""
    grey = image[..., 0]
    return grey if bits == 8 else (grey.astype(np.uint16) * 257) >> (16 - bits)


@pytest.mark.parametrize(("trained", "seen"), [(8, 12), (12, 8), (12, 16)])
def test_images_of_other_bits_are_seen_in_their_window(
    detector: Path, tmp_path: Path, trained: int, seen: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """By predict, by the evaluation, and by show."""
    loaded = densepath.load_detector(detector)
    notes = replace(loaded.notes, window=(0, 2**trained - 1), category_ids=(1, 2), category_names=("object", "b"))
    path = tmp_path / "run" / "exported" / "detector.safetensors"
    save_detector(path, loaded.detector, notes)
    labels = np.zeros((50, 64), np.int32)
    labels[10:30, 20:40] = 1
    pixels = images(tmp_path / "unused", 2)
    for bits in (trained, seen):
        samples = [(f"{k}", in_bits(image, bits), labels) for k, image in enumerate(pixels)]
        write_coco(tmp_path / f"{bits}", {"train": [], "test": samples}, ("object", "b"))
    found = {
        bits: predict(path, data=tmp_path / f"{bits}" / "test", out=tmp_path / f"p{bits}", **ALL)
        for bits in (trained, seen)
    }
    window = f"the window of these is 0 to {2**seen - 1}"
    assert capsys.readouterr().err.count(window) == 1
    ours, expected = (results_of(found[bits]) for bits in (seen, trained))
    assert len(ours) == len(expected) > 3
    np.testing.assert_allclose([r["bbox"] for r in ours], [r["bbox"] for r in expected], atol=1)
    test = open_split(tmp_path / f"{seen}", "test", notes.spec)
    evaluate_detector(loaded.detector, notes, test, tmp_path / "s", pictures=0)
    scored = [each for each in results_of(tmp_path / "s") if decode_mask(each["segmentation"]).any()]
    assert scored == ours
    capsys.readouterr()
    densepath.show_detections(data=tmp_path / f"{seen}", runs=[path], out=tmp_path / "a.png", devices="cpu")
    assert window in capsys.readouterr().err


def test_images_are_predicted_again_if_others_change_their_window(
    detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    for number, image in enumerate(images(tmp_path / "unused", 2)):
        data.mkdir(exist_ok=True)
        Image.fromarray(in_bits(image, 12)).save(data / f"{number}.png")
    for added, done in (("", 0), ("", 2), ("8 bits", 0)):
        if added:
            Image.fromarray(in_bits(image, 8)).save(data / f"{added}.png")
        predict(detector, data=data, out=tmp_path / "out", **ALL)
        lines = capsys.readouterr().err
        assert f", {done} done before" in lines
        assert ("0.png, 1.png use only some of 16 bits, and other images have 8" in lines) == bool(added)


@pytest.mark.parametrize(
    ("window", "bits", "text"),
    [
        (255, 12, "uses 12 of its 16 bits"),
        (4095, 8, "an image has 8 bits, and the network was trained on 16"),
        (4095, 16, "values up to 65535, and the network was trained with the window 0 to 4095"),
        (65535, 12, "values up to 4095 only"),
    ],
)
def test_a_single_image_of_other_bits_is_warned_of_once(
    detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], window: int, bits: int, text: str
) -> None:
    loaded = densepath.load_detector(detector)
    loaded.notes = replace(loaded.notes, window=(0, window))
    loaded.spec = loaded.notes.spec
    image = in_bits(images(tmp_path / "unused", 1)[0], bits)
    Image.fromarray(image).save(tmp_path / "a.png")
    other_bits._warn_once.cache_clear()
    loaded.predict([tmp_path / "a.png", image, image])
    assert capsys.readouterr().err.count(text) == 1


def test_every_image_has_its_files(detector: Path, tmp_path: Path) -> None:
    """Two images of one name, a damaged one, and one that differs only in its suffix."""
    first, second = images(tmp_path / "data" / "a", 1)[0], images(tmp_path / "data" / "b", 1)[0]
    Image.fromarray(first).save(tmp_path / "data" / "b" / "0.bmp")
    (tmp_path / "data" / "broken.png").write_bytes(b"\x89PNG\r\n")
    out = predict(detector, data=tmp_path / "data", out=tmp_path / "out", pictures="all", **ALL)
    assert second.shape == first.shape
    stems = ["a/0", "b/0.bmp", "b/0.png"]
    rows = list(csv.DictReader((out / "objects.csv").open()))
    listing = json.loads((out / "images.json").read_text())
    assert [Path(image["file_name"]).name for image in listing["images"]] == ["0.png", "0.bmp", "0.png"]
    assert listing["categories"] == [{"id": 3, "name": "gland"}, {"id": 8, "name": "vessel"}]
    for stem, image in zip(stems, listing["images"], strict=True):
        results = [each for each in results_of(out) if each["image_id"] == image["id"]]
        own = [row for row in rows if row["image"] == stem]
        outlines = json.loads((out / "geojson" / f"{stem}.geojson").read_text())["features"]
        assert 0 < len(results) == len(own) == len(outlines)
        with Image.open(out / "labels" / f"{stem}.png") as labels:
            painted = np.asarray(labels).astype(int)
        expected = np.zeros((50, 64), int)
        masks = {number: decode_mask(result["segmentation"]) for number, result in enumerate(results, 1)}
        for number in sorted(masks, key=lambda number: (-masks[number].sum(), -number)):  # the smallest on top
            expected[masks[number]] = number
        np.testing.assert_array_equal(painted, expected)
        for result, row, feature in zip(results, own, outlines, strict=True):
            mask = decode_mask(result["segmentation"])
            y, x = (float(axis.mean()) + 0.5 for axis in np.nonzero(mask))
            assert (int(row["area"]), float(row["score"])) == (mask.sum(), result["score"])
            assert (float(row["centroid_x"]), float(row["centroid_y"])) == pytest.approx((x, y))
            assert row["area_um2"] == ""
            kind = {3: "gland", 8: "vessel"}[result["category_id"]]
            assert row["class"] == feature["properties"]["classification"]["name"] == kind
        with Image.open(out / "pictures" / f"{stem}.png") as picture:
            assert picture.size == (64, 50)
    assert not list(Path(out).rglob("*.part")) and not list(Path(out).rglob("*broken*"))


def test_the_same_command_continues(detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images(tmp_path / "data")
    out = predict(detector, data=tmp_path / "data", out=tmp_path / "out", **ALL)

    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in Path(out).glob("*.*") if path.suffix != ".log"}

    before = files()
    (out / "records" / "1.json").unlink()
    identity, _, found = (out / "records" / "2.json").read_text().partition("\n")
    # Of a version that painted the better objects on top
    earlier = json.dumps([each for each in json.loads(identity) if each != "smallest on top"])
    (out / "records" / "2.json").write_text(f"{earlier}\n{found}")
    whole = (out / "records" / "0.json").read_text()
    (out / "records" / "0.json").write_text(whole[: whole.index("\n") + 9])  # cut when the machine went down
    done = []
    real = densepath.transfer.detection.predictor.TrainedDetector.predict_reader
    monkeypatch.setattr(
        "densepath.transfer.detection.predictor.TrainedDetector.predict_reader",
        lambda self, image, *rest: done.append(Path(image.name).name) or real(self, image, *rest),
    )
    predict(detector, data=tmp_path / "data", out=out, **ALL)
    assert done == ["0.png", "1.png", "2.png"]
    (out / "labels" / "0.png").unlink()
    (out / "geojson" / "1.geojson").unlink()
    predict(detector, data=tmp_path / "data", out=out, **ALL)
    assert done[3:] == ["0.png", "1.png"] and (out / "labels" / "0.png").exists()
    assert files() == before and len((out / "predict.log").read_text().split("done in")) == 4
    with pytest.raises(UserError, match="other values of score"):
        predict(detector, data=tmp_path / "data", out=out, **{**ALL, "score": 0.3})


@pytest.mark.parametrize(("number", "waits"), [(errno.EIO, patience.PAUSES), (errno.EACCES, ())])
def test_images_that_a_later_attempt_may_read_are_not_passed_over(
    detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, waits: tuple[float, ...]
) -> None:
    """The objects of the others, which are done, would look complete; a failure of a moment is waited for."""
    images(tmp_path / "data")
    expected = results_of(predict(detector, data=tmp_path / "data", out=tmp_path / "whole", **ALL))
    fails, opened, pauses = [9], decode._open, list[float]()

    def failing(path: Any) -> Any:
        if Path(path).name == "1.png" and fails[0]:
            fails[0] -= 1
            raise OSError(number, os.strerror(number))
        return opened(path)

    monkeypatch.setattr(decode, "_open", failing)
    monkeypatch.setattr(patience, "_failures", patience._Failures())
    monkeypatch.setattr(patience.time, "sleep", pauses.append)
    given: dict[str, Any] = {"data": tmp_path / "data", "out": tmp_path / "out", **ALL}
    with pytest.raises(UserError, match=rf"1 image cannot be read now: .*1\.png: .*{os.strerror(number)}"):
        predict(detector, **given)
    assert pauses == list(waits) and not (tmp_path / "out" / "predictions.json").exists()
    assert sorted(path.stem for path in (tmp_path / "out" / "records").iterdir()) == ["0", "2"]
    fails[0] = len(waits[:1])
    assert results_of(predict(detector, **given)) == expected


def test_the_results_of_an_image_that_is_not_there_now_stay(tmp_path: Path) -> None:
    image, record = tmp_path / "a.png", record_of(tmp_path, "a")
    image.write_bytes(b"pixels")
    identity = [*identity_of_file("a", image), [0, 255]]
    record.parent.mkdir()
    record.write_text(f"{json.dumps(identity)}\n{{}}\n")
    image.unlink()
    assert is_done(record, [*identity_of_file("a", image), [0, 255]])
    assert not is_done(record, [*identity_of_file("b", image), [0, 255]])
    assert not is_done(record, [*identity_of_file("a", image), [0, 4095]])
    assert SlideWork(tmp_path, {"a": [*identity_of_file("a", image), [0, 255]]}).succeeded("a")
    assert not is_done(record, [*identity_of_file("a", image), [-1, 255]])


def test_files_that_are_away_are_those_that_were_recorded():
    cases, header = ["d", ["a"], [10, 5, 7, 2]], ["a.mhd", "a", 8, 1, "a.raw", "a", 9, 1]
    assert is_same_image(cases, ["d", ["a"], [-1, 0, 7, 2]])
    assert not is_same_image(cases, ["d", ["a"], [-1, 0, 7, 3]]) and not is_same_image(
        cases, ["d", ["b"], [-1, 0, 7, 2]]
    )
    assert is_same_image(header, ["a.mhd", "a", -1, -1])  # which names the other file
    assert not is_same_image(header, ["a.mhd", "a", 8, 1]) and not is_same_image(header, ["b.mhd", "b", -1, -1])


def test_a_stop_leaves_no_tables_of_former_images(
    detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images(tmp_path / "data")
    out = predict(detector, data=tmp_path / "data", out=tmp_path / "out", **ALL)
    tables = [out / name for name in ("predictions.json", "images.json", "objects.csv")]
    assert all(path.exists() for path in tables)
    Image.new("RGB", (80, 64)).save(tmp_path / "data" / "0.png")

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("densepath.transfer.detection.predictor.TrainedDetector.predict_reader", stop)
    with pytest.raises(KeyboardInterrupt):
        predict(detector, data=tmp_path / "data", out=out, **ALL)
    assert not any(path.exists() for path in tables)


def test_measurements_are_in_microns_where_they_are_known(detector: Path, tmp_path: Path) -> None:
    pixels = images(tmp_path / "data", 2)
    spacing = np.full((2, 2), (0.5, 0.25), np.float32)  # along y and x
    store = write_store(tmp_path / "s.safetensors", pixels, ["x.png", "y.png"], PixelSpec(), spacing)
    out = predict(detector, data=store, out=tmp_path / "out", **ALL)
    rows = list(csv.DictReader((out / "objects.csv").open()))
    assert {row["image"] for row in rows} == {"x", "y"}
    for row in rows:
        assert float(row["area_um2"]) == pytest.approx(float(row["area"]) / 8)
        assert float(row["centroid_x_um"]) == pytest.approx(float(row["centroid_x"]) / 4)
        assert float(row["centroid_y_um"]) == pytest.approx(float(row["centroid_y"]) / 2)
    for orientation, expected in ((1, (0.5, 0.25)), (6, (0.25, 0.5))):  # 6: turned by a quarter
        tags = [(274, "H", 1, orientation, True)]
        stored: dict[str, Any] = {"resolution": (40000, 20000), "resolutionunit": "CENTIMETER", "extratags": tags}
        tifffile.imwrite(tmp_path / "a.tif", pixels[0], **stored)
        assert open_file(tmp_path / "a.tif", viewed=True).spacing == pytest.approx(expected)
    tifffile.imwrite(tmp_path / "b.tif", pixels[0], resolution=(72, 72), resolutionunit="INCH")
    assert open_file(tmp_path / "b.tif").spacing is None


KINDS: dict[str, dict[str, Any]] = {
    "tiles": {"tile": (32, 48), "compression": "zlib"},
    "strips": {"rowsperstrip": 7},
    "one strip": {},
}


@pytest.mark.parametrize("kind", [*KINDS, "grey", "white is zero", "16 bits"])
def test_parts_of_a_large_tiff_are_those_of_the_whole(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    dtype = np.uint16 if kind == "16 bits" else np.uint8
    shape = (90, 130) if kind in ("grey", "white is zero") else (90, 130, 3)
    pixels = rng.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)
    path = tmp_path / "a.tif"
    given = KINDS.get(kind, {"tile": (32, 48)} | ({"photometric": "miniswhite"} if kind == "white is zero" else {}))
    tifffile.imwrite(path, pixels, **({"photometric": "rgb"} if pixels.ndim == 3 else {}) | given)
    whole = read_image(path)
    assert isinstance(open_file(path), ImageFile)
    monkeypatch.setattr("densepath.sources.image_reader._IN_PARTS", 0)
    monkeypatch.setattr("densepath.sources.tiff_parts._KEPT", 4000)
    reader = open_file(path)
    assert isinstance(reader, TiffParts) and reader.size == (90, 130)
    for _ in range(10):
        top, left = int(rng.integers(0, 89)), int(rng.integers(0, 129))
        height, width = int(rng.integers(1, 91 - top)), int(rng.integers(1, 131 - left))
        part = reader.read(top, left, height, width)
        np.testing.assert_array_equal(part, whole[top : top + height, left : left + width])
    if kind == "16 bits":
        deep = TiffParts(path, 3, np.uint16).read(3, 5, 40, 60)
        np.testing.assert_array_equal(deep, pixels[3:43, 5:65])


def test_windows_have_the_scale_of_training(detector: Path) -> None:
    """A mosaic of four equal images, cut into them without overlap, gives their objects four times."""
    loaded = densepath.load_detector(detector)
    tile = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    alone = loaded.predict(tile, score=0.0)
    mosaic = loaded.predict(np.tile(tile, (2, 2, 1)), score=0.0, window=64, overlap=0.0)
    uncut = [each for each in alone.objects if min(each.top, each.left, 64 - each.bottom, 64 - each.right) >= 2]
    for dy in (0, 64):
        for dx in (0, 64):
            for each in uncut:
                place = (each.top + dy, each.left + dx, each.score)
                assert place in [(other.top, other.left, other.score) for other in mosaic.objects]
    assert len(alone) > 0


def test_a_detector_takes_arrays_pictures_and_files(detector: Path, tmp_path: Path) -> None:
    (pixels,) = images(tmp_path, 1)
    loaded = densepath.load_detector(detector / "exported" / "detector.safetensors")
    found = loaded.predict(pixels, score=0.0)
    assert found.masks.shape == (len(found), 50, 64) and found.boxes.shape == (len(found), 4)
    assert set(found.names) <= {"gland", "vessel"} and found.scores.tolist() == sorted(found.scores, reverse=True)
    tensor, opaque = torch.from_numpy(pixels), np.dstack((pixels, np.full((50, 64), 255, np.uint8)))
    deep = pixels.astype(np.uint16) * 257
    for other in (
        *(Image.fromarray(pixels), Image.fromarray(opaque), tmp_path / "0.png", str(tmp_path / "0.png")),
        *(tensor, tensor.permute(2, 0, 1), opaque, deep),
    ):
        np.testing.assert_array_equal(loaded.predict(other, score=0.0).boxes, found.boxes)
    grey = pixels[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    expected = loaded.predict(tmp_path / "grey.png", score=0.0).boxes
    for other in (grey, grey[..., None], torch.from_numpy(grey)[None], Image.fromarray(grey)):
        np.testing.assert_array_equal(loaded.predict(other, score=0.0).boxes, expected)
    transparent = np.dstack((pixels, np.full((50, 64), 100, np.uint8)))
    Image.fromarray(transparent).save(tmp_path / "clear.png")
    clear = [loaded.predict(each, score=0.0).scores for each in (transparent, tmp_path / "clear.png")]
    np.testing.assert_allclose(*clear, atol=0.01)
    with h5py.File(tmp_path / "a.h5", "w") as file:  # an array that is not NumPy's is one image, not a list of its rows
        stored = loaded.predict(file.create_dataset("image", data=pixels), score=0.0)
    np.testing.assert_array_equal(stored.boxes, found.boxes)
    several = loaded.predict(iter([pixels, pixels[:40]]), score=0.0)
    np.testing.assert_array_equal(several[0].label_map(), found.label_map())
    for says, wrong in {
        "give uint8 of height x width x 3": pixels.astype(np.float32),
        "uint8 [50, 64, 2]": pixels[..., :2],
        "no pixels": pixels[:0],
        "no.png": tmp_path / "no.png",
        "is a folder": tmp_path,
        "an image is NoneType": None,
    }.items():
        with pytest.raises(UserError, match=re.escape(says)):
            loaded.predict(wrong)
    for name, value in {"score": 2, "window": 5, "overlap": 1.0, "precision": "fp16"}.items():
        with pytest.raises(UserError, match=f"^{name} is "):
            loaded.predict(pixels, **{name: value})


@pytest.mark.skipif(find_spec("imagecodecs") is not None, reason="imagecodecs decodes it")
def test_a_large_tiff_with_a_codec_of_imagecodecs_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = images(tmp_path, 1)[0]
    Image.fromarray(pixels).save(tmp_path / "a.tif", compression="tiff_lzw")
    monkeypatch.setattr("densepath.sources.image_reader._IN_PARTS", 0)
    np.testing.assert_array_equal(open_file(tmp_path / "a.tif").read(0, 0, 50, 64), pixels)  # as a whole, by Pillow
    monkeypatch.setattr("densepath.sources.image_reader.MAX_PIXELS", 0)
    with pytest.raises(CorruptImage, match=r"a\.tif: LZW in a TIFF of this size needs .*pip install imagecodecs$"):
        open_file(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"score": 2}, "score is 2"),
        ({"window": 3}, "window is 3"),
        ({"overlap": 1.0}, "overlap is 1.0"),
        ({"spacing": 0.0}, "spacing is 0.0"),
        ({"pictures": -1}, "pictures is -1"),
        ({"run": "nothing"}, "no trained detector, classifier, segmenter or model of slides in nothing"),
        ({"data": "nothing"}, "does not exist"),
        ({"data": "broken"}, "none of 1 image can be read"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], says: str, detector: Path, tmp_path: Path) -> None:
    images(tmp_path / "data", 1)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no image")
    given = {"run": detector, "data": tmp_path / "data", "out": tmp_path / "out", "devices": "cpu"} | options
    if options.get("data") == "broken":
        given["data"] = tmp_path / "broken"
    with pytest.raises(UserError, match=says):
        predict(given.pop("run"), **given)


def test_a_search_that_finds_nothing_names_the_score(
    detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images(tmp_path / "data", 1)
    given: dict[str, Any] = {"data": tmp_path / "data", **ALL}
    for score, out, shown in ((1.0, "none", True), (0.0, "all", False)):
        predict(detector, **{**given, "out": tmp_path / out, "score": score})
        assert ("none has a score of at least 1; a lower --score" in capsys.readouterr().err) == shown


@pytest.mark.parametrize("verb", ["predict", "cells", "embed", "classify"])
def test_an_image_that_a_list_names_twice_is_refused(detector: Path, tmp_path: Path, verb: str) -> None:
    images(tmp_path / "data", 2)
    listed = tmp_path / "twice.txt"
    listed.write_text("data/0.png\ndata/1.png\ndata/../data/0.png\n")
    given: dict[str, dict[str, Any]] = {
        "predict": {"run": detector},
        "cells": {"default_mpp": 0.5},
        "embed": {"weights": "random", "out": tmp_path / "out.h5"},
        "classify": {"labels": "folders"},
    }
    with pytest.raises(UserError, match=r"images that \S*twice\.txt names twice: (data/)?0\.png; give each image once"):
        getattr(densepath, verb)(**{"data": listed, "out": tmp_path / "out", **given[verb]})
    assert not (tmp_path / "out" / "objects.csv").exists()


def test_output_names_are_distinct_and_stay_in_the_folder() -> None:
    names = ["a/t.png", "b/t.png", "b/t.jpg", "/x/../y.png", "../../z.png", "d.png", "d.jpg", "d.png.png"]
    names += ["c.png", "c.png"]
    expected = ["a/t", "b/t.png", "b/t.jpg", "x/y", "z", "d.png", "d.jpg", "d.png.2", "c.png", "c.png.2"]
    assert output_names(list(map(Path, names))) == expected


def test_results_of_other_images_are_not_reported(
    detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An image that was replaced is predicted again, and a new one moves no ids."""
    images(tmp_path / "data", 2)
    out = predict(detector, data=tmp_path / "data", out=tmp_path / "out", **ALL)
    first = [each for each in results_of(out) if each["image_id"] == 2]
    Image.fromarray(np.zeros((50, 64, 3), np.uint8)).save(tmp_path / "data" / "0.png")
    Image.fromarray(np.full((50, 64, 3), 255, np.uint8)).save(tmp_path / "data" / "00.png")
    predict(detector, data=tmp_path / "data", out=out, **ALL)
    fresh = predict(detector, data=tmp_path / "data", out=tmp_path / "fresh", **ALL)
    assert results_of(out) == results_of(fresh)
    names = [Path(each["file_name"]).name for each in json.loads((out / "images.json").read_text())["images"]]
    assert names == ["0.png", "00.png", "1.png"]
    assert [each | {"image_id": 3} for each in first] == [each for each in results_of(out) if each["image_id"] == 3]
    (tmp_path / "data" / "0.png").write_bytes(b"damaged")
    predict(detector, data=tmp_path / "data", out=out, **ALL)
    assert not list(Path(out).glob("*/0.*"))
    (tmp_path / "data" / "00.png").unlink()
    predict(detector, data=tmp_path / "data", out=out, **ALL)
    assert "keeps files of 1 image not in the data: 00" in capsys.readouterr().err
    (tmp_path / "data").rename(tmp_path / "gone")
    images(tmp_path / "data" / "others", 1)
    with pytest.raises(UserError, match=r"holds results of other images \(00, 1\)"):
        predict(detector, data=tmp_path / "data", out=out, **ALL)


def test_a_list_with_dots_writes_nothing_outside(detector: Path, tmp_path: Path) -> None:
    images(tmp_path / "images", 2)
    before = (tmp_path / "images" / "0.png").read_bytes()
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "l.txt").write_text(f"../images/0.png\n{tmp_path}/images/1.png\n")
    out = predict(detector, data=tmp_path / "lists" / "l.txt", out=tmp_path / "out", **ALL)
    assert (tmp_path / "images" / "0.png").read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["0.png", "1.png"]
    assert len(list((out / "labels").rglob("*.png"))) == 2


def turned(path: Path, pixels: np.ndarray, tag: int, **options: Any) -> Path:
    """A file with an orientation tag."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[274] = tag
    Image.fromarray(pixels).save(path, exif=exif, **options)
    return path


@pytest.mark.parametrize("tag", range(1, 9))
def test_images_are_turned_by_their_tags_in_parts(tag: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    files = [turned(tmp_path / "a.jpg", pixels, tag, quality=95), tmp_path / "a.tif"]
    tifffile.imwrite(files[1], pixels, tile=(16, 16), extratags=[(274, 3, 1, tag, True)], photometric="rgb")
    monkeypatch.setattr("densepath.sources.image_reader._IN_PARTS", 1000)
    for path in files:
        plain = Image.fromarray(read_image(path))
        plain.getexif()[274] = tag
        whole = np.asarray(ImageOps.exif_transpose(plain))
        reader = open_file(path, viewed=True)
        assert reader.size == whole.shape[:2]
        np.testing.assert_array_equal(reader.read(7, 3, 40, 21), whole[7:47, 3:24])
        np.testing.assert_array_equal(open_file(path).read(0, 0, 50, 70), read_image(path))


def test_a_detector_reads_images_as_those_of_its_training(detector: Path, tmp_path: Path) -> None:
    (pixels,) = images(tmp_path / "unused", 1)
    path = turned(tmp_path / "in" / "a.jpg", pixels, 6, quality=95)
    loaded = densepath.load_detector(detector)
    notes = replace(loaded.notes, orientation="viewed")
    save_detector(tmp_path / "run" / "exported" / "detector.safetensors", loaded.detector, notes)
    viewer = densepath.load_detector(tmp_path / "run")
    with Image.open(path) as picture:
        upright = np.asarray(ImageOps.exif_transpose(picture))
        found = [viewer.predict(each, score=0.0) for each in (path, picture, upright)]
    assert len({len(each) for each in found} - {0}) == 1
    for each in found:
        assert each.size == (64, 50)
        np.testing.assert_array_equal(each.masks, found[2].masks)
    assert viewer.predict(path, orientation="stored").size == loaded.predict(path).size == (50, 64)
    mistyped: Any = "view"
    with pytest.raises(UserError, match="orientation is 'view'; give stored or viewed"):
        loaded.predict(path, orientation=mistyped)
    for options, size in (({}, (50, 64)), ({"orientation": "stored"}, (64, 50))):
        out = predict(tmp_path / "run", data=tmp_path / "in", out=tmp_path / f"out{size}", **options, **ALL)
        with Image.open(out / "labels" / "a.png") as labels, Image.open(out / "pictures" / "a.png") as drawn:
            assert labels.size == drawn.size == size
    with pytest.raises(UserError, match="other values of orientation"):
        predict(tmp_path / "run", data=tmp_path / "in", out=out, **ALL)


def test_a_large_image_for_a_detector_of_version_0_1_is_reported_once(
    detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images(tmp_path / "small", 1, (200, 200))
    images(tmp_path / "large", 2, (300, 300))
    loaded = densepath.load_detector(detector)
    assert loaded.window == 0 and loaded.notes.test_size == 64
    predict(detector, data=tmp_path / "small", out=tmp_path / "a", pictures=0, **ALL)
    assert "is not cut into windows" not in capsys.readouterr().err
    predict(detector, data=tmp_path / "large", out=tmp_path / "b", pictures=0, **ALL)
    said = capsys.readouterr().err
    assert f"warning: {tmp_path}/large/0.png has 300 x 300 px, but is not cut into windows" in said
    assert said.count("is not cut into windows") == 1
    predict(detector, data=tmp_path / "large", out=tmp_path / "c", pictures=0, window=100, **ALL)
    assert "is not cut into windows" not in capsys.readouterr().err


def test_windows_have_the_micrometres_of_the_training_images(
    detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = densepath.load_detector(detector)
    loaded.notes = replace(loaded.notes, image_size=64, mpp=0.5)
    save_detector(tmp_path / "detector.safetensors", loaded.detector, loaded.notes)

    def same(a: Any, b: Any) -> bool:
        return [(each.box, each.score) for each in a.objects] == [(each.box, each.score) for each in b.objects]

    for size in ((240, 150), (100, 90)):  # cut into windows, and not
        pixels = images(tmp_path / f"{size[0]}", 1, size)[0]
        scaled = loaded.predict(pixels, 0.0, spacing=0.25)
        assert len(scaled.objects) > 1 and same(scaled, loaded.predict(pixels, 0.0, window=128))
        assert not same(scaled, loaded.predict(pixels, 0.0))
        assert same(loaded.predict(pixels, 0.0, spacing=0.52), loaded.predict(pixels, 0.0))  # nearly the same
        assert same(loaded.predict(pixels, 0.0, window=64, spacing=0.25), loaded.predict(pixels, 0.0, window=64))
        tifffile.imwrite(
            tmp_path / f"{size[0]}.tif", pixels, resolution=(1e4 / 0.25, 1e4 / 0.25), resolutionunit="CENTIMETER"
        )
        assert same(loaded.predict(tmp_path / f"{size[0]}.tif", 0.0), scaled)
    with pytest.raises(UserError, match="spacing is nan; give µm per pixel"):
        loaded.predict(pixels, spacing=float("nan"))
    predict(tmp_path / "detector.safetensors", data=tmp_path / "240.tif", out=tmp_path / "tif", **ALL)
    assert "240.tif has 0.25 µm per pixel and the training images 0.5: windows of 128 px" in capsys.readouterr().err
    predict(tmp_path / "detector.safetensors", data=tmp_path / "240", out=tmp_path / "png", **ALL)
    assert "0.png does not say its µm per pixel; the detector learned from images of 0.5" in capsys.readouterr().err
