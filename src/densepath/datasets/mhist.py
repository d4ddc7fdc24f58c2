"""MHIST: colorectal polyps, hyperplastic or serrated."""

from __future__ import annotations

from pathlib import Path

from densepath.core.errors import refuse
from densepath.core.files import require_new_folder
from densepath.core.single_values import take_single_values
from densepath.datasets.labelled_lists import Labelled, find_place, published_rows, write_list
from densepath.datasets.published import MHIST

_LIST, _IMAGES = "annotations.csv", "images"
_NAME, _LABEL, _SPLIT = "Image Name", "Majority Vote Label", "Partition"
_SIDE = 224  # pixels


@take_single_values
def convert_mhist(source: str | Path, dest: str | Path) -> Path:
    """Write MHIST as a list with classes and the official split, for ``classify``. Nothing is copied.

    As published (https://bmirds.github.io/MHIST, on request, for research): images/MHIST_*.png of 224 px and
    annotations.csv with the majority vote of seven pathologists, HP or SSA; 2,175 training and 977 test images. What
    differs is reported.

    Args:
        source: the folder that holds images and annotations.csv, or its parent.
        dest: a new folder: labels.csv, with absolute paths.

    Returns:
        The list, for ``--data`` and ``--labels``.

    Raises:
        UserError: the layout is another one, or an image is missing, damaged, or listed twice.

    Source: Wei et al., "A Petri Dish for Histopathology Image Analysis", AIME 2021.
    """
    dest = require_new_folder(dest, "the list")
    root = find_place(source, (_LIST, _IMAGES), "MHIST")
    rows = published_rows(root / _LIST, (_NAME, _LABEL, _SPLIT))
    wrong = [
        f"{row[_NAME]} ({row[_LABEL]}, {row[_SPLIT]})"
        for row in rows
        if row[_LABEL] not in ("HP", "SSA") or row[_SPLIT] not in ("train", "test")
    ]
    refuse(wrong, f"lines of {root / _LIST} without HP or SSA, and train or test", "correct them")
    images = [Labelled(root / _IMAGES / row[_NAME], row[_LABEL], row[_SPLIT]) for row in rows]
    return write_list(dest, images, MHIST, root / _LIST, _SIDE)
