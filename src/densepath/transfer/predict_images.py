"""Predictions on images, one after the other: their files, and those of all."""

from __future__ import annotations

import json
import logging
from collections.abc import Generator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Literal

from densepath.annotations.coco_checks import Orientation
from densepath.core.errors import UserError, counted
from densepath.core.files import atomic_write
from densepath.core.output_names import names_below, output_names, refuse_repeated
from densepath.core.spacing import evenly_spaced
from densepath.core.system import with_progress
from densepath.core.threads import OneBehind
from densepath.runs.progress import say
from densepath.sources.corrupt import CorruptImage, can_pass, refuse_passing
from densepath.sources.image_files import ImageFiles
from densepath.sources.image_reader import ImageReader, StoredImage, open_file
from densepath.sources.listing import Passed, list_images
from densepath.sources.other_bits import prediction_spec
from densepath.sources.packing import NO_EXCLUDE, SUFFIX, open_store
from densepath.sources.patience import patiently
from densepath.sources.pixel_source import PixelSource
from densepath.sources.prefetch import ahead
from densepath.sources.slides.resolution import spacing_text
from densepath.transfer.detection.prediction import Prediction
from densepath.transfer.detection.prediction_files import (
    draw,
    rows_of,
    write_geojson,
    write_label_map,
)
from densepath.transfer.detection.predictor import TrainedDetector
from densepath.transfer.detection.score_inputs import IMAGES, LABELS, PREDICTIONS
from densepath.transfer.detection.windows import scale_of, window_sides
from densepath.transfer.predict_records import TABLE, gather, identity_of_file, is_done, record_of, refuse_others

_AHEAD = 2  # images
_PAINTED = "smallest on top"  # objects of label maps; earlier versions had the better ones on top

_log = logging.getLogger(__name__)


def predict_images(
    detector: TrainedDetector,
    readers: Readers,
    out: Path,
    search: tuple[float, int | None, float, str],
    spacing: float | None,
    pictures: int | Literal["all"],
) -> tuple[dict[str, int], dict[str, Path]]:
    """Find the objects of images, and write the files of each and those of all.

    Args:
        detector: on its device.
        readers: the images.
        out: the folder, which this process holds.
        search: score, window, overlap and precision, as for
            :meth:`~densepath.transfer.detection.predictor.TrainedDetector.predict_reader`.
        spacing: µm per pixel of all images; None for those of their files.
        pictures: number of images to draw, or "all".

    Returns:
        The numbers of "images", "damaged" ones and "objects", and the pictures by the names of the images.

    Raises:
        UserError: no image can be read; or, when the others are done, one cannot be read now, but perhaps later.
    """
    stems = output_names(readers.paths())
    refuse_others(out, stems)
    detector.spec = prediction_spec(detector.notes.spec, readers.images, converted=True)
    drawn = _drawn(len(readers), pictures)

    def has_all(position: int, stem: str) -> bool:
        maps, geojson, picture = _files(out, stem)
        return (
            is_done(record_of(out, stem), readers.identity(position))
            and (any(path.exists() for path in maps) or not detector.finds_masks)
            and geojson.exists()
            and (position not in drawn or picture.exists())
        )

    left = [position for position, stem in enumerate(stems) if not has_all(position, stem)]
    say(f"densepath: {counted(len(readers), 'image')}, {len(readers) - len(left)} done before")
    damaged, failed = list[str](), list[str]()
    said = False
    if left:
        for path in (PREDICTIONS, IMAGES, TABLE):  # they are written last
            (out / path).unlink(missing_ok=True)

    def finish(position: int, reader: ImageReader, found: Prediction) -> None:
        """Write the files of an image; its record comes last, and marks it as done."""
        stem = stems[position]
        _, geojson, picture = _files(out, stem)
        um = reader.spacing if spacing is None else (spacing, spacing)
        if detector.finds_masks:
            write_label_map(found, out / LABELS / stem)
        write_geojson(found, geojson)
        if position in drawn:
            draw(reader, found, detector.spec, picture)
        ids = detector.notes.category_ids
        results = [each.result(found.size, ids, detector.finds_masks) for each in found.objects]
        record = {"size": found.size, "results": results, "rows": rows_of(found, stem, um)}
        with atomic_write(record_of(out, stem)) as part:
            part.write_text(f"{json.dumps(readers.identity(position))}\n{json.dumps(record)}\n")

    # The network runs in this thread, so that Ctrl-C ends it at once; others decode images and write results.
    with OneBehind() as behind, closing(ahead(_opened(readers, left), _AHEAD, "images")) as opened:
        for position, reader in with_progress(opened, len(left), "predicting"):
            if not is_done(record_of(out, stems[position]), readers.identity(position)):
                _remove(out, stems[position])
            try:
                if isinstance(reader, CorruptImage):
                    raise reader
                if not said and search[1] is None:
                    said = _say_scale(detector, reader, spacing)
                found = detector.predict_reader(reader, *search, spacing)
            except CorruptImage as error:
                later = can_pass(error)
                (failed if later else damaged).append(str(error))
                _log.warning(
                    "%s: %s", "an image that cannot be read now" if later else "damaged image, passed over", error
                )
                continue
            behind.submit(finish, position, reader, found)
    refuse_passing(failed)
    if len(damaged) == len(readers):
        raise UserError(f"none of {counted(len(readers), 'image')} can be read; check the files ({damaged[0]})")
    count = gather(out, stems, readers, detector.notes)
    without = f", {counted(len(damaged), 'damaged image')} passed over" if damaged else ""
    say(f"densepath: {counted(count, 'object')} in {counted(len(readers) - len(damaged), 'image')}{without}")
    if not count and search[0] > 0:
        say(
            f"densepath: none has a score of at least {search[0]:g}; a lower --score, into another folder, shows others"
        )
    counts = {"images": len(readers), "damaged": len(damaged), "objects": count}
    return counts, {stems[k]: out / "pictures" / f"{stems[k]}.png" for k in sorted(drawn)}


