"""Tiles of slides as images: the same physical size and place, whatever the slides' resolution."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import torch
from PIL import Image
from scipy.special import erf

from densepath.core.errors import UserError
from densepath.sources.batch import ImageBatch, join
from densepath.sources.corrupt import CorruptImage
from densepath.sources.image_files import ImageFiles
from densepath.sources.loader import ImageBatches
from densepath.sources.open import find_source
from densepath.sources.packing import open_store, pack
from densepath.sources.pixel_source import PixelSpec
from densepath.sources.slides.open import open_slide
from densepath.sources.tiles.slide_tiles import SlideTiles
from densepath.sources.tiles.tile_files import SlideTiling, read_tile_folder, tiling_folder, tiling_path, write_tiling
from densepath.sources.tiles.tiled_slide import open_tiled
from densepath.synthetic.slide import write_slide
from densepath.views.augment import Augment
from densepath.views.crops import Crop
from densepath.views.declarations import Center, RandomView
from densepath.views.maker import ViewMaker

Pixels = npt.NDArray[np.uint8]
SIZE, MPP = 64, 0.5  # of a tile: 32 µm
SIGMA = 2.5  # µm
PLAIN = PixelSpec(mean=(0.0,) * 3, std=(1.0,) * 3)


def painted(spacing: float, center: tuple[float, float], side: float = 80.0) -> Pixels:
    """A dark spot on a bright ground, each pixel the mean over its square: center and side in µm."""
    edges = np.arange(round(side / spacing) + 1) * spacing
    along = [np.diff(erf((edges - c) / (SIGMA * 2**0.5))) * SIGMA * (np.pi / 2) ** 0.5 / spacing for c in center]
    spot = along[0][:, None] * along[1][None]
    return np.rint(np.stack([250 - 240 * spot, 250 - 200 * spot, 250 - 120 * spot], axis=2)).astype(np.uint8)


def write(path: Path, pixels: Pixels, tile: int = 64) -> Path:
    tifffile.imwrite(path, pixels, tile=(tile, tile), compression="zlib", photometric="rgb", metadata=None)
    return path


def tiling(path: Path, corners: Sequence[tuple[int, int]], spacing: float, **others: Any) -> SlideTiling:
    """The tiles with some corners x, y."""
    kept = np.array(corners, np.int64)
    known = SlideTiling(path.stem, str(path), kept, MPP, SIZE, (spacing, spacing), open_slide(path).size)
    return replace(known, **others)


def write_folder(folder: Path, tilings: Sequence[SlideTiling]) -> Path:
    """A folder as ``densepath tile`` writes it."""
    for each in tilings:
        write_tiling(tiling_path(folder / tiling_folder(each.mpp, each.size, 0), each.name), each)
    (folder / "config.yaml").write_text("# densepath 0.1\ndata: slides\n")
    rows = "".join(f"{t.name},{t.path},{t.spacing[0]},{t.extent[1]},{t.extent[0]},{len(t)},1,\n" for t in tilings)
    (folder / "slides.csv").write_text(f"slide,path,mpp,width,height,tiles,tissue_mm2,problem\n{rows}")
    return folder


def noise(shape: tuple[int, int], seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def triangle(low: float, high: float, n_out: int, n_in: int, offset: int) -> npt.NDArray[np.float64]:
    """The weights (n_out, n_in) of a bilinear, antialiased resize from ``low`` to ``high``, in stored pixels."""
    step = (high - low) / n_out
    centers = low + (np.arange(n_out) + 0.5) * step
    distance = np.abs(offset + np.arange(n_in) + 0.5 - centers[:, None]) / max(1.0, abs(step))
    weights = np.clip(1 - distance, 0, None)
    return weights / weights.sum(1, keepdims=True)


SPACINGS = (0.25, 0.23, 0.5, 0.499, 0.85)


@pytest.mark.parametrize("boxes", [False, True])
def test_views_of_any_scanner_show_the_same_size_and_place(boxes: bool, tmp_path: Path) -> None:
    """Against resampling in float64 from the definition, and the spot's place and size in µm."""
    spot, views, tilings, stored = (31.3, 33.9), 48, [], []
    for k, spacing in enumerate(SPACINGS):
        pixels = painted(spacing, spot)
        corner = round(17.0 / spacing), round(16.0 / spacing)  # x, y
        tilings.append(tiling(write(tmp_path / f"{k}.tif", pixels), [corner], spacing))
        stored.append(pixels)
    source = SlideTiles(tilings)
    source.reads_boxes = boxes
    maker = ViewMaker({"v": RandomView(Crop(scale=(0.75, 0.95), ratio=(1, 1))), "c": Center()}, views, 3, PLAIN)
    (batch,) = ImageBatches(source, batch_size=len(source), seed=0, max_steps=1, draw=maker.draw)
    made = maker(batch)
    assert batch.boxes is not None and batch.boxes.dtype == torch.float64
    for row, position in enumerate(batch.index.tolist()):
        each, spacing = tilings[position], SPACINGS[position]
        top, left, side, _ = each.boxes_um()[0]
        for name in ("v", "c"):
            # From the view's map to µm on the slide, x first
            map_ = made[name].map[row].double().numpy()
            half = side / 2
            scale, shift = np.diag(map_[:, :2]) * half, (left, top) + half * (1 + map_[:, 2])
            weights = []
            for axis in (1, 0):
                low, high = ((shift[axis] + sign * scale[axis]) / spacing for sign in (-1, 1))
                first = int(np.floor((left, top)[axis] / spacing + 1e-6))
                last = int(np.ceil(((left, top)[axis] + side) / spacing - 1e-6))
                weights.append((triangle(low, high, views, last - first, first), first, last))
            (rows, y0, y1), (columns, x0, x1) = weights
            window = stored[position][y0:y1, x0:x1].astype(np.float64) / 255
            expected = np.einsum("ip,pqc,jq->cij", rows, window, columns)
            pixels = made[name].pixels[row].double().numpy()
            assert np.abs(pixels - expected).max() < 2e-4
            # The spot's center and spread, in µm
            dark = 250 / 255 - pixels[0]
            for axis, center in ((0, spot[1]), (1, spot[0])):
                place = (np.arange(views) + 0.5) * 2 / views - 1
                um = shift[axis] + scale[axis] * place
                share = dark.sum(axis=axis) / dark.sum()
                mean = (um * share).sum()
                px = 2 * abs(scale[axis]) / views
                assert abs(mean - center) < 0.1 * px
                assert ((um - mean) ** 2 * share).sum() ** 0.5 == pytest.approx(SIGMA, rel=0.04)


