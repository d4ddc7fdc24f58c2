"""``densepath data check`` of a list of images: its splits, patients, duplicates, and images that show nothing."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from densepath.annotations.patients import owners_by_name, patient_in_name
from densepath.core.digests import identical_files
from densepath.core.errors import UserError, counted, first_few
from densepath.core.files import atomic_write
from densepath.core.output_names import names_below
from densepath.core.spacing import evenly_spaced
from densepath.core.streams import write_result
from densepath.core.system import usable_cores, with_progress
from densepath.core.threads import in_threads
from densepath.datasets.contact_sheet import compose_sheet, short_name
from densepath.datasets.shared_patients import Patients, odd_spellings, of_patients, patients_between
from densepath.datasets.similar_images import ALIKE, Thumbnails, similar, thumbnails
from densepath.sources.conversion import highest_of_bits
from densepath.sources.corrupt import CorruptImage
from densepath.sources.decode import Header, read_header, read_image
from densepath.sources.listing import SUFFIXES, list_images
from densepath.sources.lists import read_columns
from densepath.sources.pixel_source import PixelSpec

_ALL = "all"  # images without splits
_SIDE, _COLUMNS = 240, 4  # pixels of a panel, panels in a row
_LEAST = 2  # pixels of a side

Splits = Mapping[str, Sequence[int]]


def check_list(data: Path, out: Path, count: int, patient_regex: str | None = None) -> Path:
    """Report what a list of images holds. Arguments as for :func:`~densepath.datasets.check.check_data`.

    Splits are those of its column split, patients those of its column patient, of ``patient_regex``, or as in
    :func:`~densepath.annotations.patients.owners_by_name`.
    """
    names = list(list_images(data))
    told = [split.lower() for _, (split,) in read_columns(str(data), SUFFIXES, ["split"])] or [""] * len(names)
    splits: dict[str, list[int]] = defaultdict(list)
    for position, split in enumerate(told):
        splits[split or _ALL].append(position)
    below = names_below(names, data)
    if patient_regex is not None:
        places = [os.path.relpath(name, data.parent) for name in names]
        every = [patient_in_name(name, patient_regex, place) for name, place in zip(below, places, strict=True)]
    else:
        every = [o if o != name else "" for o, name in zip(owners_by_name(data, names)[0], names, strict=True)]
    patients = {split: [every[position] for position in positions] for split, positions in splits.items()}
    paths = [Path(name) for name in names]
    headers = _headers(paths)
    small = thumbnails(paths)
    lines = [*_counts(splits, patients, headers), *_looks(below, headers, small)]
    lines += [*_twice(paths), *_shared(paths, below, splits, patients, small)]
    for line in lines:
        write_result(line)
    return _draw(paths, splits, out, count) if count else data


def _headers(paths: Sequence[Path]) -> list[Header]:
    def header(path: Path) -> Header:
        try:
            return read_header(path)
        except CorruptImage as error:
            raise UserError(f"{error}; replace the file, or take it out of the list") from error

    work = in_threads(header, paths, usable_cores(), "headers of images")
    return list(with_progress(work, len(paths), "reading headers"))


def _counts(splits: Splits, patients: Mapping[str, Patients], headers: Sequence[Header]) -> Iterator[str]:
    for split, positions in splits.items():
        sizes = [[getattr(headers[p], side) for p in positions] for side in ("width", "height")]
        across = " x ".join(f"{min(s)}" if min(s) == max(s) else f"{min(s)}-{max(s)}" for s in sizes)
        yield f"{split}: {counted(len(positions), 'image')}{of_patients(patients[split])}, {across} px"
    yield from odd_spellings(patients)


def _looks(names: Sequence[str], headers: Sequence[Header], small: Thumbnails) -> Iterator[str]:
    """Images that show nothing, are too thin, or differ from the others in channels."""
    flat = [names[int(p)] for p in np.flatnonzero(~small.any(axis=(1, 2)))]
    yield f"nearly uniform images (all black, or all of one value): {len(flat)}{': ' * bool(flat)}{first_few(flat)}"
    if thin := [names[p] for p, header in enumerate(headers) if min(header.height, header.width) < _LEAST]:
        yield f"warning: {counted(len(thin), 'image has', 'images have')} a single row or column: {first_few(thin)}"
    grey = Counter(header.grey for header in headers)
    if len(grey) > 1:
        rare = grey[True] < grey[False]
        found = [names[p] for p, header in enumerate(headers) if header.grey == rare]
        kinds = ("grey", "colors") if rare else ("three channels", "one")
        yield (
            f"warning: {counted(len(found), 'image has', 'images have')} {kinds[0]}, the others {kinds[1]}: "
            f"{first_few(found)}"
        )


def _twice(paths: Sequence[Path]) -> Iterator[str]:
    count = Counter(paths)
    if again := [str(path) for path, number in count.items() if number > 1]:
        yield f"warning: {counted(len(again), 'image is', 'images are')} listed several times: {first_few(again)}"


def _shared(
    paths: Sequence[Path], names: Sequence[str], splits: Splits, patients: Mapping[str, Patients], small: Thumbnails
) -> Iterator[str]:
    """Patients and images that two splits share; images are called by ``names``."""
    groups = identical_files(paths)
    known = {position: number for number, group in enumerate(groups) for position in group}
    same = [" = ".join(names[p] for p in group) for group in groups]
    yield f"identical files: {len(same)}{': ' * bool(same)}{first_few(same)}"
    for one, other, line in patients_between(patients, "--patient_regex or a column patient"):
        yield line
        between = f"in {one} and {other}"
        held = {known[p]: p for p in splits[one] if p in known}
        copies = [f"{names[p]} is {names[held[known[p]]]}" for p in splits[other] if known.get(p) in held]
        yield f"identical files {between}: {len(copies)}{': ' * bool(copies)}{first_few(copies)}"
        pairs = similar(small[splits[one]], small[splits[other]])
        near = [f"{names[splits[other][b]]} is like {names[splits[one][a]]}" for a, b in pairs]
        yield (
            f"nearly identical images {between} (correlation >= {ALIKE}, turned or mirrored too): "
            f"{len(near)}{': ' * bool(near)}{first_few(near)}"
        )


def _picture(path: Path) -> Image.Image:
    """An image in 8 bits; one of 16 bits by the range of the bits that it uses."""
    if read_header(path).bits < 16:
        return Image.fromarray(read_image(path))
    pixels = read_image(path, dtype=np.uint16)
    return Image.fromarray(PixelSpec(window=(0, highest_of_bits(int(pixels.max())))).to_rgb(pixels))


def _draw(paths: Sequence[Path], splits: Splits, out: Path, count: int) -> Path:
    rows: list[tuple[str, list[tuple[Image.Image, str]]]] = []
    for split, positions in splits.items():
        panels = []
        for place in evenly_spaced(count, len(positions)):
            path = paths[positions[place]]
            picture = _picture(path)
            picture.thumbnail((_SIDE, _SIDE))
            panels.append((picture, short_name(path.name)))
        for start in range(0, len(panels), _COLUMNS):
            heading = f"{split}: {counted(len(positions), 'image')}" if start == 0 else ""
            rows.append((heading, panels[start : start + _COLUMNS]))
    with atomic_write(out) as part:
        compose_sheet(rows, _SIDE).save(part, format="PNG")
    return out
