"""Names for what is written per image: none overwrites another image's, and none leaves the folder."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Sequence
from itertools import chain
from pathlib import Path, PurePath

from densepath.core.errors import refuse
from densepath.core.remains import shortened

_LONGEST = 220  # bytes of a name: file systems allow 255, with an ending such as _patches.h5


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
        names[unused_name(stem if stems[stem] == 1 else str(path), names)] = None
    return list(names)


def unused_name(name: str, used: Container[str]) -> str:
    """The name, or with a number where it is used."""
    found, number = name, 1
    while found in used:
        number += 1
        found = f"{name}.{number}"
    return found


def is_inside(name: str) -> bool:
    """Whether a name, perhaps with subfolders, is that of a file inside of the folder where it is written."""
    return not {"", ".", ".."} & set(name.split("/")) and "\0" not in name


def refuse_repeated(names: Sequence[str], data: str | Path) -> None:
    """Refuse a source that names an image twice.

    Args:
        names: of its images, as :func:`names_below` has them.
        data: the source.

    Raises:
        UserError: it does.
    """
    twice = [name for name, count in Counter(names).items() if count > 1]
    refuse(twice, f"images that {data} names twice", "give each image once, under a name of its own")


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
    start = os.path.join(root, "")
    return [path[len(start) :] if path.startswith(start) else os.path.relpath(path, root) for path in paths]


def alike_names(names: Sequence[str], others: Sequence[str]) -> list[list[int]]:
    """For each name the positions of ``others`` that are the same, or else the same without leading folders."""
    paths = [PurePath(name).parts for name in names]
    lengths = {len(parts) for parts in paths}
    whole, ends = defaultdict[tuple[str, ...], list[int]](list), defaultdict[tuple[str, ...], list[int]](list)
    for position, other in enumerate(others):
        parts = PurePath(other).parts
        whole[parts].append(position)
        for length in lengths:
            if 0 < length < len(parts):
                ends[parts[-length:]].append(position)
    places = []
    for name, parts in zip(names, paths, strict=True):
        shorter = (whole.get(parts[start:], ()) for start in range(len(parts)))
        near = sorted(chain(ends.get(parts, ()), *shorter))
        places.append([k for k in near if others[k] == name] or near)
    return places