def test_a_grid_that_is_stored_gives_the_views_of_plain_images_to_the_bit(tmp_path: Path) -> None:
    pixels = noise((256, 320))
    corners = [(64, 0), (128, 64), (192, 128), (3, 77)]
    source = SlideTiles([tiling(write(tmp_path / "s.tif", pixels), corners, MPP)])
    folder = tmp_path / "png"
    folder.mkdir()
    for k, (x, y) in enumerate(corners):
        Image.fromarray(pixels[y : y + SIZE, x : x + SIZE]).save(folder / f"{k}.png")
        assert np.array_equal(source.read(k), pixels[y : y + SIZE, x : x + SIZE])
    plain = ImageFiles(sorted(folder.iterdir()))
    views = Augment(scale=(0.2, 1.0), rotation=30.0).random_view()
    maker = ViewMaker({"a": RandomView(), "b": views, "c": Center()}, 32, 3)
    # Beside a tile of another slide, whose pixels have other places and another size
    other = SlideTiles([*source.tilings, tiling(write(tmp_path / "t.tif", noise((400, 400))), [(11, 12)], 0.23)])
    index = torch.arange(4)
    expected = maker(ImageBatch.of(plain.gather(index)))
    made, among = maker(ImageBatch.of(source.gather(index))), maker(ImageBatch.of(other.gather(torch.arange(5))))
    for name in ("a", "b", "c"):
        assert torch.equal(made[name].map, expected[name].map)
        assert torch.equal(made[name].pixels, expected[name].pixels)
        # As among plain images, the largest one of a batch changes the rounding
        torch.testing.assert_close(among[name].pixels[:4], expected[name].pixels, atol=1e-4, rtol=0)


