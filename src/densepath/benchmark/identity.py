"""What a result depends on: the code that computed it, and the data."""

from __future__ import annotations

import glob
import inspect
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densepath.annotations.patients import NUMBERED, owners_of_volumes, patients_of
from densepath.core.digests import cached_text, digest_of, digest_of_files
from densepath.core.errors import UserError
from densepath.core.keywords import is_on_disk
from densepath.core.system import usable_cores, with_progress
from densepath.core.threads import in_threads
from densepath.nets.weights import weights_file
from densepath.nets.weights.published import weight_files
from densepath.runs.folder import EXPORTED
from densepath.sources.corrupt import CorruptImage, can_pass
from densepath.sources.decode import read_image
from densepath.sources.listing import list_images, walk
from densepath.sources.names import AllNames
from densepath.sources.packing import NO_EXCLUDE, SUFFIX, open_store
from densepath.sources.pixel_source import PixelSource
from densepath.sources.tiles.slide_tiles import read_tiles as read_tiles_of_slides
from densepath.sources.tiles.tile_files import is_tile_folder
from densepath.sources.volumes.open_store import is_volume_store, open_volumes
from densepath.sources.volumes.store import VolumeStore
from densepath.training.recipes import find_method

SHOWN_DIGITS = 10  # of a digest, where people read it


@dataclass(frozen=True)
class ImageSet:
    """The images of a source.

    Args:
        source: the folder, list, pattern or store.
        digest: digest of the names and contents of all files.
        names: names of the images.
        pixels: digests of their pixels, "" for a damaged image.
        exclude: patterns of the files that are left out.
        slides: names of the slides that the images are tiles of.
        owners: name of a volume -> its patient, or itself where that is unknown; empty for images.
    """

    source: str
    digest: str
    names: tuple[str, ...]
    pixels: tuple[str, ...]
    exclude: tuple[str, ...] = ()
    slides: tuple[str, ...] = ()
    owners: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        what = "volumes" if self.owners else "images"
        return f"{len(self.names)} {what}, digest {self.digest[:SHOWN_DIGITS]}"


@cache
def code_digest(packages: tuple[str, ...]) -> str:
    """The digest of all source files of some packages. Code that only draws or tabulates results is in none of them."""
    package = Path(str(files("densepath")))
    sources = sorted(path for name in packages for path in (package / name).rglob("*.py"))
    return digest_of(part for path in sources for part in (str(path.relative_to(package)), path.read_bytes()))


def method_digest(method: str, code: str) -> str:
    """The digest of the package's code, joined with the file of a method that is not in the package."""
    file = Path(str(inspect.getsourcefile(find_method(method))))
    return code if file.is_relative_to(str(files("densepath"))) else digest_of([code, file.read_bytes()])


def read_tiles(source: str | Path, cache: Path, exclude: Sequence[str] = ()) -> ImageSet:
    """Read the unlabelled images of a source as pre-training reads them.

    Args:
        source: as for :func:`densepath.sources.open.open_images`.
        cache: the folder in which digests are kept.
        exclude: patterns of files to leave out.

    Raises:
        UserError: as for :func:`densepath.sources.open.open_images`.
    """
    if str(source).lower().endswith(SUFFIX):
        if exclude:
            raise UserError(NO_EXCLUDE)
        return decoded(source, open_store(source), [str(source)], content([source], cache), cache)
    if is_tile_folder(source):
        tiles = read_tiles_of_slides(source, exclude)
        images = decoded(source, tiles, [tiling.path for tiling in tiles.tilings], tiles.digest(cache), cache)
        names = tuple(tiling.name for tiling in tiles.tilings)
        return replace(images, exclude=tuple(exclude), slides=names)
    if is_volume_store(source):
        return replace(volume_set(source, open_volumes(source, exclude), cache), exclude=tuple(exclude))
    images = image_set(str(source), list(list_images(source, exclude, runs=False)), cache)
    return replace(images, exclude=tuple(exclude))


def volume_set(source: str | Path, volumes: VolumeStore, cache: Path) -> ImageSet:
    """Volumes of a store. Their voxels are compared by the checksums of the store."""
    owners, where = owners_of_volumes(volumes.rows, source)
    if where == NUMBERED:  # these patients are of this store only
        owners = [f"{owner} of {os.path.realpath(source)}" for owner in owners]
    names = tuple(AllNames(volumes))
    pixels = tuple(digest_of([str(row["size"]), str(row["crc"])]) for row in volumes.rows)
    owned = dict(zip(names, owners, strict=True))
    return ImageSet(str(source), volumes.digest(cache), names, pixels, owners=owned)


def decoded(source: str | Path, images: PixelSource, files: Sequence[str], digest: str, cache: Path) -> ImageSet:
    """Images that are not files of their own, read from some files whose content has a digest."""

    def one(position: int) -> tuple[str, bool]:
        try:
            return _pixels_of_tile(images.read(position)), True
        except CorruptImage as error:
            return f"damaged {position}", not can_pass(error)

    def read() -> tuple[str, bool]:
        return _joined(map(one, range(len(images))))

    pixels = cached_text(f"pixels {digest}", files, cache, read)
    return ImageSet(str(source), digest, tuple(AllNames(images)), tuple(pixels.split("\n")))


