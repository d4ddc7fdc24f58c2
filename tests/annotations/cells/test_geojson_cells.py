"""Which objects of GeoJSON are cells: marked ones, annotations of ``predict``, and the parts of CellViT's classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import densepath
from densepath.annotations.cells.cell_files import cell_path, read_cell_rows, read_cells
from densepath.annotations.cells.geojson_cells import PARTS, SCORED, read_geojson
from densepath.core.errors import UserError
from densepath.sources.tiles.identity import read_record, record_path
from densepath.transfer.detection.found import FoundObject
from densepath.transfer.detection.prediction import Prediction
from densepath.transfer.detection.prediction_files import write_geojson


def square(x: float, y: float, side: float = 4) -> list[list[list[float]]]:
    return [[[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]]


def feature(kind: str, coordinates: Any, name: str | None = None, **properties: Any) -> dict[str, Any]:
    properties |= {"classification": {"name": name}} if name else {}
    return {"type": "Feature", "geometry": {"type": kind, "coordinates": coordinates}, "properties": properties}


def written(path: Path, *features: dict[str, Any]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(list(features)))
    return path


def image(folder: Path, name: str) -> None:
    folder.mkdir(exist_ok=True)
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(folder / f"{name}.png")


def predicted(path: Path) -> Path:
    """GeoJSON as ``predict`` writes it for an image, with an annotation that was drawn besides."""
    path.parent.mkdir(exist_ok=True)
    places = ((20, 10), (30, 40))
    found = tuple(FoundObject(1, 0.9, y, x, np.ones((4, 6), bool), (x, y, x + 6, y + 4)) for x, y in places)
    write_geojson(Prediction(found, (64, 64), ("Tumor",)), path)
    content = json.loads(path.read_text())
    content["features"].append(feature("Polygon", square(0, 0, 60), objectType="annotation"))
    path.write_text(json.dumps(content))
    return path


def test_annotations_of_predict_are_cells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predicted(tmp_path / "p/a.geojson")
    for name in "ab":
        image(tmp_path / "images", name)
    written(tmp_path / "p/b.geojson", feature("Polygon", square(1, 1), measurements=[{"name": "score", "value": 1}]))
    asked: dict[str, Any] = {"data": tmp_path / "images", "source": "geojson", "points": tmp_path / "p", "workers": 0}
    densepath.cells(out=tmp_path / "C", **asked)
    said = capsys.readouterr().err
    assert f"2 images: {SCORED}: a, b\n" in said
    assert "a: 1 annotation with an area and without a score left out: not taken for cells\n" in said
    found = read_cells(cell_path(tmp_path / "C", "a"))
    assert found.points.tolist() == [[23, 12], [33, 42]] and found.class_names == ("Tumor",)
    assert [row["problem"] for row in read_cell_rows(tmp_path / "C")][1] == ""
    old = json.loads((tmp_path / "p/a.geojson").read_text())["features"]
    written(tmp_path / "p/a.geojson", *old, feature("Polygon", square(1, 1), objectType="detection"))
    assert read_geojson(tmp_path / "p/a.geojson").points.tolist() == [[3, 3]]  # beside a detection they are regions


def test_imports_without_a_cell_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image(tmp_path / "images", "a")
    image(tmp_path / "images", "b")
    written(tmp_path / "p/a.geojson", feature("Polygon", square(0, 0, 40), "Tissue", objectType="annotation"))
    written(tmp_path / "p/b.geojson")
    asked: dict[str, Any] = {"data": tmp_path / "images", "source": "geojson", "points": tmp_path / "p", "workers": 0}
    with pytest.raises(UserError, match=r"none of 2 images has cells.*no cells, only 1 annotation with an area; "):
        densepath.cells(out=tmp_path / "C", **asked)
    assert "densepath: b: its file has no cells\n" in capsys.readouterr().err
    written(tmp_path / "p/b.geojson", feature("Point", [1, 2]))
    assert densepath.cells(out=tmp_path / "C", **asked)["cells"] == 1


@pytest.mark.parametrize("kind", ["annotation", "detection"])
def test_parts_of_the_classes_of_cellvit_are_cells(kind: str, tmp_path: Path) -> None:
    """Classes with one, two near and four cells; points of ``cell_detection.geojson`` as they are."""
    corners = {"A": [(0, 0), (20, 0), (0, 20), (20, 20)], "B": [(40, 40), (44, 40)], "C": [(30, 9)]}
    cells = [feature("MultiPolygon", [square(*c) for c in own], name, objectType=kind) for name, own in corners.items()]
    cells[2] = feature("Polygon", square(30, 9), "C", objectType=kind)
    found = read_geojson(written(tmp_path / "cells.geojson", *cells))
    centers = [[x + 2, y + 2] for own in corners.values() for x, y in own]
    assert found.points.tolist() == centers and list(found.classes) == [*"AAAABBC"] and found.origins == (PARTS,)
    dots = [feature("MultiPoint", [[x + 2, y + 2] for x, y in own], name) for name, own in corners.items()]
    same = read_geojson(written(tmp_path / "cell_detection.geojson", *dots))
    assert same.points.tolist() == centers and list(same.classes) == [*"AAAABBC"]


def test_regions_of_several_parts_are_not_cells(tmp_path: Path) -> None:
    """Long parts, parts with holes, areas that QuPath ignores; and cells of two far parts are one cell each."""
    four = [square(x, y) for x in (0, 20) for y in (0, 20)]
    tissue = [square(x, y, 600) for x in (0, 3000) for y in (0, 3000)]
    holes = [[*square(x, y, 4), *square(x + 1, y + 1, 1)] for x in (0, 20) for y in (0, 20)]
    for parts, name in ((tissue, "Tissue"), (holes, "Tumor"), (four, "Region*"), (four[:2], None)):
        found = read_geojson(written(tmp_path / "a.geojson", feature("MultiPolygon", parts, name)))
        assert not len(found.points) and found.left_out == 1
    both = written(tmp_path / "b.geojson", feature("MultiPolygon", four[::3], objectType="detection"))
    assert read_geojson(both).points.tolist() == [[12, 12]]
    again = feature("Polygon", square(40, 40), "Tumor")  # two annotations of a class: not CellViT's
    found = read_geojson(written(tmp_path / "a.geojson", feature("MultiPolygon", four, "Tumor"), again))
    assert not len(found.points) and found.left_out == 2
    points = feature("MultiPoint", [[1, 2], [3, 4]], "Lymphocyte", objectType="annotation")
    found = read_geojson(written(tmp_path / "a.geojson", points, feature("MultiPolygon", four, "Tumor")))
    assert found.points.tolist() == [[1, 2], [3, 4]] and found.notes() == []


def test_a_file_without_a_cell_is_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image(tmp_path / "images", "a")
    points = written(tmp_path / "a.geojson")
    made = densepath.cells(data=tmp_path / "images", out=tmp_path / "C", source="geojson", points=points, workers=0)
    assert made["cells"] == 0 and "densepath: a: its file has no cells\n" in capsys.readouterr().err


def test_files_that_a_former_version_read_are_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image(tmp_path / "images", "a")
    points = predicted(tmp_path / "p/a.geojson")
    asked: dict[str, Any] = {"data": tmp_path / "images", "source": "geojson", "points": points, "workers": 0}
    densepath.cells(out=tmp_path / "C", **asked)
    former = read_record(tmp_path / "C", "a")
    assert former is not None
    former |= {"identity": former["identity"][:-1], "cells": 0}
    record_path(tmp_path / "C", "a").write_text(json.dumps(former))
    assert densepath.cells(out=tmp_path / "C", **asked)["cells"] == 2
    assert densepath.cells(out=tmp_path / "C", **asked)["cells"] == 2
    assert capsys.readouterr().err.count("1 image, 1 done before") == 1
