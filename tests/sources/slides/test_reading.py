"""Parts of slides: their pixels, at any resolution, in threads and forked processes."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image
from scipy import ndimage
from slide_files import JPEG, RGB, YCBCR, Pixels, damage_tile, halves, jpeg, jpeg_2000, write_tiles

from densepath.core.errors import UserError
from densepath.sources.corrupt import CorruptImage
from densepath.sources.image_reader import open_file
from densepath.sources.slides import file_parts
from densepath.sources.slides.decoded_tiles import decoding_in_part, recent_tiles
from densepath.sources.slides.open import open_slide
from densepath.sources.slides.openslide_slide import open_with_openslide
from densepath.sources.slides.slide import Slide


def _boxes(slide: Slide, count: int, seed: int = 0) -> list[tuple[int, int, int, int]]:
    """Boxes inside of a slide, among them tiles and single pixels."""
    rng, (height, width) = np.random.default_rng(seed), slide.size
    tops, lefts = rng.integers(0, height, count), rng.integers(0, width, count)
    boxes = [
        (y, x, int(rng.integers(1, height - y + 1)), int(rng.integers(1, width - x + 1)))
        for y, x in zip(tops.tolist(), lefts.tolist(), strict=True)
    ]
    return [*boxes, (128, 256, 128, 128), (0, 0, 1, 1), (0, 0, height, width)]


@pytest.mark.parametrize("name", ["YCbCr", "RGB without a marker", "JPEG 2000", "JPEG 2000, YCbCr"])
def test_pixels_are_those_of_openslide(name: str, slides: dict[str, Path]) -> None:
    slide, oracle = open_slide(slides[name]), openslide.OpenSlide(slides[name])
    assert slide.file.reader == "tiles" and len(slide.levels) == oracle.level_count == 2
    assert [level.size[::-1] for level in slide.levels] == list(oracle.level_dimensions)
    for top, left, height, width in _boxes(slide, 20):
        ours = slide.read(0, (top, left, height, width)).astype(int)
        theirs = np.asarray(oracle.read_region((left, top), 0, (width, height)))[:, :, :3]
        assert ours.shape == theirs.shape and np.abs(ours - theirs).max() <= (name.startswith("JPEG 2000"))
    height, width = slide.levels[1].size
    low = np.asarray(oracle.read_region((0, 0), 1, (width, height)))[:, :, :3]
    assert np.abs(slide.read(1, (0, 0, height, width)).astype(int) - low).max() <= (name.startswith("JPEG 2000"))


def test_rgb_is_read_as_rgb_whatever_the_tiles_claim(tissue: Pixels, tmp_path: Path) -> None:
    """A JFIF marker says YCbCr; the TIFF's tag says RGB, and is right."""

    def with_jfif(pixels: Pixels) -> bytes:
        data = jpeg(pixels, keep_rgb=True, subsampling=0, quality=95)
        return data[:2] + b"\xff\xe0" + struct.pack(">H5sHBHHBB", 16, b"JFIF", 257, 0, 1, 1, 0, 0) + data[2:]

    path = write_tiles(tmp_path / "a.tiff", [tissue], with_jfif, JPEG, RGB)
    read = open_slide(path).read(0, (0, 0, 333, 517))
    assert np.abs(read.astype(int) - tissue).mean() < 2


