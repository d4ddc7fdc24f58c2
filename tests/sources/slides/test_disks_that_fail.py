"""Disks and network drives that fail for a moment, or for longer."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest

from densepath.sources import patience
from densepath.sources.corrupt import CorruptImage, can_pass
from densepath.sources.slides import open as open_module
from densepath.sources.slides.decoded_tiles import recent_tiles
from densepath.sources.slides.dicom_slide import DicomSlide
from densepath.sources.slides.file_parts import FileParts
from densepath.sources.slides.open import open_slide
from densepath.sources.slides.openslide_slide import open_with_openslide
from densepath.sources.tiles.identity import identity_of


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses, which take no time here."""
    found: list[float] = []
    monkeypatch.setattr(patience.time, "sleep", found.append)
    monkeypatch.setattr(patience, "_failed", set())
    return found


def failing(times: int, number: int, then: Callable[..., Any]) -> Callable[..., Any]:
    """Does what another function does after some failures."""
    left = [times]

    def call(*given: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(number, os.strerror(number))
        return then(*given, **options)

    return call


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOTCONN])
def test_what_a_disk_failed_to_give_is_read_after_a_pause(
    slides: dict[str, Path], pauses: list[float], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    slide = open_slide(slides["YCbCr"])
    before = slide.read(0, (0, 0, *slide.size))
    recent_tiles.clear()
    opened: list[str] = []
    real = os.open
    with monkeypatch.context() as patched:
        patched.setattr(os, "pread", failing(2, number, os.pread))
        patched.setattr(os, "open", lambda path, *given: opened.append(path) or real(path, *given))
        np.testing.assert_array_equal(slide.read(0, (0, 0, *slide.size)), before)
    assert pauses == list(patience.PAUSES) and opened == [slide.name] * 2  # a stale descriptor is opened again


def test_a_file_is_waited_for_in_vain_only_once(
    slides: dict[str, Path], pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = open_slide(slides["YCbCr"])
    for _ in range(2):
        recent_tiles.clear()
        with monkeypatch.context() as patched, pytest.raises(CorruptImage, match="Input/output error") as caught:
            patched.setattr(os, "pread", failing(9, errno.EIO, os.pread))
            slide.read(0, (0, 0, 8, 8))
        assert can_pass(caught.value) and pauses == list(patience.PAUSES)
    slide.read(0, (0, 0, 8, 8))
    recent_tiles.clear()
    monkeypatch.setattr(os, "pread", failing(1, errno.EIO, os.pread))
    slide.read(0, (0, 0, 8, 8))
    assert pauses == [*patience.PAUSES, patience.PAUSES[0]]


def test_a_disk_that_fails_is_no_problem_of_the_last_pixel(
    slides: dict[str, Path], pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be recorded, and never be looked at again."""
    slide = open_slide(slides["YCbCr"])
    recent_tiles.clear()
    monkeypatch.setattr(os, "pread", failing(9, errno.EIO, os.pread))
    with pytest.raises(CorruptImage, match="Input/output error"):
        slide.end_problem()


def test_a_missing_file_is_not_waited_for(tmp_path: Path, pauses: list[float]) -> None:
    with pytest.raises(CorruptImage, match="the file is missing"):
        open_slide(tmp_path / "a.svs")
    assert identity_of(tmp_path / "a.svs") == [-1, 0] and pauses == []


def test_a_slide_is_opened_after_a_pause(
    slides: dict[str, Path], pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not called damaged because its disk failed while its levels were looked for."""
    path, known = slides["YCbCr"], identity_of(slides["YCbCr"])
    with monkeypatch.context() as patched:
        patched.setattr(open_module, "open_tiff", failing(1, errno.EIO, open_module.open_tiff))
        assert open_slide(path).file.reader == "tiles" and pauses == [patience.PAUSES[0]]
        patched.setattr(open_module, "open_tiff", failing(9, errno.EIO, open_module.open_tiff))
        with pytest.raises(CorruptImage, match=r"cannot be read \(Input/output error\)") as caught:
            open_slide(path)
        assert can_pass(caught.value)
    patience._failed.clear()
    monkeypatch.setattr("builtins.open", failing(1, errno.EIO, open))
    assert identity_of(path) == known


def test_openslide_says_that_a_disk_has_failed(
    slides: dict[str, Path], pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = open_with_openslide(str(slides["YCbCr"]))
    assert slide is not None
    before = slide.read(0, (0, 0, 8, 8), 1)
    left = [1]

    def read_region(self: Any, *given: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise openslide.OpenSlideError("I/O error reading file x")
        return real(self, *given)

    real = openslide.OpenSlide.read_region
    monkeypatch.setattr(openslide.OpenSlide, "read_region", read_region)
    np.testing.assert_array_equal(slide.read(0, (0, 0, 8, 8), 1), before)
    left[0] = 9
    with pytest.raises(CorruptImage, match="I/O error reading file x") as caught:
        slide.read(0, (0, 0, 8, 8), 1)
    assert can_pass(caught.value) and pauses == [patience.PAUSES[0], *patience.PAUSES]


def test_a_dicom_slide_is_read_after_a_pause(pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    slide = DicomSlide(FileParts("a.dcm", (1, 1)), (0,), (), None, ())
    monkeypatch.setattr(DicomSlide, "_pixels", failing(1, errno.EIO, lambda *given: "pixels"))
    assert slide.read(0, (0, 0, 8, 8), 1) == "pixels"  # type: ignore[comparison-overlap]
    assert pauses == [patience.PAUSES[0]]
