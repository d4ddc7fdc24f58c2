"""Predictions on slides: every object once, at its place in µm, whatever level was read."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaml
from disks import Disk, disk_detector, fail_in_part, paint, write_levels
from PIL import Image

from densepath.annotations.coco import open_split
from densepath.annotations.coco_writing import write_coco
from densepath.core.errors import UserError
from densepath.sources.corrupt import CorruptImage
from densepath.sources.slides.open import open_slide
from densepath.sources.tiles.tile_files import SlideTiling, tiling_folder, tiling_path, write_tiling
from densepath.transfer.detection.prediction_files import MICRONS
from densepath.transfer.detection.preparation import training_mpp
from densepath.transfer.predict import predict
from densepath.transfer.slides import predict_slides

DISKS = [
    Disk(60, 58, 9.3),
    Disk(61.7, 97.2, 12),
    Disk(116.3, 78.1, 10.6),
    Disk(86.2, 138.9, 6.1),
    Disk(138, 140.4, 14),
    Disk(201.3, 222.4, 17.7),
]
TISSUE = (20.0, 20.0, 240.0, 220.0)


def write_slide(path: Path, mpp: float, factors: tuple[int, ...] = (1, 4)) -> Path:
    size = round(280 / mpp), round(260 / mpp)
    return write_levels(path, paint(size, mpp, DISKS, TISSUE), mpp, factors)


def damage_tile(path: Path, index: int, level: int = 0) -> None:
    """Overwrite a tile."""
    with tifffile.TiffFile(path) as tiff:
        start, count = tiff.pages[level].dataoffsets[index], tiff.pages[level].databytecounts[index]
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"x" * count)


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """``predict`` with the detector of disks."""
    (tmp_path / "detector.safetensors").write_bytes(b"")

    def run(data: Path, out: Path, known: float | None = None, using: Any = None, **options: Any) -> Any:
        monkeypatch.setattr(
            "densepath.transfer.predict_objects.load_detector", lambda path: using or disk_detector(known)
        )
        return predict(tmp_path / "detector.safetensors", data=data, out=out, devices="cpu", **options)

    return run


def rows_of(out: Any) -> list[dict[str, str]]:
    with (out / "objects.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("mpp", [0.5, 0.93])
@pytest.mark.parametrize("level_0", [0.25, 0.23])
def test_objects_return_to_their_place_in_um(search: Any, tmp_path: Path, level_0: float, mpp: float) -> None:
    """The same disks on two scanners, seen at two resolutions: a level of four pixels is used, or is too coarse."""
    slide = write_slide(tmp_path / "slides" / "a.tiff", level_0)
    out = search(slide, tmp_path / "out", mpp=mpp)
    found = sorted(rows_of(out), key=lambda row: float(row["centroid_x_um"]))
    truth = sorted(DISKS, key=lambda disk: disk.x)
    assert len(found) == len(truth)
    margin = 1e-5  # a TIFF has 1e4 / level_0 as a ratio of 32-bit numbers; older tifffile rounds it by up to 5e-6
    for row, disk in zip(found, truth, strict=True):
        place = float(row["centroid_y_um"]), float(row["centroid_x_um"])
        assert place == pytest.approx((disk.y, disk.x), abs=0.2)
        assert float(row["area_um2"]) == pytest.approx(np.pi * disk.radius**2, rel=0.06)
        assert float(row["centroid_x"]) * level_0 == pytest.approx(place[1], rel=margin)
        assert float(row["area"]) * level_0**2 == pytest.approx(float(row["area_um2"]), rel=margin)
    features = json.loads((out / "geojson" / "a.geojson").read_text())["features"]
    assert {feature["properties"]["objectType"] for feature in features} == {"detection"}
    for feature, row in zip(features, rows_of(out), strict=True):
        assert feature["properties"]["classification"]["name"] == "disk"
        assert feature["properties"]["measurements"]["score"] == float(row["score"])
        (ring,) = feature["geometry"]["coordinates"]
        x, y = np.array(ring).T
        area = abs(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1])) / 2
        assert area == pytest.approx(float(row["area"]), rel=0.05)
        assert ring[0] == ring[-1]
        middle = (x.min() + x.max()) / 2, (y.min() + y.max()) / 2
        assert middle == pytest.approx((float(row["centroid_x"]), float(row["centroid_y"])), abs=0.4 / level_0)


@pytest.mark.parametrize("given", [{}, {"window": 48}])
@pytest.mark.parametrize("as_slide", [True, False])
def test_pixels_that_are_not_square_are_seen_as_squares(
    search: Any, tmp_path: Path, as_slide: bool, given: dict[str, int]
) -> None:
    """A slide or an image of 0.5 x 0.25 µm gives the detector what one of 0.5 µm gives it, and the same µm."""
    seen, found = [], []
    for stretch in (1, 2):
        data = tmp_path / f"{stretch}" / "a.tiff"
        write_levels(data, paint((560, 520), 0.5, DISKS, TISSUE), 0.5, stretch=stretch)
        detector = disk_detector(None if given else 0.5)
        out = search(data, tmp_path / f"out{stretch}", using=detector, **({"mpp": 0.5} if as_slide else {}), **given)
        seen.append(detector.detector.seen)
        found.append([[float(row[name]) for name in MICRONS] for row in rows_of(out)])
    assert seen[0] == seen[1] and len(found[0]) == len(DISKS)
    np.testing.assert_allclose(*map(sorted, found), rtol=0.01, atol=0.2)


def test_a_folder_of_slides_with_all_that_may_be_wrong(search: Any, tmp_path: Path) -> None:
    """Damage costs windows, other files and slides without µm or tissue cost a line; all of it stays resumable."""
    data, out = tmp_path / "slides", tmp_path / "out"
    write_slide(data / "good.tiff", 0.5)
    write_slide(data / "sub" / "good.tiff", 0.5)
    damage_tile(write_slide(data / "damaged.tiff", 0.5, (1,)), 9 * 3 + 2)
    write_levels(data / "blank.tiff", paint((400, 400), 0.5, [], (0, 0, 0, 0)), 0.5, (1, 2))
    again = np.zeros((400, 400, 3), np.uint8)
    tifffile.imwrite(data / "blank.tiff", again, append=True, tile=(64, 64), photometric="rgb", metadata=None)
    tifffile.imwrite(data / "no_um.tiff", paint((256, 256), 0.5, [], TISSUE), tile=(64, 64), compression="zlib")
    tifffile.imwrite(data / "label.tiff", np.zeros((50, 60, 3), np.uint8), photometric="rgb")
    (data / "empty.svs").write_bytes(b"")
    Image.new("RGB", (40, 40)).save(data / "thumbnail.png")
    found = search(data, out, known=0.5, pictures="all")
    assert (found["slides"], found["damaged"]) == (7, 3)
    table = {row["slide"]: row for row in csv.DictReader((out / "slides.csv").open())}
    assert [name for name, row in table.items() if row["windows"]] == ["blank", "damaged", "good", "sub/good"]
    assert "no µm per pixel" in table["no_um"]["problem"] and "empty" in table["empty"]["problem"]
    assert "not a slide" in table["label"]["problem"]
    assert (table["blank"]["objects"], table["blank"]["windows"]) == ("0", "0")
    assert table["blank"]["problem"] == "it has several pages of the size of level 0, of which the first is read"
    assert int(table["damaged"]["damaged"]) >= 1 and "cannot be read, the first at x" in table["damaged"]["problem"]
    rows = {name: [row for row in rows_of(out) if row["image"] == name] for name in table}
    assert len(rows["good"]) == len(rows["sub/good"]) == len(DISKS) == int(table["good"]["objects"])
    assert 0 < len(rows["damaged"]) <= len(DISKS)  # the windows without damage
    for name in ("good", "sub/good", "damaged", "blank"):
        features = json.loads((out / "geojson" / f"{name}.geojson").read_text())["features"]
        assert len(features) == len(rows[name])
        slide, heat = open_slide(data / f"{name}.tiff"), open_slide(out / "heat_maps" / f"{name}.tif")
        extents = [[side * mpp for side, mpp in zip(each.size, each.mpp, strict=True)] for each in (slide, heat)]
        assert extents[1] == pytest.approx(extents[0], abs=2 * max(heat.mpp))
        with Image.open(out / "pictures" / f"{name}.png") as picture:
            assert min(picture.size) > 100
    record = out / "records" / "blank.json"
    assert '"problems"' in record.read_text()
    record.write_text(record.read_text().replace('"problems"', '"unread"'))  # as earlier versions wrote it
    before = {path: path.stat().st_mtime_ns for path in (out / "geojson").rglob("*.geojson")}
    (out / "records" / "good.json").unlink()
    (out / "records" / "sub" / "good.csv").unlink()  # its objects
    again = search(data, out, known=0.5, pictures="all")
    changed = [path for path, time in before.items() if path.stat().st_mtime_ns != time]
    assert sorted(changed) == [out / "geojson" / f"{name}.geojson" for name in ("good", "sub/good")]
    assert dict(again) == dict(found)
    assert list(csv.DictReader((out / "slides.csv").open())) == list(table.values())
    assert not list(out.rglob("*.part"))
    with pytest.raises(UserError, match="other values of mpp"):
        search(data, out, known=0.5, pictures="all", mpp=0.7)
    (data / "good.tiff").write_bytes(b"")
    assert search(data, out, known=0.5, pictures="all")["damaged"] == 4
    assert list(out.glob("*/good.*")) == [out / "records" / "good.json"]


def test_um_per_pixel_that_were_missing_are_given_in_the_same_folder(search: Any, tmp_path: Path) -> None:
    slides, out, table = tmp_path / "slides", tmp_path / "out", tmp_path / "mpp.csv"
    write_slide(slides / "known.tiff", 0.5)
    for name in "ab":
        tifffile.imwrite(slides / f"{name}.tiff", paint((256, 256), 0.5, [], TISSUE), tile=(64, 64), photometric="rgb")
    assert search(slides, out, mpp=1.0)["damaged"] == 2
    made = (out / "geojson/known.geojson").stat().st_mtime_ns

    def spacings() -> list[str]:
        return [row["mpp"] for row in csv.DictReader((out / "slides.csv").open())]

    table.write_text("wsi,mpp\na,0.25\n")
    search(slides, out, mpp=1.0, mpp_table=table)
    assert spacings() == ["0.25", "", "0.5"]
    given = {"mpp": 1.0, "mpp_table": table, "default_mpp": 0.4}
    part = search(slides, out, **given, shard="1/3")
    assert part["left"] == 1 and spacings() == ["0.25", "", "0.5"]
    search(slides, out, **given)
    assert spacings() == ["0.25", "0.4", "0.5"]
    for changed in ({"default_mpp": 0.5}, {"default_mpp": None}, {"mpp_table": None}):
        with pytest.raises(UserError, match=f"was made with other values of {next(iter(changed))}"):
            search(slides, out, **{**given, **changed})
    table.write_text("wsi,mpp\na,0.25\nb,0.3\n")
    search(slides, out, **given)
    assert spacings() == ["0.25", "0.3", "0.5"]
    assert (out / "geojson/known.geojson").stat().st_mtime_ns == made
    record = yaml.safe_load((out / "config.yaml").read_text())
    assert (record["default_mpp"], record["mpp_table"]) == (0.4, str(table))


def test_a_share_says_what_it_leaves(search: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        write_slide(tmp_path / "slides" / f"{name}.tiff", 0.5)
    first = search(tmp_path / "slides", tmp_path / "out", mpp=1.0, shard="1/2")
    assert (first["slides"], first["left"]) == (2, 1)
    table = list(csv.DictReader((first / "slides.csv").open()))
    assert [row["problem"] for row in table] == ["", "unfinished"]
    said = capsys.readouterr().err
    assert f"{len(DISKS)} objects in 1 slide; this process is done, 1 of 2 slides left to other" in said
    assert "done in" not in said
    with pytest.raises(UserError, match="begun with --precision"):
        other = "32" if "bf16" in (first / "config.yaml").read_text() else "bf16-mixed"
        search(tmp_path / "slides", tmp_path / "out", mpp=1.0, precision=other)
    second = search(tmp_path / "slides", tmp_path / "out", mpp=1.0, shard="2/2")
    assert (second["left"], second["objects"]) == (0, 2 * len(DISKS)) and "done in" in capsys.readouterr().err
    (second / "records" / "a.csv").unlink()
    again = search(tmp_path / "slides", tmp_path / "out", mpp=1.0, shard="2/2")
    assert (again["left"], again["objects"]) == (1, len(DISKS))


def test_damage_that_is_found_while_drawing_costs_one_slide(
    search: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        write_slide(tmp_path / "slides" / f"{name}.tiff", 0.5)
    write = predict_slides.write_density

    def failing(stem: Path, *given: Any) -> None:
        if stem.name == "a":
            raise CorruptImage("a.tiff", "a part of it is missing")
        write(stem, *given)

    monkeypatch.setattr(predict_slides, "write_density", failing)
    found = search(tmp_path / "slides", tmp_path / "out", mpp=1.0)
    assert (found["damaged"], found["objects"]) == (1, len(DISKS))
    assert next(csv.DictReader((found / "slides.csv").open()))["problem"] == "a part of it is missing"


def test_a_slide_whose_objects_are_lost_and_cannot_be_found_again_has_failed(
    search: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of which only a picture is missing keeps its objects, and is named."""
    for name in "ab":
        write_slide(tmp_path / "slides" / f"{name}.tiff", 0.5)
    out = search(tmp_path / "slides", tmp_path / "out", mpp=1.0).out
    for path in (out / "records" / "a.csv", out / "pictures" / "b.png"):
        path.unlink()

    def failing(*given: Any) -> None:
        raise OSError("the disk does not respond")

    monkeypatch.setattr(predict_slides, "find_tissue", failing)
    again = search(tmp_path / "slides", out, mpp=1.0)
    assert [again[count] for count in ("damaged", "left", "objects")] == [1, 0, len(DISKS)]
    passed = "1 slide passed over: a: the disk does not respond"
    missing = "missing files of 1 slide could not be made: b: the disk does not respond"
    assert f"{len(DISKS)} objects in 1 slide; {passed}; {missing}\n" in capsys.readouterr().err
    monkeypatch.undo()
    assert search(tmp_path / "slides", out, mpp=1.0)["objects"] == 2 * len(DISKS)
    assert (out / "pictures" / "b.png").exists()


