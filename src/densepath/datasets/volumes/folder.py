"""``densepath data volumes``: a folder of volumes in files, or the list of volumes of nnssl."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from densepath.annotations.patients import MANIFEST, patients_of
from densepath.core.closing import command
from densepath.core.errors import UserError, counted, first_few
from densepath.core.streams import say
from densepath.datasets.volumes.conversion import (
    Case,
    Contents,
    Conversion,
    FolderConversion,
    say_passed,
    source_folder,
)
from densepath.datasets.volumes.convert import convert
from densepath.datasets.volumes.dataset_json import reading
from densepath.sources.dicom_image import holds_dicom
from densepath.sources.listing import Passed, walk
from densepath.sources.volumes.read import SUFFIXES, files_of, read_volume

_MASK = "anatomy_mask"
CHANNEL = re.compile(r"(.+)_(\d{4})")  # names of nnU-Net's files


def convert_folder(how: FolderConversion) -> Path:
    """Convert volumes in files to a store: NIfTI, MetaImage (.mhd, .mha), and .b2nd of nnU-Net and nnssl.

    The source is a folder, whose subfolders are searched too, or a ``pretrain_data.json`` of nnssl. Volumes are turned
    to RAS+ axes; their patients are those of a ``manifest.csv`` with the columns file and patient, or of
    ``--patient_regex``. Damaged volumes are named and left out.

    Returns:
        The folder of the store.

    Raises:
        UserError: there are no volumes, two have one name, or none can be read.
    """
    if str(how.source).lower().endswith(".json"):
        return convert([*_cases_of_nnssl(Path(how.source), how)], Contents("volumes"), how)
    source = source_folder(how.source)
    images, labels = source / how.images, source / how.labels if how.labels else None
    for folder in (images, *([labels] if labels else [])):
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder; check --images and --labels")
    passed = Passed()
    found = volumes_in(images, passed)
    if not found:
        remedy = f"convert DICOM with {command('data', 'dicom', images, how.dest)}" if holds_dicom(images) else ""
        raise UserError(
            f"{images} and its subfolders contain no volume (NIfTI, MetaImage or .b2nd){passed.only()}; "
            + (remedy or "check the path")
        )
    say_passed(passed)
    if labels is not None and labels.is_relative_to(images):
        found = {name: path for name, path in found.items() if not path.resolve().is_relative_to(labels.resolve())}
    of_labels = volumes_in(labels) if labels is not None else {}
    if labels is not None:
        _check_names(images, labels, [*found], [*of_labels])
    if unused := sorted(of_labels.keys() - found.keys()):
        say(
            f"densepath: warning: {counted(len(unused), 'label file has', 'label files have')} no volume: "
            f"{first_few(unused)}"
        )
    patients = patients_of(source, [str(path) for path in found.values()], images=images)
    cases = [
        Case(
            name,
            partial(read_volume, path, how.target),
            partial(read_volume, of_labels[name], how.target) if name in of_labels else None,
            patients.get(str(path)),
            file=str(path),
            inputs=(path, *([of_labels[name]] if name in of_labels else [])),
        )
        for name, path in found.items()
    ]
    return convert(cases, Contents("volumes"), how)


def _check_names(images: Path, labels: Path, names: list[str], of_labels: list[str]) -> None:
    """Refuse labels of which none has the name of a volume."""
    if not of_labels:
        raise UserError(f"{labels} holds no volume (NIfTI, MetaImage or .b2nd); check --labels")
    if not {*names}.isdisjoint(of_labels):
        return
    remedy = "give the files of a volume and of its labels one name"
    if {match[1] for name in names if (match := CHANNEL.fullmatch(name))} & {*of_labels}:
        remedy = "names of volumes end in the number of a channel: convert nnU-Net's layout with densepath data nnunet"
    shown = f"{first_few(of_labels, 2)} in {labels}, {first_few(names, 2)} in {images}"
    raise UserError(f"no label file has the name of a volume: {shown}; {remedy}")


def volumes_in(folder: Path, passed: Passed | None = None) -> dict[str, Path]:
    """The files of volumes in a folder and its subfolders, by their names below it without suffix.

    What was passed over is added to ``passed``, without files that belong to volumes.

    Raises:
        UserError: two files have one name.
    """
    found: dict[str, Path] = {}
    for path in map(Path, walk(folder, SUFFIXES, passed=passed)):
        name = Path(os.path.relpath(path, folder)).with_name(stem(path)).as_posix()
        if name in found:
            raise UserError(f"volumes that are there more than once: {found[name]}, {path}; keep one file of each")
        found[name] = path
    if passed is not None:
        parts = {
            folder / MANIFEST,
            *(p for path in found.values() for p in (*files_of(path)[1:], path.parent / MANIFEST)),
        }
        place = os.path.realpath(folder)
        inside = [part for part in {Path(os.path.realpath(p)) for p in parts} if part.is_relative_to(place)]
        shown = [part for part in inside if part.is_file() and not part.name.startswith(".")]
        passed.kinds -= Counter(f"{part.suffix.lower() or 'other'} files" for part in shown)
    return found


def stem(path: Path) -> str:
    """The name of a file without the suffix of a volume."""
    suffix = max((end for end in SUFFIXES if path.name.lower().endswith(end)), key=len, default="")
    return path.name[: len(path.name) - len(suffix)]


def _cases_of_nnssl(path: Path, how: Conversion) -> Iterator[Case]:
    """The volumes that nnssl's JSON file lists, with their subjects as patients and their anatomy masks as labels."""
    with reading(path, "a pretrain_data.json of nnssl") as collection:
        for index, dataset in collection["datasets"].items():
            for subject, of_subject in dataset["subjects"].items():
                for session, of_session in of_subject["sessions"].items():
                    for image in of_session["images"]:
                        file, mask = _place(image["image_path"], path), (image.get("associated_masks") or {}).get(_MASK)
                        labels = partial(read_volume, _place(mask, path), how.target) if mask else None
                        name = "/".join((str(index), str(subject), str(session), stem(Path(str(image["name"])))))
                        patient = f"{index}/{subject}"
                        inputs = (file, *([_place(mask, path)] if mask else []))
                        read = partial(read_volume, file, how.target)
                        yield Case(name, read, labels, patient, file=str(file), inputs=inputs)


def _place(text: str, listed_in: Path) -> Path:
    """A path of nnssl's list: absolute, relative to the list, or below a folder in an environment variable."""
    first, _, rest = str(text).partition("/")
    if first.startswith("$"):
        folder = os.environ.get(first[1:])
        if folder is None:
            raise UserError(f"{listed_in} names files below {first}; set this environment variable to their folder")
        return Path(folder) / rest
    return listed_in.parent / text
