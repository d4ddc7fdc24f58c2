"""Label maps of a whole source, computed once and kept in a folder for later runs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from torch.utils.data import DataLoader, Dataset

from densepath.annotations.label_maps import SIDE, LabelMaps, shrink
from densepath.core.digests import digest_of, digest_of_files
from densepath.core.errors import UserError
from densepath.core.files import atomic_write, remove_remains, writing
from densepath.core.system import cores
from densepath.sources.corrupt import CorruptImage, CorruptLog
from densepath.sources.loader import outlive_signals, telling_of_death
from densepath.sources.pixel_source import AllNames, PixelSource
from densepath.sources.read_all import read_all

_VERSION = 3  # of what the files hold
_SHARD = 1024  # maps that are saved together: what a run that is killed loses at most

Image = npt.NDArray[np.uint8]


class Labeller(Protocol):
    """Makes the label map of one image.

    Attributes:
        parallel: whether several processes should share the images; the labeller is then sent to them.
        needs_color: whether it cannot label grey images.
    """

    parallel: bool
    needs_color: bool

    def identity(self) -> dict[str, Any]:
        """All that the maps depend on besides what the images and ``files`` hold, in the types of JSON."""

    def files(self) -> Iterable[Path]:
        """The files that the maps are made from besides the images, after ``begin``: a map for each image, perhaps."""

    def begin(self, names: Iterable[str]) -> None:
        """Look at the names of all images, before the first is labelled. There may be millions.

        Raises:
            UserError: something is missing.
        """

    def label(self, image: Image, name: str) -> npt.NDArray[Any]:
        """The label map (h, w) of an image (H, W, 3), as coarse or fine as it likes, in integers from 0.

        Grey images come as three equal channels, in 8 bits of their window.

        Raises:
            UserError, CorruptImage: it cannot be made.
        """


def cache_folder() -> Path:
    """Where label maps are kept, if nothing else is said."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "densepath" / "labels"


def label_images(images: PixelSource, labeller: Labeller, folder: str | Path | None = None) -> LabelMaps:
    """The label maps of all images of a source: from the cache, or made now and kept there.

    Maps are found again as long as the labeller's identity and what the images' files (of a packed store, its tiles)
    and the labeller's hold are the same, wherever they lie; see :func:`digest_of_files` for how often they are read.
    What a stop or a kill has cut off continues where it was. Of several processes that need the same maps one makes
    them, the others wait.

    Args:
        images: the source.
        labeller: makes the maps.
        folder: the cache; ``$XDG_CACHE_HOME/densepath/labels`` or ``~/.cache/densepath/labels`` by default.

    Raises:
        UserError: the cache cannot be written, an image has no map, or too many images are damaged.
    """
    if labeller.needs_color and images.spec.channels != 3:
        raise UserError(
            f"{type(labeller).__name__.lower()} are found by color, and the images are grey; choose other concepts"
        )
    labeller.begin(AllNames(images))
    root = Path(folder or cache_folder()).expanduser()
    place = root / _key(images, labeller, root)
    path = place / "labels.npy"
    maps = _open(path, len(images))
    if maps is None:
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"the folder {place} for label maps cannot be made ({error.strerror}); name another by --cache_dir"
            ) from error
        with writing(path, place / "lock"), FileLock(place / "lock"):
            maps = _open(path, len(images))  # another process may have made them meanwhile
            if maps is None:
                remove_remains(place)
                _write(path, images, labeller)
                maps = _open(path, len(images))
    if maps is None:
        raise UserError(f"{path} was damaged as soon as it was written; check the disk")
    return LabelMaps(maps)


def _key(images: PixelSource, labeller: Labeller, cache: Path) -> str:
    facts = [_VERSION, SIDE, labeller.identity(), images.digest(cache)]
    if images.spec.window != (0.0, 255.0):
        facts.append(list(images.spec.window))  # in which the labeller sees the images
    if any(True for _ in labeller.files()):
        facts.append(digest_of_files(labeller.files, len(images), cache))
    return digest_of([json.dumps(facts, sort_keys=True)])[:32]


def _open(path: Path, count: int) -> npt.NDArray[np.int16] | None:
    """The maps in a file, or None where it is missing or not what it should be."""
    try:
        maps = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return maps if maps.shape == (count, SIDE, SIDE) and maps.dtype == np.int16 else None


def _write(path: Path, images: PixelSource, labeller: Labeller) -> None:
    """Make the maps in shards, which a run that was stopped or killed leaves for the next, and join them."""
    shards, starts = path.with_name("shards"), range(0, len(images), _SHARD)
    counts = {shards / f"{start:012}.npy": min(_SHARD, len(images) - start) for start in starts}
    whole = list(takewhile(lambda shard: _open(shard, counts[shard]) is not None, counts))
    try:
        labels = _labelled(images, labeller, len(whole) * _SHARD)
        for shard in list(counts)[len(whole) :]:
            _save(shard, (counts[shard], SIDE, SIDE), islice(labels, counts[shard]))
    except UserError as error:
        if error.__cause__ is None:  # files that are wrong will be replaced by others, and these maps with them
            shutil.rmtree(shards, ignore_errors=True)
        raise
    _save(path, (len(images), SIDE, SIDE), map(np.load, counts))
    shutil.rmtree(shards, ignore_errors=True)


def _save(path: Path, shape: tuple[int, ...], parts: Iterable[npt.NDArray[np.int16]]) -> None:
    """As ``np.save``, of an array that comes in parts. Not through a memory map: a full disk kills who writes one."""
    with atomic_write(path) as part, part.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.int16)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for labels in parts:
            file.write(labels.tobytes())


def _labelled(images: PixelSource, labeller: Labeller, start: int) -> Iterator[npt.NDArray[np.int16]]:
    """The maps of the images from one of them on, in their order, made by all cores."""
    workers = min(cores(), len(images)) if labeller.parallel and cores() > 1 else 0
    loader = DataLoader(
        _Labelled(labeller),
        batch_size=None,
        sampler=zip(_pixels(images, start), islice(AllNames(images), start, None), strict=True),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=outlive_signals,
        generator=torch.Generator(),  # or it would draw from the user's global one
    )
    with telling_of_death(workers, "start again where more memory is free"):
        for labels in loader:
            if isinstance(labels, str):
                raise UserError(labels)
            yield labels.numpy()


def _pixels(images: PixelSource, start: int) -> Iterator[Image | None]:
    """The images in their order, with a progress bar; None for a corrupt one, which the run itself will name."""
    for image in read_all(images, CorruptLog(len(images), quiet=True), "finding concepts", start):
        yield None if image is None else images.spec.to_rgb(image)


class _Labelled(Dataset[Any]):
    """Labels what it is asked for: the images themselves stand in the place of their positions."""

    def __init__(self, labeller: Labeller) -> None:
        self.labeller = labeller

    def __getitem__(self, item: tuple[Image | None, str]) -> npt.NDArray[np.int16] | str:
        image, name = item
        if image is None:
            return np.zeros((SIDE, SIDE), np.int16)
        try:
            return shrink(self.labeller.label(image, name))
        except (UserError, CorruptImage) as error:  # as a value: an exception would arrive with its whole trace
            return str(error)
