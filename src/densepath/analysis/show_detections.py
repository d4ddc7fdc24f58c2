"""``densepath show detections``: the true objects, and those that several detectors find, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage

from densepath.analysis.panels import picture_file
from densepath.analysis.short_names import short_names
from densepath.annotations.coco import open_split
from densepath.core.errors import UserError, counted
from densepath.core.files import atomic_write
from densepath.core.fonts import font
from densepath.core.paths import AnyPath, as_path, as_texts
from densepath.core.single_values import take_single_values
from densepath.core.spacing import evenly_spaced
from densepath.sources.image_files import ImageFiles
from densepath.sources.other_bits import prediction_spec
from densepath.training.caller_state import state_of_the_caller
from densepath.training.hardware import choose_device
from densepath.transfer.detection.object_colors import color_numbers, color_of, neighbors
from densepath.transfer.detection.object_metrics import compare, correct_pairs
from densepath.transfer.detection.object_overlap import find_overlap
from densepath.transfer.detection.overlay import Shape, dashed, outlined
from densepath.transfer.detection.predictor import load_detector

LabelMap = npt.NDArray[np.integer]

_WIDTH = 480  # pixels of a panel
_GAP, _LINE, _FONT = 10, 24, 15


@take_single_values
@state_of_the_caller()
def show_detections(
    *,
    data: AnyPath,
    runs: Sequence[AnyPath],
    out: str | Path,
    count: int = 4,
    score: float = 0.5,
    orientation: Literal["stored", "viewed"] | None = None,
    devices: int | str = "auto",
) -> Path:
    """Draw test images with their true objects and, next to them, those that each detector finds, with its scores.

    Above each panel are the object F1 and Dice of the image. An object and its counterpart have the same color, where
    no neighbor has it: objects that touch never share a color. Dashed red lines: objects that were missed, as none
    covers more than half of them.

    Args:
        data: a folder as ``densepath data`` writes it.
        runs: folders of ``detect``, or their exported/detector.safetensors.
        out: a PNG file.
        count: number of test images, evenly spaced.
        score: the lowest score of a detection that is drawn.
        orientation: for images with an orientation tag (of cameras), the pixels that the outlines describe: as "stored"
            in the file, or as "viewed", turned by the tag. By default as the detectors' training images.
        devices: "auto" (one GPU, or the CPU), or "cpu".

    Returns:
        ``out``.

    Raises:
        UserError: no such data or detectors, a detector without masks, or a file name that does not end in .png.
    """
    data = as_path(data)
    out = picture_file(out, data)
    sources = as_texts(runs)
    names = short_names(sources, "runs")
    if not 0 <= score <= 1:
        raise UserError(f"score is {score}; give a number from 0 to 1")
    if count < 1:
        raise UserError(f"count is {count}; give the number of images to draw")
    device = choose_device(devices)
    detectors = [load_detector(source).to(device) for source in sources]
    for source, detector in zip(sources, detectors, strict=True):
        if not detector.finds_masks:
            raise UserError(f"the detector of {source} finds boxes only; give detectors with masks")
    known = [detector.notes.orientation for detector in detectors]
    orientation = orientation or next(filter(None, known), None)
    images = open_split(data, "test", orientation=orientation)
    files = ImageFiles(images.paths())
    for detector in detectors:
        detector.spec = prediction_spec(detector.notes.spec, files, converted=True)
    images.spec = images.spec.override(window=detectors[0].spec.window, bits=detectors[0].spec.file_bits)
    rows = []
    for position in evenly_spaced(count, len(images)):
        sample, truth = images.sample(position, masks=False), images.label_map(position)
        file = images.folder / sample["name"]
        found = [detector.predict(file, score=score, orientation=orientation).label_map() for detector in detectors]
        rows.append(_row(images.spec.to_rgb(sample["image"]), Path(sample["name"]).stem, truth, found))
    note = f"score >= {score:g}; dashed red: missed, nothing covers more than half of it"
    with atomic_write(out) as part:
        _compose(["truth", *names], rows, note).save(part, format="PNG")
    return out


Panel = tuple[Image.Image, str]  # with the line above it


def _row(image: npt.NDArray[np.uint8], name: str, truth: LabelMap, found: Sequence[LabelMap]) -> list[Panel]:
    """The panels of an image (H, W, 3): its true objects, and those of each detector."""
    small = _resized(image)
    true_small = _resized(truth)
    colors = color_numbers(neighbors(true_small))
    panels = [(_drawn(small, true_small, colors), f"{name}: {counted(int(truth.max()), 'object')}")]
    for labels in found:
        overlap = find_overlap(truth, labels)
        best = overlap.best(1, overlap.pixels)
        true_of = overlap.truth.labels[overlap.pairs[best, 0]] if len(overlap.pairs) else best
        wishes = {
            int(label): colors.get(int(true), 0)
            for label, true, pair in zip(overlap.found.labels, true_of, best, strict=True)
            if pair >= 0
        }
        correct = correct_pairs(overlap)
        missed = np.delete(overlap.truth.labels, overlap.pairs[correct, 0])
        shown = _resized(labels)
        canvas = dashed(small, list(_shapes(np.where(np.isin(true_small, missed), true_small, 0)).values()))
        metrics = compare(truth, labels).metrics
        line = f"F1 {metrics['object_f1']:.0f}  Dice {metrics['object_dice']:.0f}  |  {len(missed)} missed, "
        line += f"{len(overlap.found) - len(correct)} false"
        panels.append((_drawn(canvas, shown, color_numbers(neighbors(shown), wishes)), line))
    return panels


def _resized(array: npt.NDArray) -> npt.NDArray:
    """An image (H, W, 3) or a label map (H, W) in the size of a panel."""
    size = (_WIDTH, max(1, round(_WIDTH * array.shape[0] / array.shape[1])))
    if array.ndim == 3:
        return np.asarray(Image.fromarray(array).resize(size, Image.Resampling.LANCZOS))
    return np.asarray(Image.fromarray(array.astype(np.int32)).resize(size, Image.Resampling.NEAREST))


def _drawn(image: npt.NDArray[np.uint8], labels: LabelMap, numbers: Mapping[int, int]) -> Image.Image:
    """The image with the outlines of a label map."""
    shapes = _shapes(labels)
    return outlined(image, list(shapes.values()), [color_of(numbers[label]) for label in shapes])


def _shapes(labels: LabelMap) -> dict[int, Shape]:
    """The objects of a label map."""
    places = enumerate(ndimage.find_objects(labels), 1)
    return {label: (p[0].start, p[1].start, labels[p] == label) for label, p in places if p is not None}


def _compose(titles: Sequence[str], rows: Sequence[Sequence[Panel]], note: str) -> Image.Image:
    """Panels in rows, with a title above each column and a line above each panel."""
    width = len(titles) * (_WIDTH + _GAP) + _GAP
    heights = [row[0][0].height for row in rows]
    picture = Image.new("RGB", (width, _LINE + sum(_LINE + height + _GAP for height in heights) + _LINE), "white")
    draw = ImageDraw.Draw(picture)
    letters = font(_FONT)
    lefts = [_GAP + column * (_WIDTH + _GAP) for column in range(len(titles))]
    for left, title in zip(lefts, titles, strict=True):
        draw.text((left + _WIDTH / 2, _LINE / 2), title, "black", letters, anchor="mm")
    top = _LINE
    for row, height in zip(rows, heights, strict=True):
        for left, (panel, line) in zip(lefts, row, strict=True):
            draw.text((left, top + _LINE / 2), line, "black", letters, anchor="lm")
            picture.paste(panel, (left, top + _LINE))
        top += _LINE + height + _GAP
    draw.text((_GAP, top + _LINE / 2 - _GAP / 2), note, "black", letters, anchor="lm")
    return picture
