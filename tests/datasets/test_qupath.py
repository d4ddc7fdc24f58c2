"""QuPath's GeoJSON gives the pixels whose centers its outlines contain."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.path import Path as Polygon
from PIL import Image

from densepath.annotations.coco import open_split
from densepath.core.errors import UserError
from densepath.core.polygons import ellipse, fill
from densepath.datasets.find_files import split_in_folders
from densepath.datasets.qupath import convert_qupath
from densepath.transfer.detection.found import FoundObject
from densepath.transfer.detection.prediction import Prediction
from densepath.transfer.detection.prediction_files import write_geojson

SIZE = (48, 64)


def whole(top: int, left: int, mask: np.ndarray, size: tuple[int, int] = SIZE) -> np.ndarray:
    full = np.zeros(size, bool)
    full[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    return full


def centers() -> np.ndarray:
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    return np.stack([columns.ravel(), rows.ravel()], axis=1)


@pytest.mark.parametrize("seed", range(20))
def test_polygons_cover_the_pixels_whose_centers_they_contain(seed: int) -> None:
    """matplotlib is the oracle; star-shaped polygons do not cross themselves, and may leave the image."""
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 40)))
    around = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    ring = rng.uniform(0, 60, 2) + rng.uniform(2, 40, (len(angles), 1)) * around
    hole = ring.mean(axis=0) + 3 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    inside = [Polygon(r).contains_points(centers()).reshape(SIZE) for r in (ring, hole)]
    np.testing.assert_array_equal(whole(*fill([ring], *SIZE)), inside[0])
    np.testing.assert_array_equal(whole(*fill([ring, hole], *SIZE)), inside[0] ^ inside[1])
    np.testing.assert_array_equal(fill([np.vstack([ring, ring[:1]])], *SIZE)[2], fill([ring], *SIZE)[2])  # closed


def test_corners_on_centers_count_once() -> None:
    square = np.array([[2.5, 3.5], [7.5, 3.5], [7.5, 9.5], [2.5, 9.5]])
    beside = square + np.array([5, 0])
    one, other = (whole(*fill([ring], *SIZE)) for ring in (square, beside))
    assert one.sum() == other.sum() == 30 and not (one & other).any()
    diamond = np.array([[10.5, 4.5], [16.5, 10.5], [10.5, 16.5], [4.5, 10.5]])
    assert whole(*fill([diamond], *SIZE)).sum() == pytest.approx(72, abs=12)


def test_an_ellipse_has_its_pixels() -> None:
    ring = np.array([[5.0, 6.0], [45.0, 6.0], [45.0, 30.0], [5.0, 30.0]])
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    inside = ((columns - 25) / 20) ** 2 + ((rows - 18) / 12) ** 2
    drawn = whole(*fill([ellipse(ring)], *SIZE))
    assert drawn[inside < 0.99].all() and not drawn[inside > 1.0].any()


def test_long_outlines_are_bounded() -> None:
    zigzag = np.array([[x % 7, 0 if x % 2 else 10_000] for x in range(4000)], float)
    with pytest.raises(ValueError, match="cross more than"):
        fill([zigzag], 10_000, 10)


def box(x: float, y: float, w: float, h: float) -> list[list[float]]:
    return [[x, y], [x + w, y], [x + w, y + h], [x, y + h], [x, y]]


def feature(geometry: Any, name: str | None = "Tumor", kind: str = "annotation", **more: Any) -> dict[str, Any]:
    properties = {"objectType": kind, "isLocked": False} | ({"classification": {"name": name}} if name else {})
    return {"type": "Feature", "id": "b3a7", "geometry": geometry, "properties": properties} | more


def polygon(*rings: Any, **more: Any) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": list(rings), **more}


def write(folder: Path, contents: dict[str, Any], suffix: str = ".geojson") -> Path:
    """Images and their GeoJSON side by side."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, content) in enumerate(contents.items()):
        pixels = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
        (folder / f"{name}{suffix}").write_text(json.dumps(content))
    return folder


def masks(dest: Path) -> dict[str, tuple[np.ndarray, list[str]]]:
    found = {}
    for split in ("train", "test"):
        images = open_split(dest, split)  # type: ignore[arg-type]
        for sample in images:
            names = [images.category_names[label - 1] for label in sample["labels"]]
            found[Path(sample["name"]).stem] = sample["masks"], names
    return found