@pytest.mark.parametrize("name", ["YCbCr", "RGB without a marker", "JPEG 2000"])
@pytest.mark.parametrize("scale", [2, 4])
def test_a_scaled_decode_shows_the_mean_of_squares(name: str, scale: int, slides: dict[str, Path]) -> None:
    """JPEG 2000 shows a smooth mean around the first pixel of a square, which its level says."""
    slide = open_slide(slides[name])
    level = slide.levels[0].at(scale)
    assert level.size == (333 // scale, 517 // scale)
    fine = slide.read(0, (0, 0, 333, 517)).astype(float)
    scaled = slide.read(0, (0, 0, *level.size), scale)
    errors = {}
    for shift in (0, (scale - 1) / (2 * scale)):
        moved = ndimage.shift(fine, (shift * scale, shift * scale, 0), order=1, mode="nearest")
        exact = halves(moved.clip(0, 255).astype(np.uint8), scale)
        errors[shift] = np.abs(scaled.astype(float) - exact)[2:-2, 2:-2].mean()
    assert min(errors, key=lambda shift: errors[shift]) == level.shift
    assert errors[level.shift] < (2 if level.codec == "JPEG" else 7)
    np.testing.assert_array_equal(slide.read(0, (9, 30, 40, 50), scale), scaled[9:49, 30:80])


STORED: dict[str, dict[str, Any]] = {
    "none": {},
    "Deflate with differences": {"compression": "zlib", "predictor": True},
    "planes": {"compression": "zlib", "planarconfig": "separate"},
    "grey": {"compression": "zlib"},
    "white is zero": {"compression": "zlib", "photometric": "miniswhite"},
    "transparency": {"compression": "zlib", "extrasamples": ["unassalpha"]},
    "big-endian": {"byteorder": ">"},
    "BigTIFF": {"bigtiff": True},
}


@pytest.mark.parametrize("kind", STORED)
def test_lossless_tiles_are_exact(kind: str, tissue: Pixels, tmp_path: Path) -> None:
    given = {"photometric": "rgb", "tile": (64, 96)} | STORED[kind]
    stored: Any = tissue
    if kind in ("grey", "white is zero"):
        given = {"photometric": "minisblack"} | STORED[kind] | {"tile": (64, 96)}
        stored = tissue[:, :, 0]
    elif kind == "transparency":
        stored = np.concatenate([tissue, np.full((333, 517, 1), 255, np.uint8)], axis=2)
    elif kind == "planes":
        stored = np.moveaxis(tissue, 2, 0)
    tiff = {key: given.pop(key) for key in ("byteorder", "bigtiff") if key in given}
    with tifffile.TiffWriter(tmp_path / "a.tiff", **tiff) as file:
        file.write(stored, **given)
    expected = np.repeat(tissue[:, :, :1], 3, axis=2) if stored.ndim == 2 else tissue
    if kind == "white is zero":
        expected = 255 - expected
    slide = open_slide(tmp_path / "a.tiff")
    assert slide.file.reader == "tiles"
    for top, left, height, width in _boxes(slide, 5):
        read = slide.read(0, (top, left, height, width))
        np.testing.assert_array_equal(read, expected[top : top + height, left : left + width])
    for _ in range(2):  # a whole tile, new and kept, which may be changed
        read = slide.read(0, (64, 96, 64, 96))
        np.testing.assert_array_equal(read, expected[64:128, 96:192])
        read[:] = 0
        slide.read(0, (60, 90, 64, 96))


def test_transparent_pixels_are_white(tissue: Pixels, tmp_path: Path) -> None:
    alpha = np.full((333, 517, 1), 255, np.uint8)
    alpha[:100], alpha[100:200] = 0, 128
    stored = np.concatenate([tissue, alpha], axis=2)
    tifffile.imwrite(tmp_path / "a.tiff", stored, tile=(64, 64), photometric="rgb", extrasamples=["unassalpha"])
    read = open_slide(tmp_path / "a.tiff").read(0, (0, 0, 333, 517))
    assert (read[:100] == 255).all() and (read[200:] == tissue[200:]).all()
    assert np.abs(read[100:200] - (tissue[100:200] * (128 / 255) + 127)).max() <= 1


def test_a_palette_is_left_to_openslide(tmp_path: Path) -> None:
    colors = np.random.default_rng(0).integers(0, 256, (3, 256)).astype(np.uint16) * 257
    stored = np.arange(90 * 80, dtype=np.uint32).reshape(90, 80).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tiff", stored, tile=(32, 32), photometric="palette", colormap=colors)
    slide = open_slide(tmp_path / "a.tiff")
    assert slide.file.reader == "openslide"
    np.testing.assert_array_equal(slide.read(0, (9, 5, 70, 60)), (colors.T >> 8)[stored][9:79, 5:65])


def test_channels_in_separate_pages_are_refused(tissue: Pixels, tmp_path: Path) -> None:
    planes = np.ascontiguousarray(np.moveaxis(tissue, 2, 0))
    tifffile.imwrite(tmp_path / "a.ome.tiff", planes, tile=(64, 64), photometric="minisblack", metadata={"axes": "CYX"})
    with pytest.raises(CorruptImage, match="3 channels in separate pages are not RGB"):
        open_slide(tmp_path / "a.ome.tiff")
    tifffile.imwrite(tmp_path / "a.tiff", planes, tile=(64, 64), photometric="minisblack", metadata=None)
    with pytest.raises(CorruptImage, match="it has several pages of 517 x 333 px"):
        open_slide(tmp_path / "a.tiff")


def test_lzw_tiles_are_exact(tissue: Pixels, tmp_path: Path) -> None:
    def lzw(pixels: Pixels) -> bytes:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "TIFF", compression="tiff_lzw", tiffinfo={278: len(pixels)})
        with tifffile.TiffFile(io.BytesIO(file.getvalue())) as tiff:
            (start,), (count,) = tiff.pages[0].dataoffsets, tiff.pages[0].databytecounts
        return file.getvalue()[start : start + count]

    slide = open_slide(write_tiles(tmp_path / "a.tiff", [tissue], lzw, 5, RGB))
    np.testing.assert_array_equal(slide.read(0, (0, 0, 333, 517)), tissue)
    assert slide.levels[0].codec == "LZW"


