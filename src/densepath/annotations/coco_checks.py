"""Checks that a COCO JSON is valid and matches its images."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from densepath.annotations.outlines import are_numbers, draw, is_empty
from densepath.core.errors import UserError, first_few
from densepath.core.files import existing
from densepath.sources.corrupt import CorruptImage
from densepath.sources.decode import read_header

Orientation = Literal["stored", "viewed"]

_NEEDED: dict[str, dict[str, type | None]] = {  # with the types of keys that are looked up
    "images": {"id": int, "file_name": str, "width": int, "height": int},
    "annotations": {"image_id": int, "category_id": int, "bbox": None, "segmentation": None},
    "categories": {"id": int},
}
_MOST = 1e30  # within the range of float32
_KINDS: dict[type | None, str] = {int: "a whole number", str: "text"}
_LEAST_OVERLAP = 0.7  # IoU of a box and the bounds of its outline; boxes drawn by hand have 0.8 and more
_LEAST_DISTANCE = 2.0  # pixels between their sides that always pass: conventions differ by 1, small objects are small


def check_coco(
    folder: Path, annotations: Path, outlines: bool = True, orientation: Orientation | None = None
) -> dict[str, Any]:
    """Read a COCO instances JSON and compare it with its images' headers. Each outline is drawn.

    Args:
        folder: folder of the images.
        annotations: the JSON.
        outlines: whether every object needs an outline; otherwise an object without one gets that of its box.
        orientation: which pixels of images with an orientation tag the annotations describe: as stored in the file, or
            as shown by a viewer. None refuses such images.

    Returns:
        Its content, with all outlines as compressed run lengths.

    Raises:
        UserError: it is not a COCO instances JSON, names images that are missing, unreadable or of another size, or has
            annotations of unknown images or categories, with empty boxes, with outlines that cannot be drawn, are empty
            or do not agree with their boxes.
    """
    truth = _read(annotations, outlines)
    images = {image["id"]: image for image in truth["images"]}
    if len(images) < len(truth["images"]):
        raise UserError(f"{annotations} gives several images the same id; renumber them")
    if not images:
        raise UserError(f"{annotations} lists no image; give a split with images")

    def refuse(faults: Iterable[str], what: str, remedy: str) -> None:
        if found := list(faults):
            raise UserError(f"{annotations}: {what}: {first_few(found)}; {remedy}")

    for image in images.values():
        image["file_name"] = existing(folder, image["file_name"])
    names = [image["file_name"] for image in images.values()]
    refuse((n for n in names if not (folder / n).is_file()), "images missing", f"put them into {folder}")
    unlike, turned = _compare(folder, images.values(), orientation)
    refuse(
        turned if orientation is None else (),
        "images with an orientation tag",
        "say with --orientation whether the annotations describe the pixels as stored or as viewed, or save the images "
        "without the tag",
    )
    refuse(unlike, "images that differ from its entries", "annotate the images in the folder")
    used = {annotation["category_id"] for annotation in truth["annotations"]}
    named = Counter(category["name"] for category in truth["categories"])
    # Roboflow adds a category with the name of the project, which no object has.
    truth["categories"] = [c for c in truth["categories"] if c["id"] in used or named[c["name"]] == 1]
    categories = {category["id"] for category in truth["categories"]}
    ids = Counter(category["id"] for category in truth["categories"])
    refuse((str(i) for i, count in ids.items() if count > 1), "several categories with one id", "renumber them")
    named = Counter(category["name"] for category in truth["categories"])
    refuse((name for name, count in named.items() if count > 1), "several categories of one name", "rename them")
    entries = [(f"annotation {a.get('id', number)}", a) for number, a in enumerate(truth["annotations"])]
    remedy = "correct or remove them"
    refuse((n for n, a in entries if a["image_id"] not in images), "annotations of unlisted images", remedy)
    refuse((n for n, a in entries if a["category_id"] not in categories), "annotations of unknown categories", remedy)
    refuse((n for n, a in entries if a["iscrowd"] not in (0, 1)), "iscrowd neither 0 nor 1", remedy)
    refuse((n for n, a in entries if not are_numbers([a.get("area", 0)], _MOST)), "areas that are not numbers", remedy)
    wrong = (n for n, a in entries if not are_numbers(a["bbox"], _MOST) or len(a["bbox"]) != 4)
    refuse(wrong, "boxes that are not x y width height", remedy)
    boxes = np.array([a["bbox"] for _, a in entries], np.float64).reshape(-1, 4)
    sizes = [(images[a["image_id"]]["width"], images[a["image_id"]]["height"]) for _, a in entries]
    limits = np.tile(np.array(sizes, np.float64).reshape(-1, 2), 2)
    corners = _corners(boxes.astype(np.float32)).clip(0, limits)  # as in the detector
    single = np.array([not a["iscrowd"] for _, a in entries], bool)
    empty = (np.any(corners[:, :2] >= corners[:, 2:], axis=1) & single).tolist()
    refuse((n for (n, _), one in zip(entries, empty, strict=True) if one), "boxes without area", remedy)

    faults: dict[str, list[str]] = {}
    bounds = np.array([_draw(n, a, images[a["image_id"]], outlines, faults) for n, a in entries], np.float64).reshape(
        -1, 4
    )
    for what, found in faults.items():
        refuse(found, what, remedy)
    apart = _disagree(_corners(boxes), bounds, limits) & single
    if _are_corners(boxes[single], bounds[single], limits[single], outlines):
        apart, remedy = single, "they are x1 y1 x2 y2; write x y width height, as COCO has it"
    far = [name for (name, _), one in zip(entries, apart, strict=True) if one]
    refuse(far, f"boxes that disagree with their {'outlines' if outlines else 'images'}", remedy)
    return truth


def _read(path: Path, outlines: bool) -> dict[str, Any]:
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
            missing = [
                key
                for key in keys
                if (not isinstance(entry, dict) or key not in entry) and (outlines or key != "segmentation")
            ]
            if missing:
                raise UserError(f"{path} is not a COCO instances JSON: {part}[{number}] has no {missing[0]!r}; add it")
            for key, kind in keys.items():
                if kind is int:
                    entry[key] = _whole(entry[key])
                if kind and not _has_type(kind, entry[key]):
                    raise UserError(
                        f"{path} is not a COCO instances JSON: {key!r} of {part}[{number}] is not {_KINDS[kind]}; "
                        "correct it"
                    )
    for entry in truth["annotations"]:
        entry["iscrowd"] = _whole(entry.get("iscrowd", 0))
        if entry.get("area", 0) is None:
            del entry["area"]
    for entry in truth["categories"]:
        entry["name"] = unicodedata.normalize("NFC", str(entry.get("name", entry["id"])))
    return truth


def _whole(value: Any) -> Any:
    """A whole number in another spelling, 1.0 or "1", as an integer; anything else unchanged."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 19:
        return int(value)
    return value


