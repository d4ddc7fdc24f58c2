"""The true and the predicted objects of images, read from label maps or from COCO's formats."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import yaml

from densepath.annotations.coco import open_split
from densepath.annotations.coco_checks import Orientation
from densepath.annotations.labels import LABEL_SUFFIXES, label_size, read_objects
from densepath.annotations.outlines import are_numbers, draw
from densepath.core.errors import UserError
from densepath.core.json_files import load_json
from densepath.core.output_names import output_names
from densepath.core.records import CONFIG
from densepath.sources.corrupt import CorruptImage
from densepath.sources.listing import walk
from densepath.sources.volumes.read import SUFFIXES as VOLUMES
from densepath.transfer.detection.instances import label_map_of

LABELS, PREDICTIONS, IMAGES = "labels", "predictions.json", "images.json"  # in a folder of ``densepath predict``
_LEAST_SCORE = 0.5
_MOST = 1e30  # within the range of float32

Results = list[dict[str, Any]]
Size = tuple[int, int]


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images with label maps.

    Args:
        source: where they come from, for messages.
        names: paths relative to the source, without suffix.
        sizes: height and width of each in pixels.
        label_map: position -> (H, W); None for boxes without outlines.
        mostly_hidden: position, label map (H, W) -> (N,) whether each object keeps fewer than half of its pixels in it;
            None where objects cannot overlap, and for predictions.
        results: the detections of each image in COCO's results format, if they have scores.
        coco: the content of the COCO JSON with the true objects, if there is one.
        categories: the names of the results' categories by id; empty if they are those of the data.
    """

    source: str
    names: Sequence[str]
    sizes: Sequence[Size]
    label_map: Callable[[int], npt.NDArray[np.int32]] | None
    mostly_hidden: Callable[[int, npt.NDArray[np.int32]], npt.NDArray[np.bool_]] | None = None
    results: Sequence[Results] | None = None
    coco: dict[str, Any] | None = None
    categories: Mapping[int, str] = field(default_factory=dict)


def read_truth(
    data: str | Path, split: Literal["train", "test"], orientation: Orientation | None = None
) -> LabelledImages:
    """The true objects: a split of a data set in COCO's layout, or a folder of label maps.

    Raises:
        UserError: there is neither.
    """
    if not (Path(data) / "annotations").is_dir():
        return _label_maps(Path(data))
    images = open_split(data, split, orientation=orientation)
    truth = images.coco_ground_truth()
    names, sizes = _listed(truth["images"])
    shapes = list(sizes.values())
    return LabelledImages(str(images.annotations), names, shapes, images.label_map, images.mostly_hidden, coco=truth)


def read_predictions(path: str | Path, truth: LabelledImages, score: float | None) -> LabelledImages:
    """The predicted objects: a folder of ``densepath predict``, a folder of label maps, or a JSON of COCO results.

    Args:
        path: the folder or the JSON. An ``images.json`` next to the JSON names the images of its ids.
        truth: names them otherwise.
        score: detections with a lower score are left out of label maps; by default 0.5 in a JSON, 0 in a folder.

    Raises:
        UserError: they cannot be read.
    """
    path = Path(path)
    if path.is_dir() and (path / PREDICTIONS).is_file() and (path / IMAGES).is_file():
        return _detections(path / PREDICTIONS, truth, 0.0 if score is None else score)
    if path.suffix.lower() == ".json" and not path.is_dir():
        return _detections(path, truth, _LEAST_SCORE if score is None else score)
    if score is not None:
        raise UserError(f"score is {score}, but the label maps of {path} have no scores; leave it out")
    return _label_maps(path / LABELS if (path / LABELS).is_dir() else path)


def least_score(path: str | Path) -> float | None:
    """The lowest score of the objects that ``densepath predict`` has kept; None if it is not recorded.

    Args:
        path: the folder of the predictions, or their JSON.
    """
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    try:
        found = yaml.safe_load((folder / CONFIG).read_text())["score"]
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return None
    return float(found) if isinstance(found, int | float) else None