def test_a_tile_is_resampled_once_to_its_own_pixels(tmp_path: Path) -> None:
    """As Pillow does with floats, antialiased; white beyond the slide."""
    pixels = noise((300, 300))
    source = SlideTiles([tiling(write(tmp_path / "s.tif", pixels), [(20, 30), (280, 290)], MPP / 2)])
    channels = (Image.fromarray(c.astype(np.float32)) for c in np.moveaxis(pixels[30:158, 20:148], 2, 0))
    resized = [np.asarray(c.resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for c in channels]
    expected = np.stack(resized, axis=2).clip(0, 255)
    read = source.read(0)
    assert read.shape == (SIZE, SIZE, 3) and read.dtype == np.uint8
    assert np.abs(read - expected).max() < 0.501
    assert (source.read(1)[20:, 20:] == 255).all()
    third = SlideTiles([tiling(tmp_path / "s.tif", [(20, 30)], 0.3)]).read(0)  # 106.7 stored pixels
    assert third.shape == (SIZE, SIZE, 3)


def test_a_source_of_tiles(tmp_path: Path) -> None:
    first, second = (write(tmp_path / f"{name}.tif", noise((200, 300), seed)) for seed, name in enumerate("ab"))
    tilings = [
        tiling(first, [(0, 0), (64, 0)], MPP, name="x/a"),
        tiling(second, [(0, 64), (64, 64), (128, 64)], MPP, name="b"),
    ]
    folder = write_folder(tmp_path / "T", tilings)
    source = find_source(folder)
    assert isinstance(source, SlideTiles) and len(source) == 5
    names = [source.names(position) for position in range(5)]
    assert names == ["x/a_x0_y0", "x/a_x64_y0", "b_x0_y64", "b_x64_y64", "b_x128_y64"]
    tiling_of, number = source.place(3)
    assert (tiling_of.name, number) == ("b", 1)
    assert source.sizes(torch.arange(2)).tolist() == [[SIZE, SIZE]] * 2
    assert source.spacing(torch.arange(1)).tolist() == [[MPP, MPP]]
    assert source.smallest()[1] == SIZE
    assert len(find_source(folder, exclude=["a*"])) == 3
    sent = pickle.dumps(source)
    assert len(sent) < 2000
    again = pickle.loads(sent)
    assert [again.names(position) for position in range(5)] == names
    assert torch.equal(again.gather(torch.tensor([4, 0])).pixels, source.gather(torch.tensor([4, 0])).pixels)
    assert again.digest(tmp_path) == source.digest(tmp_path)
    moved = SlideTiles([replace(tilings[0], corners=tilings[0].corners + 1), tilings[1]])
    assert moved.digest(tmp_path) != source.digest(tmp_path)
    parts = join([source.gather(torch.tensor([k])) for k in range(5)])
    whole = source.gather(torch.arange(5))
    assert torch.equal(parts.pixels, whole.pixels) and torch.equal(parts.boxes, whole.boxes)  # type: ignore[arg-type]
    assert torch.equal(parts.extent, whole.extent)  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_tile_is_named_and_replaced_by_the_next(workers: int, tmp_path: Path) -> None:
    path = write(tmp_path / "s.tif", noise((640, 1280)))
    corners = [(64 * (k % 20), 64 * (k // 20)) for k in range(200)]
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        start, count = page.dataoffsets[7], page.databytecounts[7]  # type: ignore[union-attr]
    with path.open("r+b") as file:
        file.seek(start + count // 3)
        file.write(bytes(count // 3))
    source = SlideTiles([tiling(path, corners, MPP)])
    batches = ImageBatches(source, batch_size=100, seed=0, max_steps=2, workers=workers)
    seen = list(batches)
    assert sorted(torch.cat([batch.index for batch in seen]).tolist()) == sorted([*range(7), 8, *range(8, 200)])
    assert batches.corrupt == (source.names(7),) == ("s_x448_y0",)
    (what,) = source.gather(torch.tensor([7])).corrupt.values()
    assert what.startswith(f"{path} at x 448, y 0:") and "damaged" in what


def test_a_tile_folder_is_packed_with_its_spacing(tmp_path: Path) -> None:
    path = write(tmp_path / "s.tif", noise((256, 256)))
    folder = write_folder(tmp_path / "T", [tiling(path, [(0, 0), (70, 60)], MPP / 2)])
    source, store = find_source(folder), open_store(pack(folder, tmp_path / "t.safetensors"))
    assert len(store) == 2 and [store.names(k) for k in range(2)] == [source.names(k) for k in range(2)]
    for k in range(2):
        assert np.array_equal(store.read(k), source.read(k))
    assert store.spacing(torch.arange(2)).tolist() == [[MPP, MPP]] * 2  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"max_side is 8, and tiles are not reduced: those of .* write smaller ones"):
        pack(folder, tmp_path / "small.safetensors", max_side=8)


def test_slides_that_are_not_those_that_were_tiled_are_refused(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.tif", noise((128, 128))) for name in "abc"]
    folder = write_folder(tmp_path / "T", [tiling(path, [(0, 0)], MPP) for path in paths])
    find_source(folder)
    write(paths[1], noise((128, 192)))
    with pytest.raises(UserError, match=r"replaced since they were tiled.*b\.tif \(192 x 128 px instead of 128 x 128"):
        find_source(folder)
    paths[2].write_bytes(b"II*\0 not a slide")
    with pytest.raises(UserError, match=r"cannot be opened.*c\.tif"):
        find_source(folder)
    os.rename(paths[0], tmp_path / "moved.tif")
    with pytest.raises(UserError, match=rf"moved or removed.*a\.tif.*or run densepath tile again with --out {folder}"):
        find_source(folder)
    with pytest.raises(CorruptImage, match=rf"^{paths[0]}: moved or removed since it was tiled; put it back, or run"):
        open_tiled(read_tile_folder(folder)[0])
    with pytest.raises(UserError, match="leaves out all slides"):
        find_source(folder, exclude=["?"])
    kinds = [tiling(paths[1], [(0, 0)], MPP), tiling(paths[1], [(0, 0)], MPP, size=32)]
    with pytest.raises(UserError, match=r"different|tiles of 32 px at 0\.5 µm/px and 64 px"):
        SlideTiles(kinds)


@pytest.mark.parametrize("suffix", [".svs", ".tif", ".btf"])
def test_whole_slides_are_not_read_as_images(suffix: str, tmp_path: Path) -> None:
    path = write_slide(tmp_path / "in" / f"a{suffix}", size=(128, 128), levels=(1, 2), tile=64)
    listed = tmp_path / "list.txt"
    listed.write_text(f"{path}\n")
    for data in (tmp_path / "in", path, listed, f"{tmp_path}/in/*"):
        with pytest.raises(UserError, match="holds whole slides; cut them into tiles with `densepath tile"):
            find_source(data)
