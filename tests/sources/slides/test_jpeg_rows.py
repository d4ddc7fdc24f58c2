"""The first rows of a JPEG tile: the same pixels as those of the whole tile, with less work."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
from slide_files import JPEG, RGB, YCBCR, Pixels, jpeg, write_tiles

from densepath.sources.corrupt import CorruptImage
from densepath.sources.slides.decoded_tiles import RecentTiles, decoding_in_part, recent_tiles
from densepath.sources.slides.jpeg_rows import shortened
from densepath.sources.slides.open import open_slide
from densepath.sources.slides.tile_codecs import TileFormat, jpeg_start

_SIDE = 128


def _format(photometric: int, samples: int = 3) -> TileFormat:
    return TileFormat(JPEG, photometric, 1, _SIDE, _SIDE, samples, jpeg_start(b"", photometric))


def _noise(channels: int = 3) -> Pixels:
    pixels = np.random.default_rng(0).integers(0, 256, (_SIDE, _SIDE, channels), dtype=np.uint8)
    return pixels if channels == 3 else pixels[:, :, 0]


def _forget(kept: int = 2**26) -> None:
    """Keep no tile of those before, which were of no use."""
    recent_tiles.limit(kept)
    while recent_tiles.useful:
        recent_tiles.get("none")


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
@pytest.mark.parametrize(
    ("photometric", "options"),
    [
        (RGB, {"keep_rgb": True, "subsampling": 0}),
        (YCBCR, {"subsampling": 0}),
        (YCBCR, {"subsampling": 1}),
        (YCBCR, {"subsampling": 2}),
        (YCBCR, {"subsampling": 2, "restart_marker_rows": 1}),
        (YCBCR, {"subsampling": 2, "progressive": True}),
    ],
    ids=["RGB", "4:4:4", "4:2:2", "4:2:0", "restarts", "progressive"],
)
def test_the_first_rows_are_those_of_the_whole(photometric: int, options: dict[str, Any], scale: int) -> None:
    """Noise, in which each row of colors differs from the next: a wrong interpolation between rows shows."""
    data, kind = jpeg(_noise(), quality=90, **options), _format(photometric)
    whole = kind.decode(data, scale)
    for rows in range(1, _SIDE // scale + 1):
        assert np.array_equal(kind.decode(data, scale, rows)[:rows], whole[:rows])
    assert (shortened(data, (_SIDE, _SIDE), 64)[1] < _SIDE) == ("progressive" not in options)


def test_grey_tiles_too() -> None:
    data, kind = jpeg(_noise(1), quality=90), _format(1, samples=1)
    whole, part = kind.decode(data), kind.decode(data, 1, 20)
    assert whole.shape == (_SIDE, _SIDE, 1)
    assert np.array_equal(part, whole[:20]) and shortened(data, (_SIDE, _SIDE), 20)[1] == 24


def test_damage_in_the_rows_that_are_read_is_noticed() -> None:
    kind, data = _format(YCBCR), bytearray(jpeg(_noise(), quality=90, subsampling=0))
    with pytest.raises(ValueError, match="remature end"):
        kind.decode(bytes(data[: len(data) // 4]), 1, 64)
    at = len(data) // 5
    data[at : at + 2] = b"\xff\xd9"  # ends here
    with pytest.raises(ValueError, match="remature end"):
        kind.decode(bytes(data), 1, 64)


def test_a_jpeg_of_another_size_stays_as_it_is() -> None:
    data = jpeg(_noise(), quality=90)
    assert shortened(data, (256, _SIDE), 8) == (data, 256) and shortened(data, (_SIDE, 136), 8) == (data, _SIDE)
    assert shortened(b"\xff\xd8\xff\xda" + bytes(20), (256, 256), 8)[1] == 256
    assert shortened(b"\xff\xd8", (256, 256), 8)[1] == 256
    for pixels in (_noise()[:, :96], _noise()[:96]):  # would leave parts of the tile as they were in memory
        for end in (b"", bytes(4)):
            with pytest.raises(ValueError, match=r"\d+ x \d+ px"):
                _format(YCBCR).decode(jpeg(pixels, quality=90)[:-2] + end + b"\xff\xd9", 1, 16)


def test_channels_that_are_stored_one_after_another_are_read_whole() -> None:
    data, frame = b"\xff\xd8", struct.pack(">HHBHHB", 0xFFC0, 17, 8, _SIDE, _SIDE, 3)
    frame += b"".join(bytes((channel, 0x11, 0)) for channel in (1, 2, 3))
    for channel in range(3):
        single = jpeg(_noise()[:, :, channel], quality=90)
        scan, tables = single.index(b"\xff\xda"), single[single.index(b"\xff\xc4") : single.index(b"\xff\xda")]
        if not channel:
            data += single[single.index(b"\xff\xdb") : single.index(b"\xff\xc0")] + frame
        data += tables + single[scan : scan + 5] + bytes([channel + 1]) + single[scan + 6 : -2]
    kind, data = _format(YCBCR), data + b"\xff\xd9"
    whole = kind.decode(data)
    assert whole.std() > 40 and all((kind.decode(data, 1, rows)[:rows] == whole[:rows]).all() for rows in (8, 64, 120))


def test_memory_of_kept_tiles_counts_rows_that_are_not_shown() -> None:
    tiles = RecentTiles(2**18)
    for number in range(100):
        tiles.put(number, np.zeros((128, 128, 3), np.uint8)[:4])
    assert sum(tiles.get(number) is not None for number in range(100)) == 2**18 // (128 * 128 * 3)


@pytest.fixture
def in_part() -> Iterator[None]:
    """As in pre-training."""
    with decoding_in_part():
        yield


@pytest.mark.usefixtures("in_part")
@pytest.mark.parametrize("name", ["YCbCr", "RGB without a marker"])
def test_random_windows_are_those_of_openslide(
    name: str, slides: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without kept tiles each is decoded in part; with them, parts are kept and completed when they are needed."""
    slide, oracle = open_slide(slides[name]), openslide.OpenSlide(slides[name])
    rng, counted = np.random.default_rng(0), []
    decode = TileFormat.decode

    def watched(self: TileFormat, data: bytes, scale: int = 1, rows: int | None = None) -> Pixels:
        counted.append(rows)
        return decode(self, data, scale, rows)

    monkeypatch.setattr(TileFormat, "decode", watched)
    for kept in (0, 2**26):
        _forget(kept)
        counted.clear()
        for _ in range(40):
            top, left = int(rng.integers(333 - 100)), int(rng.integers(517 - 100))
            ours = slide.read(0, (top, left, 100, 100))
            assert (ours == np.asarray(oracle.read_region((left, top), 0, (100, 100)))[:, :, :3]).all()
        some = sum(map(bool, counted))
        assert some > 30 if kept == 0 else len(counted) - some > 5, (kept, counted)
    recent_tiles.limit(2**26)


