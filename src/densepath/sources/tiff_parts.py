"""A large TIFF, of which only the tiles or strips are decoded that a part needs."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from densepath.core.errors import errors_as, one_line
from densepath.sources.conversion import as_pixels
from densepath.sources.corrupt import CorruptImage
from densepath.sources.slides.resolution import from_tags
from densepath.sources.tiff_colors import has_plain_colors

_KEPT = 2**28  # bytes of decoded parts that are kept: neighboring windows share them
_LONGEST_PART = 2**30  # bytes
_CONTIGUOUS = 1


class TiffParts:
    """A large TIFF of 8- or 16-bit grey or RGB, of which only the tiles or strips that a part needs are decoded.

    Args:
        path: the file.
        channels: 1 or 3.
        dtype: uint8 or uint16.

    Raises:
        CorruptImage: it is stored in a way that cannot be read in parts.
    """

    def __init__(self, path: str | Path, channels: int = 3, dtype: npt.DTypeLike = np.uint8) -> None:
        self.name = str(path)
        self._channels, self._dtype = channels, np.dtype(dtype)
        self._file = tifffile.TiffFile(path)
        self._page: Any = self._file.pages.first
        self._parts: OrderedDict[int, npt.NDArray[Any]] = OrderedDict()
        self._kept = 0
        page = self._page
        self.size = (int(page.imagelength), int(page.imagewidth))
        self.spacing = from_tags(page)
        if page.is_tiled:
            self._rows, self._columns = int(page.tilelength), int(page.tilewidth)
        else:
            self._rows, self._columns = min(int(page.rowsperstrip), self.size[0]), self.size[1]
        self._across = -(-self.size[1] // self._columns)
        bytes_each = self._rows * self._columns * page.samplesperpixel * np.dtype(page.dtype).itemsize
        plain = has_plain_colors(page) and page.dtype in (np.uint8, np.uint16)
        contiguous = page.samplesperpixel == 1 or page.planarconfig == _CONTIGUOUS
        if not plain or not contiguous or page.samplesperpixel not in (1, 3) or page.imagedepth != 1:
            raise CorruptImage(self.name, "it is too large to be decoded whole; save it as a tiled TIFF, grey or RGB")
        if bytes_each > _LONGEST_PART:
            raise CorruptImage(self.name, "its strips are too large to be decoded one by one; save it with tiles")

    def read(self, top: int, left: int, height: int, width: int) -> npt.NDArray[Any]:
        """A part (height, width, C). Raises CorruptImage."""
        out = np.zeros((height, width, self._channels), self._dtype)
        for row in range(top // self._rows, -(-(top + height) // self._rows)):
            for column in range(left // self._columns, -(-(left + width) // self._columns)):
                part = self._part(row * self._across + column)
                y, x = row * self._rows, column * self._columns
                y1, x1 = max(y, top), max(x, left)
                y2, x2 = min(y + part.shape[0], top + height), min(x + part.shape[1], left + width)
                if y1 < y2 and x1 < x2:
                    out[y1 - top : y2 - top, x1 - left : x2 - left] = part[y1 - y : y2 - y, x1 - x : x2 - x]
        return out

    def _part(self, index: int) -> npt.NDArray[Any]:
        """A decoded tile or strip (h, w, C)."""
        if index in self._parts:
            self._parts.move_to_end(index)
            return self._parts[index]
        page = self._page
        with errors_as(self._damaged):
            self._file.filehandle.seek(page.dataoffsets[index])
            data = self._file.filehandle.read(page.databytecounts[index]) or None
            segment, _, shape = page.decode(data, index, jpegtables=page.jpegtables)
        if segment is None:  # a tile that was left out
            white = 0 if page.photometric == 0 else np.iinfo(page.dtype).max
            segment = np.full(shape, white, page.dtype)
        part = segment.reshape(segment.shape[-3:])
        part = as_pixels(np.invert(part) if page.photometric == 0 else part, self._channels, self._dtype)
        self._parts[index] = part
        self._kept += part.nbytes
        while self._kept > _KEPT and len(self._parts) > 1:
            self._kept -= self._parts.popitem(last=False)[1].nbytes
        return part

    def _damaged(self, error: Exception) -> CorruptImage:
        if "imagecodecs" in str(error):
            codec = getattr(self._page.compression, "name", self._page.compression)
            why = f"{codec} in a TIFF of this size needs the package imagecodecs: pip install imagecodecs"
            return CorruptImage(self.name, why)
        return CorruptImage(self.name, f"a part cannot be decoded ({one_line(str(error))})")
