"""CheXpert: frontal and lateral radiographs with fourteen labels, some of them uncertain."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Literal

from densepath.core.errors import UserError, refuse
from densepath.core.files import require_new_folder
from densepath.core.single_values import take_single_values
from densepath.datasets.labelled_lists import Labelled, find_place, published_rows, write_list
from densepath.datasets.published import CHEXPERT

LABELS = (
    *("No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema"),
    *("Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture"),
    "Support Devices",
)
_TABLES = {"train": "train.csv", "val": "valid.csv"}
_PATH = "Path"
_PATIENT = re.compile(r"(?:^|/)(patient\d+)/")
_VALUES = {"1": "1", "1.0": "1", "0": "0", "0.0": "0", "": "0"}  # what a report does not mention counts as absent
_UNCERTAIN = {"ignore": "", "zeros": "0", "ones": "1"}


@take_single_values
def convert_chexpert(
    source: str | Path, dest: str | Path, uncertain: Literal["ignore", "zeros", "ones"] = "ignore"
) -> Path:
    """Write CheXpert as a list with labels, patients and the official split, for ``classify`` and ``probe``. Nothing is
    copied.

    As published (https://stanfordmlgroup.github.io/competitions/chexpert, on request): train.csv with 223,414 images,
    valid.csv with 234, and the JPEG files train/patient*/study*/view*.jpg and valid/..., in the original size or the
    small one. The test images are not part of it. What differs is reported.

    Args:
        source: the folder that holds train.csv and valid.csv, or its parent.
        dest: a new folder: labels.csv, with absolute paths; each label has a column of 0 and 1. A label that the
            report does not mention is 0, as in the authors' models.
        uncertain: what an uncertain label (-1) becomes: "ignore" leaves it empty, so that it counts neither in a loss
            nor in a score; "zeros" and "ones" are the authors' U-Zeros and U-Ones, for which a column label lists the
            labels of each image too.

    Returns:
        The list, for ``--data`` and ``--labels``.

    Raises:
        UserError: the layout is another one; an image is missing, damaged, or listed twice; or a label is unknown.

    Source: Irvin et al., "CheXpert", AAAI 2019.
    """
    if uncertain not in _UNCERTAIN:
        raise UserError(f"uncertain labels cannot become {uncertain!r}; give ignore, zeros or ones")
    dest = require_new_folder(dest, "the list")
    root = find_place(source, tuple(_TABLES.values()), "CheXpert")
    values, wrong, images = {**_VALUES, "-1": _UNCERTAIN[uncertain], "-1.0": _UNCERTAIN[uncertain]}, [], []
    for split, name in _TABLES.items():
        for row in published_rows(root / name, (_PATH, *LABELS)):
            found = {label: values.get((row[label] or "").strip()) for label in LABELS}
            patient = _PATIENT.search(row[_PATH])
            if patient is None or None in found.values():
                wrong.append(f"{name}: {row[_PATH]}")
            known = {label: value for label, value in found.items() if value is not None}
            present = "|".join(label for label, value in known.items() if value == "1")
            images.append(Labelled(_place(root, row[_PATH]), present, split, patient[1] if patient else "", known))
    refuse(wrong, "lines without a patient, or with labels that are not 1, 0, -1 or empty", "correct them")
    return write_list(dest, images, CHEXPERT, root / "train.csv and valid.csv", None)


def _place(root: Path, path: str) -> Path:
    """The file of a path that begins with the name of the published folder."""
    parts = PurePosixPath(path).parts
    start = next((k for k, part in enumerate(parts) if part in ("train", "valid")), 0)
    return root.joinpath(*parts[start:])
