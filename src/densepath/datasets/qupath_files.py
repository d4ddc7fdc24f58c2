"""The GeoJSON files of a folder, and the image or the slide of each."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from densepath.core.errors import UserError, refuse
from densepath.core.geojson import ENDINGS
from densepath.core.streams import say_left_out
from densepath.datasets.exclusion import Exclusion
from densepath.datasets.find_files import FileIndex, in_other_folders, split_in_folders
from densepath.datasets.slide_regions import OF_SLIDES
from densepath.sources.listing import SUFFIXES, walk
from densepath.sources.slides.find import SUFFIXES as SLIDES

_OF_IMAGES = "GeoJSON files of images that are not slides", "leave out --mpp, which cuts images from slides"


def find_geojson(source: Path) -> list[Path]:
    """The GeoJSON files of a folder, or one file. Raises UserError if there are none."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise UserError(f"{source} does not exist; give the folder of the GeoJSON files, or one of them")
    paths = [Path(name) for name in walk(source, ENDINGS)]
    paths = [p for p in paths if _without_gz(p).suffix.lower() == ".geojson"] or paths
    if not paths:
        shown = ", ".join(f"*{ending}" for ending in ENDINGS)
        raise UserError(f"{source} holds no GeoJSON file ({shown}); export the objects of QuPath there")
    return paths


def _without_gz(path: Path) -> Path:
    return path.with_suffix("") if path.suffix.lower() == ".gz" else path


def match_images(
    paths: Sequence[Path], root: Path, folder: Path, exclude: Sequence[str], slides: bool
) -> dict[Path, Path]:
    """The image of each GeoJSON file, or its slide, without excluded ones.

    Args:
        paths: the GeoJSON files.
        root: their folder.
        folder: that of the images.
        exclude: patterns of images to leave out.
        slides: whether the images are slides.

    Raises:
        UserError: an image is missing or not clear, is of the other kind, or has several GeoJSON files.
    """
    images, index = _indexed(folder, SLIDES if slides else SUFFIXES)
    names = {path: path.relative_to(root) for path in paths}
    stems = {path: str(_without_gz(name).with_suffix("")) for path, name in names.items()}
    candidates = {p: index.find(stem, p.parent, split_in_folders(p, root)) for p, stem in stems.items()}
    missing = [path for path, found in candidates.items() if not found]
    if missing:
        _, others = _indexed(folder, SUFFIXES if slides else SLIDES)
        of_others = [str(names[path]) for path in missing if others.find(stems[path])]
        refuse(of_others, *(_OF_IMAGES if slides else OF_SLIDES))
    refuse(
        [str(names[path]) for path in missing],
        f"GeoJSON files without an image of the same name in {folder}",
        "give the images with --images",
    )
    several = [f"{names[p]} ({' or '.join(map(str, found[:2]))})" for p, found in candidates.items() if len(found) > 1]
    refuse(several, "GeoJSON files whose images are not clear", "give the folder of the images with --images")
    image_of = {path: found[0] for path, found in candidates.items()}
    index.report()
    astray = in_other_folders((str(names[path]), image.absolute()) for path, image in image_of.items())
    refuse(astray, "GeoJSON files whose images are not in the folder of the others", "put them there, or rename them")
    times = Counter(image_of.values())
    refuse([str(p) for p, n in times.items() if n > 1], "images with several GeoJSON files", "keep one of each")
    say_left_out([str(path) for path in images if path not in times], "image", "without a GeoJSON file")
    excluded = Exclusion(exclude)
    kept = {path: image for path, image in image_of.items() if not excluded(os.path.relpath(image, folder))}
    excluded.report(folder)
    return kept


def _indexed(folder: Path, suffixes: Sequence[str]) -> tuple[list[Path], FileIndex]:
    """The images of a folder, without the label maps of ``predict``, and their index."""
    images = [Path(name) for name in walk(folder, suffixes, runs=False)]
    return images, FileIndex(images, stems=True)
