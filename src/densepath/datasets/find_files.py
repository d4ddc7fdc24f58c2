"""Finds the image files that annotations mean: names in them are often those of another machine."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

from densepath.core.columns import SPLIT_OF
from densepath.core.errors import UserError
from densepath.core.paths import AnyPath
from densepath.core.spelling import composed
from densepath.sources.listing import SUFFIXES

_SPLIT = re.compile(rf"(?:^|[^a-z])({'|'.join(SPLIT_OF)})(?:\d{{4}})?(?=[^a-z]|$)")


def split_named(name: str) -> str | None:
    """The split that a name of a file or a folder contains as a word: train2017, valid, instances_test.json."""
    found = _SPLIT.findall(name.lower())
    return SPLIT_OF[found[-1]] if found else None


def split_in_folders(path: Path, root: Path) -> str | None:
    """The split in the names of the folders between a folder and a file in it, or of the folder if there are none.

    The nearest folder that is called like a split counts, or else the nearest with a split in its name.
    """
    folders = path.parent.relative_to(root).parts[::-1] or (path.parent.name,)
    exact = next((SPLIT_OF[name.lower()] for name in folders if name.lower() in SPLIT_OF), None)
    return exact or next(filter(None, map(split_named, folders)), None)


def image_folder(source: Path, images: AnyPath | None) -> Path:
    """The folder of the images of annotations: the given one, or that of the annotations.

    Raises:
        UserError: it is not a folder.
    """
    folder = Path(images) if images is not None else source if source.is_dir() else source.parent
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the one that holds the images")
    return folder


class FileIndex:
    """Files by the last parts of their paths.

    Args:
        files: the files.
        stems: whether to compare names without the suffix of an image.

    Attributes:
        count: the number of files.
    """

    def __init__(self, files: Iterable[Path], stems: bool = False) -> None:
        self._stems = stems
        self._files: dict[str, list[tuple[Path, list[str]]]] = defaultdict(list)
        self.count = 0
        for path in files:
            self.count += 1
            parts = _parts(str(path)) or [""]
            for key in {self._key(parts[-1]), parts[-1]}:
                self._files[key].append((path, parts))

    def find(self, name: str, near: Path | None = None, split: str | None = None) -> list[Path]:
        """The files that a name means: none, one, or several that fit equally well.

        The most parts of the path must agree, from the last one on; then the split; then the folder.

        Args:
            name: a path or a URL, absolute or relative, with slashes or backslashes.
            near: the folder of the file that has the name in it.
            split: the split that the name belongs to.
        """
        parts = _parts(name)
        if not parts:
            return []
        ranked = []
        for path, other in self._files.get(parts[-1]) or self._files.get(self._key(parts[-1]), []):
            above = zip(reversed(parts[:-1]), reversed(other[:-1]), strict=False)
            depth = next((n for n, (a, b) in enumerate(above) if a != b), min(len(parts), len(other)) - 1)
            fits = split is not None and any(split_named(part) == split for part in other[:-1])
            shared = len(os.path.commonpath([os.path.abspath(near), os.path.abspath(path)])) if near else 0
            ranked.append(((depth, fits, shared), path))
        best = max((rank for rank, _ in ranked), default=None)
        return [path for rank, path in ranked if rank == best]

    def _key(self, name: str) -> str:
        stem, suffix = os.path.splitext(name)
        return stem if self._stems and suffix.lower() in SUFFIXES else name  # "tile_0.5" has no suffix


def _parts(name: str) -> list[str]:
    """The parts of a path or URL, in one Unicode normalization. Label Studio has /data/local-files/?d=images/a.png."""
    path, _, query = name.partition("?")
    path = query.partition("d=")[2] if "d=" in query else path if query else name
    text = composed(unquote(path) if "%" in path and not os.path.exists(name) else path)
    return [part for part in re.split(r"[\\/]+", text) if part not in ("", ".", "..")]
