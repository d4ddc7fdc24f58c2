"""Radiographs in DICOM files as grey pixels. Only what describes these is read: no name of a patient leaves a file."""

from __future__ import annotations

import io
import os
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densepath.core.errors import errors_as, unwrapped
from densepath.sources.corrupt import CorruptImage, decoding
from densepath.sources.listing import walk
from densepath.sources.volumes.volume import library

SUFFIXES = (".dcm", ".dicom")
DICOM_START = 132  # bytes that show whether a file is DICOM
_FIRST = 20  # files of a folder that are looked at
_LARGE = 2**20  # bytes of an element whose length is compared with that of the file
_HEADER = (
    *("Rows", "Columns", "BitsStored", "BitsAllocated", "SamplesPerPixel", "PhotometricInterpretation"),
    *("NumberOfFrames", "Modality", "PixelRepresentation"),
)
_PIXELS = (
    *("PixelData", "HighBit", "PlanarConfiguration", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction"),
)
_GREY = ("MONOCHROME1", "MONOCHROME2")
_OTHERS = {
    **dict.fromkeys(("CT", "MR", "PT"), "it is a slice of a volume; convert its series with densepath data dicom"),
    "SM": "it is a whole slide; cut it into tiles with densepath tile",
}


def is_dicom(start: bytes) -> bool:
    """Whether a file is DICOM, from its first bytes."""
    return start[DICOM_START - 4 : DICOM_START] == b"DICM"


def is_dicom_file(path: str | Path) -> bool:
    """Whether a file is DICOM; False if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return is_dicom(file.read(DICOM_START))
    except (OSError, ValueError):  # the latter for a path with a null byte
        return False


def holds_dicom(folder: str | Path) -> bool:
    """Whether one of the first files of a folder is DICOM, whatever its name."""
    return any(is_dicom_file(path) for path in islice(walk(folder, ("",)), _FIRST))


def dicom_header(path: str | Path) -> tuple[int, int, int, int, int]:
    """Height, width, channels, bits (8 or 16) and orientation of what :func:`read_dicom` returns.

    Raises:
        CorruptImage: it is damaged, or not a grey image of one frame.
    """
    header = _read(path, _HEADER)
    height, width = int(header.get("Rows", 0) or 0), int(header.get("Columns", 0) or 0)
    channels, kind = int(header.get("SamplesPerPixel", 1) or 1), str(header.get("PhotometricInterpretation", ""))
    if why := _OTHERS.get(str(header.get("Modality", "")).upper()):
        raise CorruptImage(str(path), why)
    if (frames := int(header.get("NumberOfFrames", 1) or 1)) > 1:
        raise CorruptImage(str(path), f"it has {frames} frames; export them as single images")
    if channels != 1:
        raise CorruptImage(str(path), f"it has {channels} channels ({kind}); a radiograph has one, save it as grey")
    if kind not in _GREY:
        raise CorruptImage(
            str(path), f"its photometric interpretation is {kind or 'missing'}, not {' or '.join(_GREY)}; correct it"
        )
    if min(height, width) < 2:
        raise CorruptImage(str(path), f"it has {height} x {width} px (rows x columns); export it again")
    return height, width, 1, 8 if int(header.get("BitsStored", 16)) <= 8 else 16, 1


def patient_id(path: str | Path) -> str:
    """The number of the patient, to group files with; "" if it is unknown, or not DICOM. It must not be stored."""
    if not is_dicom_file(path) and not str(path).lower().endswith(SUFFIXES):
        return ""
    try:
        return str(_read(path, ("PatientID",)).get("PatientID") or "").strip()
    except CorruptImage:
        return ""


def read_dicom(path: str | Path) -> npt.NDArray[Any]:
    """The pixels (H, W) of a radiograph: uint8 or uint16, of which 0 is black and the highest value is white.

    Stored values are rescaled by the modality's table, or slope and intercept; then the first window (VOI table, or
    center and width), or, without one, the range of the stored bits, is mapped to the full range of the result.
    MONOCHROME1, in which high values are dark, is inverted.

    Args:
        path: the file.

    Raises:
        CorruptImage: as for :func:`dicom_header`; or the pixels are missing, compressed in an unknown way, or equal.

    Source: DICOM PS3.3, C.11.1 and C.11.2.
    """
    bits = dicom_header(path)[3]
    content = _read(path, (*_HEADER, *_PIXELS), pixels=True)
    with errors_as(lambda error: CorruptImage(str(path), undecodable(error))):
        stored = content.pixel_array
        shown = _shown(content, stored)
    if stored.min() == stored.max():
        raise CorruptImage(str(path), f"all of its pixels have the value {stored.flat[0]}; export it again")
    if not shown.max() > shown.min():  # also for NaN
        raise CorruptImage(str(path), "its window shows all pixels alike; correct the window, or export it without one")
    shown = 1 - shown if content.PhotometricInterpretation == _GREY[0] else shown
    return np.rint(shown * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)


def undecodable(error: Exception) -> str:
    """Why the pixels of a file cannot be decoded: which packages decode its compression, if none is installed."""
    text = unwrapped(str(error))
    if "missing dependencies" not in text:
        return f"cannot be decoded ({text[:200]})"
    kind = text.partition("'")[2].partition("'")[0] or "its compression"
    return f"cannot be decoded: {kind} needs more packages, pip install 'pylibjpeg[all]'"


def _shown(content: Any, stored: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Values in [0, 1] after rescaling and window."""
    count, signed = int(content.BitsStored), int(content.get("PixelRepresentation", 0) or 0)
    if tables := content.get("ModalityLUTSequence"):
        values, ends = _look_up(tables[0], stored)
    else:
        slope, intercept = (content.get(name) for name in ("RescaleSlope", "RescaleIntercept"))
        scale = float(1 if slope is None else slope), float(intercept or 0)
        values = stored * scale[0] + scale[1]
        limits = [-(2 ** (count - 1)), 2 ** (count - 1) - 1] if signed else [0, 2**count - 1]
        ends = np.sort(np.array(limits) * scale[0] + scale[1])
    if tables := content.get("VOILUTSequence"):
        values, ends = _look_up(tables[0], values)
        return values / ends[1]
    if content.get("WindowWidth") is None or content.get("WindowCenter") is None:
        return ((values - ends[0]) / (ends[1] - ends[0])).clip(0, 1)
    center, width = (_first(content.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if width <= 0:
        raise ValueError(f"its window has the width {width:g}")
    kind = str(content.get("VOILUTFunction") or "LINEAR").upper()
    if kind == "SIGMOID":
        return np.asarray(1 / (1 + np.exp(-4 * (values - center) / width)))
    if kind == "LINEAR_EXACT":
        return ((values - center) / width + 0.5).clip(0, 1)
    if width <= 1:  # a threshold
        return (values > center - 0.5).astype(np.float64)
    return ((values - (center - 0.5)) / (width - 1) + 0.5).clip(0, 1)


def _look_up(item: Any, values: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The entries of a table for values, and the range of its entries."""
    count, first = (int(number) for number in item.LUTDescriptor[:2])
    count = count or 2**16
    data = item.LUTData
    if isinstance(data, bytes):
        data = np.frombuffer(data, "<u2" if len(data) >= 2 * count else "u1")
    entries = np.asarray(data, np.float64)[:count]
    if first >= 2**15 and values.min() < 0:  # it is signed where values are, whatever the file says
        first -= 2**16
    place = (np.rint(values).astype(np.int64) - first).clip(0, len(entries) - 1)
    # Tables often use fewer or more bits than they declare.
    return entries[place], np.array([0.0, max(1.0, entries.max())])


def _first(value: Any) -> float:
    """A number, or the first of several."""
    return float(value if isinstance(value, str | int | float) else value[0])


def _read(path: str | Path, tags: tuple[str, ...], pixels: bool = False) -> Any:
    """Some elements of a file; no others are kept in memory."""
    with decoding(path, "not a DICOM file, or damaged"):
        known = is_dicom_file(path)
        return read_elements(path, stop_before_pixels=not pixels, specific_tags=list(tags), force=not known)


def read_elements(path: str | Path, **options: Any) -> Any:
    """The result of ``pydicom.dcmread``; a damaged length of an element takes no more memory than the file is long."""
    with _Bounded(io.FileIO(path)) as file:
        return library("pydicom").dcmread(file, **options)


class _Bounded(io.BufferedReader):
    """A file that is asked for no more bytes than it has: Python makes room for all before it reads them."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _LARGE:
            size = min(size, max(0, os.fstat(self.fileno()).st_size - self.tell()))
        return super().read(size)