def test_every_form_of_geojson(tmp_path: Path) -> None:
    """A collection, a list, a feature; holes, several parts, nested objects, classes of classes, version 0.2."""
    ring = polygon(box(4, 4, 20, 20), box(10, 10, 6, 6))
    parts = {"type": "MultiPolygon", "coordinates": [[box(2, 2, 5, 5)], [box(20, 20, 8, 8), box(22, 22, 2, 2)]]}
    nested = feature(ring)
    nested["properties"]["childObjects"] = [feature(polygon(box(30, 2, 6, 6)), "Stroma")]
    old = {"type": "Feature", "id": "PathAnnotationObject", "geometry": polygon(box(1, 1, 9, 9)), "properties": {}}
    derived = feature(polygon(box(2, 30, 9, 9)))
    derived["properties"]["classification"] = {"names": ["Tumor", "Positive"]}
    source = write(
        tmp_path / "in",
        {
            "a": {"type": "FeatureCollection", "features": [nested, derived]},
            "b": [feature(parts), feature({"type": "Point", "coordinates": [3, 3]})],
            "c": old,
        },
    )
    found = masks(convert_qupath(source, tmp_path / "out", test_share=0.3))
    outer, hole, child, last = (np.zeros(SIZE, bool) for _ in range(4))
    outer[4:24, 4:24], hole[10:16, 10:16], child[2:8, 30:36], last[30:39, 2:11] = True, True, True, True
    np.testing.assert_array_equal(found["a"][0], [outer & ~hole, child, last])
    assert found["a"][1] == ["Tumor", "Stroma", "Tumor: Positive"]
    assert found["b"][0].sum() == 25 + 64 - 4 and len(found["b"][0]) == 1
    assert found["c"][0].sum() == 81 and found["c"][1] == ["object"]


