"""Slides in tiled TIFF files of Aperio and OME, and plain pyramids, whose tiles are read straight from the file."""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tifffile
from PIL.TiffImagePlugin import TiffImageFile

from densepath.core.errors import counted
from densepath.sources.corrupt import CorruptImage, decoding, lasting
from densepath.sources.slides import resolution
from densepath.sources.slides.file_parts import FileParts
from densepath.sources.slides.levels import Level, disagree, downsamples
from densepath.sources.slides.resolution import Spacing
from densepath.sources.slides.slide_file import Box
from densepath.sources.slides.tile_codecs import Pixels
from densepath.sources.slides.tile_table import TileTable
from densepath.sources.tiff import is_slice, is_stack, orientation_of, refuse_stack

_RGB = 3  # channels
_REDUCED = 1  # bit of NewSubfileType
_NDPI = 65420  # a tag that Hamamatsu's slides have
_KNOWN = ("label", "macro", "thumbnail")
_OTHERS = re.compile("Philips|MedScan|Hamamatsu|Ventana|Leica|Zeiss", re.IGNORECASE)  # OpenSlide knows them better


@dataclass(frozen=True)
class TiffSlide:
    """A slide in a tiled TIFF. It has no open file: threads and forked processes share nothing.

    Args:
        vendor: aperio, ome-tiff or tiff.
        tables: the tiles of each level.
        spacing: µm per pixel of level 0.
        pages: positions of associated images among the file's pages, by name.
        problems: what is wrong with the file.
    """

    vendor: str
    tables: tuple[TileTable, ...]
    spacing: Spacing | None
    pages: dict[str, int]
    problems: tuple[str, ...]
    levels: tuple[Level, ...] = field(init=False)
    reader = "tiles"
    scan_corner = 0, 0

    def __post_init__(self) -> None:
        steps = downsamples([table.size for table in self.tables])
        pairs = zip(self.tables, steps, strict=True)
        levels = (Level(t.size, step, t.format.scales, t.format.codec) for t, step in pairs)
        object.__setattr__(self, "levels", tuple(levels))

    @property
    def associated(self) -> tuple[str, ...]:
        """Names of other images in the file."""
        return tuple(self.pages)

    def read(self, level: int, box: Box, scale: int) -> Pixels:
        """A part (height, width, 3) of a level reduced by ``scale``. Raises CorruptImage."""
        return self.tables[level].read(*box, scale)

    def read_associated(self, name: str) -> Pixels:
        """Another image (H, W, 3). Raises CorruptImage."""
        path = self.tables[0].file.path
        # Image.open would refuse the size of level 0
        with decoding(path, f"its {name} cannot be decoded"), TiffImageFile(path) as image:
            image.seek(self.pages[name])
            return np.asarray(image.convert("RGB"))

    def check(self) -> list[str]:
        """A line for each level with tiles that the file ends before."""
        return [
            f"truncated: {beyond:,} of {counted(table.count, 'tile')} of level {number} lie beyond its "
            "end; copy it again"
            for number, table in enumerate(self.tables)
            if (beyond := table.beyond())
        ]


def open_tiff(path: str) -> TiffSlide | None:
    """A slide in a tiled TIFF; None for other files, and for the formats that OpenSlide knows better.

    Raises:
        UnknownStorage: its colors or its compression are not known here; OpenSlide may know them.
        CorruptImage: it is such a file, but cannot be read.
        Exception: of nearly any type, if it is not a TIFF.
    """
    file = FileParts.of(path)
    with tifffile.TiffFile(path, is_ndpi=False) as tiff:  # otherwise the suffix .ndpi decides
        first: Any = tiff.pages.first
        software = str(first.tags.valueof("Software", "")) + str(first.tags.valueof("Make", ""))
        foreign = tiff.is_scn or tiff.is_bif or _NDPI in first.tags or tiff.is_philips or _OTHERS.search(software)
        if not first.is_tiled or foreign:
            return None
        ome = bool(tiff.is_ome)
        planes = resolution.ome_channels(tiff.ome_metadata or "") if ome and first.samplesperpixel == 1 else 1
        if planes > 1:
            raise CorruptImage(path, f"{planes} channels in separate pages are not RGB; convert it to RGB")
        aperio = not ome and first.description.startswith("Aperio")
        if not aperio and first.samplesperpixel < _RGB:
            refuse_stack(path, tiff)
        tables, problems = [TileTable.of(file, first)], []
        if _has_slices(tiff, aperio):
            problems.append("it has several pages of the size of level 0, of which the first is read")
        if not aperio:
            problems += _other_images(tiff)
        if tables[0].format.padded:
            problems.append("its fourth channel is not marked as transparency, and is ignored; save it as RGB")
        if (tag := orientation_of(first)) != 1:
            problems.append(f"it is read as stored, without its orientation tag ({tag}); save it turned")
        further, left_out = _further_levels(file, tiff, aperio)
        tables += further
        problems += left_out
        if _ends_early(tiff):
            problems.append("truncated: it ends before its last pages; copy it again")
        tables.sort(key=lambda table: -table.size[0] * table.size[1])
        if ome:
            vendor, spacing = "ome-tiff", resolution.from_ome(tiff.ome_metadata or "")
        elif aperio:
            vendor, spacing = "aperio", resolution.from_aperio(first.description)
        else:
            vendor, spacing = "tiff", None
        spacing = spacing or resolution.from_tags(first)
        return TiffSlide(vendor, tuple(tables), spacing, _associated(tiff) if aperio else {}, tuple(problems))