def test_pyramids_of_ome_are_in_subordinate_pages(tissue: Pixels, tmp_path: Path) -> None:
    levels = [tissue, halves(tissue, 2), halves(tissue, 4)]
    with tifffile.TiffWriter(tmp_path / "a.ome.tiff", ome=True) as file:
        sizes = {"PhysicalSizeX": 250.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.26, "PhysicalSizeYUnit": "µm"}
        common: Any = {"tile": (64, 64), "compression": "zlib", "photometric": "rgb"}
        file.write(tissue, subifds=2, metadata={"axes": "YXS", **sizes}, **common)
        for level in levels[1:]:
            file.write(level, subfiletype=1, **common)
    slide = open_slide(tmp_path / "a.ome.tiff")
    assert slide.vendor == "ome-tiff" and slide.spacing == pytest.approx((0.26, 0.25))
    assert [level.downsample for level in slide.levels] == [(1, 1), (2, 2), (4, 4)]
    for number, pixels in enumerate(levels):
        np.testing.assert_array_equal(slide.read(number, (0, 0, *pixels.shape[:2])), pixels)


def test_outside_of_a_slide_is_white(slides: dict[str, Path]) -> None:
    slide = open_slide(slides["YCbCr"])
    inside = slide.read(0, (0, 0, 40, 50))
    part = slide.read(0, (-10, -20, 50, 70))
    assert (part[:10] == 255).all() and (part[:, :20] == 255).all()
    np.testing.assert_array_equal(part[10:, 20:], inside)
    assert (slide.read(0, (1000, 0, 5, 5)) == 255).all()


@pytest.mark.parametrize(
    "mpp, chosen",
    [(0.1, (0, 1)), (0.499, (0, 1)), (0.97, (0, 2)), (1.5, (0, 2)), (1.99, (1, 1)), (9.0, (1, 4)), (99.0, (1, 8))],
)
def test_the_nearest_resolution_that_is_not_coarser_is_read(
    mpp: float, chosen: tuple[int, int], slides: dict[str, Path]
) -> None:
    """Levels of 0.499 and 1.996 µm per pixel, each also at 1/2, 1/4 and 1/8."""
    assert open_slide(slides["RGB without a marker"]).nearest(mpp) == chosen


