"""DICOM slides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from slide_files import Pixels, halves, write_dicom

from densepath.cli import main
from densepath.sources.corrupt import CorruptImage
from densepath.sources.slides.dicom_slide import files_of_series, open_dicom
from densepath.sources.slides.find import find_slides
from densepath.sources.slides.open import open_slide
from densepath.sources.slides.slide import Slide
from densepath.sources.slides.slide_file import SlideFile
from densepath.sources.slides.table import list_slides


def _by_wsidicom(path: Path) -> SlideFile:
    pytest.importorskip("wsidicom", reason="wsidicom is an extra")
    return open_dicom(str(path))


@pytest.mark.parametrize("opener", [lambda path: open_slide(path).file, _by_wsidicom])
def test_levels_and_pixels(opener: Callable[[Path], SlideFile], tissue: Pixels, tmp_path: Path) -> None:
    path = write_dicom(tmp_path, [tissue, halves(tissue, 4)], 0.5)
    slide = Slide(str(path), opener(path))
    assert slide.vendor == "dicom" and slide.mpp == pytest.approx((0.5, 0.5))
    assert [level.size for level in slide.levels] == [(333, 517), (83, 129)]
    assert [level.downsample for level in slide.levels] == [(1, 1), (4, 4)]
    for number, pixels in enumerate((tissue, halves(tissue, 4))):
        whole = slide.read(number, (0, 0, *pixels.shape[:2]))
        assert np.abs(whole.astype(int) - pixels).mean() < 5
        for top, left in ((20, 30), (0, 69), (33, 1)):
            part = slide.read(number, (top, left, 50, 60)).astype(int)
            assert np.abs(part - whole[top : top + 50, left : left + 60]).max() <= number  # OpenSlide may resample


def test_a_folder_with_two_slides_holds_two(tissue: Pixels, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder := tmp_path / "S").mkdir()
    paths = [
        write_dicom(folder, [tissue[:200], halves(tissue[:200], 2)], 0.5, name) for name in ("ROE^JIM", "DOE^JANE")
    ]
    assert sorted(find_slides(folder)) == sorted(map(str, paths))
    assert main(["slides", "--data", str(folder), "--out", str(tmp_path / "t.csv")]) == 0
    shown = capfd.readouterr()
    for text in (shown.out, shown.err, (tmp_path / "t.csv").read_text()):
        assert "ROE^" not in text and "JANE" not in text
    assert "2 slides, 0 with problems" in shown.err and shown.out.count("dicom") == 2


def test_series_that_files_refer_to_are_not_their_own(tissue: Pixels, tmp_path: Path) -> None:
    import pydicom
    from pydicom.dataset import Dataset

    series = "1.2.3"
    paths = [write_dicom(tmp_path, [tissue, halves(tissue, 4)], 0.5, name) for name in ("ROE^JIM", "DOE^JANE")]
    for path in tmp_path.iterdir():
        content, other = pydicom.dcmread(path), Dataset()
        other.SeriesInstanceUID = series
        content.ReferencedSeriesSequence = [other]
        content.save_as(path)
    assert sorted(find_slides(tmp_path)) == sorted(map(str, paths))
    assert [len(files_of_series(str(path))) for path in paths] == [2, 2]


def test_a_damaged_dicom_file_is_named(tissue: Pixels, tmp_path: Path) -> None:
    path = write_dicom(tmp_path, [tissue[:200]], 0.5)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(CorruptImage, match=r"DOE0\.dcm.*cannot be decoded"):
        open_slide(path).read(0, (150, 400, 10, 10))
    (row,) = list_slides(data=tmp_path)
    assert "cannot be decoded" in row["problem"] and row["reader"] == "openslide"
