"""Label maps of a whole source, computed once and kept in a folder for later runs."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from torch.utils.data import DataLoader, Dataset

from densepath.annotations.label_maps import SIDE, LabelMaps, shrink
from densepath.core.errors import UserError
from densepath.core.files import remove_remains, writing
from densepath.core.system import cores
from densepath.sources.corrupt import CorruptImage, CorruptLog
from densepath.sources.digests import digest_of_files
from densepath.sources.loader import outlive_signals, telling_of_death
from densepath.sources.pixel_source import AllNames, PixelSource
from densepath.sources.read_all import read_all

_VERSION = 2  # of what the files hold
_FILE, _UNFINISHED = "labels.npy", ".labels.npy.part"
_MAP = SIDE * SIDE * np.dtype(np.int16).itemsize  # bytes
_BLOCK = 1024  # maps after which the disk has what was written

Image = npt.NDArray[np.uint8]


class Labeller(Protocol):
    """Makes the label map of one image.

    Attributes:
        parallel: whether several processes should share the images; the labeller is then sent to them.
    """

    parallel: bool

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
    What a stop or a kill has cut off goes on where it was. Of several processes that need the same maps one makes them,
    the others wait.

    Args:
        images: the source.
        labeller: makes the maps.
        folder: the cache; ``$XDG_CACHE_HOME/densepath/labels`` or ``~/.cache/densepath/labels`` by default.

    Raises:
        UserError: the cache cannot be written, an image has no map, or too many images are damaged.
    """
    labeller.begin(AllNames(images))
    root = Path(folder or cache_folder()).expanduser()
    place = root / _key(images, labeller, root)
    maps = _open(place / _FILE, len(images))
    if maps is None:
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"the folder {place} for label maps cannot be made ({error.strerror}); name another by concept_cache"
            ) from error
        lock = place / "lock"
        with writing(place / _FILE, lock), FileLock(lock):
            maps = _open(place / _FILE, len(images))  # another process may have made them meanwhile
            if maps is None:
                remove_remains(place)
                _write(place / _FILE, images, labeller)
                maps = _open(place / _FILE, len(images))
    if maps is None:
        raise UserError(f"{place / _FILE} was damaged as soon as it was written; check the disk")
    return maps


def _key(images: PixelSource, labeller: Labeller, cache: Path) -> str:
    facts = [_VERSION, SIDE, labeller.identity(), images.digest(cache)]
    if images.spec.window != (0.0, 255.0):
        facts.append(list(images.spec.window))  # in which the labeller sees the images
    if any(True for _ in labeller.files()):
        facts.append(digest_of_files(labeller.files, len(images), cache))
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _open(path: Path, count: int) -> LabelMaps | None:
    """The maps in a file, or None where it is missing or not what it should be."""
    try:
        maps = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return LabelMaps(maps) if maps.shape == (count, SIDE, SIDE) and maps.dtype == np.int16 else None


def _write(path: Path, images: PixelSource, labeller: Labeller) -> None:
    """Write the maps, or what is left of them: an unfinished file goes on after its last block that is on the disk."""
    unfinished, header = path.with_name(_UNFINISHED), _header(len(images))
    try:
        # Written, not mapped: a full disk ends a process that writes through a map.
        with open(unfinished, "ab") as file:
            done = _done(unfinished, header)
            file.truncate(len(header) + done * _MAP if done else 0)
            file.write(b"" if done else header)
            for labels in _labelled(images, labeller, done):
                file.write(labels.tobytes())
                done += 1
                if done % _BLOCK == 0 or done == len(images):
                    file.flush()
                    os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException as error:
        # A stop, or a process that died for want of memory, can be made up for; files that are wrong will be others.
        lasting = isinstance(error, OSError) or (isinstance(error, UserError) and error.__cause__ is None)
        if lasting or _done(unfinished, header) == 0:
            unfinished.unlink(missing_ok=True)
        raise


def _header(count: int) -> bytes:
    """What a file of so many maps begins with."""
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.int16)), "fortran_order": False}
    begin = io.BytesIO()
    np.lib.format.write_array_header_1_0(begin, header | {"shape": (count, SIDE, SIDE)})
    return begin.getvalue()


def _done(path: Path, header: bytes) -> int:
    """The maps in an unfinished file that are surely on the disk: those before the block that was written last."""
    try:
        with open(path, "rb") as file:
            begins = file.read(len(header)) == header
        blocks = math.ceil((path.stat().st_size - len(header)) / (_BLOCK * _MAP)) - 1
    except OSError:
        return 0
    return _BLOCK * max(blocks, 0) if begins else 0


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