def test_a_rectangle_in_um_is_where_it_is_whatever_resolution_is_read(tmp_path: Path) -> None:
    """A dark square of 40 µm whose upper left corner is at (60, 100) µm, on slides of two scanners."""
    for mpp in (0.25, 0.4):
        pixels = np.full((round(200 / mpp), round(240 / mpp), 3), 230, np.uint8)
        pixels[round(60 / mpp) : round(100 / mpp), round(100 / mpp) : round(140 / mpp)] = 30
        name = tmp_path / f"{mpp}.tiff"
        write_tiles(
            name,
            [pixels],
            lambda x: jpeg(x, quality=95),
            JPEG,
            YCBCR,
            resolution=(1e4 / mpp,) * 2,
            resolutionunit="centimeter",
        )
        for asked in (0.2, mpp, 1.0, 1.7):
            region = open_slide(name).read_um((50.3, 85.7, 64.0, 80.0), asked)
            y, x = region.spacing
            assert y == x <= max(asked, mpp) * 1.03
            assert -y < region.origin[0] - 50.3 <= 1e-6 and -x < region.origin[1] - 85.7 <= 1e-6
            dark = (region.pixels[:, :, 0] < 130).sum() * y * x
            rows = np.flatnonzero((region.pixels[:, :, 0] < 130).any(1)) * y + region.origin[0]
            assert dark == pytest.approx(40 * 40, rel=0.12)
            assert rows[0] == pytest.approx(60, abs=y) and rows[-1] + y == pytest.approx(100, abs=y)


def test_a_damaged_tile_costs_a_tile(slides: dict[str, Path], tissue: Pixels, tmp_path: Path) -> None:
    path = tmp_path / "a.tiff"
    path.write_bytes(slides["YCbCr"].read_bytes())
    good = open_slide(path).read(0, (0, 0, 333, 517))
    damage_tile(path, 6)  # the second of the second row
    for slide in (open_slide(path), Slide(str(path), open_with_openslide(str(path)))):
        with pytest.raises(CorruptImage, match=r"a\.tiff.*x 128, y 128|a\.tiff.*x 130, y 140") as raised:
            slide.read(0, (140, 130, 110, 20))
        assert "\n" not in str(raised.value)
        np.testing.assert_array_equal(slide.read(0, (0, 0, 128, 517)), good[:128])
        np.testing.assert_array_equal(slide.read(0, (128, 256, 100, 261)), good[128:228, 256:])


@pytest.mark.parametrize("codec", [JPEG, 33005])
def test_a_tile_that_claims_to_be_huge_takes_no_memory(
    codec: int, slides: dict[str, Path], tmp_path: Path, bounded_memory: Callable[..., AbstractContextManager[None]]
) -> None:
    def huge(pixels: Pixels) -> bytes:
        data = bytearray(jpeg(pixels) if codec == JPEG else jpeg_2000(pixels))
        frame = data.index(b"\xff\xc0") + 5 if codec == JPEG else data.index(b"\xff\x51") + 6
        kind, side = (">HH", 30_000) if codec == JPEG else (">II", 30_000)
        struct.pack_into(kind, data, frame, side, side)
        return bytes(data)

    pixels = np.full((128, 128, 3), 99, np.uint8)
    slide = open_slide(write_tiles(tmp_path / "a.tiff", [pixels], huge, codec, YCBCR if codec == JPEG else RGB))
    with bounded_memory(20), pytest.raises(CorruptImage, match="is damaged"):
        slide.read(0, (0, 0, 128, 128))


def test_a_few_stray_bytes_before_the_end_of_a_tile_are_not_damage(tissue: Pixels, tmp_path: Path) -> None:
    path = write_tiles(tmp_path / "a.tiff", [tissue], lambda x: jpeg(x)[:-2] + b"\0\xff\xd9", JPEG, YCBCR)
    plain = write_tiles(tmp_path / "b.tiff", [tissue], jpeg, JPEG, YCBCR)
    np.testing.assert_array_equal(*(open_slide(name).read(0, (0, 0, 333, 517)) for name in (path, plain)))


