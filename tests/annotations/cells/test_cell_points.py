"""Cells in files become points of images and of tiles: padded, counted, and where the pixels are in every view."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from densepath.annotations.cells import cell_points
from densepath.annotations.cells.cell_files import (
    Cells,
    cell_path,
    read_cell_rows,
    read_cells,
    write_cell_rows,
    write_cells,
)
from densepath.annotations.cells.cell_points import CellPoints
from densepath.core.affine import identity, warp_points
from densepath.core.errors import UserError
from densepath.core.regions import Regions, point_counts
from densepath.sources.image_files import ImageFiles
from densepath.sources.loader import ImageBatches
from densepath.sources.pixel_source import PixelSpec
from densepath.sources.tiles.identity import identity_of, record_path
from densepath.sources.tiles.records import write_record
from densepath.sources.tiles.slide_tiles import SlideTiles
from densepath.sources.tiles.tile_files import SlideTiling
from densepath.views.crops import Crop
from densepath.views.declarations import RandomView
from densepath.views.maker import ViewMaker

SPEC = PixelSpec(mean=(0.0,) * 3, std=(1.0,) * 3)


def folder_of(out: Path, cells: dict[str, tuple[Path, Cells | None]]) -> Path:
    """A folder as ``densepath cells`` writes it: name -> path and cells, or None where none could be found."""
    rows = []
    for name, (path, found) in cells.items():
        row = dict.fromkeys(("mpp", "width", "height", "cells", "classes", "problem"), "")
        row |= {"slide": name, "path": str(path)}
        result = None
        if found is None:
            row["problem"] = "damaged"
        else:
            write_cells(cell_path(out, name), found)
            row |= {"cells": str(len(found)), "classes": ";".join(found.class_names)}
            row |= {"height": str(found.extent[0]), "width": str(found.extent[1])}
            result = identity_of(cell_path(out, name))
        write_record(out, row | {"result": result}, identity_of(path))
        rows.append(row)
    write_cell_rows(out, rows)
    return out


def dotted(path: Path, height: int, width: int, dots: list[tuple[int, int]], half: int) -> Path:
    """A white image or slide with black squares of 2 * half pixels around corners x, y of pixels."""
    pixels = np.full((height, width, 3), 255, np.uint8)
    for x, y in dots:
        pixels[y - half : y + half, x - half : x + half] = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, pixels, tile=(64, 64), compression="zlib", photometric="rgb", metadata=None)
    else:
        Image.fromarray(pixels).save(path)
    return path


def test_cells_come_back_sorted_with_their_classes(tmp_path: Path) -> None:
    cells = Cells.of([[5, 9], [3, 1], [4, 1]], (10, 20), ["b;c", None, "a"], [0.5, 0.25, 1])
    write_cells(tmp_path / "a/x.h5", cells)
    back = read_cells(tmp_path / "a/x.h5")
    assert back.points.tolist() == [[3, 1], [4, 1], [5, 9]] and back.extent == (10, 20)
    assert [back.class_names[k] for k in back.classes] == ["unclassified", "a", "b,c"]
    assert back.scores is not None and back.scores.tolist() == [0.25, 1, 0.5]
    none = Cells.of(np.zeros((0, 2)), (1, 1))
    write_cells(tmp_path / "none.h5", none)
    assert read_cells(tmp_path / "none.h5").points.shape == (0, 2)
    (tmp_path / "none.h5").write_bytes(b"\x89HDF")
    with pytest.raises(UserError, match=r"none\.h5 cannot be read \(damaged.*run densepath cells again"):
        read_cells(tmp_path / "none.h5")


@pytest.mark.parametrize("rotation", [0.0, 25.0])
def test_a_painted_cell_is_where_its_point_says_in_every_view_of_a_tile(tmp_path: Path, rotation: float) -> None:
    """Tiles at 0.5 µm/px of slides of 0.25 and 0.2 µm/px, in random crops, flips and turns."""
    tilings, cells = [], {}
    rng = np.random.default_rng(0)
    for name, spacing in (("a", 0.25), ("sub/b", 0.2)):
        side = round(40 / spacing)  # pixels of level 0 of a tile of 40 µm
        corners = np.array([[x, y] for y in (0, side) for x in (0, side, 2 * side)])
        dots = [tuple((corner + rng.integers(20, side - 20, 2)).tolist()) for corner in corners]
        path = dotted(tmp_path / f"{name}.tif", 2 * side, 3 * side, dots, round(1.5 / spacing))
        tilings.append(SlideTiling(name, str(path), corners, 0.5, 80, (spacing, spacing), (2 * side, 3 * side)))
        cells[name] = (path, Cells.of(dots, (2 * side, 3 * side)))
    tiles = SlideTiles(tilings)
    points = CellPoints(tiles, folder_of(tmp_path / "C", cells))
    assert len(points) == len(tiles) == 12 and points.count == 12
    crop = Crop(scale=(0.4, 1.0), flip=(0.5, 0.5), rotation=rotation, quarter_turns=True)
    views = ViewMaker({"view": RandomView(crop, count=4)}, 48, 0, SPEC)
    batch = next(iter(ImageBatches(tiles, batch_size=12, seed=0, epochs=1, extras={"cells": points})))
    assert batch.extras["cells"].shape == (12, 32, 3)
    assert batch.extras["cells"].isnan().all(-1).sum(1).tolist() == [31] * 12
    view = views(batch)["view"]
    moved, inside = warp_points(batch.extras["cells"][..., :2].repeat(4, 1, 1), identity(48), view.map)
    counts = point_counts(moved, (48, 48)).flatten(1)
    assert torch.equal(counts.sum(1), inside.sum(1)) and 24 < int(inside.sum()) < 48
    for row in (inside[:, 0] & (moved[:, 0].abs().amax(-1) < 0.85)).nonzero().flatten().tolist():
        dark = (1 - view.pixels[row, 0]).clamp(min=0) * (1 - view.pixels[row, 0] > 0.5)
        y, x = torch.meshgrid(torch.arange(48), torch.arange(48), indexing="ij")
        center = torch.stack([(dark * x).sum(), (dark * y).sum()]) / dark.sum() + 0.5
        assert (center - (moved[row, 0] + 1) * 24).abs().max() < 0.75
    held = Regions.of_points(moved, (6, 6)).masks[:, 0]
    shown = 1 - view.pixels[:, 0].unflatten(1, (6, 8)).unflatten(3, (6, 8)).amin((2, 4))
    assert (shown.flatten(1)[held] > 0.5).float().mean() > 0.95  # a position with a point shows the dark square


def test_images_find_their_cells_by_path_even_when_moved(tmp_path: Path) -> None:
    known = {}
    for number, name in enumerate(["a/x.png", "b/x.png", "y.png"]):
        path = dotted(tmp_path / "images" / name, 20, 40, [], 1)
        cells = Cells.of([[10.0 + number, 5.0]] * (number + 1), (20, 40), ["t" if number else "s"] * (number + 1))
        known[name.removesuffix(".png")] = (path, cells)
    known["y"] = (known["y"][0], Cells.of(np.zeros((0, 2)), (20, 40)))  # it has none
    folder = folder_of(tmp_path / "C", known)
    (tmp_path / "images").rename(tmp_path / "moved")
    images = ImageFiles([tmp_path / "moved" / name for name in ("b/x.png", "y.png", "a/x.png")])
    points = CellPoints(images, folder)
    gathered = pickle.loads(pickle.dumps(points)).gather(torch.arange(3))
    assert (~gathered.isnan().all(-1)).sum(1).tolist() == [2, 0, 1]
    assert points.class_names == ("s", "t")
    swapped = pickle.loads(pickle.dumps(points.shuffled()))
    given = [len(swapped.of(position)) for position in range(3)]
    assert sorted(given) == [0, 1, 2] and all(own != other for own, other in zip([2, 0, 1], given, strict=True))
    assert [len(points.of(position)) for position in range(3)] == [2, 0, 1]  # as they were
    assert torch.allclose(gathered[0, 0], torch.tensor([11 / 20 - 1, 5 / 10 - 1, 1]))
    assert torch.allclose(gathered[2, 0], torch.tensor([10 / 20 - 1, 5 / 10 - 1, 0]))
    assert points.describe() == "3 cells of 2 classes: s, t, in 3 images"
    with pytest.raises(UserError, match=r"has no cells of images: .*new\.png; run densepath cells on the same --data"):
        CellPoints(ImageFiles([dotted(tmp_path / "new.png", 20, 40, [], 1)]), folder)
    for name in ("a", "b"):  # both end like the one that is known
        dotted(tmp_path / "more" / name / "y.png", 20, 40, [], 1)
    with pytest.raises(UserError, match=r"several images match the cells of y"):
        CellPoints(ImageFiles([tmp_path / "more" / name / "y.png" for name in ("a", "b")]), folder)


def test_other_images_and_slides_of_the_same_name_are_refused(tmp_path: Path) -> None:
    """Of another size or content; a copy has the cells, also if only the sizes are known."""
    path = dotted(tmp_path / "I/0.png", 20, 40, [(9, 9)], 2)
    folder = folder_of(tmp_path / "C", {"0": (path, Cells.of([[9, 9]], (20, 40)))})
    tilings = [
        SlideTiling("0", str(tmp_path / name), np.zeros((1, 2), int), 0.5, 8, (0.5, 0.5), extent)
        for name, extent in (("I/0.png", (20, 41)), ("else/0.png", (20, 41)), ("else/0.png", (20, 40)))
    ]
    for known in (True, False):
        for name, dots, width in (("J", [(9, 9)], 41), ("K", [(9, 10)], 40 if known else 41)):
            other = dotted(tmp_path / name / "0.png", 20, width, dots, 2)
            with pytest.raises(UserError, match=r"has no cells of images: .*0\.png; run densepath cells on the same"):
                CellPoints(ImageFiles([other]), folder)
        copy = dotted(tmp_path / "L/0.png", 20, 40, [(9, 9)], 2)
        assert CellPoints(ImageFiles([copy]), folder).count == 1
        with pytest.raises(UserError, match=r"has the cells of slides of other sizes: 0; run densepath cells"):
            CellPoints(SlideTiles(tilings[:1]), folder)
        with pytest.raises(UserError, match=r"has no cells of slides: .*else/0\.png; run densepath cells"):
            CellPoints(SlideTiles(tilings[1:2]), folder)
        assert CellPoints(SlideTiles(tilings[2:]), folder).count == 1
        shutil.rmtree(folder / "records", ignore_errors=True)


def test_cells_of_slides_of_many_files_that_an_earlier_version_found_are_known(tmp_path: Path) -> None:
    for place in ("S", "moved"):
        (tmp_path / place / "0").mkdir(parents=True)
        for path in (tmp_path / place / "0.mrxs", tmp_path / place / "0/Data0000.dat"):
            path.write_bytes(b"pixels")
    folder = folder_of(tmp_path / "C", {"0": (tmp_path / "S/0.mrxs", Cells.of([[9, 9]], (20, 40)))})
    tiling = SlideTiling("0", str(tmp_path / "moved/0.mrxs"), np.zeros((1, 2), int), 0.5, 8, (0.5, 0.5), (20, 40))
    assert CellPoints(SlideTiles([tiling]), folder).count == 1


def test_images_whose_cells_failed_are_not_background(tmp_path: Path) -> None:
    paths = [dotted(tmp_path / f"{name}.png", 20, 40, [], 1) for name in "ab"]
    folder = folder_of(tmp_path / "C", {"a": (paths[0], Cells.of([[9, 9]], (20, 40))), "b": (paths[1], None)})
    with pytest.raises(
        UserError, match=r"has images whose cells could not be found: b; see its cells\.csv, correct them"
    ):
        CellPoints(ImageFiles(paths), folder)
    assert CellPoints(ImageFiles(paths[:1]), folder).describe() == "1 cell, in 1 image"


def test_more_classes_than_a_number_can_tell_are_refused_at_once(tmp_path: Path) -> None:
    known = {}
    for part in range(2):
        path = dotted(tmp_path / f"{part}.png", 20, 40, [], 1)
        names = [f"{part} {number}" for number in range(129)]
        known[str(part)] = (path, Cells.of(np.ones((129, 2)), (20, 40), names))
    with pytest.raises(UserError, match=r"have 258 classes, and at most 256 are possible: 0 0, .*; merge some"):
        CellPoints(ImageFiles([path for path, _ in known.values()]), folder_of(tmp_path / "C", known))


def test_a_digest_tells_other_cells_from_the_same(tmp_path: Path) -> None:
    path = dotted(tmp_path / "a.png", 20, 40, [], 1)
    made = [
        Cells.of([[9, 9]] * count, (20, 40), [name] * count) for count, name in ((1, "s"), (1, "s"), (2, "s"), (1, "t"))
    ]
    folders = [folder_of(tmp_path / f"C{number}", {"a": (path, cells)}) for number, cells in enumerate(made)]
    digests = [CellPoints(ImageFiles([path]), folder).digest() for folder in folders]
    assert digests[0] == digests[1] and len(set(digests)) == 3


def test_a_digest_of_the_results_tells_moved_cells(tmp_path: Path) -> None:
    path = dotted(tmp_path / "a.png", 20, 40, [], 1)
    moved = (Cells.of([[x, 9]], (20, 40), ["s"]) for x in (9, 9, 8))
    folders = [folder_of(tmp_path / f"C{number}", {"a": (path, cells)}) for number, cells in enumerate(moved)]
    found = [CellPoints(ImageFiles([path]), folder) for folder in folders]
    results = [points.digest_of_results() for points in found]
    assert results[0] == results[1] != results[2] and len({points.digest() for points in found}) == 1
    record_path(folders[0], "a").unlink()
    assert found[0].digest_of_results() == ""


def test_bands_of_rows_find_the_same_cells_as_a_search_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell_points, "_BAND", 4)
    path = dotted(tmp_path / "a.tif", 64, 64, [], 1)
    for count in (0, 1, 4, 5, 33):
        y = np.sort(np.random.default_rng(count).integers(0, 64, count))
        points = np.stack([np.ones(count), y], 1)
        corners = np.array([[0, top] for top in range(57)])
        tiling = SlideTiling("a", str(path), corners, 0.5, 8, (0.5, 0.5), (64, 64))
        folder = folder_of(tmp_path / f"C{count}", {"a": (path, Cells.of(points, (64, 64)))})
        found = CellPoints(SlideTiles([tiling]), folder)
        assert [len(found.of(top)) for top in range(57)] == [((y >= top) & (y < top + 8)).sum() for top in range(57)]


def test_crowded_tiles_give_an_even_share_of_their_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell_points, "MOST", 50)
    path = dotted(tmp_path / "a.png", 100, 100, [], 1)
    cells = Cells.of([[50, y] for y in np.linspace(0, 99.9, 200)], (100, 100))
    gathered = CellPoints(ImageFiles([path]), folder_of(tmp_path / "C", {"a": (path, cells)})).gather(torch.tensor([0]))
    kept = gathered[0][~gathered[0].isnan().all(-1)]
    assert len(kept) == 50 and kept[:, 1].min() < -0.95 and kept[:, 1].max() > 0.9


def test_a_tile_has_the_cells_inside_it_and_borders_count_once(tmp_path: Path) -> None:
    path = dotted(tmp_path / "a.tif", 64, 128, [], 1)
    corners = np.array([[0, 0], [64, 0]])
    tiling = SlideTiling("a", str(path), corners, 0.5, 64, (0.5, 0.5), (64, 128))
    cells = Cells.of([[0, 0], [63.999, 63.999], [64, 10], [127, 63]], (64, 128))
    folder = folder_of(tmp_path / "C", {"a": (path, cells)})
    points = CellPoints(SlideTiles([tiling]), folder)
    assert [len(points.of(k)) for k in (0, 1)] == [2, 2]
    assert np.allclose(points.of(1)[:, :2], [[-1, 10 / 32 - 1], [63 / 32 - 1, 63 / 32 - 1]])
    overlapping = replace(tiling, corners=np.array([[0, 0], [1, 0]]))
    assert [len(CellPoints(SlideTiles([overlapping]), folder).of(k)) for k in (0, 1)] == [2, 2]


def test_folders_that_are_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a folder of cells; write one with densepath cells"):
        read_cell_rows(tmp_path)
    (tmp_path / "cells").mkdir()
    with pytest.raises(UserError, match=r"is an unfinished folder of cells; continue with the same densepath cells"):
        read_cell_rows(tmp_path)
    (tmp_path / "cells.csv").write_text("name,label\na,1\n")
    with pytest.raises(UserError, match=r"cells.csv lacks columns: slide, path, problem; run densepath cells again"):
        read_cell_rows(tmp_path)


def test_points_of_several_classes_are_as_many_regions() -> None:
    points = torch.tensor([[[-0.9, -0.9], [-0.8, -0.8], [-0.7, -0.7], [0.9, 0.9], [0.8, 0.8], [torch.nan] * 2]])
    classes = torch.tensor([[1.0, 1.0, 0.0, 0.0, 1.0, torch.nan]])
    regions = Regions.of_points(points, (2, 2), classes, 2)
    assert regions.masks[0].tolist() == [
        [False, False, False, True],
        [True, False, False, False],
        [False, True, True, False],
    ]
    assert torch.equal(regions.masks.sum(1), torch.ones(1, 4))
