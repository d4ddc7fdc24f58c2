"""Slides of many files: all of them say whether a slide has changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from slide_files import halves, write_dicom

from densepath.sources.slides.all_files import files_of
from densepath.sources.tiles.records import identity_of, identity_of_slide
from densepath.sources.tiles.slide_tiles import SlideTiles
from densepath.sources.tiles.tile_files import SlideTiling


def _mrxs(folder: Path) -> tuple[Path, Path]:
    (folder / "a").mkdir()
    for name in ("Slidedat.ini", "Data0000.dat", "Data0001.dat"):
        (folder / "a" / name).write_bytes(name.encode() * 99)
    (folder / "a.mrxs").write_bytes(b"a thumbnail")
    return folder / "a.mrxs", folder / "a" / "Data0001.dat"


def _vms(folder: Path) -> tuple[Path, Path]:
    for name in ("a.jpg", "a (1,0).jpg", "a_map.jpg", "other.jpg"):
        (folder / name).write_bytes(name.encode() * 99)
    lines = ("[Virtual Microscope Specimen]", "ImageFile=a.jpg", "ImageFile(1,0)=a (1,0).jpg", "MapFile=a_map.jpg")
    (folder / "a.vms").write_text("\r\n".join((*lines, "MacroImage=gone.jpg", "PhysicalWidth=1000", "Empty=")))
    return folder / "a.vms", folder / "a (1,0).jpg"


def _dicom(folder: Path) -> tuple[Path, Path]:
    pixels = np.full((128, 128, 3), 90, np.uint8)
    write_dicom(folder, [pixels], 0.5, "ROE^JIM")  # another series
    path = write_dicom(folder, [pixels, halves(pixels, 2)], 0.5)
    return path, folder / "DOE1.dcm"


@pytest.mark.parametrize(("make", "count"), [(_mrxs, 4), (_vms, 4), (_dicom, 2)])
def test_another_file_of_a_slide_is_another_slide(
    make: Callable[[Path], tuple[Path, Path]], count: int, tmp_path: Path
) -> None:
    slide, other = make(tmp_path)
    tiling = SlideTiling("a", str(slide), np.zeros((1, 2), np.int64), 0.5, 64, (0.5, 0.5), (128, 128))
    found, printed = files_of(slide), SlideTiles([tiling]).fingerprint()
    assert len(found) == count and found[0] == str(slide) and str(other) in found
    before = identity_of_slide(slide)
    data = other.read_bytes()
    other.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :])
    after = identity_of_slide(slide)
    assert len(before) == len(after) == 2 and before != after
    assert SlideTiles([tiling]).fingerprint() != printed


def test_a_slide_of_one_file_is_known_by_it(tmp_path: Path) -> None:
    for name in ("a.tiff", "b.mrxs", "c.vms", "d.dcm"):  # without their other files
        (tmp_path / name).write_bytes(os.urandom(99))
        assert files_of(tmp_path / name) == [str(tmp_path / name)]
        assert identity_of_slide(tmp_path / name) == identity_of(tmp_path / name)
    assert files_of(tmp_path / "gone.dcm") == [str(tmp_path / "gone.dcm")]
