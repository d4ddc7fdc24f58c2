"""Predicted objects compared with true ones: ``densepath score`` for detectors and label maps of objects."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from densepath.annotations.class_masks import ClassMasks
from densepath.annotations.coco_writing import annotation_of
from densepath.core.csv_files import write_rows
from densepath.core.errors import first_few, refuse
from densepath.core.files import atomic_write
from densepath.core.output_names import alike_names
from densepath.core.scores import SCALE, without_nan
from densepath.core.streams import say
from densepath.core.system import with_progress
from densepath.transfer.detection.average_precision import average_precision
from densepath.transfer.detection.config import DETECTIONS
from densepath.transfer.detection.evaluation import describe, say_hidden
from densepath.transfer.detection.object_metrics import OBJECT_METRICS, ImageScores, compare, over_images
from densepath.transfer.detection.score_inputs import LabelledImages, least_score, read_predictions, read_truth
from densepath.transfer.slides.slide_list import refuse_options

OBJECT_COLUMNS = ("image", "true", "found", *OBJECT_METRICS)


def score_objects(
    data: str | Path,
    predictions: str | Path,
    out: Path | None,
    split: Literal["train", "test"] = "test",
    orientation: Literal["stored", "viewed"] | None = None,
    score: float | None = None,
) -> tuple[dict[str, float], dict[str, Path]]:
    """The metrics of gland and nucleus segmentation, and COCO's AP if the predictions have scores.

    Args:
        data: a data set of ``densepath data``, or a folder of label maps.
        predictions: the folder of ``densepath predict``, of label maps, or a JSON of COCO results.
        out: a JSON file for the metrics, beside which a CSV file has those of each image; None for none.
        split: the split of a data set.
        orientation: of images with an orientation tag, the pixels that the outlines describe.
        score: the lowest score of an object that is compared.

    Returns:
        The metrics, and the files that were written.

    Raises:
        UserError: images are missing, in excess or of another size, or files cannot be read.
    """
    if not (Path(data) / "annotations").is_dir():
        refuse_options("data sets with splits, not label maps", {"split": split if split != "test" else None})
    truth = read_truth(data, split, orientation)
    found = read_predictions(predictions, truth, score)
    if score is not None and (least := least_score(predictions)) is not None and score < least:
        say(f"densepath: warning: {predictions} was made with --score {least:g}, so it has no object of a lower score")
    places = matching(truth, found)
    images = _compared(truth, found, places)
    metrics = _average_precision(truth, found, places) | (over_images(images) if images else {})
    say("densepath: " + describe(metrics, len(places)))
    if out is None:
        return metrics, {}
    with atomic_write(out) as part:
        record = {**SCALE, **without_nan(metrics), "images": len(places)}
        part.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")
    files = {"scores": out}
    if images:
        files["images"] = out.with_suffix(".csv")
        write_rows(files["images"], OBJECT_COLUMNS, _rows(truth.names, images))
    return metrics, files


def _compared(truth: LabelledImages, found: LabelledImages, places: Sequence[int]) -> list[ImageScores]:
    """The objects of each image compared, if both have outlines; with warnings of what looks wrong."""
    if truth.label_map is None or found.label_map is None:
        return []
    images, hidden = [], []
    masks = ClassMasks(), ClassMasks()
    for i, k in with_progress(enumerate(places), len(places), "comparing"):
        true, drawn = truth.label_map(i), found.label_map(k)
        for shown, look in ((true, masks[0]), (drawn, masks[1])):
            look.look(shown)
        images.append(compare(true, drawn))
        hidden += [truth.mostly_hidden(i, true)] if truth.mostly_hidden is not None else []
    say_hidden(hidden)
    for source, look in ((truth, masks[0]), (found, masks[1])):
        if source.results is None and source.coco is None and (warning := look.warning(source.source)):
            say(warning)
    return images


def matching(truth: LabelledImages, found: LabelledImages) -> list[int]:
    """The position in ``found`` of each true image: the one with the same name, with or without leading folders.

    Raises:
        UserError: an image is missing, in excess, ambiguous or of another size.
    """
    places = alike_names(truth.names, found.names)
    remedy = "predict and compare the same images"
    pairs = list(zip(truth.names, places, strict=True))
    refuse([name for name, place in pairs if not place], f"{found.source} lacks", remedy)
    refuse([name for name, place in pairs if len(place) > 1], f"{found.source} has more than once", remedy)
    used = {k for place in places for k in place}
    extra = [name for k, name in enumerate(found.names) if k not in used]
    refuse(extra, f"{found.source} has images that {truth.source} lacks", remedy)
    other = [
        f"{name} ({_shown(found.sizes[k])}, true {_shown(truth.sizes[i])})"
        for i, (name, (k,)) in enumerate(pairs)
        if found.sizes[k] != truth.sizes[i]
    ]
    refuse(other, f"{found.source} has images of another size", remedy)
    return [k for (k,) in places]


def _shown(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]} px"


def _average_precision(truth: LabelledImages, found: LabelledImages, places: Sequence[int]) -> dict[str, float]:
    """COCO's AP, if the predictions have scores and the categories of the data."""
    if found.results is None:
        return {}
    known = truth.coco or _as_coco(truth)
    if not known["annotations"]:
        return {}
    used = {result["category_id"] for results in found.results for result in results}
    true = _true_categories(used, found, known["categories"], named=truth.coco is not None)
    if unknown := sorted(used - true.keys()):
        shown = first_few([str(found.categories.get(number, number)) for number in unknown])
        say(f"densepath: no AP: {truth.source} lacks the categories {shown} of {found.source}")
        return {}
    results = [
        {**result, "image_id": image["id"], "category_id": true[result["category_id"]]}
        for image, k in zip(known["images"], places, strict=True)
        for result in found.results[k]
    ]
    most = max([DETECTIONS, *(len(each) for each in found.results)])
    return average_precision(known, results, masks=found.label_map is not None, detections_per_image=most)