def _label_maps(folder: Path) -> LabelledImages:
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise UserError(f"{folder} {what}; give a folder of label maps, or data or results in COCO's format")
    files = {str(path.relative_to(folder)): path for path in map(Path, walk(folder, LABEL_SUFFIXES))}
    if not files and walk(folder, VOLUMES):
        raise UserError(
            f"{folder} holds volumes, whose classes are compared, not objects; name the classes of their values with "
            "--classes, e.g. --classes 0:background 1:liver"
        )
    if not files:
        raise UserError(f"{folder} has no label map ({', '.join(LABEL_SUFFIXES)}); check the path")
    paths = list(files.values())
    sizes = [_checked(label_size, path) for path in paths]
    names = output_names(list(map(Path, files)))
    return LabelledImages(str(folder), names, sizes, lambda position: _checked(read_objects, paths[position]))


def _checked(read: Callable[[Path], Any], path: Path) -> Any:
    try:
        return read(path)
    except CorruptImage as error:
        raise UserError(f"{error}; replace the file") from error


def _detections(path: Path, truth: LabelledImages, score: float) -> LabelledImages:
    listing = path.with_name(IMAGES)
    if not listing.is_file() and truth.coco is None:
        raise UserError(f"{listing} is missing, which names the images that {path} means; give a folder of label maps")
    try:
        listed = load_json(listing, "COCO's images") if listing.is_file() else {"images": truth.coco["images"]}  # type: ignore[index]
        names, sizes = _listed(listed["images"])
    except (TypeError, KeyError, ValueError):
        raise UserError(f"{listing} lists no images with id, file_name, height and width; correct it") from None
    try:
        categories = {int(each["id"]): str(each["name"]) for each in listed.get("categories", ())}
    except (AttributeError, TypeError, KeyError, ValueError):
        raise UserError(f"{listing} lists categories without id and name; correct it") from None
    results = load_json(path, "COCO results")
    if not isinstance(results, list):
        raise UserError(f"{path} is not a list of COCO results; give a folder of label maps, or such a list")
    masks = all(isinstance(result, dict) and "segmentation" in result for result in results)
    found: dict[int, Results] = {number: [] for number in sizes}
    for position, result in enumerate(results):
        if why := _fault(result, sizes, masks):
            raise UserError(f"result {position} of {path} {why}; correct it")
        found[result["image_id"]].append(result)
    images, shapes = list(found.values()), list(sizes.values())
    draw = partial(_drawn, images, shapes, score) if masks else None
    return LabelledImages(str(path), names, shapes, draw, results=images, categories=categories)


def _drawn(images: Sequence[Results], sizes: Sequence[Size], score: float, position: int) -> npt.NDArray[np.int32]:
    return label_map_of(images[position], sizes[position], score)


def _listed(images: Sequence[Mapping[str, Any]]) -> tuple[list[str], dict[int, Size]]:
    """Names and, by id, sizes of the images of a COCO JSON."""
    sizes = {int(image["id"]): (int(image["height"]), int(image["width"])) for image in images}
    names = output_names([Path(str(image["file_name"])) for image in images])
    if not len(names) == len(sizes) == len(images):
        raise ValueError
    return names, sizes


def _fault(result: Any, sizes: Mapping[int, Size], masks: bool) -> str:
    """What is wrong with a COCO result, or an empty text; its outline is drawn, and its box completed."""
    if not isinstance(result, dict):
        return "is not an object with image_id, category_id, score and segmentation or bbox"
    for name, kind in (("image_id", int), ("category_id", int), ("score", int | float)):
        if name not in result:
            return f"has no {name}"
        if not isinstance(result[name], kind):
            return f"has the {name} {result[name]!r}, not a {'whole ' * (kind is int)}number"
    if not math.isfinite(result["score"]):
        return f"has the score {result['score']}"
    if result["image_id"] not in sizes:
        return f"has the image_id {result['image_id']}, which no image has"
    if "bbox" in result and not (are_numbers(result["bbox"], _MOST) and len(result["bbox"]) == 4):
        return "has a bbox that is not four numbers"
    if "bbox" in result and min(result["bbox"][2:]) < 0:
        return "has a bbox of negative width or height"
    if not masks:
        return "" if "bbox" in result else "has neither a segmentation nor a bbox"
    height, width = sizes[result["image_id"]]
    try:
        result["segmentation"], (x1, y1, x2, y2) = draw(result["segmentation"], height, width)
    except ValueError as error:
        return f"has {error}"
    result.setdefault("bbox", [x1, y1, x2 - x1, y2 - y1])
    return ""
