"""Tiles of slides in files, as TRIDENT reads them, and the folder that holds them."""

from __future__ import annotations

import csv
from pathlib import Path

import h5py
import numpy as np
import pytest

from densepath.core.errors import UserError
from densepath.sources.tiles.tile_files import (
    SLIDES,
    SlideTiling,
    is_tile_folder,
    read_tile_folder,
    read_tiling,
    tiling_folder,
    tiling_path,
    write_tiling,
)

_CORNERS = np.array([[0, 0], [512, 0], [2**33, 1024]], np.int64)


def _tiling(name: str = "a/slide", corners: object = _CORNERS, mpp: float = 0.5) -> SlideTiling:
    return SlideTiling(name, f"/slides/{name}.svs", np.asarray(corners, np.int64), mpp, 256, (0.2494, 0.2503), (5, 7))


def _folder(out: Path, tilings: list[SlideTiling]) -> Path:
    """A folder as ``densepath tile`` writes it."""
    place = out / tiling_folder(0.5, 256, 0)
    place.mkdir(parents=True)
    (out / "config.yaml").write_text("# densepath 1\n")
    with (out / SLIDES).open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, ["slide", "path", "tiles"])
        writer.writeheader()
        for tiling in tilings:
            writer.writerow({"slide": tiling.name, "path": tiling.path, "tiles": len(tiling)})
            write_tiling(tiling_path(place, tiling.name), tiling)
    return out


def test_a_tiling_comes_back_and_has_the_attributes_that_trident_reads(tmp_path: Path) -> None:
    path = tiling_path(tmp_path, "a/slide")
    write_tiling(path, _tiling(), overlap=64)
    back = read_tiling(path, "/moved/slide.svs")
    assert path.name == "slide_patches.h5" and back.corners.tolist() == _CORNERS.tolist() and len(back) == 3
    assert (back.name, back.path, back.mpp, back.size) == ("a/slide", "/moved/slide.svs", 0.5, 256)
    assert back.spacing == (0.2494, 0.2503) and back.extent == (5, 7)
    with h5py.File(path) as file:
        notes = dict(file["coords"].attrs)
        assert file["coords"].dtype == np.int64 and file["coords"].chunks is None
    # What TRIDENT's patcher computes from the attributes: pixels of level 0 for a tile.
    downsample = notes["level0_magnification"] / notes["target_magnification"]
    assert round(notes["patch_size"] * downsample) == notes["patch_size_level0"] == 512
    assert notes["overlap"] == 64 and (notes["level0_width"], notes["level0_height"]) == (7, 5)
    assert notes["size_um"] == 128 and (notes["level0_mpp_x"], notes["level0_mpp_y"]) == (0.2503, 0.2494)


def test_boxes_are_exact_in_um() -> None:
    boxes = _tiling(mpp=0.3).boxes_um([2, 1])
    assert boxes.tolist() == [[1024 * 0.2494, 2**33 * 0.2503, 76.8, 76.8], [0, 512 * 0.2503, 76.8, 76.8]]
    assert _tiling().boxes_um().shape == (3, 4) and _tiling(corners=np.empty((0, 2))).boxes_um().shape == (0, 4)


def test_a_folder_is_read_in_order_without_slides_that_have_no_tile(tmp_path: Path) -> None:
    names = ["b", "a/slide", "\udcff odd", "none"]
    tilings = [_tiling(name, _CORNERS if name != "none" else np.empty((0, 2))) for name in names]
    folder = _folder(tmp_path / "t", tilings)
    assert is_tile_folder(folder) and not is_tile_folder(tmp_path)
    assert [tiling.name for tiling in read_tile_folder(folder)] == names[:3]
    for spelling in ("a/slide", "slide", "slide.svs", "a/slide.svs", "/slides/a/slide.svs", r"a\slide"):
        assert [tiling.name for tiling in read_tile_folder(folder, [spelling, "b"])] == ["b", "a/slide"]
    with pytest.raises(UserError, match=r"has no slides: c, d; correct the list"):
        read_tile_folder(folder, ["b", "c", "d"])
    with pytest.raises(UserError, match="has no tiles of these slides"):
        read_tile_folder(folder, ["none"])


def test_what_is_wrong_with_a_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder of tiles"):
        read_tile_folder(tmp_path)
    folder = _folder(tmp_path / "t", [_tiling("a")])
    path = next(folder.rglob("*.h5"))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="damaged, or not written by densepath tile"):
        read_tile_folder(folder)
    path.unlink()
    with pytest.raises(UserError, match="the file is missing"):
        read_tile_folder(folder)
    (folder / SLIDES).write_text("slide,height\na,100\n")
    with pytest.raises(UserError, match=r"slides\.csv lacks columns: path, tiles; run densepath tile again"):
        read_tile_folder(folder)
    (folder / SLIDES).unlink()
    with pytest.raises(UserError, match="unfinished; continue with the same densepath tile command"):
        read_tile_folder(folder)
