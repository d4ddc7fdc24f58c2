"""A trained classifier on new images, and on the tiles of slides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from densepath.core.closing import command, say_end
from densepath.core.csv_files import read_rows, write_rows
from densepath.core.digests import digest_of_file
from densepath.core.errors import UserError, counted, first_few, one_line
from densepath.core.output_names import names_below, refuse_repeated
from densepath.core.result import Result
from densepath.core.shared_work import Shard
from densepath.core.stopwatch import Stopwatch
from densepath.core.streams import say
from densepath.core.system import with_progress
from densepath.core.work_folder import work_folder
from densepath.sources.corrupt import refuse_passing
from densepath.sources.image_files import ImageFiles, passed_over
from densepath.sources.names import AllNames
from densepath.sources.open import find_source
from densepath.sources.other_bits import prediction_spec
from densepath.sources.run_folders import refuse_among_images
from densepath.sources.slides.find import holds_slides
from densepath.sources.slides.resolution import MppTable
from densepath.sources.tiles.tile_files import is_tile_folder
from densepath.training.hardware import Hardware, Precision, choose_hardware
from densepath.transfer.classify.classifier import (
    ClassifierNotes,
    Readout,
    classifier_path,
    probabilities,
    read_classifier,
)
from densepath.transfer.classify.label_scores import rows_of
from densepath.transfer.classify.predict_tiles import OnSlides, predict_tiles, tile_mpp
from densepath.transfer.classify.training import AT_ONCE, Stored
from densepath.transfer.embed.encode import batches_of, collect, encode
from densepath.transfer.predict_records import other_images
from densepath.transfer.slides.precision import begun_precision
from densepath.transfer.slides.slide_list import GIVEN_LATER, refuse_options

PREDICTIONS = "predictions.csv"
LOG = "predict.log"
SEVERAL = "several_labels"  # in the record: whether an image may have several of the labels
_FREE = ("data", "run", "devices", "precision", SEVERAL)  # may change when the same command continues


def predict_classes(
    run: str | Path,
    *,
    data: str | Path,
    out: str | Path,
    slides: OnSlides | None = None,
    exclude: Sequence[str] = (),
    devices: int | str = "auto",
    precision: Precision = "auto",
) -> Result:
    """Write the probabilities of classes or labels for images, or for the tiles of slides.

    Args:
        run: the folder of a run of ``classify``, or its exported/classifier.safetensors.
        data, out, exclude, devices, precision: as for ``densepath predict``.
        slides: how slides are tiled.

    Returns:
        ``out``, with the numbers of "images" or "slides" and of "damaged" ones.

    Raises:
        UserError: no image can be read, or the classifier does not fit the images.
    """
    watch, out, slides = Stopwatch(), Path(out), slides or OnSlides()
    path = classifier_path(run)
    model, notes = read_classifier(path)
    hardware = choose_hardware(devices, precision)
    if hardware.world_size > 1:
        raise UserError("classes are predicted on one device; leave --devices out")
    if not is_tile_folder(data):
        refuse_among_images(out, data)
    record: dict[str, Any] = {
        "run": str(run),
        "data": str(data),
        "classifier": digest_of_file(path),
        "exclude": list(exclude),
    }
    record |= {"devices": devices, "precision": hardware.precision, SEVERAL: not notes.exclusive}
    hardware.lay_out(model)
    readout = Readout(model, notes).to(hardware.device)
    say(f"densepath: {notes.backbone} of {run}: {first_few(notes.labels, 12)}")
    if is_tile_folder(data) or slides.mpp is not None or holds_slides(data, exclude):
        tile_mpp(notes, data, slides)  # now, before the folder exists, as the table
        MppTable(slides.mpp_table, slides.default_mpp)
        options = {name: None if value is None else str(value) for name, value in vars(slides).items()}
        options.pop("shard")
        with work_folder(out, record | options, log=LOG, free=_FREE, later=GIVEN_LATER) as write_added:
            hardware = replace(hardware, precision=begun_precision(out, precision, hardware.precision))
            part = Shard.of(slides.shard)
            return predict_tiles(readout, notes, data, out, slides, exclude, part, hardware, watch, write_added)
    refuse_options("slides, not images", {n: getattr(slides, n) for n in ("mpp_table", "default_mpp", "shard")})
    with work_folder(out, record, log=LOG, free=_FREE):
        hardware = replace(hardware, precision=begun_precision(out, precision, hardware.precision))
        return _predict_images(readout, notes, data, out, exclude, hardware, watch)


def _predict_images(
    readout: Readout,
    notes: ClassifierNotes,
    data: str | Path,
    out: Path,
    exclude: Sequence[str],
    hardware: Hardware,
    watch: Stopwatch,
) -> Result:
    images, spec = find_source(data, exclude=exclude), notes.spec
    if images.spec.ndim != spec.ndim or (spec.channels not in (1, 3) and images.spec.channels != spec.channels):
        raise UserError(
            f"the images of {data} have {images.spec.ndim} dimensions and "
            f"{counted(images.spec.channels, 'channel')}, and the "
            f"classifier takes {spec.ndim} and {spec.channels}; train one on such images"
        )
    say(f"densepath: {counted(len(images), 'image')}{passed_over(images)}")
    paths = list(AllNames(images))
    names = names_below(paths, data) if isinstance(images, ImageFiles) else paths
    refuse_repeated(names, data)
    if (out / PREDICTIONS).is_file():
        old = {row["image"] for row in read_rows(out / PREDICTIONS, "use another folder", ["image"])}
        if gone := other_images(out, old, names):
            lines = f"the lines of {counted(len(gone), 'image')} not in the data: {one_line(first_few(gone))}"
            say(f"densepath: {out / PREDICTIONS} loses {lines}")
    images.spec = prediction_spec(spec, images, data=data, own_window=notes.own_window)
    readout = Readout(readout.model, notes, images.spec).to(hardware.device)
    batches = batches_of(range(len(images)), AT_ONCE)
    half = hardware.precision == "bf16-mixed"
    found = encode(readout, Stored(images), batches, hardware.device, half)
    positions, logits, damaged, failed = collect(with_progress(found, len(batches), "predicting"))
    refuse_passing(failed)
    if not positions:
        raise UserError(f"none of {counted(len(images), 'image')} can be read; check the files ({damaged[0]})")
    if damaged:
        say(f"densepath: {counted(len(damaged), 'damaged image')} passed over: {first_few(damaged)}")
    answers = rows_of(notes.labels, notes.exclusive, probabilities(logits, notes.exclusive))
    rows = [{"image": names[p], **row} for p, row in zip(positions, answers, strict=True)]
    write_rows(out / PREDICTIONS, list(rows[0]), rows)
    commands = (command("score", "--data", data, "--labels", "LABELS", "--predictions", out),)
    say_end(watch, "", {"predictions": out / PREDICTIONS}, commands)
    counts = {"images": len(images), "damaged": len(damaged)}
    return Result(out, counts, {"predictions": out / PREDICTIONS}, commands)
