"""Instances in COCO's format next to their images, written from label maps or from annotations of COCO."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image
from scipy import ndimage

from densepath.annotations.labels import whole_numbers
from densepath.annotations.outlines import encode_part, run_lengths
from densepath.annotations.patients import MANIFEST
from densepath.core.csv_files import LineFeeds
from densepath.core.errors import UserError, counted
from densepath.core.files import atomic_write, require_new_folder
from densepath.core.output_names import is_inside
from densepath.sources.corrupt import CorruptImage
from densepath.sources.decode import read_size

LabelMap = npt.NDArray[np.integer[Any]]
Objects = LabelMap | Sequence[Mapping[str, Any]]


class Outlined(NamedTuple):
    """An image with its objects.

    Args:
        name: without suffix, perhaps in subfolders.
        image: uint8 (H, W, 3) or (H, W), uint16 too, or a file.
        objects: labels (H, W), 0 for background; or annotations of COCO with ``category``, a name, instead of ids.
        patient: the patient, if known.
        source: the file that it comes from, for the manifest.
        mpp: its µm per pixel, if known.
    """

    name: str
    image: npt.NDArray[Any] | Path
    objects: Objects
    patient: str | None = None
    source: str | None = None
    mpp: float | None = None


def write_coco(
    dest: str | Path,
    splits: Mapping[str, Iterable[Outlined | tuple[str, npt.NDArray[Any] | Path, Objects]]],
    category: str | Sequence[str] = "gland",
    mpp: float | None = None,
    require_objects: bool = False,
) -> dict[str, tuple[int, int]]:
    """Write images with their objects as a data set for detectors.

    DEST/train/* and DEST/test/* are the images, DEST/annotations/train.json and test.json the instances: one annotation
    for each positive label, whether or not its pixels are connected. If sources are given, DEST/manifest.csv has the
    file, split, patient and source of each image.

    Args:
        dest: a new folder; it is created only when it is complete.
        splits: the images of each split, in order. An array is written as PNG (16-bit color as TIFF), a file is copied.
        category: name of the objects of label maps; or the names of all categories.
        mpp: µm per pixel of images that do not have their own, if known.
        require_objects: refuse images of which none has an object.

    Returns:
        Numbers of images and instances of each split.

    Raises:
        UserError: ``dest`` is not empty, an image cannot be read or written, its name leads out of its folder, labels
            are not whole numbers, a label map and its image differ in size, or no image has a required object.
    """
    dest = require_new_folder(dest, "the data set")
    names = [category] if isinstance(category, str) else list(category)
    ids = {name: number for number, name in enumerate(names, 1)}
    counts, rows = {}, []
    with atomic_write(dest) as folder:
        (folder / "annotations").mkdir(parents=True)
        for split, samples in splits.items():
            (folder / split).mkdir()
            truth: dict[str, Any] = {
                "info": {"description": f"{', '.join(names)} instances, {split}"},
                "images": [],
                "annotations": [],
                "categories": [{"id": number, "name": name} for name, number in ids.items()],
            }
            for image_id, sample in enumerate((Outlined(*sample) for sample in samples), 1):
                file, (height, width) = _place_image(folder / split, sample)
                entry: dict[str, Any] = {"id": image_id, "file_name": file, "width": width, "height": height}
                known = {"patient": sample.patient, "mpp": mpp if sample.mpp is None else sample.mpp}
                truth["images"].append(entry | {key: value for key, value in known.items() if value is not None})
                objects = sample.objects
                for instance in instances_of(objects, names[0]) if isinstance(objects, np.ndarray) else objects:
                    number = ids[instance["category"]]
                    annotation = {"id": len(truth["annotations"]) + 1, "image_id": image_id, "category_id": number}
                    truth["annotations"].append(annotation | {k: v for k, v in instance.items() if k != "category"})
                if sample.source is not None:
                    rows.append((f"{split}/{file}", split, sample.patient or "", sample.source))
            (folder / "annotations" / f"{split}.json").write_text(json.dumps(truth))
            counts[split] = len(truth["images"]), len(truth["annotations"])
        if require_objects and not any(instances for _, instances in counts.values()):
            images = counted(sum(number for number, _ in counts.values()), "image")
            raise UserError(f"none of {images} has an object, and {dest} was not written; outline some")
        if rows:
            with (folder / MANIFEST).open("w", newline="", encoding="utf-8", errors="surrogateescape") as lines:
                csv.writer(LineFeeds(lines)).writerows([("file", "split", "patient", "source"), *rows])
    return counts


def _place_image(folder: Path, sample: Outlined) -> tuple[str, tuple[int, int]]:
    """Put an image into the folder; return its file name, and its height and width."""
    name, image = sample.name, sample.image
    if not is_inside(name):
        raise UserError(f"{name!r} is not the name of a file in {folder.name}; rename the image")
    if isinstance(image, np.ndarray):
        _check_pixels(name, image)
    try:
        height, width = image.shape[:2] if isinstance(image, np.ndarray) else read_size(image)
    except CorruptImage as error:
        raise UserError(f"{error}; replace the file") from error
    if isinstance(sample.objects, np.ndarray):
        shape = sample.objects.shape
        if shape != (height, width):
            labels = _size(*shape) if len(shape) == 2 else f"an array of {counted(len(shape), 'axis', 'axes')}"
            size = _size(height, width)
            raise UserError(f"{name}: the labels are {labels} but the image is {size}; they must be equal")
        if sample.objects.dtype.kind not in "biu":
            whole_numbers(sample.objects, f"the label map of {name}")
    wide = isinstance(image, np.ndarray) and image.dtype == np.uint16 and image.ndim == 3  # Pillow has no such PNG
    file = f"{name}{image.suffix.lower() if isinstance(image, Path) else '.tif' if wide else '.png'}"
    place = folder / file
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists():
        raise UserError(f"two images would be written as {folder.name}/{file}; rename one of them")
    if isinstance(image, Path):
        shutil.copyfile(image, place)
    elif wide:
        tifffile.imwrite(place, image, photometric="rgb", compression="zlib")
    else:
        Image.fromarray(image).save(place, compress_level=1)
    return file, (height, width)


def _check_pixels(name: str, image: npt.NDArray[Any]) -> None:
    """Raise UserError if an array is not an image that is written as a file."""
    plain = image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))
    if not plain or image.dtype not in (np.uint8, np.uint16) or not image.size:
        raise UserError(
            f"{name}: the image is {image.dtype} of the shape {image.shape}; give uint8 or uint16 of height x width, "
            "or of height x width x 3"
        )


def _size(height: int, width: int) -> str:
    return f"{width} x {height} px"


def instances_of(labels: LabelMap, category: str) -> Iterator[dict[str, Any]]:
    """The instances of a label map (H, W) as COCO's annotations with a ``category``, in the order of their labels."""
    values, ranks = np.unique(labels, return_inverse=True)
    background = int((values <= 0).sum())
    numbers = (ranks.reshape(labels.shape) + 1 - background).clip(0)
    for number, place in enumerate(ndimage.find_objects(numbers), 1):
        mask = numbers[place] == number
        (top, left), (height, width) = (axis.start for axis in place), mask.shape
        yield {
            "category": category,
            "segmentation": encode_part(mask, top, left, labels.shape),
            "bbox": [float(left), float(top), float(width), float(height)],
            "area": int(mask.sum()),
            "iscrowd": 0,
        }


def annotation_of(mask: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """One instance (H, W): compressed run lengths, tight box x y width height, area in pixels."""
    rle = run_lengths()
    encoded = rle.encode(np.asfortranarray(mask, np.uint8))
    return {
        "segmentation": {"size": [int(n) for n in encoded["size"]], "counts": encoded["counts"].decode()},
        "bbox": rle.toBbox(encoded).tolist(),
        "area": int(rle.area(encoded)),
        "iscrowd": 0,
    }
