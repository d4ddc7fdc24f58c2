"""Label maps of a whole source, computed once and cached in a folder for later runs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from densepath.annotations.label_maps import SIDE, LabelMaps, shrink
from densepath.annotations.labels import map_array
from densepath.annotations.unread import UNREAD, note_unread, unread_images, unread_rows
from densepath.core.digests import digest_of, digest_of_files
from densepath.core.errors import UserError
from densepath.core.files import CannotWrite, atomic_write, writing
from densepath.core.locks import shared_work
from densepath.core.remains import remove_remains
from densepath.core.streams import say
from densepath.core.system import cores
from densepath.core.waiting import HANGING_READER, Stuck
from densepath.sources.corrupt import CorruptImage, CorruptLog
from densepath.sources.names import AllNames
from densepath.sources.pixel_source import PixelSource, PixelSpec
from densepath.sources.prefetch import ahead
from densepath.sources.read_all import read_all
from densepath.sources.workers import end_workers, outlive_signals, report_dead_workers, start_workers

_VERSION = 3  # of the files' content
_AHEAD = 1  # map: shards are written as soon as their maps are computed
_SHARD = 1024  # maps that are saved together: the most that a killed run loses

Image = npt.NDArray[np.uint8]


class Labeller(Protocol):
    """Computes the label map of one image.

    Attributes:
        parallel: whether several processes should share the images; the labeller is then sent to them.
        needs_color: whether it cannot label grey images.
        classes: whether a label means the same in all images; else, and without this attribute, labels are numbered
            from 0 in each map.
    """

    parallel: bool
    needs_color: bool

    def identity(self) -> dict[str, Any]:
        """Everything that the maps depend on besides the images and the contents of ``files``, as JSON types."""

    def files(self) -> Iterable[Path]:
        """The other files that the maps are made from, e.g. a map for each image; called after ``begin``."""

    def begin(self, names: Iterable[str]) -> None:
        """Called with the names of all images before the first is labelled. There may be millions.

        Raises:
            UserError: something is missing.
        """

    def label(self, image: Image, name: str) -> npt.NDArray[Any]:
        """The label map (h, w) of an image (H, W, 3), of any resolution, in whole numbers from 0.

        Grey images come as three equal channels, in 8 bits of their window.

        Raises:
            UserError, CorruptImage: it cannot be computed.
        """


def cache_folder() -> Path:
    """The default folder of label maps."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "densepath" / "labels"


def check_color(labeller: Labeller, spec: PixelSpec) -> None:
    """Check that a labeller can label images of such pixels.

    Raises:
        UserError: it needs color, and they are grey.
    """
    if labeller.needs_color and spec.channels != 3:
        raise UserError(
            f"{type(labeller).__name__.lower()} are found by color, and the images are grey; choose other concepts"
        )


def label_images(images: PixelSource, labeller: Labeller, folder: str | Path | None = None) -> LabelMaps:
    """The label maps of all images of a source: from the cache, or computed now and stored there.

    The key of the cache is the labeller's identity and the contents of the images' files (or of a packed store) and the
    labeller's files, not their paths; :func:`digest_of_files` reads them once. An interrupted computation continues
    where it stopped. Of several processes that need the same maps, one computes them, the others wait. An image that
    cannot be read has a map of zeros. If a later attempt may succeed, after a disk or network has failed for instance,
    each call tries it again, as far as the cache can be written; caches of earlier versions do not list such images.

    Args:
        images: the source.
        labeller: computes the maps.
        folder: the cache; ``$XDG_CACHE_HOME/densepath/labels`` or ``~/.cache/densepath/labels`` by default.

    Raises:
        UserError: the cache cannot be written, an image has no map, or too many images are corrupt.
    """
    check_color(labeller, images.spec)
    labeller.begin(AllNames(images))
    root = Path(folder or cache_folder()).expanduser()
    source = _source(images, labeller, root)
    subfolder = root / _key(images, source, _has_classes(labeller), root)
    path = subfolder / "labels.npy"
    maps = _open(path, len(images))
    if maps is None or unread_images(path, len(images)):
        try:
            subfolder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"the folder {subfolder} for label maps cannot be created ({error.strerror}); "
                "give another with --cache_dir"
            ) from error
        try:
            with writing(path, subfolder / "lock"), shared_work(subfolder / "lock", "label maps"):
                if _open(path, len(images)) is None:  # else another process has computed them meanwhile
                    remove_remains(subfolder)
                    _write(path, images, labeller)
                _complete(path, images, labeller)
        except CannotWrite as error:
            if maps is None:
                raise CannotWrite(error.what, error.full, "give another folder with --cache_dir") from error
            say(f"densepath: images that could not be read before are not tried again: {error.what}")
        maps = _open(path, len(images))
    if maps is None:
        raise UserError(f"{path} was damaged as soon as it was written; check the disk")
    return LabelMaps(maps, digest_of([json.dumps(source, sort_keys=True)]), _has_classes(labeller))


