"""``densepath score``: predicted objects, classes of pixels and labels of images compared with true ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from densepath.core.closing import say_end
from densepath.core.errors import UserError
from densepath.core.file_beside import file_beside
from densepath.core.files import check_writable, refuse_replacing
from densepath.core.paths import AnyPath, as_path
from densepath.core.result import Result
from densepath.core.single_values import take_single_values
from densepath.core.stopwatch import Stopwatch
from densepath.transfer.classify.config import Uncertain
from densepath.transfer.classify.pictures import PICTURES
from densepath.transfer.classify.score_classes import TrueLabels, holds_classes, score_classes
from densepath.transfer.detection.score_inputs import IMAGES, PREDICTIONS
from densepath.transfer.detection.score_objects import OBJECT_COLUMNS, score_objects
from densepath.transfer.mil.score_answers import holds_answers, score_answers
from densepath.transfer.mil.slide_table import Columns
from densepath.transfer.predict_records import TABLE
from densepath.transfer.segment.predict_masks import LEGEND, SIZES
from densepath.transfer.segment.score_masks import REGION_COLUMNS, is_semantic, score_masks
from densepath.transfer.slides.slide_list import refuse_options


@take_single_values
def score(
    *,
    predictions: AnyPath,
    data: AnyPath | None = None,
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
    slide: str | None = None,
    event: str | None = None,
) -> Result:
    """Compare predicted objects with true ones, with the metrics of gland and nucleus segmentation; or predicted
    classes of pixels or voxels with true ones; or the predictions of a classifier with the labels of images; or the
    answers for slides and patients with true ones.

    Predictions of a classifier, with ``labels``: accuracy, balanced_accuracy, macro_auc, macro_ap, macro_f1, and
    auc_NAME and ap_NAME of each class or label, with 95% intervals by a bootstrap over patients, as ``classify`` scores
    its test images. AUC and AP of several trainings compare only images of one training: pairs of one training, and the
    mean of the trainings' AP, weighted by their positive images.

    Answers of ``predict`` with a run of ``mil``, with ``labels`` and without ``data``: the scores of ``mil`` (AUC,
    average precision, accuracy, balanced accuracy, F1; R2 and Pearson's correlation; concordance), with 95% intervals
    by a bootstrap over patients.

    Predictions of a segmenter, and label maps with ``classes``, are compared by class: dice_NAME and iou_NAME, means
    over images, hd95_NAME (pixels, or mm of volumes), pooled_iou, means over classes, and in how many images a class is
    missed_NAME or false_NAME. The line of the scores has 95% intervals by a bootstrap over patients.

    object_f1, object_dice, object_hausdorff_px (pixels): those of the GlaS challenge, over all objects. aji, aji_plus,
    dq, sq, pq: means over images. Classes are ignored. If the predictions have scores, also COCO's AP of boxes and
    masks: it is that of the detections that the predictions hold.

    Args:
        data: the true objects: a data set as ``densepath data`` writes it, or a folder of label maps (PNG, TIFF, BMP,
            .npy or .mat; 0 for background, a number for each object); of classes: a folder of label maps, which may be
            NIfTI or MetaImage volumes; of a classifier: the images. Answers for slides need none.
        predictions: a folder of ``densepath predict``, a folder of label maps with the images' names, or a JSON of COCO
            results; images.json next to it names its images if their ids are not those of the data.
        out: a JSON file for the metrics; a CSV file next to it has those of each image. Of a classifier and of answers
            a new folder for the files that ``classify`` or ``mil`` write for their test images or cases.
        split: the split of a data set. With ``labels`` that name splits (a column split, or folders train and test),
            only its images are scored.
        orientation: for images of a data set with an orientation tag (of cameras), the pixels that the outlines
            describe: as "stored" in the file, or as "viewed", turned by the tag. Without it such images are refused.
        score: the lowest score of an object that is compared; by default 0.5 for a JSON, and for a folder of
            ``densepath predict`` the score that it was made with.
        classes: of label maps that are not those of ``densepath predict`` with a segmenter: VALUE:NAME of each class,
            or a JSON file with them. Of the table of slides: classes that are renamed or merged, as for ``mil``.
        labels: of a classifier: the true labels, a table with columns file and label, or "folders". Of answers: a table
            of slides or patients, as for ``mil``. Images, slides and patients that one of the two lacks are reported
            and left out.
        target, targets, separator, uncertain, patient, patient_regex: where the table has labels and patients, as for
            ``densepath classify``; default for several labels: the columns with their names. Of classes of pixels, the
            patients are those of a manifest.csv in or above ``data``, or in the images' names.
        slide, event: the columns of the slides, and of survival whether the event was observed, as for ``mil``.

    Returns:
        The metrics; shares are in percent.

    Raises:
        UserError: images are missing, in excess or of another size, or files cannot be read.

    Source: see :func:`densepath.transfer.detection.object_metrics.compare`.
    """
    predictions = as_path(predictions)
    data = None if data is None else as_path(data)
    labels = None if labels is None else as_path(labels)
    watch = Stopwatch()
    of_table = {"labels": labels, "target": target}
    of_patients = {"patient": patient, "patient_regex": patient_regex}
    of_images = {"targets": targets or None, "separator": separator}
    of_images |= {"uncertain": None if uncertain == "ignore" else uncertain}
    of_slides = {"slide": slide, "event": event}
    of_objects = {"score": score, "orientation": orientation}
    if not Path(predictions).exists():
        raise UserError(f"{predictions} does not exist; check --predictions")
    if holds_answers(predictions):
        refuse_options("objects", of_objects)
        refuse_options(
            "images, not answers for slides",
            {"data": data, "patient_regex": patient_regex, **of_images, "split": _changed(split)},
        )
        if labels is None:
            raise UserError(f"{predictions} holds answers for slides; give the table of the true ones with --labels")
        columns = Columns(target, patient, slide, event=event)
        values, files = score_answers(predictions, labels, columns, classes, out)
        say_end(watch, "", files)
        return Result(None if out is None else Path(out), values, files)
    refuse_options("answers of a run of densepath mil", of_slides)
    if data is None:
        raise UserError("score needs the true objects or the images; name them with --data")
    if holds_classes(predictions):
        refuse_options("objects and classes of pixels", {**of_objects, "classes": classes or None})
        if labels is None:
            raise UserError(f"{predictions} holds predictions of a classifier; give the true labels with --labels")
        how = TrueLabels(labels, target, targets, separator, uncertain, patient, patient_regex)
        values, files = score_classes(data, predictions, how, out, split)
        made = {"scores": files["metrics"], "pictures": files["metrics"].parent / PICTURES} if files else {}
        say_end(watch, "", made)
        return Result(None if out is None else Path(out), values, files)
    lacking = f"predictions of a classifier ({predictions} has no predictions.csv)"
    refuse_options(lacking, {**of_table, **of_images})
    if out is not None and Path(out).suffix.lower() != ".json":
        raise UserError(f"out is {out}; use a file name that ends in .json")
    if score is not None and not 0 <= score <= 1:
        raise UserError(f"score is {score}; give a number from 0 to 1")
    if out is not None:
        check_writable(out)
        _refuse_replacing_inputs(Path(out), Path(data), Path(predictions), classes)
    semantic = is_semantic(predictions, classes)
    if out is not None:
        file_beside(out, ".csv", REGION_COLUMNS if semantic else OBJECT_COLUMNS)
    report = None if out is None else Path(out)
    if semantic:
        refuse_options("objects, not classes of pixels", {**of_objects, "split": _changed(split)})
        values, files = score_masks(data, predictions, classes, report, **of_patients)
    else:
        refuse_options("images with classes, not objects", of_patients)
        values, files = score_objects(data, predictions, report, split, orientation, score)
    say_end(watch, "", files)
    return Result(files.get("scores"), values, files)


def _changed(split: str) -> str | None:
    return None if split == "test" else split


def _refuse_replacing_inputs(out: Path, data: Path, predictions: Path, classes: Sequence[str]) -> None:
    """Refuse to write the scores, or the table beside them, over what is read, or over files of ``predict``."""
    folder = predictions if predictions.is_dir() else predictions.parent
    truth = [data / "annotations" / f"{part}.json" for part in ("train", "test")]
    results = [folder / name for name in (PREDICTIONS, IMAGES, TABLE, LEGEND, SIZES)]
    for path in (out, out.with_suffix(".csv")):
        refuse_replacing(path, predictions, *results, *truth, *classes)
