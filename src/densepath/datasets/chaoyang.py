"""Chaoyang: colon tissue of four classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from densepath.core.errors import UserError, refuse
from densepath.core.files import require_new_folder
from densepath.core.json_files import load_json
from densepath.core.single_values import take_single_values
from densepath.datasets.labelled_lists import Labelled, find_place, write_list
from densepath.datasets.published import CHAOYANG

_CLASSES = ("normal", "serrated", "adenocarcinoma", "adenoma")  # of the numbers in the lists
_SIDE = 512  # pixels


@take_single_values
def convert_chaoyang(source: str | Path, dest: str | Path) -> Path:
    """Write Chaoyang as a list with classes and the official split, for ``classify``. Nothing is copied.

    As published (https://bupt-ai-cz.github.io/HSA-NRL, on request, not for commercial use): train.json and test.json
    with the name and the class of each image of 512 px; 4,021 training images, whose classes are those of single
    pathologists and partly wrong, and 2,139 test images on which three agree. What differs is reported.

    Args:
        source: the folder that holds train.json and test.json, or its parent.
        dest: a new folder: labels.csv, with absolute paths.

    Returns:
        The list, for ``--data`` and ``--labels``.

    Raises:
        UserError: the layout is another one, or an image is missing, damaged, or listed twice.

    Source: Zhu et al., "Hard Sample Aware Noise Robust Learning for Histopathology Image Classification", TMI 2021.
    """
    dest = require_new_folder(dest, "the list")
    root = find_place(source, ("train.json", "test.json"), "Chaoyang")
    images, wrong = [], []
    for split in ("train", "test"):
        for entry in _read(root / f"{split}.json"):
            name, label = entry.get("name"), entry.get("label")
            if isinstance(name, str) and type(label) is int and 0 <= label < len(_CLASSES):
                images.append(Labelled(_place(root, split, name), _CLASSES[label], split))
            else:
                wrong.append(f"{split}.json: {json.dumps(entry)[:60]}")
    refuse(wrong, "entries without a name and a label from 0 to 3", "download the lists again")
    return write_list(dest, images, CHAOYANG, root / "train.json and test.json", _SIDE)


def _place(root: Path, split: str, name: str) -> Path:
    """The file of an image: names contain their folder, or lie in that of their split."""
    inside = root / split / name
    return inside if not (root / name).is_file() and inside.is_file() else root / name


def _read(path: Path) -> list[dict[str, Any]]:
    entries = load_json(path, "a whole copy")
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{path} is not a list of images; download it again")
    return entries