def _has_classes(labeller: Labeller) -> bool:
    return getattr(labeller, "classes", False)


def _source(images: PixelSource, labeller: Labeller, cache: Path) -> list[Any]:
    """What the maps depend on besides the images: the labeller's identity, and a digest of its files if it has any."""
    contents: list[Any] = []
    if any(True for _ in labeller.files()):
        contents.append(digest_of_files(labeller.files, len(images), cache))
    return [labeller.identity(), *contents]


def _key(images: PixelSource, source: list[Any], classes: bool, cache: Path) -> str:
    identity, *contents = source
    facts = [_VERSION, SIDE, identity, images.digest(cache)]
    if classes:
        facts.append("classes")  # their numbers are kept
    if images.spec.window != (0.0, 255.0):
        facts.append(list(images.spec.window))  # the labeller sees the images in it
    facts += contents
    return digest_of([json.dumps(facts, sort_keys=True)])[:32]


def _open(path: Path, count: int) -> npt.NDArray[np.int16] | None:
    """The maps in a file; None if it is missing or not as expected."""
    try:
        maps = map_array(path)
    except CorruptImage:
        return None
    return maps if maps.shape == (count, SIDE, SIDE) and maps.dtype == np.int16 else None


def _write(path: Path, images: PixelSource, labeller: Labeller) -> None:
    """Compute the maps in shards, which the next run reuses after a stop or a kill, and join them."""
    shards, starts = path.with_name("shards"), range(0, len(images), _SHARD)
    counts = {shards / f"{start:012}.npy": min(_SHARD, len(images) - start) for start in starts}
    whole = list(takewhile(lambda shard: _open(shard, counts[shard]) is not None, counts))
    try:
        loaders: list[Any] = []
        made = _labelled(images, labeller, range(len(whole) * _SHARD, len(images)), loaders)
        with closing(ahead(made, _AHEAD, "label maps", partial(end_workers, loaders), HANGING_READER)) as labels:
            for shard in list(counts)[len(whole) :]:
                _save(shard, (counts[shard], SIDE, SIDE), islice(labels, counts[shard]))
    except UserError as error:
        # Wrong files will be replaced, and these maps with them; what only waited continues next time.
        if error.__cause__ is None and not isinstance(error, Stuck):
            shutil.rmtree(shards, ignore_errors=True)
        raise
    shape = (len(images), SIDE, SIDE)
    unread = [start + row for start, shard in zip(starts, counts, strict=True) for row in unread_rows(np.load(shard))]
    note_unread(path, unread)  # first: without it, the maps of a killed run would stay as they are
    _save(path, shape, (np.maximum(np.load(shard), 0) for shard in counts))
    shutil.rmtree(shards, ignore_errors=True)


