"""``densepath data check``: what a data set holds, and what is wrong with its splits."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from densepath.annotations.coco import CocoImages
from densepath.annotations.coco_boxes import corners_of
from densepath.annotations.coco_checks import Orientation
from densepath.annotations.patients import patient_in_name, patients_of, stated_patient
from densepath.annotations.splits import identical_images
from densepath.core.columns import SPLITS
from densepath.core.errors import UserError, counted, first_few
from densepath.core.files import check_writable
from densepath.core.output_names import names_below
from densepath.core.paths import AnyPath, as_path
from densepath.core.single_values import take_single_values
from densepath.core.streams import write_result
from densepath.datasets.categories import odd_categories
from densepath.datasets.check_list import check_list
from densepath.datasets.contact_sheet import draw_sheet
from densepath.datasets.labelled_lists import LIST
from densepath.datasets.object_sizes import describe_sizes
from densepath.datasets.shared_patients import Patients, odd_spellings, of_patients, patients_between
from densepath.datasets.similar_images import ALIKE, similar, thumbnails
from densepath.datasets.volumes.check import check_volumes
from densepath.sources.listing import LIST_SUFFIXES
from densepath.sources.run_folders import refuse_among_images
from densepath.sources.volumes.open_store import is_volume_store

_BEYOND = 2.0  # pixels by which boxes may exceed their images: conventions differ

Splits = Mapping[str, CocoImages]


@take_single_values
def check_data(
    data: AnyPath,
    out: str | Path = "contact_sheet.png",
    count: int | None = None,
    patient_regex: str | None = None,
    orientation: Orientation | None = None,
) -> Path:
    """Report what a data set holds, compare its splits, and draw a contact sheet.

    For each split: images, objects of each category, crowds, patients. Then the sizes of the objects and the short side
    of the input that they ask for; objects that reach beyond their images, or lie under others; patients and images
    that several splits share. Images are nearly identical if the correlation of their thumbnails (32 px, grey) is at
    least 0.99, also if one is turned by quarters or mirrored.

    Args:
        data: a folder as ``densepath data`` writes it: train/, annotations/train.json and so on; a list of images, with
            splits and patients if it names them, or a folder with labels.csv; or a store of volumes,
            whose checksums are checked, and of which labels are counted in mm^3 and three slices of volumes are drawn.
        out: a PNG file: images of each split with the outlines of their objects.
        count: number of images of each split to draw; 0 for no picture. Default: 8; of volumes 24 in all.
        patient_regex: a regular expression that finds the patient in an image's name; by default patients are those of
            the JSON or of manifest.csv.
        orientation: as for ``detect``: for images with an orientation tag, whether the annotations describe the pixels
            as "stored" or as "viewed".

    Returns:
        ``out``, or ``data`` if no picture is drawn.

    Raises:
        UserError: the data set does not exist, or its images and annotations do not match.
    """
    data = as_path(data)
    data, out = Path(data), Path(out)
    volumes = is_volume_store(data)
    if count is None and not volumes:
        count = 8
    if count is not None and count < 0:
        raise UserError(f"count is {count}; give the number of images to draw, or 0")
    if count != 0 and out.suffix.lower() != ".png":
        raise UserError(f"a picture cannot be written to {out}; use a file name that ends in .png")
    if count != 0:
        check_writable(out)
    if volumes:
        return check_volumes(data, out, count, patient_regex)
    assert count is not None
    names = [split for split in SPLITS if (data / "annotations" / f"{split}.json").is_file()]
    if not names and (listed := _list_in(data)) is not None:
        return check_list(listed, out, count, patient_regex)
    if not names:
        why = "does not exist"
        if data.exists():
            why = f"has no annotations/train.json or {LIST}" if data.is_dir() else "is not a list (.txt, .csv, .tsv)"
        raise UserError(f"{data} {why}; give a folder as densepath data writes it, a list of images or a volume store")
    if count:
        refuse_among_images(out, *(data / split for split in names))
    splits = {
        split: CocoImages(data / split, data / "annotations" / f"{split}.json", outlines=False, orientation=orientation)
        for split in names
    }
    patients = {split: _patients(images, patient_regex) for split, images in splits.items()}
    for line in [
        *_counts(splits, patients, data),
        *_sizes(splits),
        *_outside(splits),
        _hidden(splits),
        *_shared(splits, patients),
    ]:
        write_result(line)
    return draw_sheet(splits, out, count) if count else data


def _list_in(data: Path) -> Path | None:
    """The list of images that data are, or a folder of them; None for anything else."""
    if data.is_dir():
        return data / LIST if (data / LIST).is_file() else None
    return data if data.suffix.lower() in LIST_SUFFIXES and data.is_file() else None


def _counts(splits: Splits, patients: Mapping[str, Patients], data: Path) -> list[str]:
    lines = []
    for split, images in splits.items():
        sizes = np.array([images.size(place) for place in range(len(images))])
        extent = f"{_range(sizes[:, 1])} x {_range(sizes[:, 0])} px"
        empty = sum(not len(images.annotations_of(place)) for place in range(len(images)))
        crowds = f", {images.crowds:,} crowds" if images.crowds else ""
        lines.append(
            f"{split}: {counted(len(images), 'image')}{of_patients(patients[split])}, {extent}, "
            f"{counted(images.objects, 'object')}{crowds}; "
            f"{counted(empty, 'image')} without an object"
        )
    counts: dict[str, Counter[str]] = {split: Counter() for split in splits}
    for split, images in splits.items():
        names = dict(zip(images.category_ids, images.category_names, strict=True))
        counts[split].update(names[a["category_id"]] for i in range(len(images)) for a in images.annotations_of(i))
    every = list(dict.fromkeys(name for images in splits.values() for name in images.category_names))
    width = max(map(len, [*every, "objects"])) + 2
    lines.append(f"{'objects':{width}}" + "".join(f"{split:>9}" for split in splits))
    for name in every:
        lines.append(f"{name:{width}}" + "".join(f"{counts[split][name]:>9,}" for split in splits))
    for split, images in splits.items():
        if lacking := [name for name in every if name not in images.category_names]:
            lines.append(f"warning: {split} lacks the categories {first_few(lacking)}; all splits need the same")
    total = sum(counts.values(), Counter[str]())
    return lines + odd_categories(
        {name: total[name] for name in every}, f"densepath data coco {shlex.quote(str(data))} NEW "
    )


def _range(values: np.ndarray) -> str:
    low, high = int(values.min()), int(values.max())
    return f"{low}" if low == high else f"{low}-{high}"


def _sizes(splits: Splits) -> list[str]:
    every = [(images, place) for images in splits.values() for place in range(len(images))]
    boxes = [np.array([a["bbox"] for a in images.annotations_of(place)]).reshape(-1, 4) for images, place in every]
    if not any(map(len, boxes)):
        return ["warning: there is no object"]
    sides = [np.sqrt(own[:, 2:].prod(axis=1)) for own in boxes]
    return describe_sizes(sides, [min(images.size(place)) for images, place in every])


def _outside(splits: Splits) -> list[str]:
    found = []
    for split, images in splits.items():
        for place, name in enumerate(_names(images)):
            height, width = images.size(place)
            held = images.annotations_of(place)
            boxes = corners_of(np.array([a["bbox"] for a in held], np.float64).reshape(-1, 4))
            beyond = np.maximum(-boxes[:, :2], boxes[:, 2:] - (width, height)).max(axis=1) > _BEYOND
            found += [f"annotation {held[i].get('id', i)} of {split}/{name}" for i in np.flatnonzero(beyond)]
    text = f": {first_few(found)}; detectors see the part inside" if found else ""
    return [f"objects that reach beyond their image by more than {_BEYOND:.0f} px: {len(found):,}{text}"]


def _hidden(splits: Splits) -> str:
    found = []
    for split, images in splits.items():
        for place, name in enumerate(_names(images)):
            held = images.annotations_of(place)
            hidden = np.flatnonzero(images.mostly_hidden(place, images.label_map(place)))
            found += [f"annotation {held[i].get('id', i)} of {split}/{name}" for i in hidden]
    text = f": {first_few(found)}; the metrics of objects compare what is visible of them" if found else ""
    return f"objects that lie by more than half under others: {len(found):,}{text}"


def _names(images: CocoImages) -> list[str]:
    """The paths of the images below the folder of their split."""
    return names_below(map(str, images.paths()), images.folder)


def _patients(images: CocoImages, regex: str | None) -> Patients:
    """The patient of each image, if known. Raises UserError if ``regex`` does not match each name."""
    entries, paths = images.coco_ground_truth()["images"], [str(path) for path in images.paths()]
    if regex is None:
        listed = patients_of(images.folder, paths)
        return [stated_patient(entry) or listed.get(path) for entry, path in zip(entries, paths, strict=True)]
    return [patient_in_name(os.path.splitext(name)[0], regex, name) for name in names_below(paths, images.folder)]


def _shared(splits: Splits, patients: Mapping[str, Patients]) -> list[str]:
    """Patients and images that two splits share."""
    lines = odd_spellings(patients)
    small = {split: thumbnails(images.paths()) for split, images in splits.items()} if len(splits) > 1 else {}
    for one, other, line in patients_between(patients, "--patient_regex or a manifest.csv"):
        lines.append(line)
        same = identical_images(splits[one], splits[other])
        lines.append(f"identical files in {one} and {other}: {len(same)}{': ' * bool(same)}{first_few(same)}")
        names = [_names(splits[split]) for split in (one, other)]
        alike = [f"{names[1][b]} is like {names[0][a]}" for a, b in similar(small[one], small[other])]
        lines.append(
            f"nearly identical images in {one} and {other} (correlation >= {ALIKE}, turned or mirrored too): "
            f"{len(alike)}{': ' * bool(alike)}{first_few(alike)}"
        )
    return lines
