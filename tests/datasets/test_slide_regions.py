"""Regions of slides become images at an exact spacing, with what is outlined in them and nothing else."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from matplotlib.path import Path as Polygon

from densepath.annotations.coco import open_split
from densepath.core.errors import UserError
from densepath.datasets.qupath import convert_qupath
from densepath.sources.decode import read_size

HEIGHT, WIDTH = 300, 420
SPACING = {"y": 0.5, "x": 0.4}  # µm per pixel of the slides
MPP = 0.8
SIDES = 24  # of circles
RAMP = np.array([0.58, 0.8])  # grey values for a pixel along x and y

Ring = list[list[float]]


def write_slide(path: Path, spaced: bool = True, levels: int = 1) -> Path:
    """A slide whose red and green say where a pixel is, along x and y."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    pixels = np.rint(np.stack([x * RAMP[0], y * RAMP[1], np.full_like(x, 100)], axis=2)).astype(np.uint8)
    known = {"resolution": (1e4 / SPACING["x"], 1e4 / SPACING["y"]), "resolutionunit": "CENTIMETER"} if spaced else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as tiff:
        for level in range(levels):
            part = pixels[:: 2**level, :: 2**level]
            tiff.write(part, tile=(64, 64), compression="zlib", photometric="rgb", subfiletype=int(level > 0), **known)  # type: ignore[arg-type]
    return path


def box(x: float, y: float, w: float, h: float) -> Ring:
    return [[x, y], [x + w, y], [x + w, y + h], [x, y + h], [x, y]]


def circle(x: float, y: float, radius: float) -> Ring:
    angles = np.linspace(0, 2 * np.pi, SIDES + 1)
    return [[x + radius * np.cos(a), y + radius * np.sin(a)] for a in angles]


def feature(name: str | None, *rings: Ring) -> dict[str, Any]:
    classification = {"classification": {"name": name}} if name else {}
    geometry = {"type": "Polygon", "coordinates": list(rings)}
    return {"type": "Feature", "geometry": geometry, "properties": {"objectType": "annotation", **classification}}


REGION = feature("Region*", box(20, 20, 100, 80))
OBJECT = feature("Gland", circle(60, 60, 20))


