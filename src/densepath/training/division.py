"""The division of a run's images by patient: into those to learn from, to validate on, and to leave to other runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from densepath.annotations.patients import check_spelling, owners_by_name, owners_of_volumes
from densepath.core.errors import UserError
from densepath.core.files import atomic_write
from densepath.core.output_names import names_below
from densepath.core.random import ordered_by_seed
from densepath.sources.image_files import ImageFiles
from densepath.sources.names import AllNames
from densepath.sources.packed import PackedTiles
from densepath.sources.pixel_source import PixelSource
from densepath.sources.volumes.store import VolumeStore

# Lists in a run folder: what the run learns from, is validated on, and what --fraction leaves to other runs
USED, HELD, LEFT = "images.txt", "validation_images.txt", "other_images.txt"


def hold_out_images(
    images: PixelSource, data: str | Path, share: float, seed: int, resumed: Path | None = None
) -> tuple[Tensor, Tensor]:
    """Divide images into those to train on and those to validate on; a patient is in one of them.

    Patients are those of :func:`owners_of`; any other image is a patient of its own. The division does not depend on
    where files lie, or how their folder is named.

    Args:
        images: the source.
        data: where it was found.
        share: the share of the images to hold out, which is reached with the last patient.
        seed: decides which.
        resumed: the folder of a run that is resumed, which keeps its division.

    Returns:
        The positions of both, ascending.

    Raises:
        UserError: they are tiles of slides, or all are of one patient.
    """
    owners = owners_of(images, data, resumed is not None)
    if owners is None:
        raise UserError("--val_share needs image files, a packed store or a store of volumes; leave it out for slides")
    if resumed is not None and (recorded := recorded_division(resumed, images, [USED], [HELD])):
        return recorded
    groups: dict[str, list[int]] = {owner: [] for owner in ordered_by_seed(set(owners), seed)}
    for number, owner in enumerate(owners):
        groups[owner].append(number)
    held: list[int] = []
    for numbers in groups.values():
        if len(held) >= share * len(owners):
            break
        held += numbers
    if len(held) == len(owners):
        what = "patient" if len(groups) < len(owners) else "image"
        raise UserError(f"--val_share {share} leaves no {what} to train on; give a smaller share, or more {what}s")
    kept = sorted({*range(len(owners))}.difference(held))
    return torch.tensor(kept), torch.tensor(sorted(held))


def recorded_division(
    out: Path, images: PixelSource, used: Sequence[str], others: Sequence[str]
) -> tuple[Tensor, Tensor] | None:
    """The division of images that a run has recorded in its folder; None if it has recorded none of these images.

    Names are compared below the folder that they have in common: the images may have moved.

    Args:
        out: the folder of the run.
        images: the source.
        used, others: the names of the lists of both parts.

    Returns:
        The positions of both, ascending.
    """
    first, second = ([name for each in lists for name in _read_list(out / each)] for lists in (used, others))
    before, now = names_below([*first, *second]), names_below(AllNames(images))
    kept, held = {*before[: len(first)]}, {*before[len(first) :]}
    if sorted(before) != sorted(now) or not (kept and held) or kept & held:
        return None
    is_kept = torch.tensor([name in kept for name in now])
    return is_kept.nonzero().flatten(), (~is_kept).nonzero().flatten()


def owners_of(images: PixelSource, data: str | Path, resumed: bool = False) -> list[str] | None:
    """The patient of each image, its name where patients are unknown; None for tiles of slides.

    Names of files are those below their common folder: see :func:`named_below`.

    Args:
        images: the source.
        data: where it was found.
        resumed: whether a run is resumed, which keeps its division: a patient with two names is only reported then.

    Raises:
        UserError: a patient has two names.
    """
    if not isinstance(images, VolumeStore | ImageFiles | PackedTiles):
        return None
    names = list(AllNames(images))
    known = owners_of_volumes(images.rows, data) if isinstance(images, VolumeStore) else owners_by_name(data, names)
    check_spelling(known[0], names, data, warn=resumed)
    return named_below(known[0], names) if isinstance(images, ImageFiles) else known[0]


def named_below(owners: Sequence[str], names: Sequence[str]) -> list[str]:
    """The patients of image files, with the paths of images of unknown patients relative to the folder of all images:
    a division by them does not depend on where the files lie, or how their folder is named.

    Args:
        owners: the patient of each image, or its path.
        names: the paths of the images.
    """
    below = names_below(names)
    return [own if owner == name else owner for owner, name, own in zip(owners, names, below, strict=True)]


def write_lists(out: Path, lists: Mapping[str, PixelSource], resumed: bool) -> None:
    """Write the names of images, of files their absolute paths: ``--data`` takes such a list of files.

    A run that is resumed keeps the lists of another division than this: it may be refused, and its division is recorded
    nowhere else. All are complete before the first is replaced.

    Args:
        out: the folder of the run.
        lists: the images of each list, by its file name.
        resumed: whether a run is resumed from a checkpoint.
    """
    now = {name: _names(images) for name, images in lists.items()}
    before = {name: _read_list(out / name) for name in lists}
    sizes, sizes_before = ([len(names) for names in each.values()] for each in (now, before))
    same = sizes == sizes_before and names_below(chain(*now.values())) == names_below(chain(*before.values()))
    with ExitStack() as stack:
        for name, names in now.items():
            if not resumed or same or not before[name]:
                part = stack.enter_context(atomic_write(out / name))
                lines = "".join(f"{line}\n" for line in names)
                part.write_text(lines, encoding="utf-8", errors="surrogateescape")


def _names(images: PixelSource) -> list[str]:
    names = AllNames(images)
    return [str(Path(name).absolute()) for name in names] if isinstance(images, ImageFiles) else list(names)


def _read_list(path: Path) -> list[str]:
    """The names in a list of :func:`write_lists`; none if it is missing."""
    with suppress(OSError):
        return path.read_bytes().decode("utf-8", "surrogateescape").split("\n")[:-1]
    return []