def test_whole_tiles_are_decoded_while_kept_ones_are_used() -> None:
    tiles = RecentTiles(2**20)
    tile = np.zeros((8, 8, 3), np.uint8)
    tiles.put("a", tile)
    assert (
        tiles.get("a", 9) is None and tiles.get("b") is None and tiles.useful
    )  # in order, until it shows that they are not
    for _ in range(40):
        assert tiles.get("b") is None
    assert not tiles.useful
    for _ in range(20):
        assert tiles.get("a", 8) is tile
    assert tiles.useful
    for _ in range(40):
        assert tiles.get("b") is None
    assert not tiles.useful


@pytest.mark.usefixtures("in_part")
def test_a_part_that_is_kept_is_completed(tissue: Pixels, tmp_path: Path) -> None:
    path = write_tiles(tmp_path / "a.tiff", [tissue], jpeg, JPEG, YCBCR)
    slide = open_slide(path)
    _forget()
    upper = slide.read(0, (100, 10, 60, 20))
    lower = slide.read(0, (100, 10, 150, 20))
    recent_tiles.limit(2**26)
    assert (lower == slide.read(0, (0, 0, 256, 128))[100:250, 10:30]).all() and (lower[:60] == upper).all()


def test_without_pre_training_whole_tiles_are_decoded(tissue: Pixels, tmp_path: Path) -> None:
    """Damage of a tile is noticed wherever it is, also where pre-training kept a part of the tile."""

    def damaged(pixels: Pixels) -> bytes:
        data = bytearray(jpeg(pixels, quality=95))
        at = 4 * len(data) // 5
        data[at : at + 2] = b"\xff\xd0"
        return bytes(data)

    slide = open_slide(write_tiles(tmp_path / "a.tiff", [tissue], damaged, JPEG, YCBCR))
    _forget()
    for _ in range(2):
        with pytest.raises(CorruptImage, match="the tile at x 0, y 0"):
            slide.read(0, (10, 10, 60, 20))
        with decoding_in_part():
            slide.read(0, (10, 10, 60, 20))


@pytest.mark.usefixtures("in_part")
def test_damage_depends_on_the_rows_that_are_read_and_not_on_those_before(tissue: Pixels, tmp_path: Path) -> None:
    """Else a run that is resumed would replace other tiles than one that was not stopped."""

    def damaged(pixels: Pixels) -> bytes:
        data = bytearray(jpeg(pixels, quality=95))
        at = 4 * len(data) // 5
        data[at : at + 2] = b"\xff\xd0"  # a restart where none may be
        return bytes(data)

    path = write_tiles(tmp_path / "a.tiff", [tissue], damaged, JPEG, YCBCR)
    slide = open_slide(path)

    def readable(kept: bool) -> list[bool]:
        found = []
        for bottom in range(130, 256):
            if not kept:
                _forget()
            try:
                slide.read(0, (129, 10, bottom - 129, 20))
                found.append(True)
            except CorruptImage:
                found.append(False)
        return found

    fresh = readable(kept=False)
    assert fresh == sorted(fresh, reverse=True) and 20 < sum(fresh) < len(fresh)
    recent_tiles.limit(2**26)
    for _ in range(40):  # kept tiles are used from now on
        slide.read(0, (0, 10, 1, 20))
    assert recent_tiles.useful and readable(kept=True) == fresh