def _true_categories(
    used: Collection[int], found: LabelledImages, categories: Sequence[Mapping[str, Any]], named: bool
) -> dict[int, int]:
    """The true category of each category of the results: by name where they have names, else by id.

    The only category of both is one category, whatever its names.

    Args:
        used: the categories of the results.
        found: the results.
        categories: the true ones.
        named: whether these have names of their own.
    """
    if named and len(found.categories) == len(categories) == 1:
        (number, name), (own,) = next(iter(found.categories.items())), categories
        if name != str(own["name"]):
            say(f"densepath: AP compares the only categories: {name} of {found.source} with {own['name']} of the data")
        return {number: int(own["id"])}
    if named and found.categories:
        numbers = {str(category["name"]): int(category["id"]) for category in categories}
        return {number: numbers[name] for number, name in found.categories.items() if name in numbers}
    if len(categories) == 1 and len(used) <= 1:  # their ids may differ
        return {number: int(categories[0]["id"]) for number in used}
    return {int(category["id"]): int(category["id"]) for category in categories}


def _as_coco(truth: LabelledImages) -> dict[str, Any]:
    """Label maps as the content of a COCO JSON of one category."""
    assert truth.label_map is not None
    annotations: list[dict[str, Any]] = []
    for number in range(len(truth.names)):
        labels = truth.label_map(number)
        for label in np.unique(labels[labels > 0]):
            annotations.append({"image_id": number, "category_id": 1} | annotation_of(labels == label))
    images = [{"id": k, "height": height, "width": width} for k, (height, width) in enumerate(truth.sizes)]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}


def _rows(names: Sequence[str], images: Sequence[ImageScores]) -> Iterator[dict[str, Any]]:
    for name, image in zip(names, images, strict=True):
        yield {"image": name, "true": len(image.areas[0]), "found": len(image.areas[1]), **image.metrics}
