"""DICOM slides that OpenSlide does not read, by wsidicom; and which files of a folder belong to one slide."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from densepath.core.errors import UserError, errors_as
from densepath.sources.corrupt import CorruptImage, decoding
from densepath.sources.patience import disk_errors_named, patiently
from densepath.sources.slides.file_parts import FileParts
from densepath.sources.slides.handles import Handles
from densepath.sources.slides.levels import Level, downsamples
from densepath.sources.slides.resolution import Spacing, plausible
from densepath.sources.slides.slide_file import Box
from densepath.sources.slides.tile_codecs import Pixels

_STUDY, _SERIES = b"\x20\x00\x0d\x00", b"\x20\x00\x0e\x00"  # StudyInstanceUID, SeriesInstanceUID, little-endian
_SLIDE = b"1.2.840.10008.5.1.4.1.1.77.1.6"  # VL Whole Slide Microscopy Image Storage
_HEAD = 2**16  # bytes in which it is
_REMEMBERED, _FOLDERS = 2**16, 16  # files whose series is remembered, and folders


def is_slide(path: str) -> bool:
    """Whether a DICOM file is one of a whole slide, from the UID of its class; False if it cannot be read."""
    try:
        return _SLIDE in patiently(path, lambda: _head(path))
    except OSError:
        return False


def series_of(path: str) -> bytes:
    """The number of the series that a DICOM file belongs to; empty if it is not found."""
    try:
        return patiently(path, lambda: _series_of(path))
    except OSError:
        return b""


def require_files(path: str) -> list[str]:
    """The files of a DICOM slide, all of which can be read: libraries leave out those that cannot.

    Raises:
        CorruptImage: one of its files cannot be read, or one in its folder that may be its.
    """
    try:
        files = files_of_series(path)
        for file in files:
            _head(file)
    except OSError as error:
        named = error.filename in (None, path)
        raise CorruptImage(path, f"{'' if named else f'{error.filename} '}cannot be read ({error.strerror})") from error
    return files


def _series_of(path: str) -> bytes:
    status = os.stat(path)
    return _series(path, (status.st_size, status.st_mtime_ns))


def files_of_series(path: str) -> list[str]:
    """The files in a DICOM file's folder that belong to its series.

    Raises:
        OSError: the file cannot be read, or one beside it with its suffix whose series is not known yet. Without that
            a slide would look like one with fewer levels.
    """
    folder, series = os.path.dirname(path), _series_of(path)
    if not series:
        return [path]
    status = os.stat(folder or ".")
    known = _by_series(folder, (status.st_dev, status.st_ino, status.st_mtime_ns))
    found = [file for file in known.get(series, ()) if series_of(file) in (series, b"")]
    for file in known.get(b"", ()):  # unfinished when it was scanned, not readable, or not DICOM
        alike = os.path.splitext(file)[1].lower() == os.path.splitext(path)[1].lower()
        with suppress(FileNotFoundError):  # it was removed after the scan
            if (_series_of if alike else series_of)(file) == series:
                found.append(file)
    return sorted(found) or [path]


@lru_cache(_FOLDERS)
def _by_series(folder: str, identity: tuple[int, ...]) -> dict[bytes, list[str]]:
    """The files in a folder by the numbers of their series; ``identity`` changes if files are added or removed."""
    with os.scandir(folder or ".") as entries:
        files = [os.path.join(folder, entry.name) for entry in entries if entry.is_file()]
    found: dict[bytes, list[str]] = {}
    for file in files:
        found.setdefault(series_of(file), []).append(file)
    return found


@lru_cache(_REMEMBERED)
def _series(path: str, identity: tuple[int, int]) -> bytes:
    """The number of a file's series; ``identity`` changes if the file does.

    It follows that of the study. Those of series that the file refers to come before it, and follow other elements.
    """
    head = _head(path)
    place = head.find(_STUDY)
    while place >= 0:
        _, end = _value(head, place)
        if head.startswith(_SERIES, end):
            return _value(head, end)[0]
        place = head.find(_STUDY, place + 1)
    place = head.find(_SERIES)
    return _value(head, place)[0] if place >= 0 else b""


def _head(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_HEAD)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error  # that of a read does not name the file


def _value(head: bytes, place: int) -> tuple[bytes, int]:
    """The value of the element at a place, which is a UID, and where it ends."""
    start = place + 8
    explicit = head[place + 4 : place + 6] == b"UI"
    end = start + int.from_bytes(head[start - 2 : start] if explicit else head[start - 4 : start], "little")
    return head[start:end], end


def _open(path: str) -> Any:
    from wsidicom import WsiDicom

    return WsiDicom.open(require_files(path))


_handles = Handles(_open, most=16)


@dataclass(frozen=True)
class DicomSlide:
    """A slide that wsidicom reads.

    Args:
        file: one of its files.
        numbers: wsidicom's numbers of the levels.
        levels: from the finest to the coarsest.
        spacing: µm per pixel of level 0.
        associated: names of other images in the files.
    """

    file: FileParts
    numbers: tuple[int, ...]
    levels: tuple[Level, ...]
    spacing: Spacing | None
    associated: tuple[str, ...]
    vendor = "dicom"
    reader = "wsidicom"
    scan_corner = 0, 0
    problems: tuple[str, ...] = ()

    def read(self, level: int, box: Box, scale: int) -> Pixels:
        """A part (height, width, 3) of a level. Raises CorruptImage."""
        top, left, height, width = box
        place = f"level {level}, x {left}, y {top}, {width} x {height} px"
        part = (left, top), self.numbers[level], (width, height)
        return self._pixels(place, lambda slide: slide.read_region(*part))

    def read_associated(self, name: str) -> Pixels:
        """Another image (H, W, 3). Raises CorruptImage."""
        return self._pixels(name, lambda slide: slide.read_label() if name == "label" else slide.read_overview())

    def check(self) -> list[str]:
        """Nothing: wsidicom checks the files when they are opened."""
        return []

    def _pixels(self, what: str, read: Any) -> Pixels:
        return patiently(self.file.path, lambda: self._read(what, read))

    def _read(self, what: str, read: Any) -> Pixels:
        path = self.file.path
        try:
            with (
                disk_errors_named(path, files_of_series),
                decoding(path, f"{what} cannot be decoded"),
                _handles.reading,
            ):
                return np.asarray(read(_handles.get(self.file)).convert("RGB"))
        except CorruptImage:
            _handles.drop(self.file)
            raise


def open_dicom(path: str) -> DicomSlide:
    """A DICOM slide, from one of its files.

    Raises:
        CorruptImage: it cannot be opened.
        UserError: wsidicom is not installed.
    """
    file = FileParts.of(path)
    with errors_as(lambda error: _refusal(path, error)):
        slide = _handles.get(file)
        levels = sorted(slide.pyramid, key=lambda level: level.level)
        sizes = [(level.size.height, level.size.width) for level in levels]
        spacing = plausible(levels[0].mpp.height, levels[0].mpp.width)
        others = (("label", slide.labels), ("macro", slide.overviews))
        names = tuple(name for name, images in others if images is not None and len(images))
    steps = downsamples(sizes)
    found = tuple(Level(size, step) for size, step in zip(sizes, steps, strict=True))
    return DicomSlide(file, tuple(level.level for level in levels), found, spacing, names)


def _refusal(path: str, error: Exception) -> UserError:
    if isinstance(error, ImportError):
        return UserError('OpenSlide does not read this DICOM slide; pip install "densepath[dicom]"')
    # the text may quote what the files say
    return CorruptImage(path, f"a DICOM slide that cannot be opened ({type(error).__name__})")