def _wrong(slide: Slide, seed: int, whole: Pixels) -> int:
    """How many of 150 random parts differ from the whole."""
    rng, wrong = np.random.default_rng(seed), 0
    for _ in range(150):
        y, x = int(rng.integers(0, 333 - 100)), int(rng.integers(0, 517 - 100))
        wrong += not np.array_equal(slide.read(0, (y, x, 100, 100)), whole[y : y + 100, x : x + 100])
    return wrong


@pytest.mark.parametrize("reader", ["tiles", "openslide"])
def test_forked_readers_and_threads_read_the_same(
    reader: str, slides: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(slides["YCbCr"])
    slide = open_slide(path) if reader == "tiles" else Slide(path, open_with_openslide(path))
    assert slide.file.reader == reader
    whole = slide.read(0, (0, 0, 333, 517))  # a handle is open, and tiles are kept, before the fork
    monkeypatch.setattr(recent_tiles, "_most", 200_000)  # few tiles
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    workers = [context.Process(target=lambda k: results.put(_wrong(slide, k, whole)), args=(k,)) for k in range(3)]
    for worker in workers:
        worker.start()
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda seed: _wrong(slide, seed, whole), range(3, 6))) == [0, 0, 0]
    assert [results.get() for _ in workers] == [0, 0, 0]
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0


def test_a_slide_can_be_sent_to_a_process(slides: dict[str, Path]) -> None:
    for path in slides.values():
        slide = open_slide(path)
        sent = pickle.loads(pickle.dumps(slide))
        np.testing.assert_array_equal(sent.read(0, (9, 9, 40, 200)), slide.read(0, (9, 9, 40, 200)))


