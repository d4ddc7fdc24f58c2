"""The tiles of one level of a TIFF: where each is in the file, read from there when it is needed."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from densepath.core.errors import counted, errors_as, one_line
from densepath.sources.corrupt import CorruptImage, lasting
from densepath.sources.slides.decoded_tiles import decodes_in_part, recent_tiles
from densepath.sources.slides.file_parts import FileParts
from densepath.sources.slides.jpeg_2000 import coding_style
from densepath.sources.slides.tile_codecs import CODECS, CONVERTED, JPEG, JPEG_2000, Pixels, TileFormat, jpeg_start
from densepath.sources.tiff_colors import UnknownStorage, is_padded, is_premultiplied, refuse_colors

WHITE = 255
_OFFSETS, _COUNTS = 324, 325  # TileOffsets, TileByteCounts
_NUMBERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}  # by TIFF's type
_SEPARATE = 2  # PlanarConfiguration
_CHECKED_AT_ONCE, _READ_AT_ONCE = 2**14, 2**8  # tiles
_LARGEST_TILE = 2**13  # pixels of a side
_HEADER = 2**12  # bytes at the beginning of a tile of JPEG 2000 that say how it was made


@dataclass(frozen=True)
class _Numbers:
    """A list of numbers in a file, of any length, of which only those that are needed are read.

    Args:
        offset: of the list in bytes.
        count: its length.
        kind: byte order and type, as in :mod:`struct`.
    """

    offset: int
    count: int
    kind: str

    @classmethod
    def of(cls, tag: Any, byteorder: str) -> _Numbers:
        return cls(tag.valueoffset, tag.count, byteorder + _NUMBERS[int(tag.dtype)])

    def one(self, file: FileParts, position: int) -> int:
        size, first = struct.calcsize(self.kind), position - position % _READ_AT_ONCE
        part = _part(file, self.offset + first * size, min(_READ_AT_ONCE, self.count - first) * size)
        return int(struct.unpack_from(self.kind, part, (position - first) * size)[0])

    def some(self, file: FileParts, first: int, count: int) -> npt.NDArray[np.float64]:
        size = struct.calcsize(self.kind)
        data = file.read(self.offset + first * size, count * size)
        return np.frombuffer(data, np.dtype(self.kind)).astype(np.float64)


# Parts of the lists of all slides, of 2 kB or less each: tiles are often read near those before.
_part = lru_cache(1024)(FileParts.read)


@dataclass(frozen=True)
class TileTable:
    """The tiles of a level.

    Args:
        file: the slide.
        size: height and width of the level in pixels.
        format: how a tile is stored.
        planes: 3 if the colors are stored in separate tiles, otherwise 1.
    """

    file: FileParts
    size: tuple[int, int]
    format: TileFormat
    planes: int
    _offsets: _Numbers
    _counts: _Numbers

    @classmethod
    def of(cls, file: FileParts, page: Any) -> TileTable:
        """The table of a page of tifffile.

        Raises:
            CorruptImage: its tiles cannot be decoded here.
        """
        codec, samples, planes = int(page.compression), int(page.samplesperpixel), 1
        refuse_colors(file.path, page, CONVERTED, padded=True)
        if codec not in CODECS or (codec == JPEG and samples == 4):
            why = f"its compression {codec} of {counted(samples, 'channel')} is unknown; save it as RGB with JPEG"
            raise UnknownStorage(file.path, why)
        if page.planarconfig == _SEPARATE and samples > 1:
            samples, planes = 1, samples
        if page.dtype != np.uint8 or samples not in (1, 3, 4) or planes not in (1, 3) or page.imagedepth != 1:
            channels = samples * planes
            raise CorruptImage(
                file.path, f"{counted(channels, 'channel')} of {page.dtype}, not 8-bit RGB or grey; convert it"
            )
        height, width = int(page.tilelength), int(page.tilewidth)
        if not 0 < height <= _LARGEST_TILE or not 0 < width <= _LARGEST_TILE:
            raise CorruptImage(file.path, f"its tiles have {width} x {height} px; save it with tiles of 256 px")
        size = int(page.imagelength), int(page.imagewidth)
        if not min(size):
            raise CorruptImage(file.path, f"it has {size[1]} x {size[0]} px; copy it again")
        photometric = int(page.photometric) if planes == 1 else 1
        start = jpeg_start(page.jpegtables or b"", photometric) if codec == JPEG else b""
        alpha = {"premultiplied": is_premultiplied(page), "padded": is_padded(page)}
        kind = TileFormat(codec, photometric, int(page.predictor), height, width, samples, start, **alpha)
        lists = [_Numbers.of(page.tags[code], page.parent.byteorder) for code in (_OFFSETS, _COUNTS)]
        table = cls(file, size, kind, planes, *lists)
        if min(each.count for each in lists) < table.count:
            raise CorruptImage(
                file.path, f"it lists {lists[0].count:,} of {counted(table.count, 'tile')}; copy it again"
            )
        return table._with_halvings() if codec in JPEG_2000 else table

    def _with_halvings(self) -> TileTable:
        """The table of a level of JPEG 2000, whose tiles can be halved as often as the first one that is stored."""
        try:
            counts = self._counts.some(self.file, 0, min(_CHECKED_AT_ONCE, self.count))
            first = int(np.flatnonzero(counts)[0])
            start, count = self._offsets.one(self.file, first), int(counts[first])
            halvings = coding_style(self.file.read(start, min(count, _HEADER))).halvings
        except CorruptImage as error:
            lasting(error)  # damage is reported where it is read
            return self
        except (ValueError, IndexError):
            return self
        return replace(self, format=replace(self.format, halvings=halvings))

    @property
    def across(self) -> int:
        """Tiles in a row."""
        return -(-self.size[1] // self.format.width)

    @property
    def count(self) -> int:
        """Tiles of the level."""
        return -(-self.size[0] // self.format.height) * self.across * self.planes

    def read(self, top: int, left: int, height: int, width: int, scale: int = 1) -> Pixels:
        """A part (height, width, 3) of the level reduced by ``scale``, which is one of ``format.scales``.

        Raises:
            CorruptImage: a tile cannot be read or decoded.
        """
        high, wide = self.format.height // scale, self.format.width // scale
        if top % high == 0 == left % wide and (height, width) == (high, wide):  # no copy
            return self._tile(top // high * self.across + left // wide, scale, high, keep=False)
        out = np.empty((height, width, 3), np.uint8)
        for row in range(top // high, -(-(top + height) // high)):
            for column in range(left // wide, -(-(left + width) // wide)):
                y, x = row * high - top, column * wide - left  # of the tile in the part
                tile = self._tile(row * self.across + column, scale, min(high, height - y))
                rows, columns = slice(max(y, 0), y + high), slice(max(x, 0), x + wide)
                part = out[rows, columns]
                part[:] = tile[rows.start - y :, columns.start - x :][: part.shape[0], : part.shape[1]]
        return out

    def beyond(self) -> int:
        """How many tiles the file ends before."""
        found = 0
        for first in range(0, self.count, _CHECKED_AT_ONCE):
            count = min(_CHECKED_AT_ONCE, self.count - first)
            starts, sizes = (each.some(self.file, first, count) for each in (self._offsets, self._counts))
            found += int(((sizes > 0) & (starts + sizes > self.file.size)).sum())
        return found

    def _tile(self, index: int, scale: int, rows: int, keep: bool = True) -> Pixels:
        """At least the upper rows of a tile (h, w, 3); with ``keep`` also kept for later, and not to be changed.

        The others are decoded too, except :func:`decoding_in_part` and while tiles that are kept are seldom used again.
        Whether a tile is damaged depends on the rows that are needed only, not on what was read before.
        """
        key = (self.file, self._offsets.offset, index, scale)
        rows = rows if decodes_in_part() else self.format.height // scale
        tile = recent_tiles.get(key, rows)
        if tile is None:
            whole = rows == self.format.height // scale
            if whole or not recent_tiles.useful:
                tile = self._decoded(index, scale, None if whole else rows)
            else:
                try:
                    tile = self._decoded(index, scale, None)
                except CorruptImage:
                    tile = self._decoded(index, scale, rows)
            if keep:
                recent_tiles.put(key, tile)
        elif not keep:
            return tile.copy()
        return tile if keep or tile.flags.writeable else tile.copy()

    def _decoded(self, index: int, scale: int, rows: int | None) -> Pixels:
        in_plane = self.count // self.planes
        planes = [self._plane(index + plane * in_plane, index, scale, rows) for plane in range(self.planes)]
        least = min(map(len, planes))
        tile = planes[0] if len(planes) == 1 else np.concatenate([plane[:least] for plane in planes], axis=2)
        return np.repeat(tile, 3, axis=2) if tile.shape[2] == 1 else tile

    def _plane(self, stored: int, index: int, scale: int, rows: int | None) -> Pixels:
        start, count = self._offsets.one(self.file, stored), self._counts.one(self.file, stored)
        shape = self.format.height // scale, self.format.width // scale
        if not count:  # a tile that was left out is empty glass
            return np.full((*shape, 1), WHITE, np.uint8)
        data = self.file.read(start, count)
        with errors_as(lambda error: self._damaged(index, error)):
            return self.format.decode(data, scale, rows)

    def _damaged(self, index: int, error: Exception) -> CorruptImage:
        y, x = index // self.across * self.format.height, index % self.across * self.format.width
        where = f"the tile at x {x}, y {y} of its level of {self.size[1]} x {self.size[0]} px is damaged"
        return CorruptImage(self.file.path, f"{where} ({one_line(str(error))})")
