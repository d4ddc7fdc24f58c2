"""Concepts, or classes, from the user's label maps: a folder with one map for each image."""

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
    """Reads label maps from a folder: each number is a concept, including 0.

    A map has its image's name and is in the same subfolder, with any suffix of
    :data:`densepath.annotations.labels.LABEL_SUFFIXES`. Its resolution may differ from the image's, but not its aspect
    ratio.

    Args:
        folder: the folder of the maps. It is read only when there are images: an export does not need it.
    """

    parallel, needs_color, classes = True, False, False

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._matches: Matches | None = None
        self._names: Iterable[str] = ()

    def identity(self) -> dict[str, Any]:
        return {"maps": "classes" if self.classes else "files"}

    def files(self) -> Iterable[Path]:
        assert self._matches is not None, "call begin first"
        return map(self._matches.path, self._names)

    def begin(self, names: Iterable[str]) -> None:
        if not self.folder.is_dir():
            raise UserError(f"there is no folder {self.folder} of label maps; correct the path")
        self._matches, self._names = match_names(names, self.folder, LABEL_SUFFIXES), names

    def label(self, image: npt.NDArray[np.uint8], name: str) -> npt.NDArray[Any]:
        assert self._matches is not None, "call begin first"
        path = self._matches.path(name)
        try:
            check_shape(path, label_size(path), image, "a label map")
            labels = read_labels(path)
        except CorruptImage as error:
            raise UserError(f"{error}; replace the label map") from error
        if labels.size and labels.min() < 0:
            raise UserError(f"{path} has the label {labels.min()}; number the labels from 0")
        return labels


class ClassMaps(MapFiles):
    """The same for label maps whose numbers mean the same in all images: they are kept."""

    classes = True


def check_shape(path: Path, size: tuple[int, ...], image: npt.NDArray[np.uint8], what: str) -> None:
    """Check that a file of (height, width) has its image's aspect ratio; ``what`` names it in the error.

    Raises:
        UserError: it does not.
    """
    if not same_shape(size, image.shape[:2]):
        raise UserError(
            f"{path} has {size[1]} x {size[0]} px and its image {image.shape[1]} x {image.shape[0]}; "
            f"{what} must have its image's aspect ratio"
        )


def same_shape(size: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two (height, width) have the same aspect ratio, up to rounding of the smaller one to whole pixels."""
    small, large = sorted((size, other))
    if not min(small):
        return False
    return abs(small[0] * large[1] - small[1] * large[0]) <= max(large)
