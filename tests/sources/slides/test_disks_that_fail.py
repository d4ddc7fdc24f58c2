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
from PIL import Image
from slide_files import Pixels, halves, write_dicom

from densepath.sources import patience
from densepath.sources.corrupt import CorruptImage, can_pass
from densepath.sources.decode import read_image
from densepath.sources.patience import disk_errors_named
from densepath.sources.slides import dicom_slide, openslide_slide
from densepath.sources.slides import open as open_module
from densepath.sources.slides.decoded_tiles import recent_tiles
from densepath.sources.slides.dicom_slide import DicomSlide, files_of_series
from densepath.sources.slides.file_parts import FileParts
from densepath.sources.slides.handles import Handles
from densepath.sources.slides.open import open_slide
from densepath.sources.slides.openslide_slide import OpenSlideFile, open_with_openslide
from densepath.sources.tiles.identity import identity_of, identity_of_slide, is_identity


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses, which take no time here."""
    found: list[float] = []
    monkeypatch.setattr(patience.time, "sleep", found.append)
    monkeypatch.setattr(patience, "_failures", patience._Failures())
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
    monkeypatch.setattr(patience, "_failures", patience._Failures())
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
    monkeypatch.setattr(DicomSlide, "_read", failing(1, errno.EIO, lambda *given: "pixels"))
    assert slide.read(0, (0, 0, 8, 8), 1) == "pixels"  # type: ignore[comparison-overlap]
    assert pauses == [patience.PAUSES[0]]


def away(path: Path) -> None:
    """Let all reads of a file fail, as on a disk that stays away."""
    path.unlink()
    path.symlink_to("/proc/self/mem")


needs_failing_file = pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="a file whose reads give EIO")


def test_the_failure_of_a_disk_counts_if_a_slide_cannot_be_opened_again(
    slides: dict[str, Path], pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSlide calls a slide unknown whose disk is still away at the second attempt."""
    slide = open_with_openslide(str(slides["YCbCr"]))
    assert slide is not None
    failed = openslide.OpenSlideError("I/O error reading file x")
    unknown = openslide.OpenSlideUnsupportedFormatError("Unsupported or missing image file")

    def raising(error: Exception) -> Callable[..., Any]:
        def fail(*_: Any) -> Any:
            raise error

        return fail

    monkeypatch.setattr(openslide.OpenSlide, "read_region", raising(failed))
    monkeypatch.setattr(openslide.OpenSlide, "__init__", raising(unknown))
    with pytest.raises(CorruptImage, match="I/O error reading file x") as caught:
        slide.read(0, (0, 0, 8, 8), 1)
    assert can_pass(caught.value) and pauses == list(patience.PAUSES)


