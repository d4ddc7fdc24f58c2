"""Slides that OpenSlide reads: every format whose tiles are not read straight from the file."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from densepath.core.errors import UserError, one_line
from densepath.sources.conversion import on_white
from densepath.sources.corrupt import CorruptImage
from densepath.sources.patience import disk_errors_named, patiently
from densepath.sources.slides.all_files import files_of
from densepath.sources.slides.dicom_slide import require_files
from densepath.sources.slides.file_parts import FileParts
from densepath.sources.slides.handles import Handles
from densepath.sources.slides.levels import Level, downsamples
from densepath.sources.slides.resolution import Spacing, plausible
from densepath.sources.slides.slide_file import Box
from densepath.sources.slides.tile_codecs import Pixels

_SEARCHED = 64  # pixels
_DISK = "I/O error"  # in what OpenSlide says when a disk fails
_CACHE = 2**26  # bytes of decoded tiles, of all open slides together


def _openslide() -> Any:
    try:
        import openslide
    except ImportError as error:
        raise UserError('this slide needs OpenSlide; pip install "densepath[slides]"') from error
    return openslide


@lru_cache(1)
def _cache(process: int) -> Any:
    """The decoded tiles of all slides that a process has open."""
    return _openslide().OpenSlideCache(_CACHE)


def _open(path: str) -> Any:
    handle = _openslide().OpenSlide(path)
    if handle.properties.get("openslide.vendor") == "dicom":
        require_files(path)
    handle.set_cache(_cache(os.getpid()))
    return handle


_handles = Handles(_open)


@dataclass(frozen=True)
class OpenSlideFile:
    """A slide that OpenSlide reads.

    Args:
        file: the file.
        vendor: of the scanner.
        levels: from the finest to the coarsest.
        spacing: µm per pixel of level 0.
        associated: names of other images in the file.
        scan_corner: x and y of the scanned area in pixels of level 0.
    """

    file: FileParts
    vendor: str
    levels: tuple[Level, ...]
    spacing: Spacing | None
    associated: tuple[str, ...]
    scan_corner: tuple[int, int] = (0, 0)
    problems = ()
    reader = "openslide"

    def read(self, level: int, box: Box, scale: int) -> Pixels:
        """A part (height, width, 3) of a level; transparent pixels are white. Raises CorruptImage."""
        top, left, height, width = box

        def part(handle: Any) -> Pixels:
            factor = handle.level_downsamples[level]
            (x, right), (y, down) = _start(left, factor), _start(top, factor)
            return np.asarray(handle.read_region((x, y), level, (width + right, height + down)))[down:, right:]

        return self._pixels(f"level {level}, x {left}, y {top}, {width} x {height} px", part)

    def read_associated(self, name: str) -> Pixels:
        """Another image (H, W, 3). Raises CorruptImage."""
        return self._pixels(f"its {name}", lambda handle: np.asarray(handle.associated_images[name]))

    def check(self) -> list[str]:
        """Nothing: OpenSlide checks a file when it is opened."""
        return []

    def _pixels(self, what: str, read: Callable[[Any], Pixels]) -> Pixels:
        return patiently(self.file.path, lambda: on_white(self._read(what, read)))

    def _read(self, what: str, read: Callable[[Any], Pixels]) -> Pixels:
        path, openslide = self.file.path, _openslide()
        with disk_errors_named(path, files_of):
            try:
                return read(_handles.get(self.file))
            except openslide.OpenSlideError as error:
                _handles.drop(self.file)
                raise CorruptImage(path, f"{what} cannot be decoded ({_text(error)})") from _cause(error)


def open_with_openslide(path: str) -> OpenSlideFile | None:
    """A slide that OpenSlide reads; None if it does not know the format.

    Raises:
        CorruptImage: it knows the format, but cannot open the file.
        UserError: OpenSlide is not installed.
    """
    openslide = _openslide()
    try:
        if openslide.OpenSlide.detect_format(path) is None:
            return None
        file = FileParts.of(path)
        handle = _handles.get(file)
    except openslide.OpenSlideError as error:
        raise CorruptImage(path, f"cannot be opened ({_text(error)})") from _cause(error)
    sizes = [(height, width) for width, height in handle.level_dimensions]
    found = handle.properties
    try:
        spacing = plausible(float(found["openslide.mpp-y"]), float(found["openslide.mpp-x"]))
    except (KeyError, ValueError):
        spacing = None
    levels = tuple(Level(size, step) for size, step in zip(sizes, downsamples(sizes), strict=True))
    vendor = found.get("openslide.vendor", "unknown")
    x, y = (int(found.get(f"openslide.bounds-{axis}", 0)) for axis in "xy")
    return OpenSlideFile(file, vendor, levels, spacing, tuple(handle.associated_images), (x, y))


def _text(error: Exception) -> str:
    return one_line(str(error))


def _cause(error: Exception) -> Exception:
    """An error of OpenSlide as that of the operating system, if it says that a disk has failed."""
    return OSError(errno.EIO, _text(error)) if _DISK in str(error) else error


def _start(place: int, factor: float) -> tuple[int, int]:
    """Where to begin reading a level: in pixels of level 0, and how many pixels of the level that is before ``place``.

    OpenSlide takes whole pixels of level 0, and resamples if they are not whole in the level. So a start is looked for
    that nearly is, when the factor is not whole.
    """
    before = range(1 if factor == int(factor) else min(place, _SEARCHED) + 1)
    best = min(before, key=lambda k: abs(round((place - k) * factor) - (place - k) * factor))
    return round((place - best) * factor), best
