"""Checks that a COCO JSON is valid and matches its images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from densepath.annotations.coco_boxes import are_corners, are_shares, corners_of, disagree, leave_images, upright
from densepath.annotations.coco_file import read_coco
from densepath.annotations.left_out import LeftOut
from densepath.annotations.outlines import are_numbers, draw, has_outline, is_empty, slivers
from densepath.core.errors import UserError, first_few
from densepath.core.files import existing
from densepath.sources.corrupt import CorruptImage
from densepath.sources.decode import read_header

Orientation = Literal["stored", "viewed"]

_MOST = 1e30  # within the range of float32
_REMEDY = "correct or remove them"


def check_coco(
    folder: Path, annotations: Path, outlines: bool = True, orientation: Orientation | None = None
) -> dict[str, Any]:
    """Read a COCO instances JSON and compare it with its images' headers. Each outline is drawn.

    Args:
        folder: folder of the images.
        annotations: the JSON.
        outlines, orientation: as for :func:`check_instances`.

    Returns:
        Its content, with the images' names as they are on disk.

    Raises:
        UserError: it is not a COCO instances JSON, names missing images, or as for :func:`check_instances`.
    """
    truth = read_coco(annotations)
    for image in truth["images"]:
        image["file_name"] = existing(folder, image["file_name"])
    missing = [image["file_name"] for image in truth["images"] if not (folder / image["file_name"]).is_file()]
    if missing:
        raise UserError(f"{annotations}: images missing: {first_few(missing)}; put them into {folder}")
    files = {image["id"]: folder / image["file_name"] for image in truth["images"]}
    return check_instances(truth, annotations, files, outlines, orientation)


def check_instances(
    truth: dict[str, Any],
    annotations: Path,
    files: Mapping[int, Path],
    outlines: bool = True,
    orientation: Orientation | None = None,
) -> dict[str, Any]:
    """Compare the content of a COCO JSON with its images' headers, and draw each outline.

    Objects that cannot be used are left out, with a line that names the first, if they are at most 1% of all: COCO's
    own train2017 has some. A box that is missing becomes that of the outline. A turned box of CVAT (``rotation`` in its
    ``attributes``) without an outline becomes the upright box that bounds it.

    Args:
        truth: the content, as :func:`~densepath.annotations.coco_file.read_coco` returns it; it is changed.
        annotations: the JSON, for messages.
        files: the file of each image by its id.
        outlines: whether every object needs an outline; otherwise an object without one gets that of its box.
        orientation: which pixels of images with an orientation tag the annotations describe: as stored in the file, or
            as shown by a viewer. None refuses such images.

    Returns:
        The content, with all outlines as compressed run lengths.

    Raises:
        UserError: images are unreadable or of another size, annotations have unknown images or categories, or more than
            1% of the objects have empty boxes, or outlines that cannot be drawn, are empty or contradict their boxes.
    """
    images = {image["id"]: image for image in truth["images"]}

    def refuse(faults: Iterable[str], what: str, remedy: str = _REMEDY) -> None:
        if found := list(faults):
            raise UserError(f"{annotations}: {what}: {first_few(found)}; {remedy}")

    if len(images) < len(truth["images"]):
        raise UserError(f"{annotations} gives several images the same id; renumber them")
    if not images:
        raise UserError(f"{annotations} lists no image; give a split with images")
    unlike, turned = _compare(files, images.values(), orientation)
    refuse(
        turned if orientation is None else (),
        "images with an orientation tag",
        "say with --orientation whether the annotations describe the pixels as stored or as viewed, or save the images "
        "without the tag",
    )
    refuse(unlike, "images that differ from its entries", "annotate the images in the folder")
    _check_categories(truth, annotations)
    categories = {category["id"] for category in truth["categories"]}
    entries = [(f"annotation {a.get('id', number)}", a) for number, a in enumerate(truth["annotations"])]
    refuse((n for n, a in entries if a["image_id"] not in images), "annotations of unlisted images")
    refuse((n for n, a in entries if a["category_id"] not in categories), "annotations of unknown categories")
    refuse((n for n, a in entries if a["iscrowd"] not in (0, 1)), "iscrowd neither 0 nor 1")
    refuse((n for n, a in entries if not are_numbers([a.get("area", 0)], _MOST)), "areas that are not numbers")
    left_out = _check_objects(entries, images, str(annotations), outlines)
    truth["annotations"] = [a for position, (_, a) in enumerate(entries) if position not in left_out]
    return truth


def _check_categories(truth: dict[str, Any], annotations: Path) -> None:
    used = {annotation["category_id"] for annotation in truth["annotations"]}
    named = Counter(category["name"] for category in truth["categories"])
    # Roboflow adds a category with the name of the project, which no object has.
    truth["categories"] = [c for c in truth["categories"] if c["id"] in used or named[c["name"]] == 1]
    for key, what, remedy in (("id", "several categories with one id", "renumber"), ("name", "", "rename")):
        times = Counter(str(category[key]) for category in truth["categories"])
        if many := [value for value, count in times.items() if count > 1]:
            what = what or "several categories of one name"
            raise UserError(f"{annotations}: {what}: {first_few(many)}; {remedy} them")


def _check_objects(
    entries: list[tuple[str, dict[str, Any]]], images: Mapping[int, dict[str, Any]], source: str, outlines: bool
) -> set[int]:
    """Draw the annotations, and compare their boxes with their outlines.

    Returns:
        The positions of those to leave out.
    """
    left_out, cut = LeftOut("objects"), LeftOut("objects", least=1)
    bounds = np.zeros((len(entries), 4))
    drawn = np.zeros(len(entries), bool)
    for position, (name, annotation) in enumerate(entries):
        image = images[annotation["image_id"]]
        segmentation = annotation.get("segmentation")
        parts = slivers(segmentation) if has_outline(segmentation) else 0
        try:
            bounds[position], drawn[position] = _draw(annotation, image["height"], image["width"], outlines)
        except ValueError as error:
            left_out.add(position, str(error), name)
            annotation["bbox"] = [0.0, 0.0, 0.0, 0.0]
            continue
        if parts:
            cut.add(position, "outlines with parts of fewer than three points", name)
    written = np.array([a["bbox"] for _, a in entries], np.float64).reshape(-1, 4)
    sizes = np.array([[images[a["image_id"]][key] for key in ("width", "height")] for _, a in entries], np.float64)
    limits = np.tile(sizes.reshape(-1, 2), 2)
    single = np.array([not a["iscrowd"] for _, a in entries], bool)
    valid = np.array([position not in left_out.positions for position in range(len(entries))], bool)
    clipped = corners_of(written.astype(np.float32)).clip(0, limits)  # as in the detector
    empty = (clipped[:, :2] >= clipped[:, 2:]).any(axis=1)
    known = valid & single & ~empty
    with_outline, box_only = known & drawn, known & ~drawn
    apart = with_outline & disagree(written, bounds, limits)
    what = f"boxes that disagree with their {'outlines' if drawn.any() else 'images'}"
    why = ""
    if are_corners(*(values[with_outline] for values in (written, bounds, limits))) or leave_images(
        written[box_only], limits[box_only]
    ):
        why = "they are x1 y1 x2 y2; write x y width height, as COCO has it"
    elif are_shares(written[box_only]):
        why = "they are shares of the image; write pixels, as COCO has it"
    if why:
        wrong = [name for (name, _), one in zip(entries, known, strict=True) if one]
        raise UserError(f"{source}: {what}: {first_few(wrong)}; {why}")
    for position in np.flatnonzero(valid & single & empty).tolist():
        left_out.add(position, "boxes without area", entries[position][0])
    for position in np.flatnonzero(apart).tolist():
        left_out.add(position, what, entries[position][0])
    left_out.settle(source, int(single.sum()), _REMEDY)
    cut.settle(source, int(single.sum()), "remove these parts", kept=True)
    return left_out.positions


def _draw(annotation: dict[str, Any], height: int, width: int, outlines: bool) -> tuple[list[float], bool]:
    """Replace an annotation's outline by its run lengths, and add its box if it has none.

    Returns:
        The outline's bounds x1 y1 x2 y2, and whether it had an outline.

    Raises:
        ValueError: what is wrong, as a phrase for several annotations.
    """
    box, segmentation = annotation.get("bbox") or None, annotation.get("segmentation")
    if box is not None and not (are_numbers(box, _MOST) and len(box) == 4):
        raise ValueError("boxes that are not x y width height")
    outlined = has_outline(segmentation)
    if box is None and not outlined:
        raise ValueError("annotations with neither a box nor an outline")
    if box is not None and not outlined and (degrees := _rotation(annotation)) and min(box[2:]) > 0:
        annotation["bbox"] = box = upright(box, degrees, height, width)
    if not outlined and (not outlines or annotation["iscrowd"]):
        return _draw_box(annotation, height, width), False
    try:
        annotation["segmentation"], bounds = draw(segmentation if outlined else [], height, width)
    except ValueError:
        if annotation["iscrowd"] and box is not None:  # not an object: evaluators ignore what is found in it
            return _draw_box(annotation, height, width), False
        raise
    if is_empty(annotation["segmentation"]) and not annotation["iscrowd"]:
        raise ValueError("outlines that cover no pixel")
    if box is None:
        x1, y1, x2, y2 = np.clip(bounds, 0, [width, height] * 2).tolist()
        annotation["bbox"] = [x1, y1, x2 - x1, y2 - y1]
    return bounds, True


def _rotation(annotation: dict[str, Any]) -> float:
    """Takes out of a box's attributes the degrees by which it is turned, as CVAT writes them; 0 for none."""
    attributes = annotation.get("attributes")
    degrees = attributes.pop("rotation", 0) if isinstance(attributes, dict) else 0
    return float(degrees) if are_numbers([degrees], _MOST) else 0.0


def _draw_box(annotation: dict[str, Any], height: int, width: int) -> list[float]:
    """Let an annotation's outline be its box, whose corners are returned."""
    x, y, wide, high = annotation["bbox"]
    corners = [x, y, x + wide, y + high]
    x1, y1, x2, y2 = np.clip(corners, 0, [width, height] * 2).tolist()
    annotation["segmentation"], _ = draw([[x1, y1, x2, y1, x2, y2, x1, y2]], height, width)
    return corners


def _compare(
    files: Mapping[int, Path], images: Iterable[dict[str, Any]], orientation: Orientation | None
) -> tuple[list[str], list[str]]:
    """The images that differ from their entries, and those with an orientation tag."""
    unlike, turned = [], []
    for image in images:
        name, stated = image["file_name"], (image["height"], image["width"])
        try:
            header = read_header(files[image["id"]])
        except CorruptImage as error:
            unlike.append(f"{name} ({error.why})")
            continue
        if header.orientation != 1:
            turned.append(f"{name} (orientation {header.orientation})")
        actual = header.viewed if orientation == "viewed" else (header.height, header.width)
        if actual != stated:
            unlike.append(f"{name} ({actual[1]} x {actual[0]} px, not {stated[1]} x {stated[0]})")
    return unlike, turned
