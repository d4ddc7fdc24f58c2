"""The grid of tiles, and what it costs to read them."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from densepath.sources.slides.decoded_tiles import recent_tiles
from densepath.sources.slides.open import open_slide
from densepath.sources.slides.slide import Slide
from densepath.sources.slides.tile_table import TileTable
from densepath.sources.tiles.grid import Grid, grid_of, tiles_with_tissue
from densepath.sources.tiles.tile_files import boxes_um
from densepath.sources.tiles.tissue import find_tissue


def _decoded(slide: Slide, grid: Grid, mpp: float, size: int, monkeypatch: pytest.MonkeyPatch) -> float:
    """Tiles of the file that are decoded for each tile, in any order."""
    decoded: Counter[int] = Counter()
    decode = TileTable._plane

    def counted(self: TileTable, stored: int, index: int, scale: int, rows: int | None) -> object:
        decoded[index] += 1
        return decode(self, stored, index, scale, rows)

    monkeypatch.setattr(TileTable, "_plane", counted)
    corners = np.concatenate(list(grid.corners(slide.size)))
    for box in boxes_um(corners, slide.mpp, size * mpp):
        recent_tiles.clear()
        region = slide.read_um(tuple(box), mpp)
        assert region.origin[0] <= box[0] + 1e-6 and region.origin[1] <= box[1] + 1e-6
    monkeypatch.undo()
    return sum(decoded.values()) / len(corners)


@pytest.mark.parametrize(
    ("own", "mpp", "size", "align", "step", "decoded"),
    [
        (1.0, 1.0, 64, False, 64, 1),
        (1.004, 1.0, 64, False, 64, 1),  # a little smaller than the file's tiles: the rest of 0.25 px is left out
        (0.996, 1.0, 64, False, 64 / 0.996, None),  # a little larger
        (1.1, 1.0, 64, False, 64 / 1.1, None),
        (1.1, 1.0, 64, True, 64, 1),
        (1.0, 1.0, 32, False, 32, 1),  # four in each of the file's tiles
        (1.0, 1.0, 128, False, 128, 4),
        (0.5, 1.0, 64, False, 128, 4),  # decoded at half the size
        (1.0, 1.0, 40, True, 40, None),
    ],
)
def test_tiles_on_the_grid_of_the_file_are_decoded_once(
    own: float,
    mpp: float,
    size: int,
    align: bool,
    step: float,
    decoded: float | None,
    painted_slides: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slide = open_slide(painted_slides / "a.tiff", own)
    grid = grid_of(slide, mpp, size, align=align)
    assert grid.step == pytest.approx((step, step)) and grid.side == pytest.approx((size * mpp / own,) * 2)
    assert grid.aligned == (decoded is not None) == (not grid.why)
    found = _decoded(slide, grid, mpp, size, monkeypatch)
    assert found == decoded if decoded else found > 1.5


def test_why_tiles_are_not_aligned(painted_slides: Path) -> None:
    slide = open_slide(painted_slides / "a.tiff", 0.996)
    assert grid_of(slide, 1.0, 64).why == (
        "64.257 x 64.257 px of level 0 do not fit the file's tiles of 64 x 64 px; --size 63 does"
    )
    assert grid_of(slide, 1.0, 63, align=True).aligned
    assert grid_of(slide, 1.0, 33, align=True).why.endswith("--size 31 does")
    assert grid_of(slide, 1.0, 31, align=True).aligned
    assert grid_of(slide, 1.0, 63, overlap=7).why == "tiles that overlap cross those of the file"


@pytest.mark.parametrize("align", [False, True])
def test_a_size_that_does_not_fit_either_is_not_suggested(align: bool, painted_slides: Path) -> None:
    slide = open_slide(painted_slides / "a.tiff")
    suggested, others = 0, 0
    for own in ((0.996, 0.996), (0.5917, 0.3224), (0.4, 0.55)):
        scanned = replace(slide, given=own)
        for size in range(16, 160, 3):
            why = grid_of(scanned, 1.0, size, align=align).why
            if does := re.search(r"--size (\d+) does$", why):
                assert grid_of(scanned, 1.0, int(does[1]), align=align).aligned
            suggested, others = suggested + bool(does), others + (bool(why) and not does)
    assert suggested and others


def test_a_grid_covers_the_slide_and_its_tiles_lie_inside() -> None:
    grid = Grid((10.5, 20.25), (5.25, 20.25))
    corners = np.concatenate(list(grid.corners((42, 81))))
    assert sorted({int(y) for _, y in corners}) == [0, 5, 10, 16, 21, 26, 32]  # whole pixels
    assert sorted({int(x) for x, _ in corners}) == [0, 20, 40, 61]
    assert len(corners) == 28 and corners.dtype == np.int64
    assert [len(each) for each in Grid((11.0, 8.0), (11.0, 8.0)).corners((10, 80))] == []
    many = list(Grid((1.0, 1.0), (1.0, 1.0)).corners((1000, 400)))
    assert len(many) > 1 and sum(map(len, many)) == 400_000


def test_tiles_are_those_with_enough_tissue(painted_slides: Path) -> None:
    slide = open_slide(painted_slides / "a.tiff")
    tissue, grid = find_tissue(slide), grid_of(slide, 1.0, 64)
    fine = tissue.mask.repeat(8, axis=0).repeat(8, axis=1)  # 1 µm
    for least in (0.0, 0.3, 1.0):
        corners, shares = tiles_with_tissue(tissue, slide, grid, 64.0, least)
        expected = {
            (x, y): share
            for y in range(0, 640, 64)
            for x in range(0, 768, 64)
            if (share := fine[y : y + 64, x : x + 64].mean()) >= least and share > 0
        }
        assert dict(zip(map(tuple, corners.tolist()), shares, strict=True)) == pytest.approx(expected)
        assert 0 < len(expected) < 120
