"""Evaluation on the test images: predictions, average precision, pictures."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from densepath.annotations.coco import CocoImages
from densepath.core.errors import counted
from densepath.core.files import atomic_write
from densepath.core.output_names import output_names
from densepath.core.scores import SCALE
from densepath.core.spacing import evenly_spaced
from densepath.core.system import with_progress
from densepath.core.threads import OneBehind
from densepath.core.waiting import HANGING_READER
from densepath.runs.progress import say
from densepath.sources.image_files import ImageFiles
from densepath.sources.other_bits import prediction_spec
from densepath.sources.pixel_source import PixelSpec
from densepath.sources.prefetch import ahead
from densepath.transfer.detection.average_precision import average_precision
from densepath.transfer.detection.config import DETECTIONS, OBJECT_SCORE
from densepath.transfer.detection.detector import Detector
from densepath.transfer.detection.detector_file import DetectorNotes
from densepath.transfer.detection.found import coco_results
from densepath.transfer.detection.instances import label_map_of, objects_of
from densepath.transfer.detection.object_metrics import OBJECT_METRICS, ImageScores, compare, over_images
from densepath.transfer.detection.overlay import overlay
from densepath.transfer.detection.samples import into_detector

Found = TypeVar("Found")


def evaluate_detector(
    model: Detector, notes: DetectorNotes, images: CocoImages, out: Path, *, pictures: int = 8, bfloat16: bool = False
) -> dict[str, float]:
    """Run a detector on all images, score it, and write the results.

    Args:
        model: the detector, on its device.
        notes: its metadata.
        images, out, pictures: as for :func:`evaluate`.
        bfloat16: compute in mixed precision.

    Returns:
        As :func:`evaluate`.
    """
    model.eval()
    images.spec = prediction_spec(notes.spec, ImageFiles(images.paths()), converted=True)
    # The same categories may have other ids than in training.
    same = tuple(images.category_names) == notes.category_names
    ids = images.category_ids if same else list(notes.category_ids)
    return evaluate(
        partial(_detect, model, notes, images.spec, bfloat16=bfloat16),
        partial(_results, ids),
        images,
        out,
        masks=model.finds_masks,
        detections_per_image=notes.detections_per_image,
        pictures=pictures,
        objects=model.finds_masks,
    )


def evaluate(
    find: Callable[[dict[str, Any]], Found],
    encode: Callable[[dict[str, Any], Found], list[dict[str, Any]]],
    images: CocoImages,
    out: Path,
    *,
    boxes: bool = True,
    masks: bool = True,
    detections_per_image: int = DETECTIONS,
    pictures: int = 8,
    objects: bool = False,
) -> dict[str, float]:
    """Find objects in all images, score them, and write the results.

    Args:
        find: a sample of ``images``, without its masks -> its detections.
        encode: the sample and its detections -> the detections in COCO's results format. It runs in another thread,
            while ``find`` processes the next image.
        images: the test images with their ground truth.
        out: ``predictions.json`` (COCO results), ``metrics.json`` and ``pictures/*.png`` are written here.
        boxes, masks, detections_per_image: as for
            :func:`~densepath.transfer.detection.average_precision.average_precision`.
        pictures: number of images to draw, evenly spaced.
        objects: compare the masks with a score of at least ``OBJECT_SCORE`` with the true ones, too.

    Returns:
        As :func:`~densepath.transfer.detection.average_precision.average_precision`, and with ``objects`` as
        :func:`~densepath.transfer.detection.object_metrics.over_images`.
    """
    drawn = set(evenly_spaced(pictures, len(images)))
    results: list[dict[str, Any]] = []
    compared: list[ImageScores] = []
    hidden: list[npt.NDArray[np.bool_]] = []

    def finish(i: int, sample: dict[str, Any], found: Found) -> None:
        encoded = encode(sample, found)
        results.extend(encoded)
        if i in drawn:
            _draw(images[i], encoded, images.spec, out / "pictures" / files[i])
        if objects:
            labels = images.label_map(i)
            hidden.append(images.mostly_hidden(i, labels))
            compared.append(compare(labels, label_map_of(encoded, images.size(i), OBJECT_SCORE)))

    files = [
        f"{name}.png" for name in output_names([Path(os.path.relpath(path, images.folder)) for path in images.paths()])
    ]
    samples = ahead((images.sample(i, masks=False) for i in range(len(images))), depth=1, remedy=HANGING_READER)
    shown = with_progress(samples, len(images), "detecting")
    with OneBehind() as behind:  # the network runs in this thread, so that Ctrl-C ends it at once
        for i, sample in enumerate(shown):
            behind.submit(finish, i, sample, find(sample))
    metrics = average_precision(
        images.coco_ground_truth(), results, boxes=boxes, masks=masks, detections_per_image=detections_per_image
    )
    if objects:
        metrics |= over_images(compared)
        say_hidden(hidden)
    _write_json(out / "predictions.json", results)
    _write_json(out / "metrics.json", {**SCALE, **metrics})
    say("densepath: " + describe(metrics, len(images)))
    return metrics


def describe(metrics: dict[str, float], images: int) -> str:
    """The metrics in one line."""
    parts = [counted(images, "image")]
    for kind, label in (("box", "boxes"), ("mask", "masks")):
        if f"{kind}_ap" in metrics:
            ap, ap50, ap75 = (metrics[f"{kind}_{suffix}"] for suffix in ("ap", "ap50", "ap75"))
            parts.append(f"{label} AP {ap:.1f}  AP50 {ap50:.1f}  AP75 {ap75:.1f}")
    if "object_f1" in metrics:
        f1, dice, distance, aji, _, _, _, pq = (metrics[name] for name in OBJECT_METRICS)
        parts.append(f"objects F1 {f1:.1f}  Dice {dice:.1f}  Hausdorff {distance:.1f} px  AJI {aji:.1f}  PQ {pq:.1f}")
    return "  |  ".join(parts)


def say_hidden(images: Sequence[npt.NDArray[np.bool_]]) -> None:
    """Say how many true objects, of those of some images (N,), lose more than half of their pixels to others."""
    if count := sum(int(hidden.sum()) for hidden in images):
        say(
            f"densepath: {count:,} of {sum(map(len, images)):,} true objects lie by more than half under others; "
            "the metrics of objects compare what is visible of them, AP the whole"
        )


def _detect(
    model: Detector, notes: DetectorNotes, spec: PixelSpec, sample: dict[str, Any], *, bfloat16: bool
) -> dict[str, Tensor]:
    """The detections in one image, with boxes in its own pixels, on the CPU."""
    device = next(model.parameters()).device
    shown = sample | {"short_edge": notes.test_size, "flip": False}
    images, targets = into_detector([shown], spec, device)
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        found: dict[str, Tensor] = model.detect(images)[0]
    found["boxes"] = found["boxes"] * targets[0]["scale"]
    return {key: value.float().cpu() for key, value in found.items()}


def _results(category_ids: list[int], sample: dict[str, Any], found: dict[str, Tensor]) -> list[dict[str, Any]]:
    """The detections in one image in COCO's results format."""
    return coco_results(found, sample["image_id"], sample["image"].shape[:2], category_ids)


def _draw(sample: dict[str, Any], found: list[dict[str, Any]], spec: PixelSpec, file: Path) -> None:
    truth, masks = objects_of(sample, found)
    picture = overlay(spec.to_rgb(np.asarray(sample["image"])), truth, masks, [result["score"] for result in found])
    with atomic_write(file) as part:
        picture.save(part, format="PNG")


def _write_json(path: Path, value: Any) -> None:
    with atomic_write(path) as part:
        part.write_text(json.dumps(value, indent=2 if isinstance(value, dict) else None) + "\n")