def test_a_file_that_changes_is_noticed(slides: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "a.tiff"
    path.write_bytes(slides["YCbCr"].read_bytes())
    slide = open_slide(path)
    path.write_bytes(slides["JPEG 2000"].read_bytes())
    with pytest.raises(CorruptImage, match="changed"):
        slide.read(0, (0, 0, 8, 8))


def test_a_file_stays_open_while_it_is_read(slides: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that read a file first at the same time each open it, and only one descriptor is kept for others."""
    slide = open_slide(slides["YCbCr"])
    expected = slide.read(0, (0, 0, 64, 64))
    recent_tiles.clear()
    monkeypatch.setattr(file_parts, "_opened", file_parts._OpenFile)
    np.testing.assert_array_equal(slide.read(0, (0, 0, 64, 64)), expected)


def test_many_slides_keep_few_files_open(slides: dict[str, Path], tmp_path: Path) -> None:
    opened = []
    for number in range(200):
        (path := tmp_path / f"{number}.tiff").symlink_to(slides["YCbCr"])
        opened.append(open_slide(path))
    before = len(os.listdir("/proc/self/fd"))
    parts = [slide.read(0, (0, 0, 9, 9)) for slide in opened for _ in range(2)]
    assert len(os.listdir("/proc/self/fd")) - before <= 130
    assert all(np.array_equal(part, parts[0]) for part in parts)


def test_the_lists_of_a_million_tiles_stay_in_the_file(
    tmp_path: Path, bounded_memory: Callable[..., AbstractContextManager[None]]
) -> None:
    """A slide of which only the last tile is stored; its lists take 8 MB."""
    side, tiles = 1024 * 256, 1024 * 1024
    data = jpeg(np.full((256, 256, 3), 90, np.uint8))
    tags = {256: (4, 1, side), 257: (4, 1, side), 258: (3, 3, 0), 259: (3, 1, 7), 262: (3, 1, 6), 277: (3, 1, 3)}
    tags |= {322: (3, 1, 256), 323: (3, 1, 256), 324: (4, tiles, 4096), 325: (4, tiles, 4096 + 4 * tiles)}
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    bits, end = len(head) + 12 * len(tags) + 4, 4096 + 8 * tiles
    tags[258] = (3, 3, bits)
    head += b"".join(struct.pack("<HHII", tag, *tags[tag]) for tag in sorted(tags)) + struct.pack("<I3H", 0, 8, 8, 8)
    with (tmp_path / "a.tiff").open("wb") as file:
        file.write(head)
        for place, value in ((4096 + 4 * (tiles - 1), end), (end - 4, len(data))):
            file.seek(place)
            file.write(struct.pack("<I", value))
        file.write(data)
    slide = open_slide(tmp_path / "a.tiff")
    assert len(pickle.dumps(slide)) < 3000
    with bounded_memory(3):
        assert slide.size == (side, side) and slide.file.check() == []
        assert (slide.read(0, (side - 256, side - 256, 256, 256)) == 90).all()
        assert (slide.read(0, (5000, 5000, 64, 64)) == 255).all()


def test_a_large_tiff_of_jpeg_tiles_is_read_in_parts_by_predict(
    slides: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("densepath.sources.image_reader._IN_PARTS", 0)
    reader = open_file(slides["RGB without a marker"])
    assert reader.size == (333, 517) and reader.spacing == pytest.approx((0.499, 0.499))
    whole = np.asarray(openslide.OpenSlide(slides["RGB without a marker"]).read_region((0, 0), 0, (517, 333)))[:, :, :3]
    np.testing.assert_array_equal(reader.read(30, 40, 200, 99), whole[30:230, 40:139])


def test_a_slide_at_a_resolution_is_an_image_of_it(slides: dict[str, Path]) -> None:
    level = open_slide(slides["YCbCr"], mpp=0.5).at_mpp(1.1)
    assert level.size == (166, 258) and level.name == str(slides["YCbCr"])
    assert level.spacing == pytest.approx((1.0, 1.0))
    assert level.read(100, 200, 30, 40).shape == (30, 40, 3)


@pytest.mark.parametrize(
    ("method", "given", "says"),
    [
        ("read", (9, (0, 0, 5, 5)), "ycbcr.tiff has no level 9; give one from 0 to "),
        ("read", (-1, (0, 0, 5, 5)), "has no level -1"),
        ("read", (0, (0, 0, 5, 5), 3), "level 0 of .* cannot be reduced by 3; it can by 1"),
        ("read", (0, (0, 0, -5, 5)), "a part of .* has the height -5 and the width 5; give sizes of 0 or more"),
        ("read", (0, (0, 0, 5.5, 5)), "a part of .* is .*5.5.*; give top, left, height and width in whole pixels"),
        ("read_um", ((0.0, 0.0, 5.0, -5.0), 0.5), "has the height 5.0 and the width -5.0"),
        ("read_um", ((float("nan"), 0.0, 5.0, 5.0), 0.5), "begins at nan, 0.0 µm; give finite numbers"),
        ("read_um", ((0, 0, 5, 5), "1"), "mpp is 1; give µm per pixel"),
        *(("read_um", ((0, 0, 5, 5), mpp), f"mpp is {mpp}; give µm per pixel") for mpp in (-1, 0, float("nan"))),
    ],
)
def test_what_a_slide_does_not_have_is_refused(
    slides: dict[str, Path], method: str, given: tuple[Any, ...], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        getattr(open_slide(slides["YCbCr"], mpp=0.5), method)(*given)


@pytest.mark.parametrize("given", [0, -1.0, float("nan"), "0.5", (0.5, 0.25)])
@pytest.mark.parametrize("name", ["mpp", "default_mpp"])
def test_wrong_um_per_pixel_are_refused(slides: dict[str, Path], name: str, given: Any) -> None:
    with pytest.raises(UserError, match=rf"^{name} is .*; give (µm per pixel, such as 0\.25|a number$)"):
        open_slide(slides["YCbCr"], **{name: given})


def test_a_box_may_be_of_numpy(slides: dict[str, Path]) -> None:
    slide = open_slide(slides["YCbCr"])
    with decoding_in_part():
        part = slide.read(0, np.array([60, 70, 50, 40]))  # type: ignore[arg-type]
    np.testing.assert_array_equal(part, slide.read(0, (60, 70, 50, 40)))


def test_um_need_um_per_pixel(slides: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"ycbcr\.tiff has no µm per pixel; .*--mpp_table slides\.csv.*--default_mpp"):
        open_slide(slides["YCbCr"]).read_um((0, 0, 10, 10), 0.5)
