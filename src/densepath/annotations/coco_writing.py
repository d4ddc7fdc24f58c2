"""Instances in COCO's format next to their images, written from label maps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from faster_coco_eval import mask as rle
from PIL import Image

from densepath.core.errors import UserError
from densepath.core.files import atomic_write, require_new_folder
from densepath.sources.corrupt import CorruptImage
from densepath.sources.decode import read_size

LabelMap = npt.NDArray[np.integer[Any]]
# Name without suffix, perhaps in subfolders; image or its file; labels (H, W).
Outlined = tuple[str, npt.NDArray[np.uint8] | Path, LabelMap]


def write_coco(
    dest: str | Path, splits: Mapping[str, Iterable[Outlined]], category: str = "gland"
) -> dict[str, tuple[int, int]]:
    """Write images with instance label maps as a data set for detectors.

    DEST/train/* and DEST/test/* are the images, DEST/annotations/train.json and test.json the instances: one annotation
    for each positive label, whether or not its pixels are connected.

    Args:
        dest: a new folder; it is created only when it is complete.
        splits: for each split's name, (name, image, labels) in order. The image is uint8 (H, W, 3), written as PNG, or
            a file, which is copied. Labels are (H, W), 0 for background.
        category: name of the objects.

    Returns:
        Numbers of images and instances of each split.

    Raises:
        UserError: ``dest`` is not empty, an image cannot be read, or a label map and its image differ in size.
    """
    dest = require_new_folder(dest, "the data set")
    counts = {}
    with atomic_write(dest) as folder:
        (folder / "annotations").mkdir(parents=True)
        for split, samples in splits.items():
            (folder / split).mkdir()
            truth: dict[str, Any] = {
                "info": {"description": f"{category} instances, {split}"},
                "images": [],
                "annotations": [],
                "categories": [{"id": 1, "name": category}],
            }
            for image_id, (name, image, labels) in enumerate(samples, 1):
                file = _place_image(folder / split, name, image, labels.shape)
                height, width = labels.shape
                truth["images"].append({"id": image_id, "file_name": file, "width": width, "height": height})
                for label in np.unique(labels[labels > 0]):
                    instance = annotation_of(labels == label)
                    truth["annotations"].append(
                        {"id": len(truth["annotations"]) + 1, "image_id": image_id, "category_id": 1} | instance
                    )
            (folder / "annotations" / f"{split}.json").write_text(json.dumps(truth))
            counts[split] = len(truth["images"]), len(truth["annotations"])
    return counts


def _place_image(folder: Path, name: str, image: npt.NDArray[np.uint8] | Path, size: tuple[int, ...]) -> str:
    """Put an image into the folder and return its file name."""
    try:
        actual = image.shape[:2] if isinstance(image, np.ndarray) else read_size(image)
    except CorruptImage as error:
        raise UserError(f"{error}; replace the file") from error
    if actual != size:
        raise UserError(f"{name}: the labels are {_size(*size)} but the image is {_size(*actual)}; they must be equal")
    file = f"{name}{image.suffix.lower() if isinstance(image, Path) else '.png'}"
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    if isinstance(image, Path):
        shutil.copyfile(image, folder / file)
    else:
        Image.fromarray(image).save(folder / file, compress_level=1)
    return file


def _size(height: int, width: int) -> str:
    return f"{width} x {height} px"


def annotation_of(mask: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """One instance (H, W): compressed run lengths, tight box x y width height, area in pixels."""
    encoded = rle.encode(np.asfortranarray(mask, np.uint8))
    return {
        "segmentation": {"size": [int(n) for n in encoded["size"]], "counts": encoded["counts"].decode()},
        "bbox": rle.toBbox(encoded).tolist(),
        "area": int(rle.area(encoded)),
        "iscrowd": 0,
    }
