"""Options of a conversion to a store of volumes, and the cases that it converts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from densepath.annotations.patients import check_spelling
from densepath.core.errors import UserError, refuse
from densepath.core.output_names import is_inside
from densepath.core.random import ordered_by_seed
from densepath.core.single_values import list_single_fields
from densepath.core.streams import say
from densepath.datasets.shared_patients import report_unknown
from densepath.sources.listing import Passed
from densepath.sources.volumes.dicom_volume import Gaps
from densepath.sources.volumes.volume import Volume


@dataclass(frozen=True)
class Conversion:
    """What to convert, and how.

    Args:
        source: the data set.
        dest: a new folder for the store, or an unfinished one, which is continued.
        spacing: mm between voxels along x, y and z, to which volumes are resampled (labels: the nearest voxel);
            "native" keeps their own. Files that name no spacing are taken to have this one.
        window: the lowest and the highest value that a network distinguishes, e.g. -1000 1000 for CT; or "volume": each
            volume's own 0.5th and 99.5th percentile, as for MR; or "shared": the percentiles of up to 64 of
            them. By default shared for CT, volume for others. Stored values are not clipped.
        patient_regex: a regular expression that finds the patient in a volume's name; its first group, if it has one.
        exclude: patterns of volumes to leave out: ``*`` and ``?`` in their names.
        test_share: share of the patients, from 0 to 1, whose labelled volumes become the split "test", all others
            "train". ``--exclude test`` leaves it out of a pre-training.
    """

    source: str | Path
    dest: str | Path
    spacing: Literal["native"] | tuple[float, float, float] = "native"
    window: Literal["volume", "shared"] | tuple[float, float] | None = None
    patient_regex: str | None = None
    exclude: Sequence[str] = ()
    test_share: float | None = None

    def __post_init__(self) -> None:
        list_single_fields(self)
        if self.test_share is not None and not 0 < self.test_share < 1:
            raise UserError(f"--test_share is {self.test_share}; give a number between 0 and 1")
        sides = () if isinstance(self.spacing, str | int | float) else tuple(self.spacing)
        if self.spacing != "native" and (len(sides) != 3 or not all(0 < side < 1000 for side in sides)):
            raise UserError(f"spacing is {self.spacing}; give mm along x, y and z, e.g. 1 1 1, or native")
        if isinstance(self.window, tuple | list) and (len(self.window) != 2 or not self.window[0] < self.window[1]):
            raise UserError(f"window is {self.window}; give two numbers, the smaller first, or volume, or shared")

    @property
    def target(self) -> tuple[float, float, float] | None:
        """mm along x, y and z of the stored voxels; None for their own."""
        return None if isinstance(self.spacing, str) else self.spacing


@dataclass(frozen=True)
class DicomConversion(Conversion):
    """What to convert, and how.

    Args:
        source, dest, spacing, window, patient_regex, exclude, test_share: as in Conversion.
        gaps: what to do with a series whose slices are not at equal steps: "error" leaves it out and names it;
            "resample" interpolates slices at equal steps.
        key: a CSV file outside of the store for the patient's identifier, the UID and the folder of each volume's
            series, which the store does not hold; readable by its owner only.
    """

    gaps: Gaps = "error"
    key: str | Path | None = None


@dataclass(frozen=True)
class FolderConversion(Conversion):
    """What to convert, and how.

    Args:
        source, dest, spacing, window, patient_regex, exclude, test_share: as in Conversion.
        images: the folder of the volumes in the source; by default all of it.
        labels: the folder of their labels in the source: files with the same names.
    """

    images: str = "."
    labels: str | None = None


@dataclass(frozen=True, eq=False)
class Case:
    """A volume to convert.

    Args:
        name: unique; it becomes the name of a file, and may contain "/".
        read: reads the volume; raises CorruptImage.
        read_labels: reads its labels, if it has any.
        patient: the patient, if known.
        split: "train" or "test" if the data set says so.
        file: the file that it is read from, for messages.
        inputs: all files that it and its labels are read from: if one changes, the volume is converted again.
        cut: what is read of them, if not all: if it changes, the volume is converted again.
        count: its channels by the headers of its files, None if unknown; for layouts in which volumes have several.
    """

    name: str
    read: Callable[[], Volume]
    read_labels: Callable[[], Volume] | None = None
    patient: str | None = None
    split: str = ""
    file: str = ""
    inputs: Sequence[str | Path] = ()
    cut: str = ""
    count: Callable[[], int | None] | None = None


@dataclass(frozen=True)
class Contents:
    """What a data set says about all of its volumes.

    Args:
        layout: the verb that reads it.
        modality: "CT", "MR" or another, "" if unknown.
        labels: code -> name.
        channels: their names.
    """

    layout: str
    modality: str = ""
    labels: dict[int, str] | None = None
    channels: tuple[str, ...] = ()


def with_test(cases: Sequence[Case], share: float) -> list[Case]:
    """The cases, where the labelled volumes of a share of the patients are the split "test", and others "train".

    Raises:
        UserError: labelled volumes are divided already, there are fewer than two patients, or one has two names.
    """
    labelled = [case for case in cases if case.read_labels is not None]
    if own := sorted({case.split for case in labelled} - {"", "train"}):
        raise UserError(f"the volumes are divided already (splits: {', '.join(own)}); leave out --test_share")
    check_spelling(case.patient for case in cases if case.patient)
    report_unknown([case.patient for case in labelled], [case.name for case in labelled], "volume")
    ranked = ordered_by_seed({case.patient or case.name for case in labelled}, 0)
    if len(ranked) < 2:
        raise UserError(f"--test_share needs labelled volumes of at least two patients; there are {len(ranked)}")
    test = set(ranked[: min(max(1, round(share * len(ranked))), len(ranked) - 1)])
    seen = {case.name for case in cases if (case.patient or case.name) in test}
    return [replace(case, split="test" if case.name in seen else case.split or "train") for case in cases]


def check_names(cases: Sequence[Case], source: str | Path) -> None:
    """Check that no two cases have the same name, and that names are those of files in the store.

    Raises:
        UserError: they are not, or there are no cases.
    """
    if not cases:
        raise UserError(f"{source} holds no volumes of this layout; check the path")
    outside = [case.name for case in cases if not is_inside(case.name)]
    refuse(outside, "names of volumes that are not those of files in a folder", "rename them")
    by_name: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        by_name[case.name].append(case)
    twice = [f"{name} ({', '.join(c.file for c in same)})" for name, same in by_name.items() if len(same) > 1]
    refuse(twice, "volumes that are there more than once", "keep one file of each")


def source_folder(source: str | Path) -> Path:
    """The source as a folder.

    Raises:
        UserError: it is not one.
    """
    folder = Path(source)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; check the path")
    return folder


def say_passed(passed: Passed) -> None:
    """Print what was passed over while files were listed, if anything was."""
    if also := passed.describe():
        say(f"densepath: passed over: {also}")