def _has_type(kind: type, value: Any) -> bool:
    """Whether a value has a type and, if it is a number, is small enough to be an index."""
    if kind is int:
        return type(value) is int and abs(value) < 2**63
    return isinstance(value, str) and "\0" not in value


def _compare(
    folder: Path, images: Iterable[dict[str, Any]], orientation: Orientation | None
) -> tuple[list[str], list[str]]:
    """The images that differ from their entries, and those with an orientation tag."""
    unlike, turned = [], []
    for image in images:
        name, stated = image["file_name"], (image["height"], image["width"])
        try:
            header = read_header(folder / name)
        except CorruptImage as error:
            unlike.append(f"{name} ({error.why})")
            continue
        if header.orientation != 1:
            turned.append(f"{name} (orientation {header.orientation})")
        actual = header.viewed if orientation == "viewed" else (header.height, header.width)
        if actual != stated:
            unlike.append(f"{name} ({actual[1]} x {actual[0]} px, not {stated[1]} x {stated[0]})")
    return unlike, turned


def _draw(
    name: str, annotation: dict[str, Any], image: dict[str, Any], outlines: bool, faults: dict[str, list[str]]
) -> list[float]:
    """Replace an annotation's outline by its run lengths, and return its bounds x1 y1 x2 y2."""
    x, y, width, height = annotation["bbox"]
    corners, size = [x, y, x + width, y + height], (image["height"], image["width"])
    x1, y1, x2, y2 = np.clip(corners, 0, [image["width"], image["height"]] * 2).tolist()
    box = [[x1, y1, x2, y1, x2, y2, x1, y2]]
    if annotation["iscrowd"]:  # not an object: evaluators ignore what is found in it
        try:
            annotation["segmentation"], _ = draw(annotation["segmentation"], *size)
        except (ValueError, KeyError):
            annotation["segmentation"], _ = draw(box, *size)
        return corners
    if not outlines and not any(annotation.get("segmentation") or ()):
        annotation["segmentation"], _ = draw(box, *size)
        return corners
    try:
        annotation["segmentation"], bounds = draw(annotation["segmentation"], *size)
    except ValueError as error:
        faults.setdefault(str(error), []).append(name)
        return corners
    if is_empty(annotation["segmentation"]):
        faults.setdefault("outlines that cover no pixel", []).append(name)
    return bounds


def _disagree(
    boxes: npt.NDArray[np.float64], bounds: npt.NDArray[np.float64], limits: npt.NDArray[np.float64]
) -> npt.NDArray[np.bool_]:
    """Whether boxes (N, 4) and bounds (N, 4), both x1 y1 x2 y2, clearly differ within their images' limits (N, 4)."""
    first, second = boxes.clip(0, limits), bounds.clip(0, limits)
    low, high = np.maximum(first, second)[:, :2], np.minimum(first, second)[:, 2:]
    common = (high - low).clip(0).prod(axis=1)
    whole = sum((part[:, 2:] - part[:, :2]).clip(0).prod(axis=1) for part in (first, second)) - common
    return (common < _LEAST_OVERLAP * whole) & (np.abs(first - second).max(axis=1) > _LEAST_DISTANCE)


def _are_corners(
    written: npt.NDArray[np.float64], bounds: npt.NDArray[np.float64], limits: npt.NDArray[np.float64], outlined: bool
) -> bool:
    """Whether boxes (N, 4) were written as x1 y1 x2 y2: it fits all of them, and x y width height does not."""
    if (written[:, 2:] <= written[:, :2]).any() or (written[:, 2:] > limits[:, 2:] + 1).any():
        return False
    if outlined:
        apart = _disagree(_corners(written), bounds, limits)
        return bool(apart.any()) and not _disagree(written, bounds, limits).any()
    return bool((_corners(written) > limits + _LEAST_DISTANCE).any())


def _corners(boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """x y width height (N, 4) as x1 y1 x2 y2."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
