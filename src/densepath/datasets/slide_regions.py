"""Regions of slides in which everything is outlined, cut out as images of a data set."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from densepath.annotations.left_out import LeftOut
from densepath.core.errors import UserError, counted, first_few, refuse
from densepath.core.geojson import REGION, Feature, area_of, bounds_of, is_area, is_excluded, same_class
from densepath.core.output_names import unused_name
from densepath.core.streams import say
from densepath.core.system import with_progress
from densepath.datasets.geojson import annotation_of_part
from densepath.datasets.region_image import RegionImage, images_of
from densepath.datasets.samples import Sample, without_repeats
from densepath.sources.corrupt import CorruptImage
from densepath.sources.slides.borders import report_borders
from densepath.sources.slides.open import open_slide
from densepath.sources.slides.resolution import MppTable, check_mpp, spacing_text
from densepath.sources.slides.slide import Slide
from densepath.sources.tiff import MAX_PIXELS
from densepath.sources.tiles.outlines import check_bounds
from densepath.transfer.slides.slide_list import refuse_options

_SIZE = 1024
OF_SLIDES = (
    "GeoJSON files of slides",
    f"give --mpp 0.5, the µm per pixel of the images that are cut from them: annotations of the class {REGION}",
)
_LEAST_SIZE, _TIFF = 32, (".tif", ".tiff")
_REST = 0.1, 32**2  # of an object that is cut: its share of the object, and its pixels (COCO's small objects)
_COARSER = 1.1  # times the asked µm per pixel: a coarser slide is reported


@dataclass(frozen=True)
class Cutting:
    """How regions become images.

    Args:
        mpp: µm per pixel of the images.
        size: the longest side of an image in pixels.
        regions: the class of the regions.
        given: µm per pixel of slides that the user gives.

    Raises:
        UserError: a value is not valid.
    """

    mpp: float
    size: int
    regions: str
    given: MppTable

    def __post_init__(self) -> None:
        check_mpp("mpp", self.mpp, 0.5)
        if self.size < _LEAST_SIZE:
            raise UserError(f"size is {self.size}; give the longest side of an image in pixels, at least {_LEAST_SIZE}")

    def open(self, path: Path) -> Slide:
        """Open a slide, and print what may be wrong with the coordinates of its outlines.

        Raises:
            UserError: it cannot be read, or its µm per pixel are unknown.
        """
        try:
            slide = open_slide(path, self.given.given(path), self.given.default)
        except CorruptImage as error:
            raise UserError(f"{error}; replace the file") from error
        for problem in slide.file.problems:
            say(f"densepath: warning: {path}: {problem}")
        report_borders({str(path): slide.file.scan_corner})
        if min(slide.mpp) > self.mpp * _COARSER:
            shown = spacing_text(slide.mpp)
            say(
                f"densepath: warning: the {shown} µm per pixel of {path} are coarser than the asked {self.mpp:g}: its "
                "images are enlarged"
            )
        return slide


def cutting_of(
    mpp: float | None,
    size: int | None = None,
    regions: str | None = None,
    mpp_table: str | Path | None = None,
    default_mpp: float | None = None,
) -> Cutting | None:
    """How regions become images, as the user says; None without µm per pixel: the images are not slides.

    Raises:
        UserError: a value is not valid, or without effect.
    """
    if mpp is not None:
        return Cutting(mpp, _SIZE if size is None else size, regions or REGION, MppTable(mpp_table, default_mpp))
    others = {"size": size, "regions": regions, "mpp_table": mpp_table, "default_mpp": default_mpp}
    refuse_options("slides, whose images need mpp", others)
    return None


def refuse_pyramids(image_of: Mapping[Path, Path], features: Mapping[Path, Sequence[Feature]]) -> None:
    """Refuse slides among the TIFF images of GeoJSON files: those too large for an image, and pyramids with a region.

    Raises:
        UserError: there are some.
    """
    found = []
    for path, image in image_of.items():
        if image.suffix.lower() in _TIFF:
            with suppress(UserError):  # reported when it is read as an image
                slide = open_slide(image)
                has_region = any(_is_region(feature, REGION) for feature in features[path])
                if math.prod(slide.size) > MAX_PIXELS or (has_region and len(slide.levels) > 1):
                    found.append(path.name)
    refuse(found, *OF_SLIDES)


class Areas(NamedTuple):
    """The regions of a slide, and areas in them to leave out."""

    regions: list[Feature]
    ignored: list[Feature]


def split_areas(
    features: Mapping[Path, Sequence[Feature]], name: str, kept: Container[str], source: str | Path
) -> tuple[dict[Path, Areas], dict[Path, list[Feature]]]:
    """The regions of each file that has one, and its objects; files without a region are left out.

    Args:
        features: what each file holds.
        name: the class of the regions.
        kept: classes whose annotations are objects, although QuPath ignores them.
        source: where they are from, for messages.

    Raises:
        UserError: no file has a region.
    """
    areas, objects = {}, {}
    for path, found in features.items():
        framed = [each for each in found if _is_region(each, name)]
        others = [each for each in found if not _is_region(each, name)]
        ignored = [each for each in others if is_excluded(each) and each.category not in kept]
        regions = {json.dumps(each.geometry): each for each in framed if is_area(each.geometry)}
        if regions:
            areas[path] = Areas(list(regions.values()), [each for each in ignored if is_area(each.geometry)])
            objects[path] = [each for each in others if not is_excluded(each) or each.category in kept]
    if not areas:
        raise UserError(
            f"{source} has no region; draw an annotation of the class {name} around each area of a slide in which you "
            "outlined all objects, or name its class with --regions"
        )
    if without := [path.name for path in features if path not in areas]:
        what = counted(len(without), "file")
        say(f"densepath: left out: {what} without an annotation of the class {name}: {first_few(without)}")
    return areas, objects


def _is_region(feature: Feature, name: str) -> bool:
    return feature.kind == "annotation" and same_class(feature.category, name)


def cut_samples(
    slides: Mapping[Path, Sample],
    areas: Mapping[Path, Areas],
    objects: Mapping[Path, Sequence[tuple[Feature, str]]],
    cutting: Cutting,
    source: str | Path,
) -> list[Sample]:
    """The images of the regions of slides, with their objects.

    The bounds of a region are divided into images of nearly equal size. What lies outside of the region, or in an
    ignored area, is white, and objects are cut off there and at the borders of images. The rest of an object is left
    out if it is less than a tenth of it and less than 32 x 32 px.

    Args:
        slides: the slide of each GeoJSON file.
        areas: the regions of each.
        objects: the objects of each, and their categories.
        cutting: how to cut.
        source: where they are from, for messages.

    Raises:
        UserError: a slide cannot be opened, has no µm per pixel or is not that of its regions, or more than 1% of the
            objects cannot be used.
    """
    found: list[Sample] = []
    drawn: dict[int, list[dict[str, Any]]] = {}
    used = defaultdict[str | None, set[str]](set)
    if line := cutting.given.unknown([sample.image for sample in slides.values()]):
        say(f"densepath: {line}")
    faults, count, unseen, rests = LeftOut("objects"), 0, 0, 0
    for path, sample in with_progress(slides.items(), len(slides), "drawing outlines"):
        slide = cutting.open(sample.image)
        check_bounds(path, [*areas[path].regions, *areas[path].ignored], slide)
        measured = _measured(path, objects[path], faults, count)
        count += len(objects[path])
        seen: set[int] = set()
        try:
            for image, visible in images_of(slide, *areas[path], cutting.mpp, cutting.size):
                x, y = image.corner
                name = unused_name(f"{sample.name}_x{x}_y{y}", used[sample.split])
                used[sample.split].add(name)
                drawn[len(found)], small = _draw(image, visible, measured, seen)
                found.append(replace(sample, name=name, mpp=cutting.mpp, pixels=image.pixels))
                rests += small
        except ValueError as error:
            raise UserError(f"{path} has {error}; export it again") from error
        unseen += len(measured.outlines) - len(seen)
    faults.settle(str(source), count, "correct them; coordinates are pixels of level 0")
    parts = [f"{counted(unseen, 'object')} without a pixel in a region"] * bool(unseen)
    parts += [f"{counted(rests, 'small rest')} of objects that are cut"] * bool(rests)
    if parts:
        say(f"densepath: {source}: left out: {', '.join(parts)}")
    drawn = without_repeats(drawn, source)
    return [replace(sample, objects=partial(list, drawn[number])) for number, sample in enumerate(found)]


class _Outline(NamedTuple):
    """An object, its category, and its area in pixels of level 0."""

    feature: Feature
    category: str
    area: float


class _Measured(NamedTuple):
    """The objects of a slide, and the least and the largest x, y (N, 2) of each in pixels of level 0."""

    outlines: list[_Outline]
    lows: npt.NDArray[np.float64]
    highs: npt.NDArray[np.float64]


def _measured(path: Path, objects: Sequence[tuple[Feature, str]], faults: LeftOut, before: int) -> _Measured:
    """The objects of a file whose outlines are valid; the others are added to the faults.

    Args:
        path: the file.
        objects: its objects with their categories.
        faults: of all files.
        before: the number of objects in the files before it.
    """
    outlines, bounds = [], []
    for number, (feature, category) in enumerate(objects, before):
        try:
            outlines.append(_Outline(feature, category, area_of(feature.geometry)))
            bounds.append(bounds_of(feature.geometry))
        except ValueError as error:
            faults.add(number, str(error), f"{path.name} {feature.name}")
    lows, highs = np.array(bounds, np.float64).reshape(-1, 2, 2).transpose(1, 0, 2)
    return _Measured(outlines, lows, highs)


def _draw(
    image: RegionImage, visible: npt.NDArray[np.bool_], objects: _Measured, seen: set[int]
) -> tuple[list[dict[str, Any]], int]:
    """What an image shows of the objects of its slide, as annotations of COCO, and the number of small rests.

    The numbers of the objects that it shows are added to ``seen``. Raises ValueError as :meth:`RegionImage.draw`.
    """
    low, high = image.bounds
    pixel = math.prod(image.scale)  # of the image for one of level 0
    found, rests = [], 0
    for number in np.flatnonzero(((objects.highs >= low) & (objects.lows <= high)).all(axis=1)).tolist():
        each = objects.outlines[number]
        if not (part := image.draw(each.feature.geometry)):
            continue
        top, left, mask = part
        mask = mask & visible[top : top + mask.shape[0], left : left + mask.shape[1]]
        if not mask.any():
            continue
        seen.add(number)
        if mask.sum() < min(_REST[0] * each.area * pixel, _REST[1]):
            rests += 1
        else:
            found.append({"category": each.category} | annotation_of_part(top, left, mask, image.size))
    return found, rests
