"""Converts GeoJSON of QuPath, with its images, to images and COCO JSON."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from densepath.annotations.coco_checks import Orientation
from densepath.annotations.left_out import LeftOut
from densepath.core.errors import UserError, counted, first_few, refuse
from densepath.core.files import require_new_folder
from densepath.core.geojson import TYPES, Feature, is_area, read_features
from densepath.core.paths import AnyPath, as_path
from densepath.core.single_values import take_single_values
from densepath.core.streams import say
from densepath.core.system import with_progress
from densepath.datasets.categories import Renaming
from densepath.datasets.exclusion import Exclusion
from densepath.datasets.find_files import FileIndex, image_folder, in_other_folders, split_in_folders
from densepath.datasets.geojson import annotation_of_geometry
from densepath.datasets.samples import Sample, named_in_splits, stems_below, with_patients, without_repeats
from densepath.datasets.slide_regions import (
    OF_SLIDES,
    Areas,
    cut_samples,
    cutting_of,
    refuse_pyramids,
    split_areas,
)
from densepath.datasets.splitting import Splitting, owners_of, split_samples
from densepath.datasets.tile_names import in_tiles
from densepath.datasets.writing import write_samples
from densepath.sources.corrupt import CorruptImage
from densepath.sources.decode import read_header
from densepath.sources.listing import SUFFIXES, walk
from densepath.sources.slides.find import SUFFIXES as SLIDES
from densepath.transfer.slides.slide_list import refuse_options

_SUFFIXES = (".geojson", ".json")
_IGNORED = "*"  # at the end of the names of classes such as Ignore* and Region*
Kind = Literal["annotation", "detection", "cell"]


@take_single_values
def convert_qupath(
    source: AnyPath,
    dest: str | Path,
    images: AnyPath | None = None,
    objects: Sequence[Kind] = (),
    outline: Literal["object", "nucleus"] = "object",
    category: str = "object",
    categories: Sequence[str] = (),
    test_share: float | None = None,
    val_share: float | None = None,
    patient_regex: str | None = None,
    seed: int = 0,
    splits: str | Path | None = None,
    exclude: Sequence[str] = (),
    orientation: Orientation | None = None,
    mpp: float | None = None,
    size: int | None = None,
    regions: str | None = None,
    mpp_table: AnyPath | None = None,
    default_mpp: float | None = None,
) -> Path:
    """Convert GeoJSON of QuPath, and of ``densepath predict``, to a data set for ``detect`` and ``probe``.

    Each GeoJSON file belongs to the image of the same name (tile.geojson or tile.png.geojson to tile.png), in pixels of
    that image. It holds a FeatureCollection, a list of features or one feature; Polygons and MultiPolygons with holes
    become the pixels whose centers lie inside, ellipses are read as QuPath reads them. Points and lines, classes that
    QuPath ignores (``Ignore*``) and objects that repeat another one are left out. The category is the name of the
    classification. Outlines of tiles in pixels of their slide are moved by the x, y and d in QuPath's names of tiles,
    if these explain all outlines. An image without a GeoJSON file is left out. Splits in the names of folders (train,
    val, test) are kept.

    With ``mpp``, the images are whole slides. An annotation of the class Region* encloses an area of a slide in which
    all objects are outlined: it becomes an image, or several, at exactly ``mpp``; what lies outside of it, or in an
    annotation of the class Ignore*, is white. A slide without a known patient is its own patient.

    Args:
        source: the folder of the GeoJSON files, or one of them.
        dest: a new folder: train/, test/, annotations/train.json, annotations/test.json, manifest.csv.
        images: the folder of the images; by default that of the source.
        objects: types of objects to convert: annotation, detection, cell. By default all, which is refused where
            annotations are beside detections or cells: they are probably regions.
        outline: "nucleus" takes the outline of the nucleus of each cell; cells without one are left out.
        category: category of objects without a classification.
        categories: new names of categories, OLD=NEW ...: several with one new name are merged, and objects of a
            category without one (OLD=) are left out.
        test_share: share of the patients, from 0 to 1, whose images become the test images.
        val_share: share of the patients whose images become validation images.
        patient_regex: a regular expression that finds the patient in an image's name, for example ^TCGA-..-....; if it
            has a group, the patient is what the first group matches. All images of a patient go to the same split.
            Without it, patients are those of a manifest.csv; an image without a known patient is its own patient.
        seed: seed of the split.
        splits: a CSV file with the columns file and split (train, val, test) of each image, for example the
            manifest.csv of another data set.
        exclude: patterns of image files to leave out: ``*`` and ``?`` in a path below their folder, or a name.
        orientation: which pixels of images with an orientation tag the outlines describe: "stored" in the file, or
            "viewed", turned by the tag. Without it such images are refused.
        mpp: µm per pixel of the images that are cut from slides, for example 0.5. By default there are no slides.
        size: longest side of an image from a slide in pixels; a larger region is divided. By default 1024.
        regions: the class of the annotations that enclose the regions of slides; by default Region*.
        mpp_table: a CSV file with the columns wsi,mpp: µm per pixel that override those of the slides.
        default_mpp: µm per pixel of slides that have none.

    Returns:
        ``dest``.

    Raises:
        UserError: there is no GeoJSON, its image is missing or not clear, more than 1% of the objects cannot be used,
            no slide has a region or one has no known µm per pixel, an option does not fit, or ``dest`` is not empty.
    """
    source, images = as_path(source), as_path(images)
    dest, source = require_new_folder(dest, "the data set", sources=(images or source,)), Path(source)
    renaming, cutting = Renaming(categories), cutting_of(mpp, size, regions, as_path(mpp_table), default_mpp)
    if cutting is not None:
        refuse_options("images that are not slides", {"orientation": orientation})
    folder = image_folder(source, images)
    root = source if source.is_dir() else source.parent
    image_of = _match(_find_files(source), root, folder, exclude, slides=cutting is not None)
    features = {path: read_features(path) for path in with_progress(image_of, len(image_of), "reading GeoJSON")}
    areas: dict[Path, Areas] = {}
    sizes: dict[Path, tuple[int, int]] = {}
    if cutting is not None:
        areas, features = split_areas(features, cutting.regions, source)
        image_of = {path: image_of[path] for path in areas}
    else:
        refuse_pyramids(image_of, features)
        sizes = _sizes(list(image_of.values()), orientation)
    chosen = _without_ignored(_choose(features, tuple(objects), source), renaming, source)
    if cutting is None:
        chosen = in_tiles(chosen, image_of, sizes)
    named = {path: [(f, f.category or category) for f in found] for path, found in chosen.items()}
    renaming.check(name for found in named.values() for _, name in found)
    kept = {path: [(f, new) for f, old in found if (new := renaming(old))] for path, found in named.items()}
    names = sorted({name for found in kept.values() for _, name in found})
    if not names:
        raise UserError(f"{source} has no object; check --objects and --categories")
    kept = _with_outlines(kept, outline, source)
    places = stems_below(list(image_of.values()))
    found = [
        Sample(name, image, list, split=split_in_folders(path, root))
        for name, (path, image) in zip(places, image_of.items(), strict=True)
    ]
    found = with_patients(found, source, images=images)
    if cutting is None:
        samples = _of_images(dict(zip(image_of, found, strict=True)), kept, sizes, source)
        if splits is None:  # a table may put images of one name, of two folders, into one split
            samples = named_in_splits(samples)
    else:
        owners = owners_of(found, patient_regex)
        found = [replace(sample, patient=owner) for sample, owner in zip(found, owners, strict=True)]
        samples = cut_samples(dict(zip(image_of, found, strict=True)), areas, kept, cutting, source)
        patient_regex = None  # the patient of an image is that of its slide
        names = sorted({each["category"] for sample in samples for each in sample.objects()})  # not those outside
    how = Splitting(test_share, val_share, patient_regex, seed, splits)
    parts, patients = split_samples(samples, how, source)
    write_samples(dest, parts, names, "object", orientation, patients)
    return dest


def _find_files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise UserError(f"{source} does not exist; give the folder of the GeoJSON files, or one of them")
    paths = [Path(name) for name in walk(source, _SUFFIXES)]
    paths = [p for p in paths if p.suffix.lower() == ".geojson"] or paths
    if not paths:
        raise UserError(f"{source} holds no GeoJSON file (*.geojson, *.json); export the objects of QuPath there")
    return paths


def _match(paths: Sequence[Path], root: Path, folder: Path, exclude: Sequence[str], slides: bool) -> dict[Path, Path]:
    """The image of each GeoJSON file, or its slide, without excluded ones."""
    suffixes = SLIDES if slides else SUFFIXES
    images = [Path(name) for name in walk(folder, suffixes, runs=False)]  # not the label maps of ``predict``
    index = FileIndex(images, stems=True)
    names = {path: path.relative_to(root) for path in paths}
    candidates = {
        p: index.find(str(name.with_suffix("")), p.parent, split_in_folders(p, root)) for p, name in names.items()
    }
    missing = [str(names[path]) for path, found in candidates.items() if not found]
    if missing and not slides:
        found_slides = FileIndex(map(Path, walk(folder, SLIDES, runs=False)), stems=True)
        refuse([name for name in missing if found_slides.find(os.path.splitext(name)[0])], *OF_SLIDES)
    refuse(missing, f"GeoJSON files without an image of the same name in {folder}", "give the images with --images")
    several = [f"{names[p]} ({' or '.join(map(str, found[:2]))})" for p, found in candidates.items() if len(found) > 1]
    refuse(several, "GeoJSON files whose images are not clear", "give the folder of the images with --images")
    image_of = {path: found[0] for path, found in candidates.items()}
    index.report()
    astray = in_other_folders((str(names[path]), image.absolute()) for path, image in image_of.items())
    refuse(astray, "GeoJSON files whose images are not in the folder of the others", "put them there, or rename them")
    times = Counter(image_of.values())
    refuse([str(p) for p, n in times.items() if n > 1], "images with several GeoJSON files", "keep one of each")
    if without := [str(path) for path in images if path not in times]:
        say(f"densepath: left out: {counted(len(without), 'image')} without a GeoJSON file: {first_few(without)}")
    excluded = Exclusion(exclude)
    kept = {path: image for path, image in image_of.items() if not excluded(os.path.relpath(image, folder))}
    excluded.report(folder)
    return kept


def _choose(
    features: Mapping[Path, Sequence[Feature]], types: Sequence[str], source: Path
) -> dict[Path, list[Feature]]:
    """The objects of the wanted types that have an area."""
    counts = Counter(feature.kind for found in features.values() for feature in found)
    if not types and counts["annotation"] and counts["detection"] + counts["cell"]:
        shown = ", ".join(f"{counts[kind]} {kind}s" for kind in TYPES if counts[kind])
        raise UserError(f"{source} has {shown}; say with --objects which are the objects, for example --objects cell")
    wanted = {path: [f for f in found if f.kind in (types or TYPES)] for path, found in features.items()}
    chosen = {path: [f for f in found if is_area(f.geometry)] for path, found in wanted.items()}
    other = sum(counts.values()) - sum(map(len, wanted.values()))
    flat = Counter(_shape(f.geometry) for found in wanted.values() for f in found if not is_area(f.geometry))
    parts = [f"{counted(other, 'object')} of other types"] * bool(other)
    parts += [counted(count, *words) for words, count in flat.items()]
    if parts:
        say(f"densepath: {source}: left out: {', '.join(parts)}")
    return chosen


def _without_ignored(
    features: Mapping[Path, Sequence[Feature]], renaming: Renaming, source: Path
) -> dict[Path, list[Feature]]:
    """The objects but those of classes that QuPath ignores, unless a rule names them."""

    def ignored(feature: Feature) -> bool:
        return (feature.category or "").endswith(_IGNORED) and feature.category not in renaming

    if counts := Counter(f.category for found in features.values() for f in found if ignored(f)):
        shown = ", ".join(f"{count:,} {name}" for name, count in counts.items())
        rule = f"--categories '{next(iter(counts))}=NAME'"
        say(f"densepath: {source}: left out: {shown}; QuPath ignores classes that end in {_IGNORED} ({rule} keeps one)")
    return {path: [f for f in found if not ignored(f)] for path, found in features.items()}


def _shape(geometry: Any) -> tuple[str, str]:
    """What a geometry without an area is: the words for one and for several."""
    kind = str(geometry.get("type")) if isinstance(geometry, dict) else ""
    if kind.removeprefix("Multi") in ("Point", "LineString"):
        return "point or line", "points or lines"
    if kind == "GeometryCollection":
        return "GeometryCollection", "GeometryCollections"
    return "object without an outline", "objects without an outline"


def _sizes(images: Sequence[Path], orientation: Orientation | None) -> dict[Path, tuple[int, int]]:
    """Height and width of each image, as the outlines describe it."""
    sizes, turned = {}, []
    for path in images:
        try:
            header = read_header(path)
        except CorruptImage as error:
            raise UserError(f"{error}; replace the file") from error
        sizes[path] = header.viewed if orientation == "viewed" else (header.height, header.width)
        if header.orientation != 1:
            turned.append(f"{path.name} (orientation {header.orientation})")
    if orientation is None:
        refuse(turned, "images with an orientation tag", "say with --orientation which pixels the outlines describe")
    return sizes


def _with_outlines(
    features: Mapping[Path, Sequence[tuple[Feature, str]]], outline: str, source: Path
) -> dict[Path, list[tuple[Feature, str]]]:
    """The objects with the outline that is asked for as their geometry; cells without it are left out."""
    if outline != "nucleus":
        return {path: list(found) for path, found in features.items()}
    chosen = {
        path: [(replace(f, geometry=f.nucleus) if f.kind == "cell" else f, category) for f, category in found]
        for path, found in features.items()
    }
    kept = {path: [each for each in found if is_area(each[0].geometry)] for path, found in chosen.items()}
    if bare := sum(map(len, chosen.values())) - sum(map(len, kept.values())):
        say(f"densepath: {source}: {counted(bare, 'cell')} without a nucleus left out")
    return kept


def _of_images(
    samples: Mapping[Path, Sample],
    features: Mapping[Path, Sequence[tuple[Feature, str]]],
    sizes: Mapping[Path, tuple[int, int]],
    source: Path,
) -> list[Sample]:
    """The images of GeoJSON files with the objects in these."""
    drawn = _draw(features, {path: sizes[sample.image] for path, sample in samples.items()}, source)
    drawn = without_repeats(drawn, source)
    return [replace(sample, objects=partial(list, drawn[path])) for path, sample in samples.items()]


def _draw(
    features: Mapping[Path, Sequence[tuple[Feature, str]]], sizes: Mapping[Path, tuple[int, int]], source: Path
) -> dict[Path, list[dict[str, Any]]]:
    """The objects of each GeoJSON file as annotations of COCO with a category."""
    drawn: dict[Path, list[dict[str, Any]]] = {path: [] for path in features}
    left_out, count = LeftOut("objects"), 0
    for path, found in with_progress(features.items(), len(features), "drawing outlines"):
        for feature, category in found:
            count += 1
            try:
                annotation = annotation_of_geometry(feature.geometry, *sizes[path])
                drawn[path].append({"category": category} | annotation)
            except ValueError as error:
                left_out.add(count, str(error), f"{path.name} {feature.name}")
    left_out.settle(str(source), count, "correct them; coordinates are pixels of the image")
    return drawn
