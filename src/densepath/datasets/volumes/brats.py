"""``densepath data brats``: BraTS, MR of brain tumors in four sequences."""

from __future__ import annotations

import re
from collections import defaultdict
from functools import partial
from pathlib import Path

from densepath.core.errors import UserError, counted, first_few
from densepath.core.streams import say
from densepath.datasets.volumes.conversion import Case, Contents, Conversion, source_folder
from densepath.datasets.volumes.convert import convert
from densepath.datasets.volumes.folder import stem
from densepath.sources.corrupt import CorruptImage
from densepath.sources.listing import walk
from densepath.sources.volumes.nifti import SUFFIXES
from densepath.sources.volumes.read import read_channels, read_volume
from densepath.sources.volumes.volume import Volume

# Sequences as they are stored, with their names until 2021 and since 2023.
_SEQUENCES = {"FLAIR": ("flair", "t2f"), "T1": ("t1", "t1n"), "T1Gd": ("t1ce", "t1gd", "t1c"), "T2": ("t2", "t2w")}
_PARTS = {name: sequence for sequence, names in _SEQUENCES.items() for name in names} | {"seg": "seg", "segm": "seg"}
_NAME = re.compile(rf"(.+)[_-]({'|'.join(sorted(_PARTS, key=len, reverse=True))})", re.IGNORECASE)
_VISIT = re.compile(r"(BraTS-[A-Za-z]+-\d+)-\d+")  # since 2023 a patient has several
_LABELS = {1: "necrotic core", 2: "edema", 3: "enhancing tumor", 4: "enhancing tumor"}  # 4 until 2021, 3 since 2023


def convert_brats(how: Conversion) -> Path:
    """Convert BraTS to a store, with the channels FLAIR, T1, T1Gd and T2, and the labels as they are.

    Editions of 2017 to 2023: ``CASE/CASE_flair.nii.gz`` and ``_t1``, ``_t1ce``, ``_t2``, ``_seg``, or
    ``CASE/CASE-t2f.nii.gz`` and ``-t1n``, ``-t1c``, ``-t2w``, ``-seg``. The source is searched with all its subfolders.
    A case that lacks a sequence is named and left out. Cases without labels are those of validation.

    Returns:
        The folder of the store.

    Raises:
        UserError: there is no case, a file is there twice, or none can be read.

    Source: https://www.synapse.org/brats.
    """
    source = source_folder(how.source)
    found: dict[str, dict[str, Path]] = defaultdict(dict)
    for path in map(Path, walk(source, SUFFIXES)):
        match = _NAME.fullmatch(stem(path))
        if match is None:
            continue
        part = _PARTS[match[2].lower()]
        # One case of 2020 has labels of another name, W39_1998.09.19_Segm.nii
        case = path.parent.name if match[2].lower() == "segm" else match[1]
        if part in found[case]:
            raise UserError(f"{case} has two files of {part}: {found[case][part]}, {path}; keep one of them")
        found[case][part] = path
    cases = [
        Case(
            name,
            partial(_read, name, parts, how),
            partial(read_volume, parts["seg"], how.target) if "seg" in parts else None,
            patient=visit[1] if (visit := _VISIT.fullmatch(name)) else name,
            split="train" if "seg" in parts else "test",
            file=str(next(iter(parts.values()))),
            inputs=[parts[part] for part in sorted(parts)],
        )
        for name, parts in found.items()
    ]
    unlabelled = sorted(case.name for case in cases if case.read_labels is None)
    if unlabelled:
        say(f"densepath: {counted(len(unlabelled), 'case has', 'cases have')} no labels: {first_few(unlabelled)}")
    return convert(cases, Contents("brats", "MR", _LABELS, tuple(_SEQUENCES)), how)


def _read(name: str, parts: dict[str, Path], how: Conversion) -> Volume:
    lacking = [sequence for sequence in _SEQUENCES if sequence not in parts]
    if lacking:
        raise CorruptImage(name, f"it lacks {', '.join(lacking)}")
    return read_channels([parts[sequence] for sequence in _SEQUENCES], how.target)
