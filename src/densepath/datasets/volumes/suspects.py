"""What in a store is probably not what was meant: segmentations among volumes, CT and MR under one window."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from densepath.core.errors import counted, first_few, one_line
from densepath.core.keywords import quoted

_NAME = re.compile(r"(^|[^a-z])seg|label|(^|[^a-z])masks?([^a-z]|$)", re.IGNORECASE)
_OF_NNUNET = re.compile(r"(.*/)?imagesT[rs]/[^/]+_\d{4}")
_CLASSES = 128  # different values of a label map with many classes at most
_IMAGE = 256  # different values of an image at least
AIR = -200.0  # a low percentile below it is that of Hounsfield units

Rows = Sequence[Mapping[str, Any]]


def warnings_of(rows: Rows, window: Any) -> list[str]:
    """A sentence for each suspicion, with its remedy.

    Args:
        rows: what the index says of each volume.
        window: that of all, or "volume".
    """
    found = []
    suspected = segmentations(rows)
    if suspected:
        found.append(
            f"{counted(len(suspected), 'volume looks', 'volumes look')} like segmentations: "
            f"{_names(suspected)}; {_remedy(suspected, [row['name'] for row in rows])}"
        )
    lows = {row["name"]: min(scale["window"][0] for scale in row["scales"]) for row in rows}
    images = [name for name in lows if name not in suspected]
    ct, others = [n for n in images if lows[n] < AIR], [n for n in images if lows[n] >= 0]
    if window != "volume" and ct and others:
        found.append(
            f"{counted(len(ct), 'volume has', 'volumes have')} values as CT ({_names(ct)}), "
            f"{counted(len(others), 'has', 'have')} none below zero, as MR "
            f"({_names(others)}), and all share one window; leave one kind out with --exclude, or give --window volume"
        )
    return found


def segmentations(rows: Rows) -> list[str]:
    """Names of volumes that are probably label maps.

    Their names say so; or those of their folders, and their values are few whole numbers; or their values are few whole
    numbers, and an image of the same shape lies beside them.
    """
    places: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        places[PurePosixPath(row["name"]).parent, *row["origin"]["shape"]].append(row)
    found = []
    for beside in places.values():
        most = max(row["values"] for row in beside)
        found += [
            row["name"]
            for row in beside
            if (_NAME.search(PurePosixPath(row["name"]).name) and not row["labels"])
            or (_in_folder_of_labels(row["name"]) and 0 < row["values"] <= _CLASSES)
            or (0 < row["values"] <= _CLASSES and most >= _IMAGE)
        ]
    return sorted(found)


def _in_folder_of_labels(name: str) -> bool:
    return any(_NAME.search(folder) for folder in PurePosixPath(name).parts[:-1])


def _remedy(suspected: Sequence[str], names: Sequence[str]) -> str:
    """How to leave segmentations out, or use them: if they lie in a folder and the volumes in another, by these."""
    if any(_OF_NNUNET.fullmatch(name) for name in names):
        return "as this is nnU-Net's layout, convert it with densepath data nnunet"
    folders = [{str(PurePosixPath(name).parent) for name in found} for found in (suspected, {*names} - {*suspected})]
    if all(len(found) == 1 for found in folders) and "." not in folders[0] | folders[1]:
        (labels,), (images,) = folders
        if labels != images:
            folders_given = f"--images {quoted(images)} --labels {quoted(labels)}"
            return f"to use them as labels, convert again with {folders_given}"
    return "leave them out with --exclude '*seg*' or the like, or move them to a folder and give it as --labels"


def _names(names: Sequence[str]) -> str:
    return one_line(first_few(names))