def _files(out: Path, stem: str) -> tuple[list[Path], Path, Path]:
    """The files of an image: its label map, with either suffix, its outlines and its picture."""
    maps = [out / LABELS / f"{stem}{end}" for end in (".png", ".tif")]
    return maps, out / "geojson" / f"{stem}.geojson", out / "pictures" / f"{stem}.png"


def _remove(out: Path, stem: str) -> None:
    """Remove what is left of another image with the same name."""
    maps, *others = _files(out, stem)
    for path in (record_of(out, stem), *maps, *others):
        path.unlink(missing_ok=True)


def _say_scale(detector: TrainedDetector, image: ImageReader, spacing: float | None) -> bool:
    """Report at which scale images are read, by the first one."""
    trained, own = detector.notes.mpp, image.spacing if spacing is None else (spacing, spacing)
    if trained is None or not detector.window:
        return True
    if own is None:
        say(
            f"densepath: {image.name} does not say its µm per pixel; the detector learned from images of "
            f"{trained:.3g}; if these differ, give those of the images with --spacing"
        )
    elif (scale := scale_of(own, trained)) != (1, 1):
        say(
            f"densepath: {image.name} has {spacing_text(own)} µm per pixel and the training images {trained:.3g}: "
            f"windows of {' x '.join(map(str, dict.fromkeys(window_sides(scale, detector.window)[::-1])))} px"
        )
    return True


class Readers:
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
        self._detector, self._viewed = detector, detector.views(orientation)
        store = self._store
        names = list_images(data, exclude, passed, runs=False) if store is None else map(store.names, range(len(store)))
        self.names = list(names)
        self._data, self._below = data, self.names if store is not None else names_below(self.names, data)
        refuse_repeated(self._below, data)
        if packed and exclude:
            raise UserError(NO_EXCLUDE)
        self.images: PixelSource = ImageFiles(self.names) if store is None else store

    def __len__(self) -> int:
        return len(self.names)

    def paths(self) -> list[Path]:
        """The images' paths below their common folder."""
        return list(map(Path, self._below))

    def identity(self, position: int) -> list[Any]:
        """What changes if an image is another one, seen or painted otherwise.

        Path, size, time; a window that is not trained; the order in which label maps are painted.
        """
        name, spec = self.names[position], self._detector.spec
        window = [] if spec == self._detector.notes.spec else [list(spec.window)]
        painted = [_PAINTED] if self._detector.finds_masks else []
        return [*identity_of_file(name, name if self._store is None else self._data), *window, *painted]

    def open(self, position: int) -> ImageReader:
        """The reader of an image. Raises CorruptImage."""
        kind = len(self._detector.notes.mean), self._detector.dtype
        if self._store is not None:
            return StoredImage(self._store, position, *kind)
        return open_file(self.names[position], *kind, self._viewed)


def _opened(
    readers: Readers, positions: Sequence[int]
) -> Generator[tuple[int, ImageReader | CorruptImage], None, None]:
    """The readers of images, with the pixels of those that are decoded as a whole; an error for a damaged one."""
    for position in positions:
        try:
            yield position, patiently(readers.names[position], partial(_begun, readers, position))
        except CorruptImage as error:
            yield position, error


def _begun(readers: Readers, position: int) -> ImageReader:
    reader = readers.open(position)
    reader.read(0, 0, 1, 1)
    return reader


def _drawn(count: int, pictures: int | Literal["all"]) -> set[int]:
    if pictures == "all":
        return set(range(count))
    return set(evenly_spaced(pictures, count))
