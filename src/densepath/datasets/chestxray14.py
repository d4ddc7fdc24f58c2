"""ChestX-ray14: frontal radiographs with fourteen labels found in reports."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

from densepath.core.csv_files import encoding_of
from densepath.core.errors import UserError, counted, refuse
from densepath.core.files import require_new_folder
from densepath.core.single_values import take_single_values
from densepath.core.streams import say_left_out
from densepath.datasets.labelled_lists import Labelled, find_place, published_rows, write_list
from densepath.datasets.published import CHESTXRAY14, CHESTXRAY14_CHEXNET
from densepath.sources.listing import walk

LABELS = (
    *("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax"),
    *("Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia"),
)
_TABLES = ("Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv")
_NAME, _FOUND, _PATIENT, _NOTHING = "Image Index", "Finding Labels", "Patient ID", "No Finding"
_LISTS = {
    "official": {"train": "train_val_list.txt", "test": "test_list.txt"},
    "chexnet": {"train": "train_list.txt", "val": "val_list.txt", "test": "test_list.txt"},
}
_SIDE = 1024  # pixels


@take_single_values
def convert_chestxray14(
    source: str | Path,
    dest: str | Path,
    split: Literal["official", "chexnet"] = "official",
    lists: str | Path | None = None,
) -> Path:
    """Write ChestX-ray14 as a list with labels, patients and a split, for ``classify`` and ``probe``.

    As published (https://nihcc.app.box.com/v/ChestXray-NIHCC): Data_Entry_2017.csv (or Data_Entry_2017_v2020.csv),
    train_val_list.txt, test_list.txt, and images_001 to images_012 or one folder of 112,120 PNG files of 1024 px, of
    30,805 patients. Both splits are by patient. Nothing is copied, and what differs is reported.

    Args:
        source: the folder that holds them, or its parent.
        dest: a new folder: labels.csv, with absolute paths; its column label lists what was found, with | between the
            labels, and each label has a column of 0 and 1.
        split: "official" has no validation images; "chexnet" is that of CheXNet's lists, which PCRL used.
        lists: for "chexnet", the folder with train_list.txt, val_list.txt and test_list.txt of
            https://github.com/arnoweng/CheXNet (ChestX-ray14/labels); for "official" that of the lists, if they are not
            in the source.

    Returns:
        The list, for ``--data`` and ``--labels``.

    Raises:
        UserError: the layout is another one; an image is missing, damaged, or listed twice; or a label is unknown.

    Source: Wang et al., "ChestX-ray8", CVPR 2017.
    """
    if split not in _LISTS:
        raise UserError(f"there is no split {split!r}; give official or chexnet")
    dest = require_new_folder(dest, "the list")
    if split == "chexnet" and lists is None:
        raise UserError("the split of CheXNet is in lists of github.com/arnoweng/CheXNet; name their folder: --lists")
    table = _table(source)
    rows = published_rows(table, (_NAME, _FOUND, _PATIENT))
    splits = _splits(table.parent if lists is None else Path(lists), _LISTS[split])
    unknown = [f"{row[_NAME]} ({row[_FOUND]})" for row in rows if not set(_labels(row)) <= set(LABELS)]
    refuse(unknown, f"lines of {table} with other labels than the fourteen", "correct them")
    listed = [row for row in rows if row[_NAME] in splits]
    if len(listed) < len(rows):
        left = [row[_NAME] for row in rows if row[_NAME] not in splits]
        say_left_out(left, "image", f"of {table.name} that no list names")
    lost = sorted(splits.keys() - {row[_NAME] for row in rows})
    refuse(lost, f"the lists name {counted(len(lost), 'image')} not in {table}", "give the lists of these images")
    places = _files(table.parent)
    images = [
        Labelled(
            places.get(row[_NAME], table.parent / "images" / row[_NAME]),
            "|".join(_labels(row)) or _NOTHING,
            splits[row[_NAME]],
            row[_PATIENT],
            {name: str(int(name in _labels(row))) for name in LABELS},
        )
        for row in listed
    ]
    if not images:
        raise UserError(f"the lists name no image of {table}; give those of ChestX-ray14")
    return write_list(dest, images, CHESTXRAY14 if split == "official" else CHESTXRAY14_CHEXNET, table, _SIDE)


def _table(source: str | Path) -> Path:
    """The table of labels, of which there are two versions."""
    for name in _TABLES:
        try:
            return find_place(source, (name,), "ChestX-ray14") / name
        except UserError:
            continue
    return find_place(source, _TABLES[:1], "ChestX-ray14") / _TABLES[0]


def _labels(row: dict[str, str]) -> list[str]:
    """What was found; newer tables write a space in Pleural_Thickening."""
    found = [name.strip().replace(" ", "_") for name in row[_FOUND].split("|")]
    return [name for name in found if name not in (_NOTHING.replace(" ", "_"), "")]


def _splits(folder: Path, lists: dict[str, str]) -> dict[str, str]:
    """The split of each image; what follows a name on its line is ignored."""
    splits: dict[str, str] = {}
    twice = []
    for split, name in lists.items():
        try:
            lines = (folder / name).read_text(encoding_of(folder / name)).splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{folder / name} cannot be read ({error}); download it") from error
        for image in (line.split()[0] for line in lines if line.strip()):
            if splits.setdefault(image, split) != split:
                twice.append(f"{image} ({splits[image]} and {split})")
    refuse(twice, f"images in two lists of {folder}", "keep each in one")
    return splits


def _files(root: Path) -> dict[str, Path]:
    """The PNG files below a folder by name."""
    paths = [Path(path) for path in walk(root, (".png",))]
    count = Counter(path.name for path in paths)
    twice = [str(path) for path in paths if count[path.name] > 1]
    refuse(twice, "images of one name in several folders", "keep one of each")
    return {path.name: path for path in paths}
