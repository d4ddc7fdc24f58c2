"""Concepts that somebody else has drawn or computed: label maps in a folder beside the images."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densepath.annotations.labels import LABEL_SUFFIXES, label_size, read_labels
from densepath.concepts.matching import Matches, match_names
from densepath.core.errors import UserError
from densepath.sources.corrupt import CorruptImage


class MapFiles:
    """Label maps from a folder: each number is a concept, 0 like the others.

    A map has the name of its image, below the folder as the image lies below its own, with any suffix of
    :data:`densepath.annotations.labels.LABEL_SUFFIXES`. It may be coarser or finer than the image, but not of another
    shape.

    Args:
        folder: holds the maps. It is looked at once there are images: an export needs none.
    """

    parallel = True

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._matches: Matches | None = None
        self._names: Iterable[str] = ()

    def identity(self) -> dict[str, Any]:
        return {"maps": "files"}

    def files(self) -> Iterable[Path]:
        assert self._matches is not None, "begin comes first"
        return map(self._matches.path, self._names)

    def begin(self, names: Iterable[str]) -> None:
        if not self.folder.is_dir():
            raise UserError(f"there is no folder {self.folder} of label maps; correct the path")
        self._matches, self._names = match_names(names, self.folder, LABEL_SUFFIXES), names

    def label(self, image: npt.NDArray[np.uint8], name: str) -> npt.NDArray[Any]:
        assert self._matches is not None, "begin comes first"
        path = self._matches.path(name)
        try:
            check_shape(path, label_size(path), image, "a label map")
            labels = read_labels(path)
        except CorruptImage as error:
            raise UserError(f"{error}; replace the label map") from error
        if labels.size and labels.min() < 0:
            raise UserError(f"{path} holds the label {labels.min()}; number the labels from 0")
        return labels


def check_shape(path: Path, size: tuple[int, ...], image: npt.NDArray[np.uint8], what: str) -> None:
    """Check that a file of (height, width) has its image's shape; ``what`` names its kind.

    Raises:
        UserError: it has not.
    """
    if not same_shape(size, image.shape[:2]):
        raise UserError(
            f"{path} has {size[1]} x {size[0]} px and its image {image.shape[1]} x {image.shape[0]}; "
            f"{what} must have its image's shape"
        )


def same_shape(size: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two (height, width) are in proportion, but for the rounding of the smaller one to whole pixels."""
    small, large = sorted((size, other))
    if not min(small):
        return False
    return abs(small[0] * large[1] - small[1] * large[0]) <= max(large)
