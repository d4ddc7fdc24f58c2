"""Checks that a COCO JSON is valid and matches its images."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densepath.core.errors import UserError, first_few
from densepath.sources.corrupt import CorruptImage
from densepath.sources.decode import read_size

_NEEDED: dict[str, dict[str, type | None]] = {  # with the types of keys that are looked up
    "images": {"id": int, "file_name": str, "width": int, "height": int},
    "annotations": {"image_id": int, "category_id": int, "bbox": None, "segmentation": None},
    "categories": {"id": int},
}
_KINDS: dict[type | None, str] = {int: "a whole number", str: "text"}


def check_coco(folder: Path, annotations: Path) -> dict[str, Any]:
    """Read a COCO instances JSON and compare it with its images' headers.

    Args:
        folder: folder of the images.
        annotations: the JSON.

    Raises:
        UserError: it is not a COCO instances JSON, names images that are missing, unreadable or of another size, or has
            annotations of unknown images or categories, with empty boxes or with outlines that cannot be drawn.
    """
    truth = _read(annotations)
    images = {image["id"]: image for image in truth["images"]}
    if len(images) < len(truth["images"]):
        raise UserError(f"{annotations} gives several images the same id; renumber them")
    if not images:
        raise UserError(f"{annotations} lists no image; give a split with images")

    def refuse(faults: Iterable[str], what: str, remedy: str) -> None:
        if found := list(faults):
            raise UserError(f"{annotations}: {what}: {first_few(found)}; {remedy}")

    names = [image["file_name"] for image in images.values()]
    refuse((n for n in names if not (folder / n).is_file()), "images missing", f"put them into {folder}")
    refuse(_unlike(folder, images.values()), "images that differ from its entries", "annotate the images in the folder")
    categories = {category["id"] for category in truth["categories"]}
    entries = [(f"annotation {a.get('id', number)}", a) for number, a in enumerate(truth["annotations"])]
    remedy = "correct or remove them"
    refuse((n for n, a in entries if a["image_id"] not in images), "annotations of unlisted images", remedy)
    refuse((n for n, a in entries if a["category_id"] not in categories), "annotations of unknown categories", remedy)
    refuse((n for n, a in entries if a.get("iscrowd", 0) not in (0, 1)), "iscrowd neither 0 nor 1", remedy)
    refuse((n for n, a in entries if not _is_small(a.get("area", 0))), "areas that are not numbers", remedy)
    refuse((n for n, a in entries if not _has_area(a["bbox"], images[a["image_id"]])), "boxes without area", remedy)
    refuse(
        (n for n, a in entries if not _can_be_drawn(a["segmentation"], images[a["image_id"]])),
        "outlines that are neither polygons nor run lengths of the image's size",
        remedy,
    )
    return truth


def _read(path: Path) -> dict[str, Any]:
    try:
        truth = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give the path of a COCO instances JSON") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a COCO instances JSON") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); give a COCO instances JSON") from None
    for part, keys in _NEEDED.items():
        entries = truth.get(part) if isinstance(truth, dict) else None
        if not isinstance(entries, list):
            raise UserError(f"{path} is not a COCO instances JSON: it has no list {part!r}; see cocodataset.org")
        for number, entry in enumerate(entries):
            missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
            if missing:
                raise UserError(f"{path} is not a COCO instances JSON: {part}[{number}] has no {missing[0]!r}; add it")
            wrong = [key for key, kind in keys.items() if kind and not _has_type(kind, entry[key])]
            if wrong:
                kind = _KINDS[keys[wrong[0]]]
                raise UserError(
                    f"{path} is not a COCO instances JSON: {wrong[0]!r} of {part}[{number}] is not {kind}; correct it"
                )
    return truth


def _has_type(kind: type, value: Any) -> bool:
    """Whether a value has a type and, if it is a number, is small enough to be an index."""
    if kind is int:
        return type(value) is int and abs(value) < 2**63
    return isinstance(value, str) and "\0" not in value


def _unlike(folder: Path, images: Iterable[dict[str, Any]]) -> Iterable[str]:
    for image in images:
        stated = image["height"], image["width"]
        try:
            actual = read_size(folder / image["file_name"])
        except CorruptImage as error:
            yield f"{image['file_name']} ({error.why})"
            continue
        if actual != stated:
            yield f"{image['file_name']} ({actual[1]} x {actual[0]} px, not {stated[1]} x {stated[0]})"


def _has_area(box: Any, image: dict[str, Any]) -> bool:
    """Whether a box x y width height covers some of its image."""
    if not isinstance(box, list) or len(box) != 4 or not all(_is_small(n) for n in box):
        return False
    x, y, width, height = box
    corners = np.array([[x, x + width], [y, y + height]], np.float32)  # as in the detector
    inside = corners.clip(0, np.array([[image["width"]], [image["height"]]]))
    return bool((inside[:, 0] < inside[:, 1]).all())


def _is_small(value: Any) -> bool:
    """Whether a value is a number within the range of float32."""
    return isinstance(value, int | float) and abs(value) < 1e30


def _can_be_drawn(segmentation: Any, image: dict[str, Any]) -> bool:
    far = 10 * max(image["height"], image["width"])  # a corner farther away is an error, and takes memory to draw
    if isinstance(segmentation, list):
        return bool(segmentation) and all(
            isinstance(polygon, list)
            and len(polygon) >= 6
            and len(polygon) % 2 == 0
            and all(isinstance(n, int | float) and abs(n) <= far for n in polygon)
            for polygon in segmentation
        )
    if not isinstance(segmentation, dict) or segmentation.get("size") != [image["height"], image["width"]]:
        return False
    # If there are fewer pixels than the image has, the decoder leaves the rest uninitialized.
    runs = _runs(segmentation.get("counts"))
    return runs is not None and bool((runs >= 0).all()) and runs.sum() == image["height"] * image["width"]


def _runs(counts: Any) -> npt.NDArray[np.int64] | None:
    """The lengths of the runs, from COCO's list or from its compressed text; None if it is neither.

    The text has 5 bits per character, lowest first; the sixth bit means that more follow. From the fourth number on,
    each is the difference to the last but one.
    """
    if isinstance(counts, list):
        return np.array(counts, np.int64) if all(isinstance(n, int) and abs(n) < 2**40 for n in counts) else None
    if not isinstance(counts, str) or not counts.isascii():
        return None
    codes = np.frombuffer(counts.encode(), np.uint8).astype(np.int64) - 48
    last = codes & 32 == 0
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or not last[-1]:
        return None
    starts = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
    lengths = np.diff(starts, append=len(codes))
    if lengths.max() > 7:
        return None
    digit = np.arange(len(codes)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((codes & 31) << (5 * digit), starts)
    runs -= np.where(codes[last] & 16, 1 << (5 * lengths), 0)
    runs[1::2], runs[2::2] = runs[1::2].cumsum(), runs[2::2].cumsum()
    return runs
