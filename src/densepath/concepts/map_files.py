"""Concepts that somebody else has drawn or computed: label maps in a folder beside the images."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from densepath.core.errors import UserError
from densepath.images.decode import DamagedImage
from densepath.images.label_cache import file_identity
from densepath.images.labels import LABEL_SUFFIXES, label_size, read_labels
from densepath.images.pairs import refuse


class MapFiles:
    """Label maps from a folder: each number is a concept, 0 like the others.

    A map has the name of its image, below the folder as the image lies below its own, with any suffix of
    :data:`densepath.images.labels.LABEL_SUFFIXES`. It may be coarser or finer than the image, but not of another shape.

    Args:
        folder: holds the maps. It is looked at once there are images: an export needs none.
    """

    parallel = True

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._maps: dict[str, Path] = {}

    def identity(self) -> dict[str, Any]:
        return {"files": paths_identity(self._maps.values())}

    def begin(self, names: list[str]) -> None:
        if not self.folder.is_dir():
            raise UserError(f"there is no folder {self.folder} of label maps; correct the path")
        self._maps = match_names(names, self.folder)

    def label(self, image: npt.NDArray[np.uint8], name: str) -> npt.NDArray[Any]:
        path = self._maps[name]
        try:
            size = label_size(path)
            if not same_shape(size, image.shape[:2]):
                raise UserError(
                    f"{path} has {size[1]} x {size[0]} px and its image {image.shape[1]} x {image.shape[0]}; "
                    "a label map must have its image's shape"
                )
            labels = read_labels(path)
        except DamagedImage as error:
            raise UserError(f"{error}; replace the label map") from error
        if labels.size and labels.min() < 0:
            raise UserError(f"{path} holds the label {labels.min()}; number the labels from 0")
        return labels


def paths_identity(paths: Iterable[Path]) -> str:
    """What changes when one of some files is replaced."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(file_identity(path))
    return digest.hexdigest()


def same_shape(size: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two (height, width) are in proportion, but for the rounding of the smaller one to whole pixels."""
    small, large = sorted((size, other))
    if not min(small):
        return False
    return abs(small[0] * large[1] - small[1] * large[0]) <= max(large)


def match_names(names: list[str], folder: Path, suffixes: tuple[str, ...] = LABEL_SUFFIXES) -> dict[str, Path]:
    """The file of each image in a folder: that of its name, in subfolders as the images are.

    The images' own folder is not known: it is the longest one that lets every image have its file.

    Args:
        names: paths of the images.
        folder: where their files lie.
        suffixes: which files are meant.

    Raises:
        UserError: an image has no file, or two have the same one.
    """
    files = _by_name(folder, suffixes)
    parts = [PurePath(name).with_suffix("").parts for name in names]
    fewest: list[str] = names
    for above in range(min(map(len, parts))):  # folders that the images have in common with nothing here
        keys = [image[above:] for image in parts]
        missing = [name for name, key in zip(names, keys, strict=True) if key not in files]
        if not missing:
            several = [str(files[key]) for key, count in Counter(keys).items() if count > 1]
            refuse(several, "label maps that belong to several images", "lay them out in folders as the images are")
            return {name: files[key] for name, key in zip(names, keys, strict=True)}
        fewest = min(fewest, missing, key=len)
    refuse(fewest, f"images without a label map in {folder}", "every image needs one of its name")
    raise AssertionError("there is at least one image")


def _by_name(folder: Path, suffixes: tuple[str, ...]) -> dict[tuple[str, ...], Path]:
    """The files below a folder, by the parts of their paths without suffix."""
    found: dict[tuple[str, ...], Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in suffixes and not path.name.startswith("."):
            key = path.relative_to(folder).with_suffix("").parts
            if key in found:
                raise UserError(f"{found[key]} and {path} have the same name; keep one of them")
            found[key] = path
    return found