def test_the_parts_of_a_class_of_cellvit_are_objects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also near cells of another class; merged objects of other files, several of a class, and predictions stay one."""
    four = [[box(x, y, 4, 4)] for x in (2, 30) for y in (2, 30)]
    near = [[box(2, 2, 9, 9)], [box(12, 2, 4, 4)], [box(2, 12, 4, 4)], [box(12, 12, 2, 2)]]
    shapes = {"a": four, "b": four[:2], "c": near, "d": four}
    several = {
        name: [feature({"type": "MultiPolygon", "coordinates": parts}, "Dead")] for name, parts in shapes.items()
    }
    several["a"].append(feature({"type": "MultiPolygon", "coordinates": [[box(12, 2, 4, 4)], [box(16, 2, 4, 4)]]}, "B"))
    several["e"] = [*several["a"], feature(polygon(box(40, 2, 4, 4)), "Dead")]
    several["d"][0]["properties"]["measurements"] = {"score": 0.9}
    found = masks(convert_qupath(write(tmp_path / "in", several), tmp_path / "out", test_share=0.5))
    assert {name: [int(mask.sum()) for mask in own] for name, (own, _) in found.items()} == {
        "a": [16] * 6,
        "b": [2 * 16],
        "c": [81 + 16 + 16 + 4],
        "d": [4 * 16],
        "e": [4 * 16, 2 * 16, 16],
    }
    said = "2 MultiPolygons, as CellViT writes all cells of a class: divided into 6 objects"
    assert said in capsys.readouterr().err
    few = write(tmp_path / "few", {name: several[name] for name in "bc"})
    found = masks(convert_qupath(few, tmp_path / "one", test_share=0.5))
    assert [len(own) for own, _ in found.values()] == [1, 1] and "divided" not in capsys.readouterr().err


def test_cells_or_their_nuclei(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cell = feature(polygon(box(4, 4, 20, 20)), None, "cell", nucleusGeometry=polygon(box(8, 8, 6, 6), isEllipse=True))
    bare = feature(polygon(box(30, 4, 10, 10)), None, "cell")
    region = feature(polygon(box(0, 0, 60, 40)), "Region")
    source = write(tmp_path / "in", {name: [region, cell, bare] for name in "ab"})
    with pytest.raises(UserError, match="has 2 annotations, 4 cells; say with --objects which are the objects"):
        convert_qupath(source, tmp_path / "out", test_share=0.5)
    cells = masks(convert_qupath(source, tmp_path / "cells", objects=["cell"], test_share=0.5))
    assert [mask.sum() for mask in cells["a"][0]] == [400, 100]
    nuclei = convert_qupath(source, tmp_path / "n", objects=["cell"], outline="nucleus", category="n", test_share=0.5)
    found = masks(nuclei)["b"]
    assert [mask.sum() for mask in found[0]] == [32] and found[1] == ["n"]  # a circle: 36 pi / 4 is 28
    assert "2 cells without a nucleus left out" in capsys.readouterr().err
    regions = masks(convert_qupath(source, tmp_path / "r", objects=["annotation"], test_share=0.5))
    assert regions["a"][1] == ["Region"]


def test_names_splits_and_what_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "test"):
        write(tmp_path / "in" / split, {"tile": [feature(polygon(box(4, 4, 9, 9)))]}, ".png.geojson")
    Image.new("RGB", (9, 9)).save(tmp_path / "in/train/other.png")
    dest = convert_qupath(tmp_path / "in", tmp_path / "out", categories=["Tumor=tumor"])
    assert open_split(dest, "test").category_names == ["tumor"]
    assert "left out: 1 image without a GeoJSON file" in capsys.readouterr().err
    (tmp_path / "in/train/lost.geojson").write_text("[]")
    with pytest.raises(UserError, match=r"without an image of the same name in .*: train/lost\.geojson"):
        convert_qupath(tmp_path / "in", tmp_path / "no")


@pytest.mark.parametrize("suffix", [".geojson.gz", ".png.geojson.gz", ".json.gz"])
def test_compressed_geojson(suffix: str, tmp_path: Path) -> None:
    for split in ("train", "test"):
        path = write(tmp_path / "in" / split, {"tile": [feature(polygon(box(4, 4, 9, 9)))]}, suffix) / f"tile{suffix}"
        path.write_bytes(gzip.compress(path.read_bytes()))
    dest = convert_qupath(tmp_path / "in", tmp_path / "out")
    assert masks(dest)["tile"][1] == ["Tumor"]


def test_patients_of_the_source_whose_images_are_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"t{number}" for number in range(6)]
    source = write(tmp_path / "in", {name: [feature(polygon(box(4, 4, 9, 9)))] for name in names})
    (tmp_path / "images").mkdir()
    for name in names:
        (source / f"{name}.png").rename(tmp_path / f"images/{name}.png")
    rows = [f"{name},P{number % 2}" for number, name in enumerate(names)]
    (source / "manifest.csv").write_text("\n".join(["file,patient", *rows]))
    convert_qupath(source, tmp_path / "out", images=tmp_path / "images", test_share=0.5, exclude=["t5*", "tt*"])
    out, err = capsys.readouterr()
    assert out.count(" of 1 patient,") == 2
    assert "images has no images that --exclude tt* matches" in err and "1 of 6 images are left out" in err
    (source / "manifest.csv").write_text("\n".join(["file,patient", "t0,7", "t1,007", *rows[2:]]))
    with pytest.raises(UserError, match="patients that differ in capitals, spaces or zeros: 007, 7; spell each"):
        convert_qupath(source, tmp_path / "no", images=tmp_path / "images", test_share=0.5)


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        ("train/a", "train"),
        ("Valid/a/b", "val"),
        ("test2017/a", "test"),
        ("training_2/train_a", "train"),
        ("test/train_b", "test"),
        ("site/my_test", "test"),
        ("validation_site_B/slide3", None),
        ("2021_test_scanner/slide1", None),
        ("test_project/train_and_val/slide1", None),
    ],
)
def test_words_of_folders_further_above_are_no_splits(folder: str, split: str | None) -> None:
    assert split_in_folders(Path("train", folder, "0.json"), Path("train")) == split


@pytest.mark.parametrize("folders", [("train", "a", "test", "b"), ("training_2", "train_a", "test", "train_b")])
def test_splits_of_folders_further_above(folders: tuple[str, ...], tmp_path: Path) -> None:
    for split, slide in (folders[:2], folders[2:]):
        write(tmp_path / "in" / split / slide, {f"x_{slide}": [feature(polygon(box(4, 4, 9, 9)))]})
    dest = convert_qupath(tmp_path / "in", tmp_path / "out")
    assert [path.name for path in open_split(dest, "test").paths()] == [f"x_{folders[3]}.png"]


def test_what_has_no_area_and_what_is_repeated_is_left_out(tmp_path: Path, capsys: Any) -> None:
    ring = polygon(box(4, 4, 9, 9))
    bare = [{"type": "LineString", "coordinates": [[1, 1], [2, 2]]}, None, None]
    collection = {"type": "GeometryCollection", "geometries": [ring]}
    content = [feature(geometry) for geometry in (ring, ring, *bare, collection)]
    content += [feature(ring, "Stroma"), feature(ring, " "), feature(ring)]
    content[-1]["properties"]["classification"] = {"names": [None, "Positive"]}
    found = masks(
        convert_qupath(write(tmp_path / "in", {"a": content, "b": content}), tmp_path / "out", test_share=0.5)
    )
    assert found["a"][1] == ["Tumor", "Stroma", "object", "Positive"]
    said = capsys.readouterr().err
    assert "left out: 2 points or lines, 4 objects without an outline, 2 GeometryCollections" in said
    assert "2 repeated objects left out" in said


def test_classes_that_qupath_ignores_are_left_out_unless_named(tmp_path: Path, capsys: Any) -> None:
    objects = [feature(polygon(box(5, 5, 8, 8)), name) for name in ("Ignore*", " Tumor ")]
    source = write(tmp_path / "in" / "train", {"a": objects}).parent
    write(source / "test", {"b": objects})
    assert masks(convert_qupath(source, tmp_path / "out"))["a"][1] == ["Tumor"]
    assert "left out: 2 Ignore*; QuPath ignores classes that end in *" in capsys.readouterr().err
    named = convert_qupath(source, tmp_path / "named", categories=["Ignore*=x"])
    assert sorted(open_split(named, "train").category_names) == ["Tumor", "x"]
    with pytest.raises(UserError, match=r"names 'Ignored\*', which no object has; did you mean Ignore\*\?"):
        convert_qupath(source, tmp_path / "no", categories=["Ignored*=x"])


def test_areas_to_leave_out_beside_cells_are_no_objects(tmp_path: Path) -> None:
    content = [feature(polygon(box(5, 5, 8, 8)), "Ignore*"), feature(polygon(box(20, 5, 8, 8)), "Tumor", "cell")]
    dest = convert_qupath(write(tmp_path / "in", {"a": content, "b": content}), tmp_path / "out", test_share=0.5)
    assert masks(dest)["a"][1] == ["Tumor"]


@pytest.mark.parametrize("listed", [False, True])
def test_names_are_distinct_where_folders_come_into_one_split(listed: bool, tmp_path: Path) -> None:
    for folder, names in (("train", "ab"), ("extra", "ac"), ("val", "v")):
        write(tmp_path / "in" / folder, {name: [feature(polygon(box(4, 4, 9, 9)))] for name in names})
    options: dict[str, Any] = {"test_share": 0.3}
    if listed:
        rows = [
            f"{path.relative_to(tmp_path / 'in')},{'test' if path.stem == 'b' else 'train'}"
            for path in tmp_path.rglob("*.png")
        ]
        (tmp_path / "table.csv").write_text("\n".join(["file,split", *rows]))
        options = {"splits": tmp_path / "table.csv"}
    dest = convert_qupath(tmp_path / "in", tmp_path / "out", **options)
    names = {str(path.relative_to(dest).with_suffix("")).partition("/")[2] for path in dest.rglob("*.png")}
    assert names == {"train/a", "train/b", "extra/a", "extra/c", "val/v" if listed else "v"}


def test_images_that_are_no_slides_need_no_mpp(tmp_path: Path) -> None:
    source = write(tmp_path / "in", {"a": [feature(polygon(box(4, 4, 9, 9)))]})
    with pytest.raises(UserError, match=r"images that are not slides: a\.geojson; leave out --mpp"):
        convert_qupath(source, tmp_path / "out", mpp=0.5)


@pytest.mark.parametrize("step", [1, 2])
def test_tiles_that_qupath_named_by_their_place(step: int, tmp_path: Path, capsys: Any) -> None:
    height, width = SIZE
    size = f"w={width * step},h={height * step}"
    tile, other = (f"s [{f'd={step},' * (step > 1)}x={x},y=2048,{size}]" for x in (1024, 0))
    ring = [[1024 + step * x, 2048 + step * y] for x, y in box(5, 6, 8, 9)]
    source = write(tmp_path / "in" / "train", {tile: [feature(polygon(ring))]}).parent
    write(source / "test", {other: [feature(polygon([[x - 1024, y] for x, y in ring]))]})
    found = masks(convert_qupath(source, tmp_path / "out"))
    for name in (tile, other):
        np.testing.assert_array_equal(found[name][0][0], whole(6, 5, np.ones((9, 8), bool)))
    assert "moved by x, y and d in the names" in capsys.readouterr().err


def test_outlines_that_the_names_of_tiles_do_not_explain_are_not_moved(tmp_path: Path, capsys: Any) -> None:
    name = f"s [x=10,y=0,w={SIZE[1]},h={SIZE[0]}]"
    source = write(tmp_path / "in" / "train", {name: [feature(polygon(box(1, 1, 8, 8)))]}).parent
    write(source / "test", {"b": [feature(polygon(box(1, 1, 8, 8)))]})
    found = masks(convert_qupath(source, tmp_path / "out"))
    assert found[name][0].sum() == 64 and "moved" not in capsys.readouterr().err


def test_faults_of_geojson_are_named(tmp_path: Path) -> None:
    outside = [feature(polygon(box(5000, 5000, 9, 9)))]
    for content, message in (
        ({"type": "Topology"}, "entry 0 is not a feature"),
        ("text", "is not GeoJSON with features"),
        (outside, "outlines that cover no pixel: a.geojson object 1"),
        ([feature(polygon([["x", 1], [2, 3], [4, 5]]))], "coordinates are not pairs of numbers: a.geojson object 1"),
        ([feature(polygon([[1, float("nan")], [2, 3], [4, 5]]))], "coordinates are not pairs of numbers"),
        ([feature({"type": "Polygon"})], "without coordinates"),
        ([], "has no object"),
    ):
        with pytest.raises(UserError, match=message) as error:
            convert_qupath(write(tmp_path / "in", {"a": content}), tmp_path / "out", test_share=0.5)
        assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_predictions_come_back_pixel_by_pixel(tmp_path: Path) -> None:
    """What ``predict`` writes is read as the same pixels: single pixels, diagonals, holes, parts, and borders."""
    rng = np.random.default_rng(0)
    noise = [rng.random(SIZE) < share for share in (0.02, 0.3, 0.6, 0.9)]
    found = tuple(FoundObject(1 + n % 2, 1.0, 0, 0, mask, (0, 0, 1, 1)) for n, mask in enumerate(noise))
    source = tmp_path / "predictions" / "geojson" / "deep"
    write(tmp_path / "images" / "deep", {name: [] for name in "ab"})
    source.mkdir(parents=True)
    for name in "ab":
        write_geojson(Prediction(found, SIZE, ("gland", "lumen")), source / f"{name}.geojson")
    dest = convert_qupath(tmp_path / "predictions", tmp_path / "out", images=tmp_path / "images", test_share=0.5)
    found_again = masks(dest)
    assert set(found_again) == {"a", "b"}
    for drawn, names in found_again.values():
        np.testing.assert_array_equal(drawn, noise)
        assert names == ["gland", "lumen"] * 2


def test_a_number_in_a_name_is_no_suffix(tmp_path: Path) -> None:
    """tile_0.5.geojson is not that of tile_0.png."""
    write(tmp_path / "in", {"tile_0": [feature(polygon(box(4, 4, 9, 9)))], "b": []})
    (tmp_path / "in/tile_0.geojson").rename(tmp_path / "in/tile_0.5.geojson")
    with pytest.raises(UserError, match=r"without an image of the same name in .*: tile_0\.5\.geojson"):
        convert_qupath(tmp_path / "in", tmp_path / "out", test_share=0.5)
    (tmp_path / "in/tile_0.png").rename(tmp_path / "in/tile_0.5.png")
    found = masks(convert_qupath(tmp_path / "in", tmp_path / "out", test_share=0.5))
    assert found["tile_0.5"][0].sum() == 81


def test_label_maps_of_predict_are_not_its_images(tmp_path: Path) -> None:
    (tmp_path / "P/labels").mkdir(parents=True)
    write(tmp_path / "P/geojson", {name: [feature(polygon(box(4, 4, 9, 9)))] for name in "ab"})
    for name in "ab":
        (tmp_path / f"P/geojson/{name}.png").rename(tmp_path / f"P/labels/{name}.png")
    (tmp_path / "P/config.yaml").write_text("# densepath 0.2\nscore: 0.5\n")
    with pytest.raises(UserError, match=r"without an image of the same name in .*; give the images with --images"):
        convert_qupath(tmp_path / "P", tmp_path / "out", test_share=0.5)
