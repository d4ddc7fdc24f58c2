"""``densepath predict`` with a trained detector, on images and on whole slides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from densepath.core.closing import command, say_end
from densepath.core.digests import digest_of_file
from densepath.core.errors import UserError
from densepath.core.files import atomic_write
from densepath.core.locks import sole_writer
from densepath.core.log import logged
from densepath.core.records import CONFIG, record_text
from densepath.core.remains import remove_remains
from densepath.core.result import Result
from densepath.core.shared_work import Shard
from densepath.core.stopwatch import Stopwatch
from densepath.core.work_folder import work_folder
from densepath.runs.folder import check_run
from densepath.runs.progress import say
from densepath.sources.listing import Passed
from densepath.sources.run_folders import refuse_among_images
from densepath.sources.slides.find import holds_slides
from densepath.sources.slides.resolution import MppTable
from densepath.sources.tiles.tile_files import is_tile_folder
from densepath.training.hardware import Precision, choose_device, choose_precision
from densepath.transfer.detection.detector_file import detector_path
from densepath.transfer.detection.predictor import TrainedDetector, load_detector
from densepath.transfer.detection.windows import check_search
from densepath.transfer.predict_images import Readers, predict_images
from densepath.transfer.predict_records import TABLE
from densepath.transfer.slides.precision import begun_precision
from densepath.transfer.slides.predict_slides import SLIDES, predict_slides, search_of
from densepath.transfer.slides.slide_list import GIVEN_LATER, list_of_slides, refuse_options

LOG = "predict.log"
_FREE = ("data", "run", "pictures", "devices")
_LATER = {"orientation": None, "mpp": None, "mpp_table": None, "default_mpp": None}  # of later versions


@dataclass(frozen=True, kw_only=True)
class ObjectOptions:
    """How objects are searched: the options of :func:`~densepath.transfer.predict.predict` of these names."""

    score: float
    window: int | None
    overlap: float
    spacing: float | None
    mpp: float | None
    mpp_table: str | Path | None
    default_mpp: float | None
    exclude: Sequence[str]
    orientation: Literal["stored", "viewed"] | None
    pictures: int | Literal["all"]
    shard: str | None
    devices: int | str
    precision: Precision

    def record(self) -> dict[str, Any]:
        """The options that decide what is found, and those that are noted beside them."""
        return {
            "score": self.score,
            "window": self.window,
            "overlap": self.overlap,
            "spacing": self.spacing,
            "mpp": self.mpp,
            "mpp_table": None if self.mpp_table is None else str(self.mpp_table),
            "default_mpp": self.default_mpp,
            "exclude": list(self.exclude),
            "orientation": self.orientation,
            "pictures": self.pictures,
            "devices": self.devices,
        }


def predict_objects(run: str | Path, data: str | Path, out: Path, options: ObjectOptions) -> Result:
    """Find objects with a trained detector. Arguments, result and errors as for ``predict``."""
    watch = Stopwatch()
    check_search(options.score, options.window, options.overlap, options.spacing)
    if not detector_path(run).is_file():
        raise UserError(
            f"there is no trained detector, classifier, segmenter or model of slides in {run}; detect, classify, "
            "segment and mil write one when they end (a stopped run continues with --resume)"
        )
    detector = load_detector(run)
    device = choose_device(options.devices)
    precision = choose_precision(options.precision, device.type)
    if not is_tile_folder(data):
        refuse_among_images(out, data)
    asked = _Asked(run, data, out, options, detector, device, precision)
    slides = options.mpp is not None or holds_slides(data, options.exclude)
    return _on_slides(asked, watch) if slides else _on_images(asked, watch)


@dataclass(frozen=True, eq=False)
class _Asked:
    """What is to be found: in which data, where it is written, and by which detector.

    Args:
        run, data, out, options: as for :func:`predict_objects`.
        detector: that of the run.
        device, precision: where and how it computes.
    """

    run: str | Path
    data: str | Path
    out: Path
    options: ObjectOptions
    detector: TrainedDetector
    device: torch.device
    precision: Literal["32", "bf16-mixed"]

    def record(self) -> dict[str, Any]:
        """What the folder of the results notes."""
        detector = digest_of_file(detector_path(self.run))
        return {"run": str(self.run), "data": str(self.data), "detector": detector, **self.options.record()}

    def made(self) -> dict[str, Path]:
        """What is written, for people."""
        names = {"objects": TABLE, "outlines for QuPath": "geojson", "pictures": "pictures"}
        return {what: self.out / name for what, name in names.items()}

    def say_begin(self, passed: Passed) -> None:
        """Print what searches where."""
        say(f"densepath: {self.detector.notes.detector} of {self.run}{passed.also()}")


def _on_slides(asked: _Asked, watch: Stopwatch) -> Result:
    options, out, detector = asked.options, asked.out, asked.detector
    record = asked.record()
    refuse_options("images, not slides", {"spacing": options.spacing, "orientation": options.orientation})
    search = search_of(detector, options.mpp, options.window, options.overlap, options.score, asked.precision)
    table, passed = MppTable(options.mpp_table, options.default_mpp), Passed()
    listed = list_of_slides(asked.data, options.exclude, table, passed)
    record["precision"] = asked.precision
    with work_folder(out, record, log=LOG, free=(*_FREE, "precision"), later=GIVEN_LATER) as write_added:
        search = replace(search, precision=begun_precision(out, options.precision, asked.precision))
        asked.say_begin(passed)
        if unknown := table.unknown([slide.path for slide in listed]):
            say(f"densepath: {unknown}")
        moved, shard = detector.to(asked.device), Shard.of(options.shard)
        counts = predict_slides(moved, listed, out, search, options.pictures, shard, write_added)
        if not counts["left"]:
            say_end(watch, "", {**asked.made(), "slides": out / SLIDES, "heat maps": out / "heat_maps"})
    return Result(out, counts, {"table": out / TABLE, "slides": out / SLIDES})


def _on_images(asked: _Asked, watch: Stopwatch) -> Result:
    options, out, detector = asked.options, asked.out, asked.detector
    record, passed = asked.record(), Passed()
    of_slides = {"mpp_table": options.mpp_table, "default_mpp": options.default_mpp, "shard": options.shard}
    refuse_options("slides, not images", of_slides)
    readers = Readers(asked.data, detector, options.exclude, passed, options.orientation)
    with _alone(out, record):
        asked.say_begin(passed)
        search = (options.score, options.window, options.overlap, asked.precision)
        moved = detector.to(asked.device)
        counts, drawn = predict_images(moved, readers, out, search, options.spacing, options.pictures)
        truth = Path(asked.data).parent
        known = Path(asked.data).name == "test" and (truth / "annotations" / "test.json").is_file()
        commands: tuple[str, ...] = (command("score", "--data", truth, "--predictions", out),) if known else ()
        say_end(watch, "", asked.made(), commands)
    return Result(out, counts, {"table": out / TABLE, **drawn}, commands)


@contextmanager
def _alone(out: Path, record: dict[str, Any]) -> Iterator[None]:
    """The folder of predictions, for this process only."""
    with sole_writer(out), logged(out / LOG):
        if check_run(out, record, resume=True, free=_FREE, defaults=_LATER) is None:
            with atomic_write(out / CONFIG) as part:
                part.write_text(record_text(record))
        remove_remains(out)
        yield
