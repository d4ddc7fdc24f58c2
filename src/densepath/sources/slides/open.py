"""Opening a slide with the library that reads its format fastest."""

from __future__ import annotations

from pathlib import Path

from densepath.core.errors import UserError
from densepath.core.single_values import take_single_values
from densepath.sources.corrupt import CorruptImage, can_pass
from densepath.sources.dicom_image import DICOM_START, is_dicom
from densepath.sources.patience import disk_errors_named, patiently
from densepath.sources.slides.all_files import files_of
from densepath.sources.slides.dicom_slide import open_dicom
from densepath.sources.slides.openslide_slide import open_with_openslide
from densepath.sources.slides.resolution import check_mpp
from densepath.sources.slides.slide import Slide
from densepath.sources.slides.slide_file import SlideFile
from densepath.sources.slides.tiff_slide import open_tiff
from densepath.sources.tiff import TIFF_STARTS
from densepath.sources.tiff_colors import UnknownStorage


@take_single_values
def open_slide(path: str | Path, mpp: float | None = None, default_mpp: float | None = None) -> Slide:
    """Open a slide.

    Args:
        path: the file; of a DICOM slide, any of its files.
        mpp: µm per pixel that override those of the file.
        default_mpp: µm per pixel if neither gives them.

    Raises:
        CorruptImage: it cannot be read.
        UserError: a library that it needs is not installed, or what is given is not µm per pixel.
    """
    check_mpp("mpp", mpp)
    check_mpp("default_mpp", default_mpp)
    name = str(path)
    slide = Slide(name, patiently(name, lambda: _opened(name))).with_mpp(mpp)
    return slide.with_mpp(default_mpp) if slide.spacing is None else slide


def _opened(path: str) -> SlideFile:
    with disk_errors_named(path, files_of):
        return _file(path)


def _file(path: str) -> SlideFile:
    start = _start(path)
    refused: UserError | None = None
    if start[:4] in TIFF_STARTS:
        try:
            tiled = open_tiff(path)
        except UnknownStorage as error:
            tiled, refused = None, error
        except (UserError, MemoryError):
            raise
        except Exception as error:  # tifffile raises nearly any type on corrupt bytes, and may quote what the file says
            if isinstance(error, OSError) and can_pass(error):
                raise CorruptImage(path, f"cannot be read ({error.strerror})") from error
            tiled, refused = None, CorruptImage(path, "a TIFF that is truncated or damaged; copy it again")
            refused.__cause__ = error
        if tiled is not None:
            return tiled
    try:
        other = open_with_openslide(path)
    except UserError as error:
        if isinstance(error, CorruptImage) and can_pass(error):
            raise
        other, refused = None, refused or error
    if other is not None:
        return other
    if is_dicom(start):
        return open_dicom(path)
    if refused is not None:
        raise refused
    if start[:4] in TIFF_STARTS:
        why = "not a slide: a TIFF without tiles (a label, a thumbnail?); save a large one as a tiled pyramid"
    else:
        why = "not a slide of a format that OpenSlide knows; convert it to a tiled TIFF"
    raise CorruptImage(path, why)


def _start(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            start = file.read(DICOM_START)
    except FileNotFoundError as error:
        raise CorruptImage(path, "the file is missing") from error
    except OSError as error:
        raise CorruptImage(path, f"cannot be read ({error.strerror})") from error
    if not start:
        raise CorruptImage(path, "the file is empty")
    return start