def _further_levels(file: FileParts, tiff: tifffile.TiffFile, aperio: bool) -> tuple[list[TileTable], list[str]]:
    """The tables of the levels after the first one, and a line about each that is left out."""
    first: Any = tiff.pages.first
    tables: list[TileTable] = []
    problems: list[str] = []
    known = {_size(first)}
    for number, page in enumerate(_reduced(tiff, aperio), 1):
        size = _size(page)
        shown = f"level {number} of {size[1]} x {size[0]} px"
        if size in known:  # of another slice
            continue
        if disagree(_size(first), size):
            problems.append(f"{shown} has other proportions than level 0 and is left out")
            continue
        if _is_alike(page, first):  # even if it cannot be read
            known.add(size)
        try:
            table = TileTable.of(file, page)
        except CorruptImage as error:
            problems.append(f"{shown} is left out: {lasting(error).why}")
            continue
        if page.samplesperpixel < min(first.samplesperpixel, _RGB):
            problems.append(f"{shown} is left out: it is grey (a mask?), and level 0 is RGB")
        else:
            tables.append(table)
            known.add(size)
    return tables, problems


def _reduced(tiff: tifffile.TiffFile, aperio: bool) -> Iterator[Any]:
    """The pages that show the first one reduced, before those of the next image: of a stack, or another scene."""
    first: Any = tiff.pages.first
    yield from first.pages or ()
    others = _others(tiff)
    scene = None if aperio else _next_scene(first, others)
    for page in others:
        if not aperio and (is_slice(page, first) or page is scene):
            return
        if page.is_tiled and (aperio or page.subfiletype & _REDUCED):
            yield page


def _next_scene(first: Any, others: list[Any]) -> Any:
    """The first page of the next scene with levels of its own; None if there is none.

    After a thumbnail or a label the next reduced page is larger, or has other proportions: it is a level of the slide.
    """
    for number, page in enumerate(others):
        if _is_scene(page, first):
            sizes = (_size(each) for each in others[number:] if each.is_tiled and each.subfiletype & _REDUCED)
            size = next(sizes, _size(page))
            if math.prod(size) < math.prod(_size(page)) and not disagree(_size(page), size):
                return page
    return None


def _size(page: Any) -> tuple[int, int]:
    """Height and width of a page in pixels."""
    return int(page.imagelength), int(page.imagewidth)


def _others(tiff: tifffile.TiffFile) -> list[Any]:
    """The pages after the first."""
    pages: list[Any] = list(tiff.pages)
    return pages[1:]


def _is_alike(page: Any, first: Any) -> bool:
    """Whether a page has the colors of the first one."""
    return bool((page.samplesperpixel, page.dtype) == (first.samplesperpixel, first.dtype))


def _is_scene(page: Any, first: Any) -> bool:
    """Whether a page is not a reduced image or a mask, but stored as the first one."""
    return bool(page.is_tiled and not page.subfiletype and _is_alike(page, first))


def _has_slices(tiff: tifffile.TiffFile, aperio: bool) -> bool:
    """Whether further pages are slices of a stack. Those of Aperio have tiles: its thumbnails may be as large."""
    if not aperio:
        return is_stack(tiff)
    return any(page.is_tiled and is_slice(page, tiff.pages.first) for page in _others(tiff))


def _other_images(tiff: tifffile.TiffFile) -> list[str]:
    """A line about a scene that is larger than the first one, which is read, or whose levels are left out."""
    first: Any = tiff.pages.first
    others = _others(tiff)
    scenes = [page for page in others if _is_scene(page, first)]
    largest = max((first, *scenes), key=lambda page: math.prod(_size(page)))
    is_larger = math.prod(_size(largest)) > math.prod(_size(first))
    other = largest if is_larger else _next_scene(first, others)
    if other is None or is_slice(other, first):
        return []
    (rows, columns), (height, width) = _size(first), _size(other)
    which = "its largest" if is_larger else "a further one, with levels,"
    sizes = f"its first image of {columns} x {rows} px is read, and not {which} of {width} x {height} px"
    return [f"{sizes}; save that one as a file of its own"]


def _ends_early(tiff: tifffile.TiffFile) -> bool:
    """Whether the last page that could be read names a further one."""
    form, file, last = tiff.tiff, tiff.filehandle, tiff.pages[len(tiff.pages) - 1]
    file.seek(last.offset)
    (tags,) = struct.unpack(form.tagnoformat, file.read(form.tagnosize))
    file.seek(tags * form.tagsize, os.SEEK_CUR)
    return bool(struct.unpack(form.offsetformat, file.read(form.offsetsize))[0])


def _associated(tiff: tifffile.TiffFile) -> dict[str, int]:
    """Positions of the label, the macro and the thumbnail of an Aperio slide, by these names."""
    found: dict[str, int] = {}
    for number, page in enumerate(_others(tiff), 1):
        if not page.is_tiled:
            lines = page.description.splitlines()
            word = (lines[1].split() or [""])[0] if len(lines) > 1 else ""
            found.setdefault(word if word in _KNOWN else "thumbnail", number)
    return found
