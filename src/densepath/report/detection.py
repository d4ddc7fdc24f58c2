"""The page of a detector: its scores, and its detections in the test images beside the true objects."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from faster_coco_eval import mask as rle
from skimage.measure import approximate_polygon

from densepath.annotations.coco import CocoImages, open_split
from densepath.core.errors import UserError, counted, first_few
from densepath.core.polygons import polygons_of
from densepath.core.spacing import evenly_spaced
from densepath.report.blocks import Block, Chart, Detections, Facts, Note, Outlined, Picture, Section
from densepath.report.common import (
    PICTURES,
    curve_section,
    ending,
    gallery,
    options,
    pictures_below,
    score_cards,
    some_of,
)
from densepath.report.embedded import encode_pixels
from densepath.report.matching import Matched, match_image, precision_recall, shown_score
from densepath.report.paths import inside, own_file, where
from densepath.report.runs import Kind, Run
from densepath.report.values import plotly_text, pretty
from densepath.transfer.detection.config import DETECTIONS, OBJECT_SCORE

PREDICTIONS = "predictions.json"
_SCORES = ("mask_ap", "mask_ap50", "box_ap", "box_ap50", "object_f1", "object_dice", "aji", "pq", "object_hausdorff_px")
_OPTIONS = {
    "detector": "detector",
    "backbone": "backbone",
    "weights": "initial weights",
    "data": "images",
    "max_steps": "steps",
    "batch_size": "images per step",
    "lr": "learning rate",
    "seed": "seed",
}
_SIDE = 560  # pixels
_MOST = 8  # images of each group
_MOST_OBJECTS = 400  # outlines of an image
_LARGEST = 2**27  # bytes of the predictions
_SAME_SCORE = 0.5  # percent: the largest difference of the same score, computed twice


def _sections(run: Run, most: int) -> list[Section]:
    made = [Section("Summary", [*score_cards(run, _SCORES), Facts({"state": run.state, **options(run, _OPTIONS)})])]
    if most:
        made += _found(run, most)
    return [*made, *curve_section(run, most), *ending(run)]


def _found(run: Run, most: int) -> list[Section]:
    """The detections; as they were drawn at the end of the run if its images cannot be shown."""
    try:
        images, matched = _match(run)
    except (UserError, OSError, ValueError, LookupError, TypeError) as error:
        drawn = gallery("Test images", pictures_below(run.path / PICTURES), run.path, most)
        unknown = where(run.config, run.sessions)
        note = Note(f"The test images of the run are not shown ({error}), but its pictures are.{unknown}")
        return [Section("Detections", [note, *drawn])]
    count = min(_MOST, max(2, most // 3))
    order = sorted(range(len(images)), key=lambda k: matched[k].f1(OBJECT_SCORE))
    some = evenly_spaced(count, len(images))
    title = f"Detections beside the true objects{some_of(len(some), len(images))}"
    blocks: list[Block] = [_detections(title, some, images, matched)]
    if len(images) > count:
        worst, best = order[:count], order[: -count - 1 : -1]
        blocks.append(_detections("The worst images, by F1 of their objects", worst, images, matched))
        blocks.append(_detections("The best images", best, images, matched))
    return [Section("Precision and recall", [_curves(images, matched)]), Section("Detections", blocks)]


def _match(run: Run) -> tuple[CocoImages, list[Matched]]:
    path = own_file(run.path, PREDICTIONS)
    if path.stat().st_size > _LARGEST:
        raise ValueError("there are too many detections")
    results: Sequence[Mapping[str, Any]] = json.loads(path.read_text())
    images = open_split(run.data, "test", outlines=False, orientation=run.config.get("orientation"))
    outside = [path.name for path in images.paths() if not inside(path, run.data)]
    if outside:
        raise UserError(f"files outside of {run.data} are not read: {first_few(outside)}")
    truth = images.coco_ground_truth()
    by_image: dict[int, tuple[list[Any], list[Any]]] = {image["id"]: ([], []) for image in truth["images"]}
    for annotation in truth["annotations"]:
        by_image[annotation["image_id"]][0].append(annotation)
    for result in results:
        if result["image_id"] not in by_image:
            raise UserError(f"those in {run.data} are others: none has the id {result['image_id']}")
        by_image[result["image_id"]][1].append(result)
    masks = all("segmentation" in each for each in [*truth["annotations"], *results])
    most = int(run.config.get("detections_per_image", DETECTIONS))
    matched = [match_image(*by_image[image["id"]], most, masks) for image in truth["images"]]
    _check_same(run, images, matched, "mask_ap50" if masks else "box_ap50")
    return images, matched


def _check_same(run: Run, images: CocoImages, matched: Sequence[Matched], score: str) -> None:
    """Check that the detections have the score with the test images that they had in the run.

    Raises:
        UserError: they have another one.
    """
    found = [each for category in images.category_ids if (each := precision_recall(matched, category)) is not None]
    now, then = 100 * float(np.mean(found)) if found else np.nan, run.scores.get(score)
    if then is not None and abs(now - then.value) > _SAME_SCORE:
        raise UserError(
            f"those in {run.data} are others: {pretty(score)} is {now:.1f} with them, and was {then.value:.1f}"
        )


def _curves(images: CocoImages, matched: Sequence[Matched]) -> Chart:
    """Precision over recall of each category."""
    traces = []
    for number, (category, name) in enumerate(zip(images.category_ids, images.category_names, strict=True)):
        precision = precision_recall(matched, category)
        if precision is None:
            continue
        label = f"{plotly_text(name)}, AP50 {100 * precision.mean():.1f}"
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": label,
                "x": np.linspace(0, 1, len(precision)).round(2).tolist(),
                "y": precision.round(4).tolist(),
                "meta": {"color": number},
                "line": {"width": 2},
            }
        )
    axes = {
        "xaxis": {"title": {"text": "recall"}, "range": [0, 1.02]},
        "yaxis": {"title": {"text": "precision"}, "range": [0, 1.02]},
    }
    return Chart("Precision over recall at an IoU of 0.5", traces, {**axes, "showlegend": True}, wide=True)


def _detections(title: str, some: Sequence[int], images: CocoImages, matched: Sequence[Matched]) -> Detections:
    return Detections(title, [_outlined(images, k, matched[k]) for k in some], OBJECT_SCORE)


def _outlined(images: CocoImages, position: int, matched: Matched) -> Outlined:
    sample = images.sample(position, masks=False)
    pixels = images.spec.to_rgb(np.asarray(sample["image"]))
    height, width = pixels.shape[:2]
    best = matched.best_score
    truth = [(_path(each), float(best[k])) for k, each in enumerate(matched.truth[:_MOST_OBJECTS])]
    found = [
        (_path(result), shown_score(result), bool(number >= 0))
        for result, number in list(zip(matched.found, matched.match, strict=True))[:_MOST_OBJECTS]
        if number != -2
    ]
    name, there = str(sample["name"]), max(len(matched.truth), len(matched.found))
    if there > _MOST_OBJECTS:
        counts = f"{counted(len(matched.truth), 'true object')} and {counted(len(matched.found), 'detection')}"
        name += f" ({counts}, of which the first {_MOST_OBJECTS} are drawn)"
    return Outlined(Picture(encode_pixels(pixels, _SIDE), name), (width, height), truth, found)


def _path(instance: Mapping[str, Any]) -> str:
    """The outline of an object as an SVG path in pixels; of its box if it has no outline."""
    if "segmentation" not in instance:
        x, y, width, height = (round(float(value), 1) for value in instance["bbox"])
        return f"M{x} {y}h{width}v{height}h{-width}z"
    return path_of(rle.decode(dict(instance["segmentation"])).astype(bool))


def path_of(mask: npt.NDArray[np.bool_]) -> str:
    """The outline of a mask (H, W) as an SVG path in pixels, accurate to a pixel."""
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    if not len(rows):
        return ""
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    parts = []
    for polygon in polygons_of(part, int(rows[0]), int(columns[0])):
        for ring in polygon:
            points = approximate_polygon(ring, 0.8)
            parts.append("M" + "L".join(f"{x:g} {y:g}" for x, y in points.round(1)) + "z")
    return "".join(parts)


DETECTION = Kind("detector", lambda run: run.has("detector", "test_size"), _sections)