def test_windows_that_a_disk_failed_to_give_are_not_passed_over(
    search: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The objects of the others would look complete; the same command finds all."""
    slide, out = write_slide(tmp_path / "slides" / "a.tiff", 0.5), tmp_path / "out"
    write_slide(tmp_path / "slides" / "b.tiff", 0.6)
    with monkeypatch.context() as patched:
        fail_in_part(patched, slide, 9 * 3 + 2)
        assert search(tmp_path / "slides", out, known=0.5)["damaged"] == 1
    assert not (out / "geojson" / "a.geojson").exists()
    assert search(tmp_path / "slides", out, known=0.5)["damaged"] == 0
    assert len(rows_of(out)) == 2 * len(DISKS)


def test_damage_where_tissue_is_looked_for_is_reported(search: Any, tmp_path: Path) -> None:
    """Windows there are skipped, and not among the damaged ones."""
    slide = write_slide(tmp_path / "slides" / "a.tiff", 0.5)
    damage_tile(slide, 0, level=1)
    assert search(tmp_path / "slides", tmp_path / "out", known=0.5)["damaged"] == 0
    (row,) = csv.DictReader((tmp_path / "out" / "slides.csv").open())
    assert row["damaged"] == "0" and "tissue is not found in" in row["problem"], row


def test_options_that_do_not_fit(search: Any, tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "a.tiff", 0.5)
    for options, why in (
        ({}, "give them with --mpp"),
        ({"mpp": -1.0}, "mpp is -1.0"),
        ({"mpp": 0.5, "window": 0}, "--window"),
        ({"mpp": 0.5, "spacing": 0.5}, "spacing: only for images"),
        ({"mpp": 0.5, "shard": "3/2"}, "shard is"),
        ({"mpp": 0.5, "default_mpp": -1.0}, "default_mpp is"),
    ):
        with pytest.raises(UserError, match=why):
            search(slide, tmp_path / "out", **options)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    for name, value in {"mpp_table": "t.csv", "default_mpp": 0.5, "shard": "1/2"}.items():
        with pytest.raises(UserError, match=f"{name}: only for slides"):
            search(tmp_path / "a.png", tmp_path / "out", **{name: value})
    tifffile.imwrite(tmp_path / "plain.tiff", np.zeros((64, 64, 3), np.uint8), photometric="rgb")
    with pytest.raises(UserError, match="none of 1 slide can be read"):
        search(tmp_path / "plain.tiff", tmp_path / "out", mpp=0.5)


def test_tiles_say_where_to_search(search: Any, tmp_path: Path) -> None:
    """Only windows that touch a tile; the µm per pixel are those with which the slide was tiled."""
    slide = write_slide(tmp_path / "slides" / "a.tiff", 0.25)
    size = open_slide(slide).size
    corners = np.array([[260, 200], [324, 200]])  # x, y in level 0 of what is said to have 0.5 µm/px
    tiling = SlideTiling("a", str(slide), corners, 0.5, 64, (0.5, 0.5), size)
    folder = tmp_path / "T" / tiling_folder(0.5, 64, 0)
    write_tiling(tiling_path(folder, "a"), tiling)
    (tmp_path / "T" / "config.yaml").write_text("# densepath 0\n")
    (tmp_path / "T" / "slides.csv").write_text(f"slide,path,tiles\na,{slide},2\n")
    out = search(tmp_path / "T", tmp_path / "out", mpp=1.0)
    (row,) = csv.DictReader((out / "slides.csv").open())
    assert 0 < int(row["windows"]) < int(row["windows"]) + int(row["skipped"])
    found = np.array([[float(each["centroid_y"]) * 0.25, float(each["centroid_x"]) * 0.25] for each in rows_of(out)])
    near = np.array([[disk.y, disk.x] for disk in DISKS[:2]])
    assert len(found) == 2
    assert all(np.hypot(*(near - place).T).min() < 0.3 for place in found)
    assert float(rows_of(out)[0]["centroid_x_um"]) == pytest.approx(2 * found[0, 1])


def test_a_detector_records_the_um_per_pixel_of_its_images(tmp_path: Path) -> None:
    labels = np.zeros((40, 40), np.int32)
    labels[10:20, 10:20] = 1
    pixels = np.zeros((40, 40, 3), np.uint8)
    write_coco(tmp_path / "data", {"train": [(f"{k}", pixels, labels) for k in range(3)], "test": []})
    known = open_split(tmp_path / "data", "train")
    assert training_mpp(known) is None
    for path, um in zip(sorted((tmp_path / "data" / "train").glob("*.png")), (0.5, 0.5, 0.51), strict=True):
        tifffile.imwrite(path.with_suffix(".tif"), pixels, resolution=(1e4 / um,) * 2, resolutionunit="CENTIMETER")
    truth = json.loads((tmp_path / "data" / "annotations" / "train.json").read_text())
    for image in truth["images"]:
        image["file_name"] = str(Path(image["file_name"]).with_suffix(".tif"))
    (tmp_path / "data" / "annotations" / "train.json").write_text(json.dumps(truth))
    assert training_mpp(open_split(tmp_path / "data", "train")) == pytest.approx(0.5)
    stretched = known.folder / truth["images"][0]["file_name"]
    tifffile.imwrite(stretched, pixels, resolution=(1e4 / 0.5, 1e4 / 0.25), resolutionunit="CENTIMETER")
    assert training_mpp(open_split(tmp_path / "data", "train")) is None
    truth["images"][0]["mpp"] = 0.8
    (tmp_path / "data" / "annotations" / "train.json").write_text(json.dumps(truth))
    assert training_mpp(open_split(tmp_path / "data", "train")) is None
