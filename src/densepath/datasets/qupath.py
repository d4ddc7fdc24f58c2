"""Converts GeoJSON of QuPath, with its images, to images and COCO JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from densepath.annotations.coco_checks import Orientation
from densepath.annotations.left_out import LeftOut
from densepath.core.errors import UserError, refuse
from densepath.core.files import require_new_folder
from densepath.core.geojson import Feature, read_features
from densepath.core.paths import AnyPath, as_path
from densepath.core.single_values import take_single_values
from densepath.core.system import with_progress
from densepath.datasets.categories import Renaming
from densepath.datasets.find_files import image_folder, split_in_folders
from densepath.datasets.geojson import annotation_of_geometry
from densepath.datasets.qupath_files import find_geojson, match_images
from densepath.datasets.qupath_objects import Kind, Wanted
from densepath.datasets.samples import Sample, named_in_splits, stems_below, with_patients, without_repeats
from densepath.datasets.slide_regions import Areas, Cutting, cut_samples, cutting_of, refuse_pyramids, split_areas
from densepath.datasets.splitting import Splitting, split_samples
from densepath.datasets.tile_names import in_tiles
from densepath.datasets.writing import write_samples
from densepath.sources.corrupt import CorruptImage
from densepath.sources.decode import read_header
from densepath.transfer.slides.slide_list import refuse_options

Features = Mapping[Path, Sequence[Feature]]


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

    Each GeoJSON file belongs to the image of the same name (tile.geojson, tile.geojson.gz or tile.png.geojson to
    tile.png), in pixels of that image. It holds a FeatureCollection, a list of features or one feature; Polygons and
    MultiPolygons with holes become the pixels whose centers lie inside, ellipses are read as QuPath reads them. Points
    and lines, classes that QuPath ignores (names that end in ``*``) and objects that repeat another one are left out.
    The category is the name of the classification. In files as CellViT writes them, with one object for each class and
    a MultiPolygon of more than 3 far-apart parts, each part of a MultiPolygon becomes an object. Outlines of tiles in
    pixels of their slide are moved by the x, y and d in QuPath's names of tiles, if these explain all outlines. An
    image without a GeoJSON file is left out. Splits in the names of folders (train, val, test) are kept.

    With ``mpp``, the images are whole slides. An annotation of the class Region* encloses an area of a slide in which
    all objects are outlined: it becomes an image, or several, at exactly ``mpp``; what lies outside of it, or in an
    annotation of another class that QuPath ignores (Ignore*), is white. All images of a slide go to the same split.

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
    cutting = cutting_of(mpp, size, regions, as_path(mpp_table), default_mpp)
    wanted = Wanted(source, tuple(objects), outline, category, Renaming(categories))
    if cutting is not None:
        refuse_options("images that are not slides", {"orientation": orientation})
    root = source if source.is_dir() else source.parent
    folder = image_folder(source, images)
    image_of = match_images(find_geojson(source), root, folder, exclude, slides=cutting is not None)
    features = {path: read_features(path) for path in with_progress(image_of, len(image_of), "reading GeoJSON")}
    areas: Mapping[Path, Areas] = {}
    if cutting is not None:
        areas, features = split_areas(features, cutting.regions, wanted.renaming, source)
    found = [Sample("", image_of[path], list, split=split_in_folders(path, root)) for path in features]
    found = named_in_splits(with_patients(found, source, images=images), splits is not None)
    given = dict(zip(features, found, strict=True))
    if cutting is None:
        samples = _of_tiles(given, features, wanted, orientation)
    else:
        samples = _of_slides(given, areas, features, wanted, cutting)
    parts, patients = split_samples(samples, Splitting(test_share, val_share, patient_regex, seed, splits), source)
    kept = sorted({each["category"] for sample in samples for each in sample.objects()})  # not those that are left out
    write_samples(dest, parts, kept, "object", orientation, patients)
    return dest


def _of_slides(
    slides: Mapping[Path, Sample], areas: Mapping[Path, Areas], features: Features, wanted: Wanted, cutting: Cutting
) -> list[Sample]:
    """The images of the regions of slides, with the wanted objects in them.

    Args:
        slides: the slide of each GeoJSON file.
        areas: the regions of each.
        features: the objects of each.
        wanted: which of them are wanted.
        cutting: how regions become images.
    """
    names = stems_below([sample.image for sample in slides.values()])
    named = {path: replace(slides[path], slide=name) for path, name in zip(slides, names, strict=True)}
    chosen = wanted.choose(features, [each for own in areas.values() for each in own.ignored])
    return cut_samples(named, areas, wanted.with_categories(chosen), cutting, wanted.source)


def _of_tiles(
    tiles: Mapping[Path, Sample], features: Features, wanted: Wanted, orientation: Orientation | None
) -> list[Sample]:
    """The images of GeoJSON files with the wanted objects in these.

    Args:
        tiles: the image of each GeoJSON file.
        features: what each holds.
        wanted: the wanted objects.
        orientation: which pixels of images with an orientation tag the outlines describe.
    """
    image_of = {path: sample.image for path, sample in tiles.items()}
    refuse_pyramids(image_of, features)
    sizes = _sizes(list(image_of.values()), orientation)
    chosen = in_tiles(wanted.choose(features), image_of, sizes)
    of_files = {path: sizes[image] for path, image in image_of.items()}
    drawn = without_repeats(_draw(wanted.with_categories(chosen), of_files, wanted.source), wanted.source)
    return [replace(sample, objects=partial(list, drawn[path])) for path, sample in tiles.items()]


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
