"""``densepath predict``: a trained network on new images."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import yaml

from densepath.annotations.coco_checks import Orientation
from densepath.core.digests import digest_of_file
from densepath.core.errors import UserError
from densepath.core.files import atomic_write, remove_remains
from densepath.core.locks import sole_writer
from densepath.core.log import logged
from densepath.core.output_names import names_below, output_names
from densepath.core.result import Result
from densepath.core.spacing import evenly_spaced
from densepath.core.stopwatch import Stopwatch
from densepath.core.system import with_progress
from densepath.core.threads import OneBehind
from densepath.runs.closing import command, say_end
from densepath.runs.folder import CONFIG, check_run
from densepath.runs.progress import say
from densepath.sources.corrupt import CorruptImage
from densepath.sources.image_reader import ImageReader, StoredImage, open_file
from densepath.sources.listing import Passed, list_images
from densepath.sources.packing import NO_EXCLUDE, SUFFIX, open_store
from densepath.sources.prefetch import ahead
from densepath.sources.run_folders import refuse_among_images
from densepath.training.hardware import choose_device, choose_precision
from densepath.transfer.detection.detector_file import detector_path
from densepath.transfer.detection.prediction_files import (
    draw,
    rows_of,
    write_geojson,
    write_label_map,
)
from densepath.transfer.detection.predictor import OVERLAP, Prediction, TrainedDetector, check_search, load_detector
from densepath.transfer.detection.score_inputs import LABELS
from densepath.transfer.predict_records import TABLE, gather, record_of, source_of
from densepath.version import __version__

LOG = "predict.log"
_FREE = ("data", "run", "pictures", "devices")
_LATER = {"orientation": None}  # options that earlier versions did not have
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
    orientation: Literal["stored", "viewed"] | None = None,
    pictures: int | Literal["all"] = 8,
    devices: int | str = "auto",
    precision: Literal["auto", "32", "bf16-mixed"] = "auto",
) -> Result:
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
        orientation: how images with an orientation tag (of cameras) are read: as "stored" in the file, or as "viewed",
            turned by the tag. By default as the detector's training images.
        pictures: number of images to draw with the outlines of their objects, or "all".
        devices: "auto" (one GPU, or the CPU), or "cpu".
        precision: "auto", "32" or "bf16-mixed".

    Returns:
        ``out``, with the numbers of "images", "damaged" ones and "objects".

    Raises:
        UserError: there is no trained detector or no image, ``out`` holds other predictions, or no image can be read.
    """
    watch = Stopwatch()
    check_search(score, window, overlap)
    if spacing is not None and not spacing > 0:
        raise UserError(f"spacing is {spacing}; give µm per pixel")
    if pictures != "all" and pictures < 0:
        raise UserError(f"pictures is {pictures}; give a number, or all")
    detector = load_detector(run)
    device = choose_device(devices)
    precision = choose_precision(precision, device.type)
    passed = Passed()
    readers = _Readers(data, detector, exclude, passed, orientation)
    stems = output_names(readers.paths())
    out = Path(out)
    refuse_among_images(out, data)
    record = {
        "run": str(run),
        "data": str(data),
        "detector": digest_of_file(detector_path(run)),
        "score": score,
        "window": window,
        "overlap": overlap,
        "spacing": spacing,
        "exclude": list(exclude),
        "orientation": orientation,
        "pictures": pictures,
        "devices": devices,
    }
    with sole_writer(out), logged(out / LOG):
        if check_run(out, record, resume=True, free=_FREE, defaults=_LATER) is None:
            with atomic_write(out / CONFIG) as part:
                part.write_text(f"# densepath {__version__}\n{yaml.safe_dump(record, sort_keys=False)}")
        remove_remains(out)
        detector = detector.to(device)
        drawn = _drawn(len(readers), pictures)
        left = [
            position
            for position, stem in enumerate(stems)
            if source_of(record_of(out, stem)) != readers.identity(position)
            or (position in drawn and not (out / "pictures" / f"{stem}.png").exists())
        ]
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
            results = [each.result(found.size, ids, detector.finds_masks) for each in found.objects]
            record = {"size": found.size, "results": results, "rows": rows_of(found, stem, um)}
            with atomic_write(record_of(out, stem)) as part:
                part.write_text(f"{json.dumps(readers.identity(position))}\n{json.dumps(record)}\n")

        # The network runs in this thread, so that Ctrl-C ends it at once; others decode images and write results.
        with OneBehind() as behind, closing(ahead(_opened(readers, left), _AHEAD, "images")) as opened:
            for position, reader in with_progress(opened, len(left), "predicting"):
                try:
                    if isinstance(reader, CorruptImage):
                        raise reader
                    found = detector.predict_reader(reader, score, window, overlap, precision)
                except CorruptImage as error:
                    damaged.append(str(error))
                    _log.warning("damaged image, passed over: %s", error)
                    continue
                behind.submit(finish, position, reader, found)
        if len(damaged) == len(readers):
            raise UserError(f"none of {len(readers)} images can be read; check the files ({damaged[0]})")
        count = gather(out, stems, readers, detector.notes)
        without = f", {len(damaged)} damaged images passed over" if damaged else ""
        say(f"densepath: {count} objects in {len(readers) - len(damaged)} images{without}")
        made = {"objects": out / TABLE, "outlines for QuPath": out / "geojson", "pictures": out / "pictures"}
        truth = Path(data).parent
        known = Path(data).name == "test" and (truth / "annotations" / "test.json").is_file()
        commands = (command("score", "--data", truth, "--predictions", out),) if known else ()
        say_end(watch, "", made, commands)
    drawn_files = {stems[k]: out / "pictures" / f"{stems[k]}.png" for k in sorted(drawn)}
    counts = {"images": len(readers), "damaged": len(damaged), "objects": count}
    return Result(out, counts, {"table": out / TABLE, **drawn_files}, commands)


class _Readers:
    """The images of a source; each is opened when it is used: thousands of TIFFs would be too many open files."""

    def __init__(
        self,
        data: str | Path,
        detector: TrainedDetector,
        exclude: Sequence[str],
        passed: Passed,
        orientation: Orientation | None,
    ) -> None:
        packed = str(data).lower().endswith(SUFFIX)
        self._store = open_store(data) if packed else None
        self._kind = (len(detector.notes.mean), detector.dtype)
        self._viewed = detector.views(orientation)
        store = self._store
        names = list_images(data, exclude, passed, runs=False) if store is None else map(store.names, range(len(store)))
        self.names = list(names)
        self._data = data
        if packed and exclude:
            raise UserError(NO_EXCLUDE)

    def __len__(self) -> int:
        return len(self.names)

    def paths(self) -> list[Path]:
        """The images' paths below their common folder."""
        if self._store is not None:
            return list(map(Path, self.names))
        return list(map(Path, names_below(self.names, self._data)))

    def identity(self, position: int) -> list[Any]:
        """What changes if an image is another one: its path, its size and its time."""
        file = self.names[position] if self._store is None else str(self._data)
        try:
            status = os.stat(file)
        except OSError:
            return [self.names[position]]
        return [os.path.abspath(file), self.names[position], status.st_size, status.st_mtime_ns]

    def open(self, position: int) -> ImageReader:
        """The reader of an image. Raises CorruptImage."""
        if self._store is not None:
            return StoredImage(self._store, position, *self._kind)
        return open_file(self.names[position], *self._kind, self._viewed)


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


def _drawn(count: int, pictures: int | Literal["all"]) -> set[int]:
    if pictures == "all":
        return set(range(count))
    return set(evenly_spaced(pictures, count))
