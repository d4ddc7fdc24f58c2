"""Images as files, decoded on request."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from densepath.core.digests import digest_of_files
from densepath.core.errors import UserError, counted
from densepath.core.spacing import evenly_spaced
from densepath.core.system import usable_cores
from densepath.core.threads import in_threads
from densepath.sources.batch import fill_canvas, new_canvas
from densepath.sources.conversion import MOST, highest_of_bits
from densepath.sources.corrupt import CorruptImage, allowed
from densepath.sources.decode import Header, read_header, read_image, read_size
from densepath.sources.listing import Passed
from densepath.sources.path_table import PathTable
from densepath.sources.pixel_source import Gathered, PixelSource, PixelSpec

T = TypeVar("T")

MAX_SIDE = 1024
SAMPLE = 256
_DECODED_SAMPLE = 32
_DARK = 2**14 - 1  # the highest value of 14 bits; images that use 15 are only a little darker


def passed_over(images: PixelSource) -> str:
    """What was passed over when a source was listed, as the end of a line: see :meth:`Passed.also`."""
    return images.passed.also() if isinstance(images, ImageFiles) else ""


class ImageFiles:
    """Image files, decoded one at a time; a corrupt one is replaced by the next readable one of the source.

    A sample of the headers determines channels and bit depth of all images of a source: grey if all of the sample are
    grey, else RGB, with grey replicated; 16 bits if any has 16, with 8-bit values times 257. Outside the sample, a
    color file in a grey source is converted to luma, and a 16-bit file in an 8-bit source loses its lower 8 bits. The
    window of 16-bit images extends to the highest bit that a sample of them uses: 4095 for 12-bit data.

    Args:
        paths: the files.
        max_side: the longest side of an image in a batch, in pixels; larger images are reduced by an integer
            factor (see :func:`densepath.sources.decode.read_image`).
        passed: what was passed over when the files were listed.
    """

    decodes = True
    reads_boxes = False
    device = torch.device("cpu")
    corrupt: Mapping[int, str] = MappingProxyType({})  # unknown before a file is decoded

    def __init__(
        self, paths: Iterable[str | Path] | PathTable, max_side: int = MAX_SIDE, passed: Passed | None = None
    ) -> None:
        self.paths = paths if isinstance(paths, PathTable) else PathTable.of(str(path) for path in paths)
        self.max_side = max_side
        self.passed = passed or Passed()
        self._spec: PixelSpec | None = None
        self._dtype: torch.dtype | None = None  # of a part, that of the whole

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def spec(self) -> PixelSpec:
        """The meaning of the pixels, determined from the files at first use."""
        if self._spec is None:
            window = (0.0, 255.0) if self.dtype == torch.uint8 else (0.0, float(self._highest()))
            self._spec = PixelSpec.default(self.channels, window)
        return self._spec

    @spec.setter
    def spec(self, spec: PixelSpec) -> None:
        self._spec = spec

    @property
    def channels(self) -> int:
        """1 or 3: as in the specification of the pixels, if there is one."""
        if self._spec is not None:
            return self._spec.channels
        return 1 if self.headers and all(header.grey for header in self.headers.values()) else 3

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of all images: uint8 or uint16."""
        if self._dtype is not None:
            return self._dtype
        return torch.uint16 if any(header.bits == 16 for header in self.headers.values()) else torch.uint8

    @cached_property
    def headers(self) -> dict[int, Header]:
        """The headers of up to ``SAMPLE`` readable images, evenly spread over the source, by position."""
        return self._headers(SAMPLE)[0]

    def take(self, positions: Tensor) -> ImageFiles:
        """The source with only the images at some positions (K,), with the pixels that they have in the whole."""
        taken = ImageFiles(PathTable.of(self.paths[int(p)] for p in positions), self.max_side, self.passed)
        taken._spec, taken._dtype = self.spec, self.dtype
        return taken

    def names(self, position: int) -> str:
        """The path of an image."""
        return self.paths[position]

    def sizes(self, index: Tensor) -> Tensor:
        """(B, 2) int64: heights and widths, from the headers of the files. Raises CorruptImage."""
        found = [read_size(self.names(position), self.max_side) for position in index.tolist()]
        return torch.tensor(found, dtype=torch.int64).reshape(-1, 2)

    def spacing(self, index: Tensor) -> None:
        """Unknown."""
        return

    def read(self, position: int) -> npt.NDArray[Any]:
        """Decode one image to (H, W, C), or raise :class:`CorruptImage`."""
        dtype = np.uint16 if self.dtype == torch.uint16 else np.uint8
        return read_image(self.names(position), self.max_side, self.channels, dtype)

    def sample_sizes(self, most: int = SAMPLE) -> dict[int, tuple[int, int]]:
        """(height, width) by position, of up to ``most`` images evenly spread over the source, from their headers.

        Raises:
            UserError: none of them can be read.
        """
        headers, last = (self.headers, None) if most == SAMPLE and self.headers else self._headers(most)
        if not headers:
            raise UserError(f"none of {counted(min(most, len(self)), 'image')} can be read; check the files ({last})")
        return {position: (header.height, header.width) for position, header in headers.items()}

    def _headers(self, most: int) -> tuple[dict[int, Header], CorruptImage | None]:
        """The headers, by position, of images spread over the source; and the last error, if any."""
        headers: dict[int, Header] = {}
        last: CorruptImage | None = None
        positions = self._spread(most)
        for position, header in zip(positions, self._in_threads(self._header, positions), strict=True):
            if isinstance(header, CorruptImage):
                last = header
            else:
                headers[position] = header
        return headers, last

    def _header(self, position: int) -> Header | CorruptImage:
        try:
            return read_header(self.names(position), self.max_side)
        except CorruptImage as error:
            return error

    def _in_threads(self, read: Callable[[int], T], positions: Iterable[int]) -> Iterator[T]:
        """Results for some images: a disk that hangs is reported."""
        return in_threads(read, positions, usable_cores(), "image data")

    def _spread(self, most: int) -> list[int]:
        count = min(most, len(self))
        return [k * len(self) // count for k in range(count)]

    def _highest(self) -> int:
        """The largest value of the bits that a sample of the images uses."""
        return highest_of_bits(max(self._in_threads(self._brightest, self._spread(_DECODED_SAMPLE))) or MOST)

    def _brightest(self, position: int) -> int:
        """The highest value of an image; 0 if it cannot be read."""
        try:
            return int(self.read(position).max())
        except CorruptImage:
            return 0

    def dim_among_bright(self) -> list[str]:
        """Names of sampled images of 16 bits, if all use 14 or fewer, such as 12, and others of the sample have 8."""
        wide = [position for position, header in self.headers.items() if header.bits == 16]
        if len(wide) in (0, len(self.headers)):
            return []
        some = [wide[place] for place in evenly_spaced(_DECODED_SAMPLE, len(wide))]
        highest = max(self._in_threads(self._brightest, some))
        return [self.names(position) for position in some] if 0 < highest <= _DARK else []

    def smallest(self) -> tuple[int, int]:
        """The position of the image with the shortest side, and that side in pixels, among a sample of the files."""
        sides = {position: min(size) for position, size in self.sample_sizes().items()}
        return min(sides.items(), key=lambda item: item[1])

    def gather(self, index: Tensor, boxes: Tensor | None = None, pin: bool = False) -> Gathered:
        """Decode the whole images at the positions ``index`` (B,) int64.

        Returns:
            The images. If more are corrupt than a source may have, only those before the last corrupt one.
        """
        images: list[npt.NDArray[Any]] = []
        taken: list[int] = []
        corrupt: dict[int, str] = {}
        for position in index.tolist():
            readable = self._read_or_next(position, corrupt)
            if readable is None:
                break
            taken.append(readable[0])
            images.append(readable[1])
        sizes = torch.tensor([image.shape[:2] for image in images], dtype=torch.int64).reshape(-1, 2)
        size = sizes.amax(dim=0).tolist() if images else (0, 0)
        canvas = new_canvas(len(images), size, self.channels, self.dtype, pin)
        fill_canvas(canvas.numpy(), images)
        return Gathered(canvas, sizes, torch.tensor(taken, dtype=torch.int64), corrupt)

    def digest(self, cache: Path) -> str:
        """The identity of the images: a digest of their files' contents."""
        return digest_of_files(lambda: self.paths, len(self), cache)

    def _read_or_next(self, position: int, corrupt: dict[int, str]) -> tuple[int, npt.NDArray[Any]] | None:
        while len(corrupt) <= allowed(len(self)):
            if position not in corrupt:
                try:
                    return position, self.read(position)
                except CorruptImage as error:
                    corrupt[position] = str(error)
            position = (position + 1) % len(self)
        return None
