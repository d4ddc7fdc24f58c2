"""Names for what is written per image: none overwrites another image's, and none leaves the folder."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from densepath.core.files import shortened

_LONGEST = 220  # bytes of a name: file systems allow 255, with an ending such as _patches.h5
_NOT_IN_NAMES = re.compile(r"[^\w.-]+")


def output_names(images: Sequence[Path]) -> list[str]:
    """A relative path without suffix for each image, in the same subfolder; a very long name is shortened.

    The suffix is kept where two images differ only in it, and a number is added where that is not enough.
    """
    inside = [Path(*(part for part in path.parts if part not in ("..", path.anchor))) for path in images]
    inside = [path.with_name(shortened(path.stem, _LONGEST) + path.suffix) if path.name else path for path in inside]
    stems = Counter(str(path.with_suffix("")) for path in inside)
    names: dict[str, None] = {}
    for path in inside:
        stem = str(path.with_suffix(""))
        name = first = stem if stems[stem] == 1 else str(path)
        number = 1
        while name in names:
            number += 1
            name = f"{first}.{number}"
        names[name] = None
    return list(names)


def name_parts(labels: Sequence[str]) -> list[str]:
    """A part of the name of a file for each label: letters, digits and ._- only, with a number where two are equal."""
    parts = [_NOT_IN_NAMES.sub("_", label) for label in labels]
    taken = {part for part, label in zip(parts, labels, strict=True) if part == label}
    found = []
    for part, label in zip(parts, labels, strict=True):
        name, number = part, 1
        while name != label and name in taken:
            number += 1
            name = f"{part}.{number}"
        taken.add(name)
        found.append(name)
    return found


def names_below(names: Iterable[str], data: str | Path = "") -> list[str]:
    """The paths of images relative to the folder that contains all.

    Args:
        names: the images' paths.
        data: where they were found: if it is a folder, paths are relative to it.
    """
    paths = [os.path.abspath(name) for name in names]
    if not paths:
        return []
    if os.path.isdir(data):
        root = os.path.abspath(data)
    else:
        root = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, root) for path in paths]
