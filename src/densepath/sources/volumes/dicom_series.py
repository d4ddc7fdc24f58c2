"""DICOM series: which files are one volume, and in which order.

Nothing that identifies a patient is taken from the files: patients are numbers, series are named by a digest.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densepath.core.errors import UserError
from densepath.core.system import usable_cores
from densepath.core.threads import in_threads
from densepath.sources.dicom_image import DICOM_START, is_dicom, read_elements
from densepath.sources.listing import Passed, walk

NUMBERS = ("TemporalPositionIdentifier", "EchoNumbers", "AcquisitionNumber")  # tags of what a slice belongs to
_TAGS = (
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "PatientID", "Modality", "Rows", "Columns"),
    *("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "NumberOfFrames", "SamplesPerPixel"),
    *("SpacingBetweenSlices", *NUMBERS),
)
_NEEDED = ("ImagePositionPatient", "ImageOrientationPatient", "SeriesInstanceUID", "SOPInstanceUID")
_TURN = 1e-3  # by which direction cosines of a volume's slices may differ


@dataclass(frozen=True, eq=False)
class Slice:
    """What a file's header says: nothing of it identifies a patient but ``patient``, which is not stored."""

    path: str
    series: str
    patient: str
    modality: str
    instance: str
    orientation: tuple[float, ...]
    position: npt.NDArray[np.float64]
    spacing: tuple[float, float] | None
    size: tuple[int, int]
    numbers: tuple[str, ...]  # of NUMBERS; "" for none
    step: float | None  # SpacingBetweenSlices, mm

    @property
    def normal(self) -> npt.NDArray[np.float64]:
        """The direction across the slice, of length 1."""
        normal = np.cross(self.orientation[:3], self.orientation[3:])
        return np.asarray(normal / np.linalg.norm(normal))

    @property
    def depth(self) -> float:
        """The place along the normal in mm."""
        return float(self.position @ self.normal)


@dataclass(frozen=True, eq=False)
class Series:
    """Slices of one series, orientation and size: a volume.

    Args:
        name: a digest of the series' UID.
        patient: the number of the patient among those of the source; None if the files name none.
        slices: in the order of their places.
    """

    name: str
    patient: str | None
    slices: tuple[Slice, ...]


def find_series(folder: str | Path) -> tuple[list[Series], Passed]:
    """The series in a folder and its subfolders, without those of fewer than two slices.

    Returns:
        The series in the order of their names, and what was passed over.

    Raises:
        UserError: a folder cannot be read.
    """
    found: dict[Any, list[list[Slice]]] = defaultdict(list)
    passed = Passed()
    paths = walk(folder, ("",), passed=passed)
    for read in in_threads(_slice, paths, usable_cores(), "DICOM headers"):
        if isinstance(read, str):
            passed.kinds[read] += 1
        else:
            _add(found[read.series, read.size], read)
    groups = [group for several in found.values() for group in several]
    patients = sorted({group[0].patient for group in groups} - {""})
    numbers = {patient: f"patient_{number:04d}" for number, patient in enumerate(patients, 1)}
    per_series: dict[str, int] = defaultdict(int)
    made = []
    for group in sorted(groups, key=lambda group: (group[0].series, -len(group), group[0].orientation)):
        unique = {part.instance: part for part in group}  # the same file twice
        if len(unique) < len(group):
            passed.kinds["repeated files"] += len(group) - len(unique)
        if len(unique) < 2:
            passed.kinds["images outside of a volume"] += len(unique)
            continue
        per_series[group[0].series] += 1
        number = per_series[group[0].series]
        digest = hashlib.sha256(group[0].series.encode()).hexdigest()[:16]
        name = f"series_{digest}" + (f"_{number}" if number > 1 else "")
        ordered = tuple(sorted(unique.values(), key=lambda part: (part.depth, part.numbers)))
        made.append(Series(name, numbers.get(group[0].patient), ordered))
    return sorted(made, key=lambda series: series.name), passed


def _add(groups: list[list[Slice]], part: Slice) -> None:
    """Add a slice to the group of its orientation, or begin one with it."""
    for group in groups:
        if max(abs(a - b) for a, b in zip(group[0].orientation, part.orientation, strict=True)) <= _TURN:
            group.append(part)
            return
    groups.append([part])


def _slice(path: str) -> Slice | str:
    """A slice of a volume; else why the file is passed over."""
    try:
        with open(path, "rb") as file:
            known = is_dicom(file.read(DICOM_START))
    except OSError:
        return "unreadable files"
    if not known and not path.lower().endswith(".dcm"):
        return "files of other formats"
    try:
        header = read_elements(path, stop_before_pixels=True, specific_tags=list(_TAGS), force=not known)
        if int(header.get("NumberOfFrames", 1) or 1) > 1:
            return "files of several frames (convert them with dcm2niix)"
        if header.get("Rows") is None:
            return "DICOM files without an image"
        if missing := [tag for tag in _NEEDED if not header.get(tag)]:
            return f"images without {missing[0]}"
        if int(header.get("SamplesPerPixel", 1)) != 1:
            return "images with colors"
        return Slice(
            path,
            str(header.SeriesInstanceUID),
            str(header.get("PatientID") or "").strip(),
            str(header.get("Modality", "")),
            str(header.SOPInstanceUID),
            tuple(np.array(header.ImageOrientationPatient, np.float64).reshape(6).tolist()),
            np.array(header.ImagePositionPatient, np.float64).reshape(3),
            (float(spacing[0]), float(spacing[1])) if (spacing := header.get("PixelSpacing")) else None,
            (int(header.Rows), int(header.Columns)),
            tuple(_text(header.get_item(tag)) for tag in NUMBERS),
            _number(header.get_item("SpacingBetweenSlices")),
        )
    except (UserError, MemoryError):
        raise
    except Exception:  # pydicom raises nearly any type on corrupt bytes
        return "damaged DICOM files"


def _text(element: Any) -> str:
    """The text of an element as it is stored, valid or not; "" without one."""
    return str((element and element.value) or b"", "latin-1").strip(" \0")


def _number(element: Any) -> float | None:
    """The number of an element; None without a valid one."""
    try:
        return float(_text(element))
    except ValueError:
        return None


def modality_of(series: Sequence[Series]) -> str:
    """The modality of all series, e.g. CT or MR; "" if they have several."""
    found = {each.slices[0].modality for each in series}
    return found.pop() if len(found) == 1 else ""
