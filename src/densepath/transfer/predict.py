"""``densepath predict``: a trained network on new images."""

from __future__ import annotations

import csv
import json
import logging
import os
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from densepath.core.digests import digest_of_file
from densepath.core.errors import UserError
from densepath.core.files import atomic_write, remove_remains
from densepath.core.system import with_progress
from densepath.runs.folder import CONFIG, check_run
from densepath.runs.progress import say
from densepath.sources.corrupt import CorruptImage
from densepath.sources.image_reader import ImageReader, StoredImage, open_file
from densepath.sources.listing import Passed, list_images
from densepath.sources.packing import SUFFIX, open_store
from densepath.sources.prefetch import ahead
from densepath.training.hardware import choose_hardware
from densepath.transfer.detection.detector_file import DETECTOR_FILE
from densepath.transfer.detection.prediction_files import (
    COLUMNS,
    MICRONS,
    draw,
    rows_of,
    write_geojson,
    write_label_map,
)
from densepath.transfer.detection.predictor import OVERLAP, Prediction, TrainedDetector, load_detector
from densepath.transfer.detection.score_inputs import IMAGES, LABELS, PREDICTIONS

TABLE = "objects.csv"
_RECORDS = "records"
_FREE = ("data", "run", "pictures", "devices")
_LEAST_WINDOW = 32  # pixels
_AHEAD = 2  # images

_log = logging.getLogger(__name__)


def predict(
    run: str | Path,
    *,
    data: str | Path,
    out: str | Path,
    score: float = 0.5,
    window: int | None = None,
    overlap: float = OVERLAP,
    spacing: float | None = None,
    exclude: Sequence[str] = (),
    pictures: int | Literal["all"] = 8,
    devices: int | str = "auto",
    precision: Literal["auto", "32", "bf16-mixed"] = "auto",
) -> Path:
    """Find objects in new images with a trained detector.

    For each image, under its name: ``labels/*.png`` (16 bits; 0 for background, k for the k-th object),
    ``geojson/*.geojson`` (outlines for QuPath) and ``pictures/*.png``. For all images: ``predictions.json`` (COCO
    results), ``images.json`` (the images and categories that they refer to, in COCO's format) and ``objects.csv`` (a
    line for each object; in µm, too, where µm per pixel are known). The same command continues after a stop. A damaged
    image is reported and passed over.

    Args:
        run: the folder of a run of ``detect``, or its exported/detector.safetensors.
        data: a folder of images, a text list of files, a glob, an image, or a packed store.
        out: the folder of the results.
        score: the lowest score of an object, from 0 to 1.
        window: side in pixels of the overlapping windows that large images are cut into; 0 for none. By default the
            short side of the training images, for images with more than twice the pixels of a window.
        overlap: share of a window that the next one covers.
        spacing: µm per pixel of all images; by default as stored in TIFFs and packed stores.
        exclude: patterns of image files to leave out: ``*`` and ``?`` in a path below ``data``, a folder or a name.
        pictures: number of images to draw with the outlines of their objects, or "all".
        devices: "auto" (one GPU, or the CPU), or "cpu".
        precision: "auto", "32" or "bf16-mixed".

    Returns:
        ``out``.

    Raises:
        UserError: there is no trained detector or no image, ``out`` holds other predictions, or no image can be read.
    """
    _check(score, window, overlap, spacing, pictures)
    detector = load_detector(run)
    file = Path(run) / DETECTOR_FILE if Path(run).is_dir() else Path(run)
    hardware = choose_hardware(devices, precision)
    passed = Passed()
    readers = _Readers(data, detector, exclude, passed)
    stems = output_names(readers.names, data)
    out = Path(out)
    record = {"run": str(run), "data": str(data), "detector": digest_of_file(file), "score": score, "window": window}
    record |= {
        "overlap": overlap,
        "spacing": spacing,
        "exclude": list(exclude),
        "pictures": pictures,
        "devices": devices,
    }
    record |= {"precision": hardware.precision}
    if check_run(out, record, resume=True, free=_FREE) is None:
        with atomic_write(out / CONFIG) as part:
            part.write_text(yaml.safe_dump(record, sort_keys=False))
    remove_remains(out)

    detector = detector.to(hardware.device)
    left = [position for position, stem in enumerate(stems) if not _record(out, stem).exists()]
    drawn = _drawn(len(readers), pictures)
    also = f"; passed over: {passed.describe()}" if passed.describe() else ""
    done = len(readers) - len(left)
    say(f"densepath: {detector.notes.detector} of {run}; {len(readers)} images, {done} done before{also}")
    damaged: list[str] = []

    def finish(position: int, reader: ImageReader, found: Prediction) -> None:
        """Write the files of an image; its record comes last, and marks it as done."""
        stem = stems[position]
        um = reader.spacing if spacing is None else spacing
        if detector.finds_masks:
            write_label_map(found, out / LABELS / stem)
        write_geojson(found, out / "geojson" / f"{stem}.geojson")
        if position in drawn:
            draw(reader, found, detector.notes.spec, out / "pictures" / f"{stem}.png")
        ids = detector.notes.category_ids
        results = [each.result(position + 1, found.size, ids, detector.finds_masks) for each in found.objects]
        with atomic_write(_record(out, stem)) as part:
            part.write_text(json.dumps({"size": found.size, "results": results, "rows": rows_of(found, stem, um)}))

    # The network runs in this thread, so that Ctrl-C ends it at once; images are decoded and results written in others.
    waiting: list[Future[None]] = []
    with ThreadPoolExecutor(1) as other, closing(ahead(_opened(readers, left), _AHEAD, "images")) as opened:
        for position, reader in with_progress(opened, len(left), "predicting"):
            try:
                if isinstance(reader, CorruptImage):
                    raise reader
                found = detector.predict_reader(reader, score, window, overlap, hardware.precision)
            except CorruptImage as error:
                damaged.append(str(error))
                _log.warning("damaged image, passed over: %s", error)
                continue
            if waiting:
                waiting.pop().result()
            waiting.append(other.submit(finish, position, reader, found))
        if waiting:
            waiting.pop().result()
    if len(damaged) == len(readers):
        raise UserError(f"none of {len(readers)} images can be read; check the files ({damaged[0]})")
    count = _gather(out, stems, readers.names, detector)
    without = f", {len(damaged)} damaged images passed over" if damaged else ""
    say(f"densepath: {count} objects in {len(readers) - len(damaged)} images{without}")
    return out