def write(folder: Path, contents: dict[str, list[dict[str, Any]]], suffix: str = ".tif", **options: Any) -> Path:
    """Slides and their GeoJSON side by side."""
    for name, features in contents.items():
        write_slide(folder / f"{name}{suffix}", **options)
        (folder / f"{name}.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return folder


def rows_of(dest: Path) -> list[dict[str, str]]:
    with (dest / "manifest.csv").open() as lines:
        return list(csv.DictReader(lines))


def inside(rings: list[Ring], corner: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """The pixels of an image whose centers lie in a polygon of the slide, by matplotlib."""
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    x, y = corner[0] + columns * MPP / SPACING["x"], corner[1] + rows * MPP / SPACING["y"]
    centers = np.stack([x.ravel(), y.ravel()], axis=1)
    masks = [Polygon(ring).contains_points(centers).reshape(size) for ring in rings]
    return np.logical_xor.reduce(masks)


def test_images_show_what_is_in_regions_at_their_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A divided region, one with a hole, a rotated one that leaves the slide; objects across all of their borders."""
    regions = {
        "wide": [box(10.3, 20.6, 230, 100)],
        "ring": [circle(100, 210, 70.2), circle(100, 210, 20.4)],
        "turned": [[[330.31, 150.17], [424.63, 215.29], [365.41, 290.53], [280.27, 225.71], [330.31, 150.17]]],
    }
    ignored = [box(40.2, 40.1, 31, 25)]
    circles = [(x + 0.13, y + 0.17, 14 + (x + y) % 9) for x in range(15, WIDTH, 41) for y in range(15, HEIGHT, 47)]
    objects = [[circle(*each)] for each in circles]
    pixel = MPP / SPACING["x"] * MPP / SPACING["y"]
    areas = [SIDES / 2 * np.sin(2 * np.pi / SIDES) * radius**2 / pixel for *_, radius in circles]
    areas.append((400 * 60 - 30 * 8) / pixel)
    objects.append([box(11, 100, 400, 60), box(50.1, 105, 30, 8)])  # larger than an image
    content = [feature("Region*", *rings) for rings in regions.values()]
    content += [feature("Ignore*", *ignored), *(feature("Gland", *rings) for rings in objects)]
    source = write(tmp_path / "in", {"a": content, "b": content})
    dest = convert_qupath(source, tmp_path / "out", mpp=MPP, size=64, test_share=0.5)
    images = open_split(dest, "train")
    places: dict[str, int] = dict.fromkeys(regions, 0)
    for sample in images:
        x, y = corner = tuple(map(int, re.findall(r"_[xy](\d+)", sample["name"])))  # type: ignore[assignment]
        size = height, width = sample["image"].shape[:2]
        assert height <= 64 and width <= 64
        name = next(n for n, (ring, *_) in regions.items() if x < np.max(ring, 0)[0] and y < np.max(ring, 0)[1])
        places[name] += height * width
        visible = inside(regions[name], corner, size) & ~inside(ignored, corner, size)
        white = (sample["image"] == 255).all(axis=2)
        rows, columns = np.mgrid[:height, :width] + 0.5
        within = (x + (columns + 1) * MPP / SPACING["x"] < WIDTH) & (y + (rows + 1) * MPP / SPACING["y"] < HEIGHT)
        np.testing.assert_array_equal(white[within], ~visible[within])
        place = np.stack([x + columns * MPP / SPACING["x"], y + rows * MPP / SPACING["y"]], axis=2) * RAMP
        inner = visible & within & (rows > 3) & (columns > 3)
        error = sample["image"][inner][:, :2] - place[inner]
        assert np.abs(error).max() <= 1 and np.abs(error.mean(0)).max() < 0.1
        expected = [inside(rings, corner, size) & visible for rings in objects]
        kept = [m for m, n in zip(expected, areas, strict=True) if m.any() and m.sum() >= min(0.1 * n, 32**2)]
        np.testing.assert_array_equal(sample["masks"], kept)
    bounds = {"wide": 230 * 100, "ring": 140.4**2, "turned": (420 - 280) * 140}
    assert places == pytest.approx({name: area / pixel for name, area in bounds.items()}, rel=0.03)
    truth = json.loads((dest / "annotations/train.json").read_text())
    assert {image["mpp"] for image in truth["images"]} == {MPP}
    assert "without a pixel in a region" in capsys.readouterr().err


def test_slides_without_regions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "in", {"a": [REGION, OBJECT], "b": [REGION, OBJECT], "c": [OBJECT]})
    dest = convert_qupath(source, tmp_path / "out", mpp=MPP, test_share=0.5)
    assert "left out: 1 file without an annotation of the class Region*: c.geojson" in capsys.readouterr().err
    assert {row["source"] for row in rows_of(dest)} == {str(source / "a.tif"), str(source / "b.tif")}
    with pytest.raises(UserError, match="has no region; draw an annotation of the class ROI around each area"):
        convert_qupath(source, tmp_path / "no", mpp=MPP, regions="ROI", test_share=0.5)
    outside = feature("Fold", circle(300, 200, 20))
    lower = json.dumps([feature("roi", box(20, 20, 100, 80)), REGION, OBJECT, outside])
    for name in "ab":
        (source / f"{name}.geojson").write_text(lower)
    dest = convert_qupath(source, tmp_path / "named", mpp=MPP, regions="ROI", test_share=0.5)
    assert set(open_split(dest, "test").category_names) == {"Gland"}


@pytest.mark.parametrize("how", ["name", "regex", "manifest", "table"])
def test_no_split_divides_a_slide(how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whether its patient is known, or unknown, which is warned of where slides are drawn."""
    names = [f"s{number}" for number in range(6)]
    regions = [feature("Region*", box(10 + 80 * n, 10, 60, 120)) for n in range(4)]
    objects = [feature("Gland", circle(40 + 80 * n, 60, 15)) for n in range(4)]
    source, options = write(tmp_path / "in", dict.fromkeys(names, regions + objects)), dict[str, Any](test_share=0.34)
    patients = dict.fromkeys(names, "")
    if how == "regex":
        options["patient_regex"] = r"^.*$"  # of an image it would be all of its name
        patients = dict(zip(names, names, strict=True))
    if how == "manifest":
        patients = {name: f"P{number // 2}" for number, name in enumerate(names)}
        lines = [f"{name},{patient}" for name, patient in patients.items()]
        (source / "manifest.csv").write_text("\n".join(["file,patient", *lines]))
    if how == "table":
        table = tmp_path / "table.csv"
        table.write_text("file,split\n" + "\n".join(f"{n},{'test' if n > 's3' else 'train'}" for n in names))
        options = {"splits": table}
    rows = rows_of(convert_qupath(source, tmp_path / "out", mpp=MPP, **options))
    assert len(rows) == 24
    assert {(Path(row["source"]).stem, row["patient"]) for row in rows} == set(patients.items())
    owners = {(row["patient"] or Path(row["source"]).stem, row["split"]) for row in rows}
    assert len(owners) == len({patient or name for name, patient in patients.items()})
    assert ("the patients are unknown" in capsys.readouterr().err) == (how == "name")


def test_slides_without_a_known_patient_are_counted_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    regions = [feature("Region*", box(10 + 80 * n, 10, 60, 120)) for n in range(2)]
    source = write(tmp_path / "in", {name: [*regions, OBJECT] for name in "abc"})
    (source / "manifest.csv").write_text("file,patient\na,P\nb,P\n")
    convert_qupath(source, tmp_path / "out", mpp=MPP, test_share=0.5)
    assert "1 slide has no known patient, and each counts as one of its own: c\n" in capsys.readouterr().err


def test_images_of_slides_are_named_in_their_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / "in" / split, {"a": [REGION, OBJECT]})
    dest = convert_qupath(tmp_path / "in", tmp_path / "out", mpp=MPP)
    assert [row["file"] for row in rows_of(dest)] == ["train/a_x20_y20.png", "test/a_x20_y20.png"]


def test_areas_of_all_classes_that_qupath_ignores_are_white(tmp_path: Path) -> None:
    """But not those of Region*, beside regions of another class, and not those that a rule names."""
    names = ("Artifact*", "ignore", "Region*", "Fat*")
    areas = [feature(name, box(30 + 20 * n, 30, 10, 60)) for n, name in enumerate(names)]
    content = [feature("ROI", box(20, 20, 100, 80)), OBJECT, *areas]
    source = write(tmp_path / "in", dict.fromkeys("ab", content))
    options: dict[str, Any] = {"mpp": MPP, "regions": "ROI", "categories": ["Fat*=fat", "Artifact*="]}
    (sample,) = open_split(convert_qupath(source, tmp_path / "out", test_share=0.5, **options), "train")
    white = (sample["image"] == 255).all(axis=2)
    assert [bool(white[25, 7 + 10 * n]) for n in range(4)] == [True, True, False, False]
    assert len(sample["masks"]) == 2


def test_micrometers_per_pixel_that_are_unknown(tmp_path: Path) -> None:
    source = write(tmp_path / "in", {"a": [REGION, OBJECT], "b": [REGION, OBJECT]}, spaced=False)
    with pytest.raises(UserError, match=r"a\.tif has no µm per pixel; give them by --mpp_table"):
        convert_qupath(source, tmp_path / "out", mpp=MPP, test_share=0.5)
    (tmp_path / "mpp.csv").write_text("wsi,mpp\nb,0.4\n")
    dest = convert_qupath(
        source, tmp_path / "out", mpp=MPP, mpp_table=tmp_path / "mpp.csv", default_mpp=0.8, test_share=0.5
    )
    sizes = {Path(row["source"]).stem: read_size(dest / row["file"]) for row in rows_of(dest)}
    assert sizes == {"a": (80, 100), "b": (40, 50)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mpp": 0.0}, "mpp is 0.0; give µm per pixel"),
        ({"mpp": 0.5, "size": 8}, "size is 8; give the longest side"),
        ({"mpp": 0.5, "orientation": "stored"}, "orientation: only for images that are not slides"),
        ({"size": 512, "regions": "ROI"}, "size and regions: only for slides, whose images need mpp"),
        ({"mpp": 0.5, "default_mpp": -1.0}, "default_mpp is -1.0"),
        ({}, r"GeoJSON files of slides: a\.geojson; give --mpp"),
    ],
)
@pytest.mark.parametrize(("suffix", "levels"), [(".svs", 1), (".tif", 2)])
def test_options_of_slides(options: Any, message: str, suffix: str, levels: int, tmp_path: Path) -> None:
    source = write(tmp_path / "in", {"a": [REGION, OBJECT]}, suffix, levels=levels)
    with pytest.raises(UserError, match=message):
        convert_qupath(source, tmp_path / "out", test_share=0.5, **options)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Outlines of another slide, a damaged slide, a folder with results; nothing is left of any."""
    source = write(tmp_path / "in", {"a": [REGION, OBJECT], "b": [REGION, OBJECT]})
    far = [feature("Region*", box(4000, 20, 100, 80)), OBJECT]
    (source / "a.geojson").write_text(json.dumps(far))
    with pytest.raises(UserError, match="outside of this slide of 420 x 300 px"):
        convert_qupath(source, tmp_path / "out", mpp=MPP, test_share=0.5)
    (source / "a.geojson").write_text(json.dumps([REGION, OBJECT, feature("Gland", [["x", 1], [2, 3]])]))  # type: ignore[list-item]
    with pytest.raises(UserError, match=r"not pairs of numbers: a\.geojson object 3; correct them"):
        convert_qupath(source, tmp_path / "out", mpp=MPP, test_share=0.5)
    (source / "a.geojson").write_text(json.dumps([REGION, OBJECT]))
    with tifffile.TiffFile(source / "b.tif", mode="r+b") as tiff:
        tiff.filehandle.seek(tiff.pages[0].dataoffsets[0])
        tiff.filehandle.write(bytes(range(50, 90)))
    with pytest.raises(UserError, match=r"b\.tif.*; replace the file"):
        convert_qupath(source, tmp_path / "out", mpp=MPP, test_share=0.5)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    write_slide(source / "b.tif")
    further = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    tifffile.imwrite(source / "b.tif", further, append=True, tile=(64, 64), photometric="rgb", metadata=None)
    dest = convert_qupath(source, tmp_path / "out", mpp=0.1, test_share=0.5)
    shown = capsys.readouterr().err
    assert "0.4 x 0.5 µm per pixel of" in shown
    assert f"warning: {source / 'b.tif'}: it has several pages of the size of level 0" in shown
    with pytest.raises(UserError, match="not empty"):
        convert_qupath(source, dest, mpp=MPP, test_share=0.5)