def listed_patients(source: str | Path, names: Sequence[str]) -> list[str]:
    """The patients that a manifest lists, with the positions of their images: the files' contents do not show them.

    Raises:
        UserError: the manifest cannot be read.
    """
    known = patients_of(source, names)
    return [f"{place} {known[name]}" for place, name in enumerate(names) if name in known]


def digest_of_given(value: Any, cache: Path) -> str:
    """The digest of a value given by the user: of the content of a path or of the files of a pattern, else the value.

    Of a run folder only the exported files count.

    Raises:
        UserError: a file cannot be read.
    """
    path = Path(str(value))
    if path.is_file():
        return content([path], cache)
    if path.is_dir():
        exported = path / EXPORTED.parent  # the checkpoints of a run may be deleted
        path = exported if exported.is_dir() else path
        return named_content(path, sorted(map(Path, walk(path, ("",)))), cache)
    if named := sorted(name for name in glob.glob(str(value), recursive=True) if os.path.isfile(name)):
        return named_content(os.path.commonpath(list(map(os.path.dirname, named))) or ".", named, cache)
    return str(value)


def digest_of_weights(source: str, cache: Path) -> str:
    """The digest of a weight file, of the weights in a run folder, or of a published model: its weights and JSON files.

    A name of weights is returned as it is.

    Raises:
        UserError: a folder holds no weights, or a file cannot be read.
    """
    if not is_on_disk(source):
        return source
    folder = Path(source)
    if not (weights := weight_files(folder)):
        return digest_of_given(weights_file(source), cache)
    return named_content(folder, sorted({*weights, *folder.glob("*.json")}), cache)


class Digests:
    """The digests of what options and rows name, each computed once: a folder of 20,000 files takes 0.5 s each time.

    Args:
        cache_dir: the folder in which digests of files are kept.

    Attributes:
        cache: that folder.
        given: :func:`digest_of_given` of a value.
        weights: :func:`digest_of_weights` of a source.
    """

    def __init__(self, cache_dir: Path) -> None:
        self.cache = cache_dir
        self.given = cache(partial(digest_of_given, cache=cache_dir))
        self.weights = cache(partial(digest_of_weights, cache=cache_dir))


def hardware_name() -> str:
    """The name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def pixel_digest(image: npt.NDArray[np.uint8]) -> str:
    """The digest of an image (H, W, 3) uint8: the same for it turned by quarters and mirrored, as tissue may be."""
    turned = (np.rot90(side, quarter) for side in (image, image[:, ::-1]) for quarter in range(4))
    return min(digest_of([str(pixels.shape), pixels.tobytes()]) for pixels in turned)


def _pixels(file: str | Path) -> tuple[str, bool]:
    """The digest of an image, "" if it cannot be read, and whether it may be kept."""
    try:
        return pixel_digest(read_image(file)), True
    except CorruptImage as error:
        return "", not can_pass(error)


def _joined(found: Iterable[tuple[str, bool]]) -> tuple[str, bool]:
    """Digests in lines, and whether all may be kept."""
    digests, lasting = [], True
    for digest, lasts in found:
        digests.append(digest)
        lasting = lasting and lasts
    return "\n".join(digests), lasting


def _pixels_of_tile(tile: npt.NDArray[Any]) -> str:
    """The digest of a packed tile as :func:`read_image` gives its file: 8-bit RGB."""
    pixels = (tile if tile.dtype == np.uint8 else tile >> 8).astype(np.uint8)
    return pixel_digest(np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels)


def image_set(source: str, paths: Sequence[str], cache: Path) -> ImageSet:
    """Image files, of which ``source`` names all. Raises UserError if there are none, or one cannot be read."""
    if not paths:
        raise UserError(f"{source} holds no images; check the path")

    def read() -> tuple[str, bool]:
        pixels = in_threads(_pixels, paths, usable_cores(), "image data")
        return _joined(with_progress(pixels, len(paths), "reading images"))

    base = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    digest = named_content(base, paths, cache)
    return ImageSet(source, digest, tuple(paths), tuple(cached_text("pixels", paths, cache, read).split("\n")))


def named_content(base: str | Path, paths: Sequence[str | Path], cache: Path) -> str:
    """The digest of names below a folder and of what the files hold; their order counts, as it does in training."""
    return digest_of([*(os.path.relpath(os.path.abspath(path), base) for path in paths), content(paths, cache)])


def content(paths: Sequence[str | Path], cache: Path) -> str:
    """The digest of the content of files. Raises UserError if one cannot be read."""
    if unreadable := [path for path in paths if not os.access(path, os.R_OK)]:
        raise UserError(f"{unreadable[0]} cannot be read; check it")
    return digest_of_files(lambda: paths, len(paths), cache)
