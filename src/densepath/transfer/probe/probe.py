"""``densepath probe``: scores of frozen features, of the pixels of outlined objects or of whole images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn

from densepath.annotations.classes import FOLDERS
from densepath.core.closing import say_end
from densepath.core.errors import UserError
from densepath.core.paths import AnyPath, as_path
from densepath.core.random import check_seed
from densepath.core.result import Result
from densepath.core.single_values import take_single_values
from densepath.core.stopwatch import Stopwatch
from densepath.core.streams import write_result
from densepath.core.system import first_on_node
from densepath.training.caller_state import state_of_the_caller
from densepath.transfer.embed.encoder import Pool
from densepath.transfer.embed.feature_file import read_features
from densepath.transfer.probe.images import (
    Encoding,
    ImageProbe,
    features_of,
    probe_images,
)
from densepath.transfer.probe.label_check import open_labelled
from densepath.transfer.probe.labelled import Labels
from densepath.transfer.probe.pixels import L2, SIZE, probe_pixels
from densepath.transfer.probe.record import check_out, table_of, write_record
from densepath.transfer.probe.tasks import Task, probe_task

_NEIGHBORS, _FOLDS = 20, 5


@take_single_values
@state_of_the_caller()
def probe(
    *,
    data: AnyPath | None = None,
    labels: AnyPath | None = None,
    task: Task | None = None,
    features: AnyPath | None = None,
    test_data: AnyPath | None = None,
    target: str | None = None,
    patient: str | None = None,
    patient_regex: str | None = None,
    folds: int = _FOLDS,
    neighbors: int = _NEIGHBORS,
    weights: AnyPath = "random",
    backbone: str | nn.Module | None = None,
    stages: Sequence[int] | None = None,
    pool: Pool = "auto",
    size: int | None = None,
    fraction: float = 1.0,
    seed: int = 0,
    orientation: Literal["stored", "viewed"] | None = None,
    each_stage: bool = False,
    l2: float = L2,
    devices: str = "auto",
    out: str | Path | None = None,
) -> Result | ImageProbe:
    """Score frozen features: those of pixels by outlined objects, or, with ``labels``, those of whole images.

    Without ``labels``, ``data`` holds images with outlined objects. A linear classifier tells object from rest at each
    position of the training images and is scored on the test images.

    With ``labels``, images have classes. k nearest neighbors and logistic regression tell them apart: accuracy,
    balanced accuracy and macro AUC, with 95% intervals, on the test images that the data names (a column split of
    the labels, folders train and test, or ``test_data``), or else in folds by patient.

    With ``task``, the classes are how images are rotated, or how two of their patches lie.

    Args:
        data: a folder as densepath data writes it: images, and outlined objects as COCO JSON, for train and test;
            or, with labels, images: a folder, a text list, a glob or a packed store.
        labels: classes of images: "folders", the topmost folder of each image, or a CSV of files and labels.
        task: "rotation" (by 0, 90, 180 or 270 degrees) or "patch_position" (of eight neighbors in a grid of 14 x 14);
            instead of labels. Images are resized to 224 px, or size. A table as data may name splits and patients.
        features: with labels, a file of features by densepath embed, instead of data and weights.
        test_data: with labels, images for the test.
        target: with labels, the column of the CSV with the classes, or with one of several labels as 0 and 1; default:
            label.
        patient: with labels, a column of the CSV with the patients; by default patient, case or subject, if there is
            one.
        patient_regex: with labels, a regular expression that finds the patient in an image's name.
        folds: with labels, number of folds.
        neighbors: with labels, k of the nearest neighbors; all training images if there are fewer, which is chance.
        weights: a file, a run folder, "random", a timm name, "hf-hub:OWNER/NAME" or the folder of such a model.
        backbone: a timm name, or in Python a network; default: that of the weights, resnet18 for random ones.
        stages: stages whose features are used; default: all stages for pixels, the deepest for images.
        pool: with labels, how features become a vector for each image: auto, mean, cls, cls_mean or attention, as in
            embed.
        size: pixels. For outlined objects the short side to which images are resized (256); with labels as in embed.
        fraction: share of the training images to use, by patient where patients are known (patient in the JSON, or
            a manifest.csv). With the same seed a smaller share is a part of a larger one.
        seed: seed of random weights, of the choice of images, of folds and intervals.
        orientation: for images with an orientation tag (of cameras), the pixels that the outlines describe: as "stored"
            in the file, or as "viewed", turned by the tag. Without it such images are refused.
        each_stage: for outlined objects, also score every single stage.
        l2: for outlined objects, strength of the penalty: mean cross-entropy + l2 / 2 * squared norm of the weights.
            With labels it is chosen within the training images.
        devices: "auto" (a GPU, or the CPU if there is none) or "cpu".
        out: a JSON file for the scores; with labels also a CSV of the predictions and a PNG of the confusion matrices
            with the same name.

    Returns:
        For outlined objects the scores of :func:`densepath.transfer.probe.pixels.probe_backbone`, their scale, the
        arguments, and the seconds it took; for images an :class:`~densepath.transfer.probe.images.ImageProbe`.

    Raises:
        UserError: no such data, weights that do not fit, a missing stage, or an option of the other task.
    """
    watch = Stopwatch()
    data, labels, weights = as_path(data), as_path(labels), as_path(weights)
    features, test_data = as_path(features), as_path(test_data)
    with_labels: dict[str, Any] = {
        "features": features,
        "test_data": test_data,
        "target": target,
        "patient": patient,
        "patient_regex": patient_regex,
        "folds": folds,
        "neighbors": neighbors,
        "pool": pool,
    }
    of_pixels: dict[str, Any] = {"orientation": orientation, "each_stage": each_stage, "l2": l2}
    network = {"weights": weights, "backbone": backbone, "stages": stages, "pool": pool, "size": size}
    shared: dict[str, Any] = {"fraction": fraction, "seed": seed, "devices": devices, "out": out}
    if task is not None:
        _refuse(
            {"labels": labels, **with_labels, **of_pixels},
            {**_usual(with_labels), "each_stage": False, "l2": L2},
            "has no effect with --task; leave it out",
        )
        return _probe_task(task, _needed(data), with_labels, network, **shared, watch=watch)
    if labels is None:
        _refuse(with_labels, {"folds": _FOLDS, "neighbors": _NEIGHBORS, "pool": "auto"}, "needs --labels")
        size = SIZE if size is None else size
        of_pixels |= {"weights": weights, "backbone": backbone, "stages": stages, "size": size}
        return probe_pixels(data=_needed(data), **of_pixels, **shared)
    _refuse(of_pixels, {"each_stage": False, "l2": L2}, "has no effect with --labels; leave it out")
    if features is not None:
        why = "has no effect with --features, which holds the features of all images; leave it out"
        _refuse({**network, "test_data": test_data}, {"weights": "random", "pool": "auto"}, why)
    return _probe_labels(labels, data, with_labels, network, **shared, watch=watch)


def _probe_task(
    task: Task,
    data: str | Path,
    with_labels: Mapping[str, Any],
    network: Mapping[str, Any],
    *,
    fraction: float,
    seed: int,
    devices: str,
    out: str | Path | None,
    watch: Stopwatch,
) -> ImageProbe:
    """The scores of a task that needs no labels. Arguments as for :func:`probe`, by name in the mappings."""
    usual = _usual(with_labels)
    check_out(out, data, network["weights"])
    check_seed(seed)
    encoding = _encoding(**network, seed=seed, devices=devices)
    how = {name: value for name, value in usual.items() if name != "pool"}
    result = probe_task(task, data, encoding, **how, fraction=fraction)
    return _finish(result, out, {"task": task, "data": data, **usual, "fraction": fraction, "seed": seed}, watch)


def _usual(with_labels: Mapping[str, Any]) -> dict[str, Any]:
    """The options for labels that tasks have, too."""
    return {name: with_labels[name] for name in ("patient_regex", "folds", "neighbors", "pool")}


def _probe_labels(
    labels: str | Path,
    data: str | Path | None,
    with_labels: Mapping[str, Any],
    network: Mapping[str, Any],
    *,
    fraction: float,
    seed: int,
    devices: str,
    out: str | Path | None,
    watch: Stopwatch,
) -> ImageProbe:
    """The scores of images with classes. Arguments as for :func:`probe`, by name in the mappings."""
    features, test_data, target = (with_labels[name] for name in ("features", "test_data", "target"))
    check_out(out, data, labels, features, test_data, network["weights"])
    check_seed(seed)
    encoding = _encoding(**network, seed=seed, devices=devices)
    if target is not None and str(labels) == FOLDERS:
        raise UserError("--target names a column of a table; give the table with --labels, or leave it out")
    how = Labels(str(labels), with_labels["patient"], with_labels["patient_regex"], target)
    if features is not None:
        found, *tested = [read_features(features)]
    elif data is None:
        raise UserError("--data must be given, or --features, a file of densepath embed; see densepath probe --help")
    else:
        opened = [(open_labelled(each, how), each) for each in (data, test_data) if each is not None]
        found, *tested = [features_of(*each, encoding) for each in opened]
    result = probe_images(
        found,
        how,
        data=data,
        test_features=tested[0] if tested else None,
        test_data=test_data,
        folds=with_labels["folds"],
        neighbors=with_labels["neighbors"],
        fraction=fraction,
        seed=seed,
    )
    asked = {"labels": labels, "data": data, **with_labels, "fraction": fraction, "seed": seed}
    return _finish(result, out, asked, watch)


def _needed(data: str | Path | None) -> str | Path:
    """The images, which must be given."""
    if data is None:
        raise UserError("--data must be given; see densepath probe --help")
    return data


def _encoding(
    weights: str | Path,
    backbone: str | nn.Module | None,
    stages: Sequence[int] | None,
    pool: Pool,
    size: int | None,
    seed: int,
    devices: str,
) -> Encoding:
    if stages is not None and len(stages) != 1:
        raise UserError(f"the features of images are those of one stage, not of {len(stages)}; give one")
    return Encoding(weights, backbone, stages[0] if stages else None, pool, size, seed, devices)


def _finish(result: ImageProbe, out: str | Path | None, asked: dict[str, Any], watch: Stopwatch) -> ImageProbe:
    """Write the record, print the scores and where they are."""
    if out is not None:
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in asked.items()}
        write_record(result, Path(out), plain)
    if first_on_node():
        write_result(table_of(result))
    say_end(watch, "", {} if out is None else {"scores": Path(out)})
    return result


def _refuse(given: dict[str, Any], defaults: dict[str, Any], why: str) -> None:
    """Refuse options that have another value than their default."""
    for name, value in given.items():
        if value != defaults.get(name):
            raise UserError(f"--{name} {why}")
