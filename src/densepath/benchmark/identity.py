"""What a result depends on: the code that computed it, and the data."""

from __future__ import annotations

import glob
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from densepath.annotations.coco import open_split
from densepath.benchmark.digests import SHOWN_DIGITS, Digests, digest_of
from densepath.core.errors import UserError
from densepath.nets.weights import weights_file
from densepath.sources.listing import list_images
from densepath.sources.packing import SUFFIX, open_store
from densepath.training.export import EXPORTED

# Code that only draws or tabulates results is not part of the digest.
_PRETRAINING = ("core", "sources", "annotations", "views", "nets", "concepts", "methods", "runs", "training")
_PACKAGES = {"pretrain": _PRETRAINING} | dict.fromkeys(("probe", "detect", "sam"), (*_PRETRAINING, "transfer"))


@dataclass(frozen=True)
class ImageSet:
    """The images of a source.

    Args:
        source: the folder, list, pattern or store.
        digest: digest of the names and contents of all files.
        names: names of the images.
        pixels: digests of their pixels, "" for a damaged image.
    """

    source: str
    digest: str
    names: tuple[str, ...]
    pixels: tuple[str, ...]

    def __str__(self) -> str:
        return f"{len(self.names)} images, digest {self.digest[:SHOWN_DIGITS]}"


@dataclass(frozen=True)
class LabelledSet:
    """A data set of outlined objects.

    Args:
        name: its name in the table.
        train, test: its images.
        digest: digest of the images and their outlines.
    """

    name: str
    train: ImageSet
    test: ImageSet
    digest: str

    @property
    def folder(self) -> str:
        """The folder that holds it."""
        return os.path.dirname(self.train.source)

    def __str__(self) -> str:
        counts = f"{len(self.train.names)} training and {len(self.test.names)} test images"
        return f"{counts}, digest {self.digest[:SHOWN_DIGITS]}"


@cache
def code_digest(verb: str) -> str:
    """The digest of all source files that a verb's result depends on."""
    package = Path(str(files("densepath")))
    sources = sorted(path for name in _PACKAGES[verb] for path in (package / name).rglob("*.py"))
    return digest_of(part for path in sources for part in (str(path.relative_to(package)), path.read_bytes()))


def read_tiles(source: str | Path, digests: Digests) -> ImageSet:
    """Read the unlabelled images of a source.

    Raises:
        UserError: as for :func:`densepath.sources.open.open_images`.
    """
    if str(source).lower().endswith(SUFFIX):
        store = open_store(source)
        (found,) = digests.of([source], "reading tiles", pixels=True)
        names = tuple(store.names(position) for position in range(len(store)))
        return ImageSet(str(source), found.content, names, found.pixels)
    return _image_set(str(source), list(list_images(source)), digests, "reading tiles")


def read_labelled(name: str, folder: str | Path, digests: Digests) -> LabelledSet:
    """Read a data set as ``densepath data`` writes it.

    Raises:
        UserError: it is not a data set, or a file cannot be read.
    """
    found = {}
    for split in ("train", "test"):
        images = open_split(folder, split)
        paths = [str(images.folder / image["file_name"]) for image in images.coco_ground_truth()["images"]]
        (outlines,) = digests.of([images.annotations], f"reading {name}")
        found[split] = _image_set(str(images.folder), paths, digests, f"reading {name}"), outlines.content
    digest = digest_of(part for images, outlines in found.values() for part in (images.digest, outlines))
    return LabelledSet(name, found["train"][0], found["test"][0], digest)


def digest_of_given(value: Any, digests: Digests) -> str:
    """The digest of a value given by the user: of the content of a path or of the files of a pattern, else the value.

    Of a run folder only the exported files count.

    Raises:
        UserError: a file cannot be read.
    """
    path = Path(str(value))
    if path.is_file():
        return digests.of([path], "reading")[0].content
    if path.is_dir():
        exported = path / EXPORTED.parent  # the checkpoints of a run may be deleted
        path = exported if exported.is_dir() else path
        inside = sorted(entry for entry in path.rglob("*") if entry.is_file())
        return _named(path, inside, [found.content for found in digests.of(inside, f"reading {path.name}")])
    if named := sorted(name for name in glob.glob(str(value), recursive=True) if os.path.isfile(name)):
        return digest_of([str(value), *(found.content for found in digests.of(named, "reading"))])
    return str(value)


def digest_of_weights(source: str, digests: Digests) -> str:
    """The digest of a weight file, or of the weights in a run folder; a name of weights is returned as it is.

    Raises:
        UserError: a folder holds no weights, or a file cannot be read.
    """
    return digest_of_given(weights_file(source), digests) if Path(source).is_dir() else digest_of_given(source, digests)


def hardware_name() -> str:
    """The name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _image_set(source: str, paths: Sequence[str], digests: Digests, what: str) -> ImageSet:
    if not paths:
        raise UserError(f"{source} holds no images; check the path")
    found = digests.of(paths, what, pixels=True)
    base = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    digest = _named(base, paths, [entry.content for entry in found])
    return ImageSet(source, digest, tuple(paths), tuple(entry.pixels[0] if entry.pixels else "" for entry in found))


def _named(base: str | Path, paths: Sequence[str | Path], contents: Sequence[str]) -> str:
    """The digest of names below a folder and their contents; their order counts, as it does in training."""
    names = [os.path.relpath(os.path.abspath(path), base) for path in paths]
    return digest_of(part for pair in zip(names, contents, strict=True) for part in pair)
