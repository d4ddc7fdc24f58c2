"""``densepath cells``: of tiles from the slide's finer levels, of images, and from files of other software."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import tifffile
from PIL import Image

import densepath
from densepath.annotations.cells import block_search, find, one_area
from densepath.annotations.cells.areas import ImageArea, read_at, samples, squares
from densepath.annotations.cells.block_search import search
from densepath.annotations.cells.cell_files import cell_path, read_cell_rows, read_cells
from densepath.annotations.cells.cell_points import CellPoints
from densepath.annotations.cells.finders import Blobs, Found, digest_of_weights
from densepath.annotations.cells.imported import PointsFile
from densepath.annotations.cells.points_files import read_points, read_tables
from densepath.core.errors import UserError
from densepath.sources.corrupt import CorruptImage
from densepath.sources.decode import read_image
from densepath.sources.open import find_source
from densepath.sources.slides.slide import Region
from densepath.sources.tiles import per_slide
from densepath.sources.tiles.tile_files import SLIDES, SlideTiling, tiling_folder, tiling_path, write_tiling
from densepath.transfer.detection.found import FoundObject
from densepath.transfer.detection.prediction_files import Grid, row_of

PINK, PURPLE = (225, 170, 200), (95, 60, 140)


def paint(pixels: np.ndarray, mpp: float, dots: np.ndarray) -> None:
    """Round nuclei of 3 µm around dots (N, 2) x, y in µm."""
    for x, y in dots:
        low = max(0, int((x - 4) / mpp)), max(0, int((y - 4) / mpp))
        part = pixels[low[1] : int((y + 4) / mpp) + 1, low[0] : int((x + 4) / mpp) + 1]
        rows, columns = (np.arange(n) * mpp + mpp / 2 for n in part.shape[:2])
        part[np.hypot(columns + low[0] * mpp - x, (rows + low[1] * mpp - y)[:, None]) < 3] = PURPLE


def painted(path: Path, side: int, mpp: float, dots: np.ndarray) -> Path:
    """A slide or an image of stained tissue."""
    pixels = np.empty((side, side, 3), np.uint8)
    pixels[:] = PINK
    paint(pixels, mpp, dots)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix != ".tif":
        Image.fromarray(pixels).save(path)
        return path
    options = {"tile": (128, 128), "compression": "zlib", "photometric": "rgb", "metadata": None}
    tifffile.imwrite(path, pixels, **options)
    return path


def tile_folder(out: Path, tilings: list[SlideTiling]) -> Path:
    """A folder as ``densepath tile`` writes it."""
    first = tilings[0]
    place = tiling_folder(first.mpp, first.size, 0)
    for tiling in tilings:
        write_tiling(tiling_path(out / place, tiling.name), tiling)
    (out / "config.yaml").write_text("# densepath 1\n")
    rows = [f"{t.name},{t.path},{len(t)}\n" for t in tilings]
    (out / SLIDES).write_text("slide,path,tiles\n" + "".join(rows))
    return out


def dots_of(seed: int, side: float) -> np.ndarray:
    grid = np.stack(np.meshgrid(np.arange(8, side - 8, 14.0), np.arange(8, side - 8, 14.0)), -1).reshape(-1, 2)
    dots = grid + np.random.default_rng(seed).uniform(-3, 3, grid.shape)
    return dots[np.abs(dots[:, 0] - 128) > 1]  # none on the border of the tiles


@pytest.fixture
def slides(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """Tiles of 32 px at 2 µm/px, of slides of 0.5 and 0.4 µm/px; the left half of each slide has tiles."""
    tilings, dots = [], {}
    for number, (name, mpp) in enumerate((("a", 0.5), ("b", 0.4))):
        dots[name] = dots_of(number, 256)
        side = round(256 / mpp)
        path = painted(tmp_path / f"{name}.tif", side, mpp, dots[name])
        corners = np.array([[x, y] for y in range(0, side, side // 4) for x in (0, side // 4)])
        tilings.append(SlideTiling(name, str(path), corners, 2.0, 32, (mpp, mpp), (side, side)))
    return tile_folder(tmp_path / "T", tilings), dots


def test_cells_of_coarse_tiles_come_from_the_finer_levels_and_each_counts_once(
    slides: tuple[Path, dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder, dots = slides
    monkeypatch.setattr(block_search, "_BLOCK", 96)  # blocks of 48 µm: many borders
    made = densepath.cells(data=folder, out=tmp_path / "C", workers=0)
    for row, mpp in zip(read_cell_rows(tmp_path / "C"), (0.5, 0.4), strict=True):
        true = dots[row["slide"]][dots[row["slide"]][:, 0] < 128]  # those in tiles
        found = read_cells(cell_path(tmp_path / "C", row["slide"])).points * mpp
        apart = np.linalg.norm(found[:, None] - true[None], axis=2)
        assert len(found) == len(true) == int(row["cells"]) and apart.min(axis=0).max() < 0.5
    points = CellPoints(find_source(folder), tmp_path / "C")
    assert sum(len(points.of(k)) for k in range(len(points))) == points.count == made["cells"]


def test_it_continues_with_what_is_missing_and_says_what_failed(
    slides: tuple[Path, dict[str, np.ndarray]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, _ = slides
    broken = tmp_path / "b.tif"
    broken.write_bytes(broken.read_bytes()[:1000])
    densepath.cells(data=folder, out=tmp_path / "C", workers=2)
    said = capfd.readouterr().err
    assert said.count("densepath: b: ") == 1 and "no cells of 1 slide that failed: b" in said
    rows = {row["slide"]: row for row in read_cell_rows(tmp_path / "C")}
    assert rows["b"]["problem"] and rows["b"]["cells"] == "" and int(rows["a"]["cells"]) > 50
    before = cell_path(tmp_path / "C", "a").stat().st_mtime_ns
    painted(broken, 640, 0.4, dots_of(1, 256))
    densepath.cells(data=folder, out=tmp_path / "C", workers=0)
    assert "2 slides, 1 done before" in capfd.readouterr().err
    assert cell_path(tmp_path / "C", "a").stat().st_mtime_ns == before
    assert all(not row["problem"] for row in read_cell_rows(tmp_path / "C"))
    with pytest.raises(UserError, match="was made with other values of source"):
        densepath.cells(data=folder, out=tmp_path / "C", source="csv", points=tmp_path, workers=0)


def test_cells_of_qupath_on_slides_with_an_empty_border_are_reported(
    slides: tuple[Path, dict[str, np.ndarray]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are not moved: QuPath may show the border, and ``predict`` counts from the corner of level 0."""
    folder, _ = slides
    (folder / "records").mkdir()
    (folder / "records/a.json").write_text(json.dumps({"slide": "a", "identity": [], "scan_corner": [10, 20]}))
    points = [{"type": "Feature", "geometry": {"type": "Point", "coordinates": [x, 40]}} for x in (30, 50)]
    (tmp_path / "P").mkdir()
    for name in "ab":
        (tmp_path / f"P/{name}.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": points}))
    densepath.cells(data=folder, out=tmp_path / "C", source="geojson", points=tmp_path / "P", workers=0)
    assert "the empty border of 1 slide (a begins at x 10, y 20 of level 0)" in capsys.readouterr().err
    assert read_cells(cell_path(tmp_path / "C", "a")).points.tolist() == [[30, 40], [50, 40]]


