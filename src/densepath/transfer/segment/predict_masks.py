"""A trained segmenter on new images and volumes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt
from PIL import Image

from densepath.core.closing import command, say_end
from densepath.core.csv_files import write_rows
from densepath.core.digests import digest_of_file
from densepath.core.errors import UserError, counted, first_few
from densepath.core.files import atomic_write
from densepath.core.locks import shared_work
from densepath.core.output_names import names_below, output_names, refuse_repeated
from densepath.core.result import Result
from densepath.core.shared_work import LOCKS, Shard
from densepath.core.spacing import evenly_spaced
from densepath.core.stopwatch import Stopwatch
from densepath.core.streams import say
from densepath.core.system import with_progress
from densepath.core.work_folder import work_folder
from densepath.runs.closing import draw_safely
from densepath.sources.corrupt import CorruptImage
from densepath.sources.image_files import ImageFiles, passed_over
from densepath.sources.names import AllNames
from densepath.sources.open import find_source
from densepath.sources.other_bits import prediction_spec
from densepath.sources.run_folders import refuse_among_images
from densepath.sources.slides.find import holds_slides
from densepath.sources.tiles.tile_files import is_tile_folder
from densepath.sources.volumes.nifti import NO_MAP
from densepath.sources.volumes.open_store import is_volume_store
from densepath.sources.volumes.volume import voxel_mm3
from densepath.training.hardware import Precision, choose_hardware
from densepath.transfer.classify.training import Stored
from densepath.transfer.predict_records import identity_of_file
from densepath.transfer.segment.cohort import MAX_SIDE
from densepath.transfer.segment.legend import ClassMap
from densepath.transfer.segment.overlays import draw_case
from densepath.transfer.segment.segmenter import SegmenterNotes, read_segmenter, segmenter_path
from densepath.transfer.segment.sliding import SlidingWindow
from densepath.transfer.segment.volume_inputs import VolumeInputs
from densepath.transfer.segment.volume_slices import SUFFIX
from densepath.transfer.slides.precision import begun_precision
from densepath.transfer.slides.slide_work import SlideWork

LABELS, PICTURES, LEGEND, SIZES, LOG = "labels", "pictures", "legend.json", "sizes.csv", "predict.log"
_PIXELS, _MM3 = "px", "mm3"
_FREE = ("data", "run", "devices", "precision", "pictures")


@dataclass(frozen=True)
class _Work:
    """The images of a source, and how one is segmented and written.

    Args:
        names: of the results.
        files: that an image is read from, by its position.
        suffix: of the label maps.
        segment: segments and writes an image by its position; draws it if asked to. Returns the size of each class.
            Raises CorruptImage.
        unit: of the sizes.
        also: what was passed over, as the end of a line.
        known: what changes the result of an image besides its files, by its position.
    """

    names: list[str]
    files: Callable[[int], Sequence[str | Path]]
    suffix: str
    segment: Callable[[int, Path, Path | None], dict[str, Any]]
    unit: str
    also: str
    known: Callable[[int], Sequence[Any]] = lambda _: ()


def predict_masks(
    run: str | Path,
    *,
    data: str | Path,
    out: str | Path,
    window: int | None = None,
    overlap: float | None = None,
    exclude: Sequence[str] = (),
    pictures: int | Literal["all"] = 8,
    shard: str | None = None,
    devices: int | str = "auto",
    precision: Precision = "auto",
) -> Result:
    """Write the class of each pixel of images, or of each voxel of volumes.

    Args:
        run: the folder of a run of ``segment``, or its exported/segmenter.safetensors.
        data, out, exclude, pictures, shard, devices, precision: as for ``densepath predict``.
        window: side of the windows in pixels; default: that of the training patches.
        overlap: share of a window that the next one covers; default: that of the training.

    Returns:
        ``out``, with the numbers of "images", of "damaged" ones, and of those "left" to other processes.

    Raises:
        UserError: no image can be read, or the segmenter does not fit the images.
    """
    watch, out = Stopwatch(), Path(out)
    path = segmenter_path(run)
    model, notes = read_segmenter(path)
    hardware = choose_hardware(devices, precision)
    if hardware.world_size > 1:
        raise UserError("images are segmented on one device; leave --devices out, or share the work with --shard")
    refuse_among_images(out, data)
    volumes = notes.spec.ndim == 3
    if not volumes:
        _refuse_slides(data, exclude)
    if not volumes and is_volume_store(data):
        raise UserError(f"{data} holds volumes, and the segmenter was trained on images; train one on volumes")
    hardware.lay_out(model)
    sliding = notes.sliding(model.to(hardware.device), hardware, window, overlap)
    work = _volumes(data, notes, sliding, exclude) if volumes else _images(data, notes, sliding, exclude)
    record: dict[str, Any] = {"run": str(run), "data": str(data), "segmenter": digest_of_file(path)}
    record |= {"window": window, "overlap": overlap, "exclude": list(exclude), "pictures": pictures}
    record |= {"devices": devices, "precision": hardware.precision}
    shown = evenly_spaced(len(work.names) if pictures == "all" else pictures, len(work.names))
    drawn = {work.names[k] for k in shown}
    with work_folder(out, record, log=LOG, free=_FREE):
        sliding.half = begun_precision(out, precision, hardware.precision) == "bf16-mixed"
        say(f"densepath: {notes.backbone} of {run}: {first_few(notes.legend.names, 12)}{work.also}")
        with atomic_write(out / LEGEND) as part:
            part.write_text(json.dumps(notes.legend.record(), indent=1) + "\n")
        shared = _segment_all(work, out, drawn, "volume" if volumes else "image", Shard.of(shard))
        with shared_work(out / LOCKS / "tables", "tables"):
            found = shared.found()
            done = {name: facts for name, facts in found.items() if "problem" not in facts}
            rows = [{"image": name, **facts} for name, facts in done.items()]
            write_rows(out / SIZES, ["image", *_columns(notes, work.unit)], rows)
        counts, line = shared.summary(found)
        say(f"densepath: label maps of {counted(len(done), shared.one)}{line}")
        if not counts["left"]:
            made = {"label maps": out / LABELS, "sizes": out / SIZES}
            say_end(watch, "", made | ({"pictures": out / PICTURES} if drawn else {}))
    files = {name: out / PICTURES / f"{name}.png" for name in sorted(drawn.intersection(done))}
    return Result(out, {"images": counts.pop("slides"), **counts}, files | {"sizes": out / SIZES})


def _segment_all(work: _Work, out: Path, drawn: Collection[str], one: str, shard: Shard | None) -> SlideWork:
    """Segment the images that are not done.

    Args:
        work: the images.
        out: the folder, which other processes may share.
        drawn: names of the images with pictures.
        one: what an image is called.
        shard: the share of this process.

    Returns:
        The images with their records.
    """
    number = {name: k for k, name in enumerate(work.names)}

    def target(name: str) -> Path:
        return out / LABELS / f"{name}{work.suffix}"

    def picture(name: str) -> Path:
        return out / PICTURES / f"{name}.png"

    def is_done(name: str) -> bool:
        return shared.succeeded(name) and target(name).is_file() and (name not in drawn or picture(name).is_file())

    def segment(name: str) -> dict[str, Any]:
        return work.segment(number[name], target(name), out / PICTURES if name in drawn else None)

    shared = SlideWork(
        out,
        {name: [*identity_of_file(name, *work.files(k)), *work.known(k)] for name, k in number.items()},
        lambda name: (target(name), picture(name), out / PICTURES / f"{name}{SUFFIX}"),
        lambda name: target(name).is_file(),
        (out / SIZES,),
        one,
    )
    shared.do(is_done, segment, shard, watched=with_progress)
    return shared


def _refuse_slides(data: str | Path, exclude: Sequence[str]) -> None:
    """Refuse slides and their tiles with the commands that make images of them."""
    what, pack = "tiles of slides", command("data", "pack", Path(data), "tiles.safetensors")
    if not is_tile_folder(data):
        if not holds_slides(data, exclude):
            return
        cut = f"{command('tile', '--data', Path(data), '--out', 'T', '--mpp')} MPP (of the training images)"
        what, pack = "whole slides", f"{cut}, then {command('data', 'pack', 'T', 'tiles.safetensors')}"
    raise UserError(
        f"{data} holds {what}, and a segmenter takes images: make some with {pack}, and give --data tiles.safetensors"
    )


def _images(data: str | Path, notes: SegmenterNotes, sliding: SlidingWindow, exclude: Sequence[str]) -> _Work:
    images, spec = find_source(data, MAX_SIDE, exclude), notes.spec
    if images.spec.ndim != spec.ndim or (spec.channels not in (1, 3) and images.spec.channels != spec.channels):
        raise UserError(
            f"the images of {data} have {images.spec.ndim} dimensions and "
            f"{counted(images.spec.channels, 'channel')}, and the "
            f"segmenter takes {spec.ndim} and {spec.channels}; train one on such images"
        )
    images.spec = sliding.spec = spec = prediction_spec(spec, images, data=data, own_window=notes.own_window)
    stored, paths = Stored(images), list(AllNames(images))
    below = names_below(paths, data) if isinstance(images, ImageFiles) else paths
    refuse_repeated(below, data)
    names = [name.replace(os.sep, "/") for name in output_names([Path(name) for name in below])]

    def segment(position: int, path: Path, pictures: Path | None) -> dict[str, Any]:
        pixels = stored.read(position)
        if isinstance(pixels, CorruptImage):
            raise pixels
        classes = sliding.classes(pixels)
        values = notes.legend.values_of(classes)
        with atomic_write(path) as part:
            Image.fromarray(values).save(part, "PNG")
        if pictures is not None:
            draw_safely(lambda: draw_case(pictures, names[position], pixels, spec, classes, None, notes.legend))
        return _sizes(values, notes, _PIXELS, 1)

    def files(position: int) -> Sequence[str | Path]:
        return (images.names(position) if isinstance(images, ImageFiles) else data,)

    window = () if spec == notes.spec else (list(spec.window),)
    return _Work(names, files, ".png", segment, _PIXELS, passed_over(images), lambda _: window)


def _volumes(data: str | Path, notes: SegmenterNotes, sliding: SlidingWindow, exclude: Sequence[str]) -> _Work:
    inputs = VolumeInputs(data, notes, exclude)

    def segment(position: int, path: Path, pictures: Path | None) -> dict[str, Any]:
        volume = inputs.read(position)
        if not volume.placed:
            say(f"densepath: warning: {inputs.names[position]} has {NO_MAP}; its label map has none either")
        classes: ClassMap = volume.restored(sliding.slabs(volume.pixels))
        values = notes.legend.values_of(classes)
        volume.write(path, values)
        if pictures is not None:
            shown = volume.on_pixels(classes)
            drawn = inputs.names[position], volume.pixels, sliding.spec, shown, None, notes.legend, ()
            draw_safely(lambda: draw_case(pictures, *drawn, volume.spacing))
        return _sizes(values, notes, _MM3, voxel_mm3(volume.affine))

    return _Work(inputs.names, inputs.files, ".nii.gz", segment, _MM3, inputs.passed.also(), inputs.known)


def _sizes(values: npt.NDArray[Any], notes: SegmenterNotes, unit: str, size: float) -> dict[str, float]:
    """The size of each class in a label map."""
    columns = _columns(notes, unit).items()
    return {column: round(float((values == value).sum() * size), 3) for column, value in columns}


def _columns(notes: SegmenterNotes, unit: str) -> dict[str, int]:
    """The columns of the sizes, with the values of their classes in label maps."""
    legend = notes.legend
    classes = enumerate(zip(legend.names, legend.values, strict=True))
    return {f"{name}_{unit}": value for number, (name, value) in classes if number != legend.background}
