"""``densepath score``: predicted objects compared with true ones."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from densepath.annotations.class_masks import ClassMasks
from densepath.annotations.coco_writing import annotation_of
from densepath.core.closing import say_end
from densepath.core.csv_files import LineFeeds
from densepath.core.errors import UserError, first_few, refuse
from densepath.core.file_beside import file_beside
from densepath.core.files import atomic_write, check_writable, refuse_replacing
from densepath.core.output_names import alike_names
from densepath.core.paths import AnyPath, as_path
from densepath.core.result import Result
from densepath.core.scores import SCALE, without_nan
from densepath.core.single_values import take_single_values
from densepath.core.stopwatch import Stopwatch
from densepath.core.system import with_progress
from densepath.runs.progress import say
from densepath.transfer.classify.config import Uncertain
from densepath.transfer.classify.pictures import PICTURES
from densepath.transfer.classify.score_classes import TrueLabels, holds_classes, score_classes
from densepath.transfer.detection.average_precision import average_precision
from densepath.transfer.detection.config import DETECTIONS
from densepath.transfer.detection.evaluation import describe, say_hidden
from densepath.transfer.detection.object_metrics import OBJECT_METRICS, ImageScores, compare, over_images
from densepath.transfer.detection.score_inputs import (
    IMAGES,
    PREDICTIONS,
    LabelledImages,
    least_score,
    read_predictions,
    read_truth,
)
from densepath.transfer.predict_records import TABLE
from densepath.transfer.segment.predict_masks import LEGEND, SIZES
from densepath.transfer.segment.score_masks import REGION_COLUMNS, is_semantic, score_masks
from densepath.transfer.slides.slide_list import refuse_options

_COLUMNS = ("image", "true", "found", *OBJECT_METRICS)


@take_single_values
def score(
    *,
    data: AnyPath,
    predictions: AnyPath,
    out: str | Path | None = None,
    split: Literal["train", "test"] = "test",
    orientation: Literal["stored", "viewed"] | None = None,
    score: float | None = None,
    classes: tuple[str, ...] = (),
    labels: AnyPath | None = None,
    target: str | None = None,
    targets: tuple[str, ...] = (),
    separator: str | None = None,
    uncertain: Uncertain = "ignore",
    patient: str | None = None,
    patient_regex: str | None = None,
) -> Result:
    """Compare predicted objects with true ones, with the metrics of gland and nucleus segmentation; or predicted
    classes of pixels or voxels with true ones; or the predictions of a classifier with the labels of images.

    Predictions of a classifier, with ``labels``: accuracy, balanced_accuracy, macro_auc, macro_ap, macro_f1, and
    auc_NAME and ap_NAME of each class or label, with 95% intervals by a bootstrap over patients, as ``classify`` scores
    its test images.

    Predictions of a segmenter, and label maps with ``classes``, are compared by class: dice_NAME and iou_NAME, means
    over images, hd95_NAME (pixels, or mm of volumes), pooled_iou, means over classes, and in how many images a class is
    missed_NAME or false_NAME.

    object_f1, object_dice, object_hausdorff_px (pixels): those of the GlaS challenge, over all objects. aji, aji_plus,
    dq, sq, pq: means over images. Classes are ignored. If the predictions have scores, also COCO's AP of boxes and
    masks: it is that of the detections that the predictions hold.

    Args:
        data: the true objects: a data set as ``densepath data`` writes it, or a folder of label maps (PNG, TIFF, BMP,
            .npy or .mat; 0 for background, a number for each object); of classes: a folder of label maps, which may be
            NIfTI or MetaImage volumes; of a classifier: the images.
        predictions: a folder of ``densepath predict``, a folder of label maps with the images' names, or a JSON of COCO
            results; images.json next to it names its images if their ids are not those of the data.
        out: a JSON file for the metrics; a CSV file next to it has those of each image. Of a classifier a new folder
            for metrics.json, scores.csv, predictions.csv and pictures, as those of ``classify``.
        split: the split of a data set. With ``labels`` that name splits (a column split, or folders train and test),
            only its images are scored.
        orientation: for images of a data set with an orientation tag (of cameras), the pixels that the outlines
            describe: as "stored" in the file, or as "viewed", turned by the tag. Without it such images are refused.
        score: the lowest score of an object that is compared; by default 0.5 for a JSON, and for a folder of
            ``densepath predict`` the score that it was made with.
        classes: of label maps that are not those of ``densepath predict`` with a segmenter: VALUE:NAME of each class,
            or a JSON file with them.
        labels: of a classifier: the true labels, a table with columns file and label, or "folders". Images without a
            label or without a prediction are reported and left out.
        target, targets, separator, uncertain, patient, patient_regex: where the table has labels and patients, as for
            ``densepath classify``; default for several labels: the columns with their names.

    Returns:
        The metrics; shares are in percent.

    Raises:
        UserError: images are missing, in excess or of another size, or files cannot be read.

    Source: see :func:`densepath.transfer.detection.object_metrics.compare`.
    """
    data, predictions, labels = as_path(data), as_path(predictions), as_path(labels)
    watch = Stopwatch()
    found_in = {"target": target, "targets": targets or None, "separator": separator, "patient": patient}
    found_in |= {"patient_regex": patient_regex, "uncertain": None if uncertain == "ignore" else uncertain}
    if not Path(predictions).exists():
        raise UserError(f"{predictions} does not exist; check --predictions")
    if holds_classes(predictions):
        others = {"score": score, "orientation": orientation, "classes": classes or None}
        refuse_options("objects and classes of pixels", others)
        if labels is None:
            raise UserError(f"{predictions} holds predictions of a classifier; give the true labels with --labels")
        how = TrueLabels(labels, target, targets, separator, uncertain, patient, patient_regex)
        values, files = score_classes(data, predictions, how, out, split)
        made = {"scores": files["metrics"], "pictures": files["metrics"].parent / PICTURES} if files else {}
        say_end(watch, "", made)
        return Result(None if out is None else Path(out), values, files)
    lacking = f"predictions of a classifier ({predictions} has no predictions.csv)"
    refuse_options(lacking, {"labels": labels, **found_in})
    if out is not None and Path(out).suffix.lower() != ".json":
        raise UserError(f"out is {out}; use a file name that ends in .json")
    if score is not None and not 0 <= score <= 1:
        raise UserError(f"score is {score}; give a number from 0 to 1")
    if out is not None:
        check_writable(out)
        _refuse_replacing_inputs(Path(out), Path(data), Path(predictions), classes)
    given = {"split": split if split != "test" else None}
    semantic = is_semantic(predictions, classes)
    if out is not None:
        file_beside(out, ".csv", REGION_COLUMNS if semantic else _COLUMNS)
    if semantic:
        refuse_options("objects, not classes of pixels", {"score": score, "orientation": orientation} | given)
        values, files = score_masks(data, predictions, classes, None if out is None else Path(out))
        say_end(watch, "", files)
        return Result(files.get("scores"), values, files)
    if not (Path(data) / "annotations").is_dir():
        refuse_options("data sets with splits, not label maps", given)
    truth = read_truth(data, split, orientation)
    found = read_predictions(predictions, truth, score)
    if score is not None and (least := least_score(predictions)) is not None and score < least:
        say(f"densepath: warning: {predictions} was made with --score {least:g}, so it has no object of a lower score")
    places = matching(truth, found)
    images: list[ImageScores] = []
    hidden = []
    masks = ClassMasks(), ClassMasks()
    if truth.label_map is not None and found.label_map is not None:
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
    metrics = _average_precision(truth, found, places) | (over_images(images) if images else {})
    if out is not None:
        with atomic_write(out) as part:
            record = {**SCALE, **without_nan(metrics), "images": len(places)}
            part.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")
        if images:
            _write_rows(Path(out).with_suffix(".csv"), truth.names, images)
    say("densepath: " + describe(metrics, len(places)))
    files = {} if out is None else {"scores": Path(out), "images": Path(out).with_suffix(".csv")}
    say_end(watch, "", files)
    return Result(files.get("scores"), metrics, files)


def _refuse_replacing_inputs(out: Path, data: Path, predictions: Path, classes: Sequence[str]) -> None:
    """Refuse to write the scores, or the table beside them, over what is read, or over files of ``predict``."""
    folder = predictions if predictions.is_dir() else predictions.parent
    truth = [data / "annotations" / f"{part}.json" for part in ("train", "test")]
    results = [folder / name for name in (PREDICTIONS, IMAGES, TABLE, LEGEND, SIZES)]
    for path in (out, out.with_suffix(".csv")):
        refuse_replacing(path, predictions, *results, *truth, *classes)


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


def _write_rows(path: Path, names: Sequence[str], images: Sequence[ImageScores]) -> None:
    with atomic_write(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(LineFeeds(file), _COLUMNS)
        writer.writeheader()
        for name, image in zip(names, images, strict=True):
            counts: Mapping[str, Any] = {"image": name, "true": len(image.areas[0]), "found": len(image.areas[1])}
            writer.writerow({**counts, **image.metrics})
