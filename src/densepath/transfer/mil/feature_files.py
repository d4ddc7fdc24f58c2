"""Finds the files of features of slides: HDF5 and PyTorch files below a folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from densepath.core.errors import UserError, first_few, refuse
from densepath.core.spelling import composed
from densepath.sources.listing import walk
from densepath.sources.slides.find import SUFFIXES as SLIDE_SUFFIXES
from densepath.transfer.mil.slide_table import patient_of_tcga

SUFFIXES = (".h5", ".hdf5", ".pt")
# Endings of slides that tables and names of features keep.
_SLIDES = (*SLIDE_SUFFIXES, ".isyntax")
_COORDINATES = "_patches.h5"  # TRIDENT's and CLAM's files of coordinates only


def find_features(data: str | Path) -> dict[str, Path]:
    """The files of features below a folder: name of the slide -> file.

    The name is the path below the folder without its ending, see :func:`slide_names`. CLAM's folders ``h5_files`` and
    ``pt_files`` hold the same slides: the former is used.

    Raises:
        UserError: there are none, or a slide has two files.
    """
    if not os.path.isdir(data):
        raise UserError(f"there is no folder of features at {data}; densepath embed writes one")
    files: list[tuple[str, Path]] = []
    for path in map(Path, walk(data, SUFFIXES)):
        name = os.path.relpath(path, data)
        if path.name.endswith(_COORDINATES) and path.parent.name == "patches":
            continue
        parts = [part for part in Path(name).parts if part not in ("h5_files", "pt_files")]
        files.append(("/".join(parts), path))
    found: dict[str, Path] = {}
    for key, (_, path) in zip(slide_names([name for name, _ in files]), files, strict=True):
        other = found.get(key)
        if other is not None and {other.parent.name, path.parent.name} == {"h5_files", "pt_files"}:
            found[key] = other if other.parent.name == "h5_files" else path
        elif other is not None:
            raise UserError(f"{other} and {path} are both features of the slide {key}; remove one, or name its folder")
        else:
            found[key] = path
    if not found:
        raise UserError(f"{data} has no files of features ({', '.join(SUFFIXES)}); densepath embed writes them")
    return found


def slide_name(name: str) -> str:
    """A slide's name without the endings of features and of slides."""
    return _without(_SLIDES, _of_features(name))


def slide_names(files: Sequence[str]) -> list[str]:
    """The names of slides by their files; of slides that differ only in their ending (a.svs, a.ndpi) with it."""
    whole = list(map(_of_features, files))
    count = Counter(map(slide_name, set(whole)))
    alike = {name for name, number in count.items() if number > 1 and name not in whole}
    return [own if slide_name(own) in alike else slide_name(own) for own in whole]


def _of_features(name: str) -> str:
    """The name without the ending of features."""
    return composed(_without(SUFFIXES, name).replace("\\", "/"))


def _without(suffixes: Sequence[str], name: str) -> str:
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in suffixes else name


class Names:
    """Finds the slide that a name means: one of the two is the end of the other's path, or both have a barcode of TCGA.

    Args:
        names: of slides, as by :func:`slide_names`.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._own = {composed(name): name for name in names}
        self._keys: dict[str, list[str]] = {}
        for name in names:
            for key in dict.fromkeys((*_keys(composed(name)), *_keys(slide_name(name)))):
                self._keys.setdefault(key, []).append(name)
        plain = set(map(slide_name, names))
        self._barcodes = {_short_name(name) for name in plain if patient_of_tcga(name)}
        self._paths = {name for name in plain if not patient_of_tcga(name)}
        self._ends = {end for name in self._paths for end in _ends(name)}

    def find(self, asked: str, place: str) -> str | None:
        """The slide of a name; None if the name can be that of none of the slides.

        Args:
            asked: the name, with or without endings.
            place: where it is named, for the message.

        Raises:
            UserError: several slides may be meant.
        """
        name = slide_name(asked)
        for own in (_of_features(asked), name):
            if own in self._own:
                return self._own[own]
        if not self.hold(asked):
            return None
        possible = (
            [own for own in self._keys.get(key, ()) if _one_slide(name, slide_name(own))] for key in _keys(name)
        )
        found = next(filter(None, possible))
        if len(found) > 1:
            raise UserError(f"{place} names {asked}, which may be {first_few(found)}; give the path of the features")
        return found[0]

    def hold(self, asked: str) -> bool:
        """Whether a name may mean one of the slides, see :func:`_one_slide`; as fast for any number of namesakes."""
        name = slide_name(asked)
        if patient_of_tcga(name):
            return _short_name(name) in self._barcodes
        return name in self._ends or not self._paths.isdisjoint(_ends(name))

    def namesakes(self, asked: str) -> list[str]:
        """The slides with the same file name, in whatever folders."""
        return next((self._keys[key] for key in _keys(slide_name(asked)) if key in self._keys), [])


def _keys(name: str) -> list[str]:
    """What a slide may be called: the ends of its path, the longest first, and a barcode of TCGA."""
    return [*_ends(name), *([_short_name(name)] if patient_of_tcga(name) else [])]


def _ends(name: str) -> list[str]:
    """The ends of a path, the longest first."""
    parts = name.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _one_slide(one: str, other: str) -> bool:
    """Whether two names may mean one slide: TCGA's have barcodes that no other slide has."""
    if patient_of_tcga(one) or patient_of_tcga(other):
        return _short_name(one) == _short_name(other)
    return f"/{one}".endswith(f"/{other}") or f"/{other}".endswith(f"/{one}")


def _short_name(name: str) -> str:
    """TCGA-..-DX1.UUID is often called by its barcode."""
    return name.rpartition("/")[2].partition(".")[0].upper()


def check_one_file_each(files: Sequence[Path], names: Sequence[str]) -> None:
    """Refuse two rows of a table that mean one slide."""
    seen: dict[Path, str] = {}
    twice = [
        f"{seen[file]} and {name}"
        for file, name in zip(files, names, strict=True)
        if seen.setdefault(file, name) != name
    ]
    refuse(twice, "rows of the table that mean the same slide", "keep one of them")