def test_four_commands_of_which_two_are_killed_do_each_image_once(
    tmp_path: Path, four_processes: Callable[..., list[str]]
) -> None:
    names = [f"s{number}" for number in range(6)]
    for number, name in enumerate(names):
        painted(tmp_path / "images" / f"{name}.png", 128, 0.5, dots_of(number, 64))
    given: dict[str, Any] = {"data": tmp_path / "images", "default_mpp": 0.5, "workers": 0}
    done = four_processes(
        lambda: densepath.cells(out=tmp_path / "C", **given),
        begins=(one_area.Job, "find", lambda job, name, row: name),
        ends=(per_slide, "write_record", lambda out, row, identity: row["slide"]),
    )
    assert sorted(done) == names and not list((tmp_path / "C").rglob("*.part"))
    densepath.cells(out=tmp_path / "D", **given)
    for name in names:
        one, other = (read_cells(cell_path(tmp_path / out, name)) for out in "CD")
        np.testing.assert_array_equal(one.points, other.points)
        assert len(one.points) > 5
    rows = [[row | {"path": ""} for row in read_cell_rows(tmp_path / out)] for out in "CD"]
    assert rows[0] == rows[1] and len(rows[0]) == 6


def test_cells_of_a_slide_go_when_tile_has_removed_it(
    slides: tuple[Path, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    """Not while the folder of tiles keeps its record: then it may only be on its way to another place."""
    folder, _ = slides
    densepath.cells(data=folder, out=tmp_path / "C", workers=0)
    (tmp_path / "b.tif").unlink()
    table = (folder / SLIDES).read_text()
    (folder / SLIDES).write_text(table[: table.index("b,")])
    record = folder / "records" / "b.json"
    record.parent.mkdir()
    record.write_text('{"slide": "b", "identity": []}')
    for kept in (True, False):
        densepath.cells(data=folder, out=tmp_path / "C", workers=0)
        assert cell_path(tmp_path / "C", "b").exists() == kept
        record.unlink(missing_ok=True)


def test_cells_of_slides_on_a_disk_that_is_not_mounted_stay(
    slides: tuple[Path, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    folder, _ = slides

    def found() -> tuple[dict[str, int], list[bytes]]:
        counts = dict(densepath.cells(data=folder, out=tmp_path / "C", workers=0))
        return counts, [path.read_bytes() for path in sorted((tmp_path / "C" / "cells").iterdir())]

    before = found()
    for name in "ab":
        (tmp_path / f"{name}.tif").rename(tmp_path / f"{name}.elsewhere")
    assert found() == before and len(before[1]) == 2


def test_what_may_pass_is_tried_again(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def failing(path: str) -> np.ndarray:
        if path.endswith("b.png"):
            raise OSError(5, "Input/output error")
        return read_image(path)

    monkeypatch.setattr(one_area, "read_image", failing)
    densepath.cells(data=images, out=tmp_path / "C", default_mpp=0.5, workers=0)
    assert "b: [Errno 5] Input/output error" in capfd.readouterr().err
    monkeypatch.undo()
    made = densepath.cells(data=images, out=tmp_path / "C", default_mpp=0.5, workers=0)
    assert "2 images, 1 done before" in capfd.readouterr().err and made["problems"] == 0 and made["cells"] == 2


def test_other_weights_are_other_work(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_area, "build_finder", lambda *_: Blobs())
    monkeypatch.setattr(find, "check_finder", lambda *_: None)
    for name, content in (("a", b"1"), ("copy", b"1"), ("b", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "w").write_bytes(content)
    options = {"data": images, "out": tmp_path / "C", "source": "cellpose", "default_mpp": 0.5}
    for same in ("a/w", "copy/w"):
        densepath.cells(**options, weights=tmp_path / same)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="was made with other values of weights_sha256"):
        densepath.cells(**options, weights=tmp_path / "b/w")  # type: ignore[arg-type]
    assert (
        digest_of_weights(tmp_path / "a") == digest_of_weights(tmp_path / "copy") != digest_of_weights(tmp_path / "b")
    )


def test_a_table_that_was_edited_is_read_again(images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    table, options = tmp_path / "p.csv", {"data": images, "out": tmp_path / "C", "source": "csv", "workers": 0}
    for more, done in (("", 0), ("b,5,6,t\n", 1), ("b,5,6,u\n", 1)):
        table.write_text(f"slide,x,y,class\ns/a,1,2,t\nb,3,4,t\nc,1,1,t\n{more}")
        made = densepath.cells(points=table, **options)  # type: ignore[arg-type]
        said = capfd.readouterr().err
        assert f"2 images, {done} done before" in said and made["cells"] == 2 + bool(more)
        assert "--points has cells of 1 other image: c\n" in said
    assert read_cells(cell_path(tmp_path / "C", "b")).class_names == ("t", "u")


def test_large_files_are_read_by_few_processes(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    share = per_slide.share_work

    def work(*given: Any, workers: int, **others: Any) -> None:
        seen.append(workers)
        share(*given, workers=0, **others)

    monkeypatch.setattr(per_slide, "share_work", work)
    monkeypatch.setattr(find, "usable_cores", lambda: 8)
    (tmp_path / "p").mkdir()
    for name in ("a", "b"):
        (tmp_path / f"p/{name}.csv").write_text("x,y\n" + "1,2\n" * 249)  # 1000 bytes
    for room in (10**9, 90_000, 1):
        monkeypatch.setattr(find, "available_memory", lambda room=room: room)
        densepath.cells(data=images, out=tmp_path / f"C{room}", source="csv", points=tmp_path / "p")
    assert seen == [8, 3, 1]


def test_a_part_of_an_image_is_as_of_the_whole_and_reads_little_more() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    area = ImageArea(pixels, (0.4, 0.5))

    class Whole(ImageArea):
        def read_um(self, box, mpp):  # type: ignore[no-untyped-def]
            return Region(self.pixels, (0.0, 0.0), self.spacing)

    for box in ((0.0, 0.0, 120.0, 200.0), (8.0, 50.0, 32.0, 24.0), (110.0, 190.0, 10.0, 10.0)):
        for mpp in (0.25, 0.5, 1.0):
            part, whole = read_at(area, box, mpp)[0], read_at(Whole(pixels, area.spacing), box, mpp)[0]
            assert part.shape == whole.shape and np.abs(part.astype(int) - whole).max() <= 1
    assert area.read_um((8.0, 50.0, 32.0, 24.0), 0.5).pixels.shape[0] <= 80 + 10


def test_the_stain_of_a_slide_does_not_depend_on_the_order_of_its_tiles() -> None:
    """Files of other software have them in any order; there are more tiles than are looked at."""
    rng = np.random.default_rng(0)
    area = ImageArea(rng.integers(0, 256, (64, 64, 3), np.uint8), (1.0, 1.0))
    tiles = squares(64.0, 64.0, 8.0)
    np.testing.assert_array_equal(*(list(samples(area, boxes, 1.0)) for boxes in (tiles, rng.permutation(tiles))))


def test_damaged_parts_cost_only_themselves() -> None:
    class Damaged(ImageArea):
        def read_um(self, box, mpp):  # type: ignore[no-untyped-def]
            if box[0] < 70 < box[0] + box[2] and box[1] < 70 < box[1] + box[3]:
                raise CorruptImage("x", "a tile is damaged") from cause
            return super().read_um(box, mpp)

    cause: Exception | None = None
    dots = np.array([[x, y] for x in (20.0, 200, 400, 480) for y in (20.0, 200, 400, 480)])
    pixels = np.full((1024, 1024, 3), PINK, np.uint8)
    paint(pixels, 0.5, dots)
    found = search(Damaged(pixels, (0.5, 0.5)), None, Blobs())
    assert 0 < found.lost < 0.25 and found.error == "a tile is damaged"
    apart = np.linalg.norm(found.points[:, None] - dots[None], axis=2)
    assert len(found.points) >= 15 and apart.min(axis=1).max() < 1
    cause = OSError(5, "Input/output error")
    with pytest.raises(CorruptImage, match="a tile is damaged"):  # cells of the rest would look complete
        search(Damaged(pixels[:400, :400], (0.5, 0.5)), None, Blobs())
    with pytest.raises(CorruptImage, match="a tile is damaged"):
        list(samples(Damaged(pixels[:400, :400], (0.5, 0.5)), None, 0.5))

    class Everywhere(ImageArea):
        def read_um(self, box, mpp):  # type: ignore[no-untyped-def]
            raise CorruptImage("x", "gone")

    with pytest.raises(CorruptImage, match="gone"):
        search(Everywhere(pixels, (0.5, 0.5)), None, Blobs())


def test_a_cell_on_the_border_of_blocks_is_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A finder that is off by a little, differently in each block, as networks are."""
    monkeypatch.setattr(block_search, "_BLOCK", 64)

    class Shifting:
        mpp, reach, seen = 1.0, 10.0, 0

        def prepare(self, parts):  # type: ignore[no-untyped-def]
            return self

        def __call__(self, pixels):  # type: ignore[no-untyped-def]
            self.seen += 1
            y, x = np.nonzero(pixels[..., 0] == 0)
            return Found(np.stack([x, y], 1) + 0.5 + 0.3 * (-1) ** self.seen, ["t"] * len(x), np.ones(len(x)))

    pixels = np.full((256, 256, 3), 255, np.uint8)
    dots = np.array([[63, 10], [64, 100], [127, 128], [128, 63], [5, 5], [255, 255]])
    pixels[dots[:, 1], dots[:, 0]] = 0
    found = search(ImageArea(pixels, (1.0, 1.0)), None, Shifting())
    assert len(found.points) == len(dots) == len(found.classes) and found.scores is not None
    assert np.linalg.norm(found.points[:, None] - dots - 0.5, axis=2).min(axis=0).max() < 0.5


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("s/a", "b"):
        painted(tmp_path / "images" / f"{name}.png", 64, 0.5, np.array([[10.0, 12.0]]))
    return tmp_path / "images"


def test_importers_place_cells_in_pixels_of_level_0(images: Path, tmp_path: Path) -> None:
    box = [[[10, 20], [14, 20], [14, 24], [10, 24], [10, 20]]]
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": box},
            "properties": {"objectType": "detection"},
        },
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [60, 0], [60, 60], [0, 0]]]},
            "nucleusGeometry": {"type": "Polygon", "coordinates": [[[30, 30], [36, 30], [30, 36], [30, 30]]]},
            "properties": {"objectType": "cell", "classification": {"name": "Tumor"}},
        },
        {"type": "Feature", "geometry": {"type": "MultiPoint", "coordinates": [[1, 2], [3, 4]]}, "properties": {}},
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": box},
            "properties": {"objectType": "annotation"},
        },
    ]
    files = tmp_path / "points"
    (files / "s").mkdir(parents=True)
    with gzip.open(files / "s/a.geojson.gz", "wt") as file:
        json.dump({"type": "FeatureCollection", "features": features}, file)
    (files / "b.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features[:1]}))
    densepath.cells(data=images, out=tmp_path / "C1", source="geojson", points=files, workers=0)
    found = read_cells(cell_path(tmp_path / "C1", "s/a"))
    assert found.points.tolist() == [[1, 2], [3, 4], [12, 22], [32, 32]] and found.extent == (64, 64)
    assert [found.class_names[k] for k in found.classes] == ["unclassified"] * 3 + ["Tumor"]
    assert read_cells(cell_path(tmp_path / "C1", "b")).class_names == ("cell",)

    nuclei = {"1": {"centroid": [10, 20], "type": 2}, "2": {"centroid": [30.5, 1.0], "type": 0}}
    table = {"s/a": {"mag": 40, "nuc": nuclei}, "b": nuclei}
    for name, content in table.items():
        (files / f"{name}.json").write_text(json.dumps(content))
    densepath.cells(data=images, out=tmp_path / "C2", source="hovernet", points=files, default_mpp=0.5, workers=0)
    found = read_cells(cell_path(tmp_path / "C2", "s/a"))  # 40x is 0.25 µm/px: half of the pixels at 0.5
    assert found.points.tolist() == [[15.5, 0.75], [5.25, 10.25]] and found.class_names == ("type 0", "type 2")
    assert read_cells(cell_path(tmp_path / "C2", "b")).points.tolist() == [[31, 1.5], [10.5, 20.5]]

    (tmp_path / "all.csv").write_text("Slide,X_um,Y_um,Class\ns/a,5,10,t\nb.png,1,2,\nother,1,1,t\n")
    densepath.cells(
        data=images, out=tmp_path / "C3", source="csv", points=tmp_path / "all.csv", default_mpp=0.5, workers=0
    )
    assert read_cells(cell_path(tmp_path / "C3", "s/a")).points.tolist() == [[10, 20]]
    assert read_cells(cell_path(tmp_path / "C3", "b")).points.tolist() == [[2, 4]]

    for unit, where in ((40.0, "counted in pixels at 40x"), ("um", "in µm")):
        with pytest.raises(UserError, match=f"its points are {where}, and its µm per pixel are unknown"):
            PointsFile(np.zeros((1, 2)), [None], unit).in_pixels(None)


def test_um_per_pixel_that_points_need_are_given_in_the_same_folder(images: Path, tmp_path: Path) -> None:
    points = tmp_path / "all.csv"
    points.write_text("slide,x_um,y_um\ns/a,5,10\nb.png,1,2\n")
    given: dict[str, Any] = {"data": images, "out": tmp_path / "C", "source": "csv", "points": points, "workers": 0}
    with pytest.raises(UserError, match="its points are in µm, and its µm per pixel are unknown; give --default_mpp"):
        densepath.cells(**given)
    densepath.cells(**given, default_mpp=0.5)
    for other in (0.25, None):
        with pytest.raises(UserError, match="was made with other values of default_mpp"):
            densepath.cells(**given, default_mpp=other)
    assert read_cells(cell_path(tmp_path / "C", "s/a")).points.tolist() == [[10, 20]]
    assert {row["mpp"] for row in read_cell_rows(tmp_path / "C")} == {"0.5"}
    densepath.cells(data=images, out=tmp_path / "found", default_mpp=0.5, workers=0)
    with pytest.raises(UserError, match="was made with other values of default_mpp"):
        densepath.cells(data=images, out=tmp_path / "found", default_mpp=0.25, workers=0)


def test_um_per_pixel_that_are_given_later_change_the_record_only_if_the_command_is_not_refused(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points, out = tmp_path / "all.csv", tmp_path / "C"
    points.write_text("slide,x,y\ns/a,5,10\nb.png,1,2\nother,1,2\n")
    painted(tmp_path / "others/other.png", 64, 0.5, np.array([[10.0, 12.0]]))
    given: dict[str, Any] = {"out": out, "source": "csv", "points": points, "workers": 0}
    densepath.cells(**given, data=images)
    begun = (out / "config.yaml").read_bytes()
    with pytest.raises(UserError, match="holds results of other slides"):
        densepath.cells(**given, data=tmp_path / "others", default_mpp=0.5)
    with monkeypatch.context() as patch, pytest.raises(UserError, match="another process"):
        patch.setattr(per_slide, "same_input", MagicMock(side_effect=UserError("another process")))
        densepath.cells(**given, data=images, default_mpp=0.5)
    assert (out / "config.yaml").read_bytes() == begun
    stamps = {path: path.stat().st_mtime_ns for path in (out / "records").rglob("*.json")}
    densepath.cells(**given, data=images, default_mpp=0.5)
    assert "default_mpp: 0.5\n" in (out / "config.yaml").read_text()
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps  # points in pixels are not imported again
    assert {row["mpp"] for row in read_cell_rows(out)} == {"0.5"}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_tables_as_spreadsheets_write_them(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("x;y;class\r\n1,5;20;a, b\r\n", encoding=encoding, newline="")
    found = read_points(tmp_path / "t.csv", "csv")
    assert found.points.tolist() == [[1.5, 20]] and list(found.classes) == ["a, b"]


def test_rows_of_other_lengths_than_the_header_are_refused(tmp_path: Path) -> None:
    for row, message in (
        ("3,4,t,u", "line 3 of .* has 4 fields, its header 3; quote"),
        ("3,4", "line 3 of .* fewer fields than"),
    ):
        (tmp_path / "t.csv").write_text(f"x,y,class\n1,20,t,,\n{row}\n")
        with pytest.raises(UserError, match=message):
            read_points(tmp_path / "t.csv", "csv")
    (tmp_path / "t.csv").write_text("x,y,class\n1,20,t,,\n")
    assert read_points(tmp_path / "t.csv", "csv").points.tolist() == [[1, 20]]


def test_classes_in_another_encoding_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"x,y,class\n1,20,Dr\xfcse\n")
    with pytest.raises(UserError, match=r"t\.csv is not UTF-8 \(Dr"):
        read_points(tmp_path / "t.csv", "csv")


def test_magnifications_and_coordinates_that_are_not_numbers(tmp_path: Path) -> None:
    nuclei = {"1": {"centroid": [10, 20], "type": 1}}
    path = tmp_path / "a.json"
    for mag, unit in ((40, 40.0), ("20x", 20.0), (None, "px")):
        path.write_text(json.dumps({"mag": mag, "nuc": nuclei}))
        assert read_points(path, "hovernet").unit == unit
    for mag in ("large", -20, float("nan"), [40]):
        path.write_text(json.dumps({"mag": mag, "nuc": nuclei}))
        with pytest.raises(UserError, match=r"has the magnification .* which is not a number such as 40"):
            read_points(path, "hovernet")
    for source, content in (
        ("hovernet", {"1": {"centroid": [float("nan"), 20]}}),
        ("geojson", [{"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, float("inf")]}}]),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match="cells whose coordinates are NaN or Inf"):
            read_points(path, source)


def test_types_of_nuclei_are_numbers_of_any_kind_or_texts(tmp_path: Path) -> None:
    kinds = [1, 2.0, 1.5, float("nan"), float("inf"), "tumor", None]
    nuclei = {str(number): {"centroid": [number, 1], "type": kind} for number, kind in enumerate(kinds)}
    (tmp_path / "a.json").write_text(json.dumps({"nuc": nuclei}))
    names = ["type 1", "type 2", "type 1.5", "type nan", "type inf", "tumor", None]
    assert read_points(tmp_path / "a.json", "hovernet").classes == names


@pytest.mark.parametrize("type_map", [{"Background": 0, "Neoplastic": 1}, {"0": "Background", "1": "Neoplastic"}])
def test_json_of_cellvit_has_the_names_of_its_types(type_map: dict[str, Any], tmp_path: Path) -> None:
    cells = [{"centroid": [1, 2], "type": 1}, {"centroid": [7, 5], "type": 4}]
    content = {"wsi_metadata": {}, "type_map": type_map, "cells": cells}
    (tmp_path / "cells.json").write_text(json.dumps(content))
    found = read_points(tmp_path / "cells.json", "hovernet")
    assert found.points.tolist() == [[1.5, 2.5], [7.5, 5.5]] and found.unit == "px"
    assert found.classes == ["Neoplastic", "type 4"]


def test_a_row_of_a_table_is_of_one_image(images: Path, tmp_path: Path) -> None:
    """Images s/a and a: the name "a" is that of the second; c is that of two."""
    for name in ("a.png", "s/c.png", "t/c.png"):
        (images / name).parent.mkdir(exist_ok=True)
        shutil.copy(images / "b.png", images / name)
    table = tmp_path / "all.csv"
    asked: dict[str, Any] = {"data": images, "source": "csv", "points": tmp_path / "all.csv", "workers": 0}
    table.write_text("slide,x,y\na,5,10\nt/c,1,2\n")
    densepath.cells(out=tmp_path / "C", **asked)
    rows = {row["slide"]: row["cells"] for row in read_cell_rows(tmp_path / "C")}
    assert rows == {"a": "1", "b": "", "s/a": "", "s/c": "", "t/c": "1"}
    table.write_text("slide,x,y\na,5,10\nc,1,2\n")
    with pytest.raises(UserError, match="names that several slides or images have: c; write their folders"):
        densepath.cells(out=tmp_path / "D", **asked)


def test_rows_without_a_slide_are_refused_beside_others(images: Path, tmp_path: Path) -> None:
    (images / "b.png").unlink()  # also where there is one image only
    table = tmp_path / "all.csv"
    table.write_text("slide,x,y\na,5,10\nb,1,2\n,1,2\n")
    with pytest.raises(UserError, match=r"all\.csv: 1 row names no slide, the others do; fill in the column"):
        densepath.cells(data=images, source="csv", points=table, workers=0, out=tmp_path / "C")


def test_tables_of_boxes_have_their_centers_or_are_refused(tmp_path: Path) -> None:
    """The table of ``predict``, and of other detectors: x, y are corners there."""
    path, box = tmp_path / "objects.csv", FoundObject(1, 0.9, 10, 20, np.ones((4, 6), bool), (20, 10, 26, 14))
    for spacing, heads in ((None, "centroid_x,centroid_y"), ((0.5, 0.5), "centroid_x_um,centroid_y_um")):
        row = row_of(box, "a", 1, ["t"], Grid(spacing=spacing))
        path.write_text("\n".join(",".join(map(str, line)) for line in (row, row.values())))
        ((name, found),) = read_tables(path)
        assert name == "a" and found.unit == "px" and found.points.tolist() == [[23, 12]] and found.classes == ["t"]
        path.write_text(f"x,y,width,height,{heads}\n1,2,9,9,3,4\n")
        assert read_points(path, "csv").points.tolist() == [[3, 4]]
        assert read_points(path, "csv").unit == ("um" if spacing else "px")
    path.write_text("centroid_x;centroid_y\n1,5;2\n")
    assert read_points(path, "csv").points.tolist() == [[1.5, 2]]
    for heads in ("x,y,Width,Height", "w,h,x,y", "x_um,y_um,x1,y1", "x,y,xmin,ymin"):
        path.write_text(f"{heads}\n1,2,3,4\n")
        with pytest.raises(
            UserError, match=r"has boxes \(columns .* are corners, not centers of cells; add the columns"
        ):
            read_points(path, "csv")


def test_tables_name_images_by_their_paths(images: Path, tmp_path: Path) -> None:
    """Also with the suffix, and with the separators of Windows."""
    for name in ("s/b.png", "t/b.png"):
        (images / name).parent.mkdir(exist_ok=True)
        shutil.copy(images / "b.png", images / name)
    table = tmp_path / "all.csv"
    table.write_text("slide,x,y\ns/b.png,5,10\nt\\b.png,1,2\ns\\a,3,4\nb.png,6,7\n")
    densepath.cells(data=images, source="csv", points=table, workers=0, out=tmp_path / "C")
    found = {
        row["slide"]: read_cells(cell_path(tmp_path / "C", row["slide"])) for row in read_cell_rows(tmp_path / "C")
    }
    assert {name: cells.points.tolist() for name, cells in found.items()} == {
        "b": [[6, 7]],
        "s/a": [[3, 4]],
        "s/b": [[5, 10]],
        "t/b": [[1, 2]],
    }


def test_parquet_points(images: Path, tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "p").mkdir()
    for name in ("a", "b"):
        pq.write_table(pa.table({"x": [1.5], "y": [2.0], "class": ["t"]}), tmp_path / "p" / f"{name}.parquet")
    densepath.cells(data=images, out=tmp_path / "C", source="csv", points=tmp_path / "p", workers=0)
    assert read_cells(cell_path(tmp_path / "C", "b")).points.tolist() == [[1.5, 2]]
    pq.write_table(pa.table({"x": [1.5, 3], "y": [2.0, 3], "slide": ["a", None]}), tmp_path / "all.parquet")
    with pytest.raises(UserError, match="1 row names no slide"):
        densepath.cells(data=images, out=tmp_path / "D", source="csv", points=tmp_path / "all.parquet", workers=0)


def test_cells_of_another_slide_and_outside_of_tiles_are_counted(
    slides: tuple[Path, dict[str, np.ndarray]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = slides
    (tmp_path / "p").mkdir()
    (tmp_path / "p/a.csv").write_text("x,y\n100,100\n400,100\n600,100\n")
    (tmp_path / "p/b.csv").write_text("x,y\n9000,100\n9000,200\n1,1\n")
    (tmp_path / "p/c.csv").write_text("x,y\n1,1\n")
    densepath.cells(data=folder, out=tmp_path / "C", source="csv", points=tmp_path / "p", workers=0)
    said = capsys.readouterr().err
    assert "a: 1 of 3 cells lie outside of it and are left out; 1 of 2 cells lie outside of all tiles" in said
    assert "b: 2 of its 3 cells lie outside of its 640 x 640 px; are they of another slide" in said
    assert "1 file of cells of no slide: c.csv" in said
    (tmp_path / "p/b.csv").write_text("x,y\n")
    densepath.cells(data=folder, out=tmp_path / "D", source="csv", points=tmp_path / "p", workers=0)
    assert "b: its file has no cells" in capsys.readouterr().err
    assert read_cells(cell_path(tmp_path / "C", "a")).points.tolist() == [[100, 100], [400, 100]]
    rows = {row["slide"]: row["cells"] for row in read_cell_rows(tmp_path / "C")}
    assert rows == {"a": "2", "b": ""}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give the µm per pixel of the images: --default_mpp"),
        ({"source": "csv"}, "csv imports cells; give the files with --points"),
        ({"points": "x"}, "blobs finds cells in pixels, so that --points has no use"),
        ({"source": "cellpose"}, "cellpose needs its weights; give the path with --weights, nothing is downloaded"),
        ({"source": "stardist", "weights": "x"}, "there are no weights at x"),
        ({"weights": "x"}, "blobs has no weights"),
        ({"source": "csv", "points": "missing.csv"}, "there is no file or folder missing.csv"),
        ({"source": "csv", "points": "one.csv"}, "one.csv is one file, and there are 2; give a folder"),
        ({"source": "csv", "points": "bad.csv"}, r"bad.csv has the columns a, b; name them x, y"),
        ({"source": "csv", "points": "words.csv"}, "words.csv has coordinates that are not numbers"),
        ({"source": "csv", "points": "joined.csv"}, "joined.csv has coordinates that are not numbers .*'1_0'"),
        ({"source": "csv", "points": "twice.csv"}, "twice.csv has two columns: x; rename one"),
        ({"source": "geojson", "points": "one.csv"}, "one.csv is not a file of geojson"),
        ({"default_mpp": 0.0}, "default_mpp is 0.0"),
        ({"default_mpp": 0.5, "workers": -1}, "workers is -1"),
        ({"default_mpp": 0.5, "workers": 10**21}, "workers is 10*; give a number of processes up to 1,024"),
    ],
)
def test_wrong_options_are_named(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("one.csv").write_text("x,y\n1,1\n")
    Path("bad.csv").write_text("a,b\n1,1\n")
    Path("words.csv").write_text("x,y,slide\nleft,1,b\n")
    Path("joined.csv").write_text("x,y,slide\n1_0,1,b\n")
    Path("twice.csv").write_text("x,y,slide,X\n1,1,b,2\n")
    with pytest.raises(UserError, match=message):
        densepath.cells(data=images, out=tmp_path / "C", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "C").exists()