@needs_failing_file
def test_a_slide_on_a_disk_that_stays_away_is_not_called_unknown(
    slides: dict[str, Path], pauses: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.tiff"
    path.write_bytes(slides["YCbCr"].read_bytes())
    slide = open_with_openslide(str(path))
    assert slide is not None
    openslide_slide._handles.drop(slide.file)
    away(path)
    reads = [lambda: slide.read(0, (0, 0, 8, 8), 1), lambda: slide.read_associated("label"), lambda: open_slide(path)]
    monkeypatch.setattr(open_module, "_start", lambda path: b"....")
    for read in reads:
        with pytest.raises(CorruptImage, match=r"cannot be read \(Input/output error\)") as caught:
            read()
        assert can_pass(caught.value)
    monkeypatch.setattr(dicom_slide, "_handles", Handles(lambda path: b"no DICOM"[9]))
    dicom = DicomSlide(FileParts(str(path), (1, 1)), (0,), (), None, ())
    with pytest.raises(CorruptImage, match="Input/output error") as caught:
        dicom.read(0, (0, 0, 8, 8), 1)
    assert can_pass(caught.value)


def test_a_file_of_a_dicom_slide_that_cannot_be_read_is_not_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slide would look like one with fewer levels."""
    paths = [str(tmp_path / name) for name in ("a.dcm", "b.dcm")]
    for path in paths:
        Path(path).write_bytes(b"\x20\x00\x0e\x00UI\x04\x001.2 ")
    assert files_of_series(paths[0]) == paths
    lost, stat = [paths[1]], os.stat

    def failing_stat(path: Any, *given: Any, **options: Any) -> Any:
        if path in lost:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return stat(path, *given, **options)

    monkeypatch.setattr(os, "stat", failing_stat)
    assert files_of_series(paths[0]) == paths
    with pytest.raises(OSError, match="Input/output error"):
        files_of_series(paths[1])


@needs_failing_file
def test_a_dicom_slide_is_not_opened_without_a_file_that_cannot_be_read(
    tissue: Pixels, pauses: list[float], tmp_path: Path
) -> None:
    """OpenSlide leaves the file out; a folder that is scanned for the first time does not say whose it is."""
    path = write_dicom(tmp_path, [tissue, halves(tissue, 2), halves(tissue, 4)], 0.5)
    known, slide = identity_of_slide(path), open_slide(path)
    assert isinstance(slide.file, OpenSlideFile) and len(slide.levels) == 3
    openslide_slide._handles.drop(slide.file.file)
    away(tmp_path / "DOE1.dcm")
    for read in (lambda: open_slide(path), lambda: slide.read(1, (0, 0, 8, 8))):
        with pytest.raises(CorruptImage, match=r"DOE1\.dcm cannot be read \(Input/output error\)") as caught:
            read()
        assert caught.value.path == str(path) and can_pass(caught.value)
    assert pauses == list(patience.PAUSES)
    assert is_identity(known, identity_of_slide(path), path)  # what was made of it stays


def test_a_slide_whose_folder_cannot_be_listed_is_not_another_one(
    tmp_path: Path, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    for name in ("a.mrxs", "a/Data0000.dat"):
        (tmp_path / name).write_text(name)
    known = identity_of_slide(tmp_path / "a.mrxs")
    monkeypatch.setattr(os, "scandir", failing(9, errno.EIO, os.scandir))
    assert is_identity(known, identity_of_slide(tmp_path / "a.mrxs"), tmp_path / "a.mrxs")
    assert pauses == list(patience.PAUSES)


def test_the_disk_of_a_damaged_slide_is_not_tested_all_the_time(
    tmp_path: Path, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test reads all of its files: 2 s in this one."""
    (tmp_path / "a").write_bytes(b"damaged")
    clock, tested = [0.0], []

    def files_of(path: str) -> list[str]:
        clock[0] += 2
        tested.append(clock[0])
        return [path]

    monkeypatch.setattr(patience.time, "monotonic", lambda: clock[0])
    for _ in range(30):
        with pytest.raises(CorruptImage, match="damaged"), disk_errors_named(str(tmp_path / "a"), files_of):
            raise CorruptImage(str(tmp_path / "a"), "damaged")
        clock[0] += 1
    assert tested == [2.0, 24.0]


def disk_error(*_: Any) -> Any:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_dead_disk_is_waited_for_at_two_files(pauses: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    """Not at each of thousands of slides in silence; in folders of their own, too."""
    for number in range(5):
        with pytest.raises(OSError, match="Input/output error"):
            patience.patiently(f"/dead/{number}/a.dcm", disk_error)
    assert pauses == 2 * [*patience.PAUSES]
    line = "densepath: /dead/0/a.dcm cannot be read (Input/output error); trying again for 2.5 s\n"
    assert capsys.readouterr().err == line
    patience.patiently("/dead/9/a.dcm", lambda: None)
    for name in ("/dead/0/a.dcm", "/dead/7/a.dcm"):
        with pytest.raises(OSError, match="Input/output error"):
            patience.patiently(name, disk_error)
    assert pauses == 3 * [*patience.PAUSES]  # the first is still known to fail


def test_files_of_two_dead_disks_say_nothing_of_a_third_disk(pauses: list[float]) -> None:
    for path in ("/a/1.svs", "/b/1.svs", "/c/1.svs"):
        with pytest.raises(OSError, match="Input/output error"):
            patience.patiently(path, disk_error)
    assert pauses == 3 * [*patience.PAUSES]


def test_attempts_inside_of_others_do_not_wait(pauses: list[float]) -> None:
    with pytest.raises(OSError, match="Input/output error"):
        patience.patiently("a", lambda: patience.patiently("a", disk_error))
    assert pauses == list(patience.PAUSES)


def test_another_error_after_that_of_a_disk_does_not_replace_it(pauses: list[float]) -> None:
    errors = iter([OSError(errno.ESTALE, "stale"), ValueError("no image"), FileNotFoundError("gone")])

    def attempt() -> None:
        raise next(errors)

    with pytest.raises(OSError, match="stale"):
        patience.patiently("a", attempt)
    assert pauses == list(patience.PAUSES)


@pytest.mark.parametrize(("number", "again"), [(errno.EIO, ["a.bin"]), (errno.EINVAL, [])])
def test_only_the_file_of_a_disk_that_fails_is_opened_again(
    tmp_path: Path, pauses: list[float], monkeypatch: pytest.MonkeyPatch, number: int, again: list[str]
) -> None:
    files = []
    for name in ("a.bin", "b.bin"):
        (tmp_path / name).write_bytes(b"data")
        files.append(FileParts.of(str(tmp_path / name)))
        assert files[-1].read(0, 4) == b"data"
    opened: list[str] = []
    real = os.open
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", lambda path, *given: opened.append(Path(path).name) or real(path, *given))
        with patched.context() as failing_once:
            failing_once.setattr(os, "pread", failing(1, number, os.pread))
            if again:
                files[0].read(0, 4)
            else:
                with pytest.raises(CorruptImage):
                    files[0].read(0, 4)
        assert [file.read(0, 4) for file in files] == 2 * [b"data"]
    assert opened == again


def test_an_image_is_read_after_a_pause(tmp_path: Path, pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with monkeypatch.context() as patched:
        patched.setattr("builtins.open", failing(1, errno.EIO, open))
        assert read_image(path=tmp_path / "a.png").shape == (8, 8, 3) and pauses == [patience.PAUSES[0]]