def _check(
    score: float, window: int | None, overlap: float, spacing: float | None, pictures: int | Literal["all"]
) -> None:
    if not 0 <= score <= 1:
        raise UserError(f"score is {score}; give a number from 0 to 1")
    if window is not None and window != 0 and window < _LEAST_WINDOW:
        raise UserError(f"window is {window}; give {_LEAST_WINDOW} pixels or more, or 0 for none")
    if not 0 <= overlap < 1:
        raise UserError(f"overlap is {overlap}; give a number from 0 up to, but not including, 1")
    if spacing is not None and not spacing > 0:
        raise UserError(f"spacing is {spacing}; give µm per pixel")
    if pictures != "all" and pictures < 0:
        raise UserError(f"pictures is {pictures}; give a number, or all")


class _Readers:
    """The images of a source; each is opened when it is used: thousands of TIFFs would be too many open files."""

    def __init__(self, data: str | Path, detector: TrainedDetector, exclude: Sequence[str], passed: Passed) -> None:
        packed = str(data).lower().endswith(SUFFIX)
        self._store = open_store(data) if packed else None
        self._kind = (len(detector.notes.mean), detector.dtype)
        store = self._store
        self.names = list(list_images(data, exclude, passed) if store is None else map(store.names, range(len(store))))

    def __len__(self) -> int:
        return len(self.names)

    def open(self, position: int) -> ImageReader:
        """The reader of an image. Raises CorruptImage."""
        if self._store is not None:
            return StoredImage(self._store, position)
        return open_file(self.names[position], *self._kind)


def _opened(
    readers: _Readers, positions: Sequence[int]
) -> Generator[tuple[int, ImageReader | CorruptImage], None, None]:
    """The readers of images, with the pixels of those that are decoded as a whole; an error for a damaged one."""
    for position in positions:
        try:
            reader = readers.open(position)
            reader.read(0, 0, 1, 1)
            yield position, reader
        except CorruptImage as error:
            yield position, error


def output_names(names: Sequence[str], data: str | Path) -> list[str]:
    """The names under which the results of images are written: distinct, also for equal file names in other folders.

    Args:
        names: the images' paths, or their names in a packed store.
        data: the source; paths in a folder keep their subfolders.

    Returns:
        Relative paths without suffix; with it, where two images differ only in the suffix.
    """
    root = str(data) if os.path.isdir(data) else os.path.commonpath([os.path.dirname(name) or "." for name in names])
    relative = [os.path.relpath(name, root) if os.path.dirname(name) else name for name in names]
    plain = [os.path.splitext(name)[0] for name in relative]
    times = Counter(plain)
    return [name if times[stem] > 1 else stem for name, stem in zip(relative, plain, strict=True)]


def _drawn(count: int, pictures: int | Literal["all"]) -> set[int]:
    if pictures == "all":
        return set(range(count))
    return {int(position) for position in np.linspace(0, count - 1, min(pictures, count))}


def _record(out: Path, stem: str) -> Path:
    return out / _RECORDS / f"{stem}.json"


def _records(out: Path, stems: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for position, stem in enumerate(stems):
        if _record(out, stem).exists():
            yield position, json.loads(_record(out, stem).read_text())


def _gather(out: Path, stems: Sequence[str], names: Sequence[str], detector: TrainedDetector) -> int:
    """Write the files for all images, and return the number of objects."""
    notes, count, images = detector.notes, 0, []
    with atomic_write(out / PREDICTIONS) as part, part.open("w") as file:
        file.write("[")
        for position, record in _records(out, stems):
            height, width = record["size"]
            images.append({"id": position + 1, "file_name": names[position], "height": height, "width": width})
            for result in record["results"]:
                file.write((",\n" if count else "\n") + json.dumps(result))
                count += 1
        file.write("\n]\n")
    pairs = zip(notes.category_ids, notes.category_names, strict=True)
    categories = [{"id": number, "name": name} for number, name in pairs]
    with atomic_write(out / IMAGES) as part:
        part.write_text(json.dumps({"images": images, "categories": categories, "annotations": []}))
    with atomic_write(out / TABLE) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*COLUMNS, *MICRONS], restval="", lineterminator="\n")
        writer.writeheader()
        for _, record in _records(out, stems):
            writer.writerows(record["rows"])
    return count