def _complete(path: Path, images: PixelSource, labeller: Labeller) -> None:
    """Compute the maps of the images that could not be read before, as far as they can be now."""
    if not (unread := unread_images(path, len(images))):
        return
    with closing(_labelled(images, labeller, unread, [])) as labels:
        found = dict(zip(unread, labels, strict=True))
    still = [position for position, new in found.items() if new[0, 0] == UNREAD]
    if still == unread:
        return
    maps = np.load(path, mmap_mode="r")
    _save(path, maps.shape, (np.maximum(found.get(position, old), 0) for position, old in enumerate(maps)))
    note_unread(path, still)


def _save(path: Path, shape: tuple[int, ...], parts: Iterable[npt.NDArray[np.int16]]) -> None:
    """Like ``np.save``, for an array in parts. Not a memory map: writing to one on a full disk kills the process."""
    with atomic_write(path) as part, part.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.int16)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for labels in parts:
            file.write(labels.tobytes())


def _labelled(
    images: PixelSource, labeller: Labeller, positions: Sequence[int], loaders: list[Any]
) -> Generator[npt.NDArray[np.int16], None, None]:
    """The maps of the images at some positions, in order, computed on all cores; of corrupt ones, see :func:`_pixels`.

    The iterator over the worker processes is added to ``loaders``.
    """
    workers = min(cores(), len(positions)) if labeller.parallel and cores() > 1 else 0
    loader = DataLoader(
        _Labelled(labeller),
        batch_size=None,
        collate_fn=_unchanged,  # torch would pass each small map through a file of shared memory
        sampler=zip(_pixels(images, positions), map(images.names, positions), strict=True),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=outlive_signals,
        generator=torch.Generator(),  # otherwise it would draw from the global one
    )
    with report_dead_workers(workers, "start again where more memory is free") as arrived:
        started = start_workers(loader, loaders)
        try:
            for labels in started:
                arrived.set()
                if isinstance(labels, str):
                    raise UserError(labels)
                yield labels
        finally:
            end_workers(loaders)  # they ignore the signal by which torch would end them
            loaders.clear()


def _pixels(images: PixelSource, positions: Sequence[int]) -> Iterator[Image | int]:
    """The images at some positions, with a progress bar.

    Instead of a corrupt one, which the run itself will report, the label of its map: UNREAD if it may be readable
    later, otherwise 0.
    """
    corrupt = CorruptLog(len(images), quiet=True)
    read = read_all(images, corrupt, "finding concepts", positions)
    for position, image in zip(positions, read, strict=True):
        if image is not None:
            yield images.spec.to_rgb(image)
        else:
            yield UNREAD if position in corrupt.passing else 0


def _unchanged(labels: Any) -> Any:
    return labels


class _Labelled(Dataset[Any]):
    """Labels the images that it is indexed with: its keys are images instead of positions."""

    def __init__(self, labeller: Labeller) -> None:
        self.labeller = labeller

    def __getitem__(self, item: tuple[Image | int, str]) -> npt.NDArray[np.int16] | str:
        image, name = item
        if isinstance(image, int):
            return np.full((SIDE, SIDE), image, np.int16)
        try:
            labels, classes = np.asarray(self.labeller.label(image, name)), _has_classes(self.labeller)
            _check(labels, classes, f"{type(self.labeller).__name__} of {name}")
            return shrink(labels, classes)
        except UserError as error:  # as a value: an exception would arrive with its whole traceback
            return str(error)


def _check(labels: npt.NDArray[Any], classes: bool, what: str) -> None:
    """Raise UserError if a labeller, perhaps of the user, has not returned a label map; ``what`` names it."""
    whole = labels.dtype.kind in "bui" or (
        labels.dtype.kind == "f" and np.isfinite(labels).all() and (labels == np.rint(labels)).all()
    )
    if labels.ndim != 2 or not labels.size or not whole:
        raise UserError(f"the label map by {what} is {labels.dtype} {list(labels.shape)}; give whole numbers (h, w)")
    if classes and labels.min() < 0:
        raise UserError(f"the label map by {what} has the label {labels.min()}; number the labels from 0")
