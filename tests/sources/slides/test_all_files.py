"""Slides of many files: all of them say whether a slide has changed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from slide_files import halves, write_dicom

from densepath.sources.corrupt import CorruptImage
from densepath.sources.fingerprint import digest_of_samples, digest_of_sizes
from densepath.sources.slides import all_files
from densepath.sources.slides.all_files import files_of
from densepath.sources.tiles.identity import identity_of, identity_of_slide, is_identity
from densepath.sources.tiles.slide_tiles import SlideTiles
from densepath.sources.tiles.tile import tile
from densepath.sources.tiles.tile_files import SlideTiling
from densepath.transfer.predict_records import record_of
from densepath.transfer.slides.slide_work import SlideWork


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


def test_files_that_cannot_be_listed_refuse_a_training_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").touch()  # not the folder of a slide
    assert files_of(tmp_path / "a.mrxs") == [str(tmp_path / "a.mrxs")]
    slide, other = _dicom(tmp_path)
    tiling = SlideTiling("a", str(slide), np.zeros((1, 2), np.int64), 0.5, 64, (0.5, 0.5), (128, 128))

    def fail(path: str) -> list[str]:
        raise PermissionError(13, "Permission denied", str(other))

    monkeypatch.setattr(all_files, "files_of_series", fail)
    with pytest.raises(CorruptImage, match="its files cannot be listed"):
        SlideTiles([tiling]).fingerprint()


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


_TILED: dict[str, Any] = {"mpp": 0.5, "size": 64, "min_tissue": 0.0, "workers": 0}


@pytest.mark.parametrize("lost", ["a.mrxs", "a/Data0001.dat"])
def test_a_slide_of_which_a_file_cannot_be_opened_has_not_been_replaced(lost: str, tmp_path: Path) -> None:
    slide, _ = _mrxs(tmp_path)
    recorded = identity_of_slide(slide)
    (tmp_path / lost).unlink()
    (tmp_path / lost).symlink_to("gone")
    assert is_identity(recorded, identity_of_slide(slide), slide)
    (tmp_path / lost).unlink()
    (tmp_path / lost).write_text("of another slide")
    assert not is_identity(recorded, identity_of_slide(slide), slide)


@pytest.mark.parametrize("make", [_mrxs, _vms, _dicom])
def test_a_slide_of_several_files_is_known_as_earlier_versions_recorded_it(
    make: Callable[[Path], tuple[Path, Path]], tmp_path: Path
) -> None:
    slide, _ = make(tmp_path)
    now, before = [*identity_of_slide(slide), 0.5, None], [*identity_of(slide), 0.5, None]
    assert now != before and is_identity(before, now, slide) and is_identity(["a", *before], ["a", *now], slide, 1)
    for other in ([*before[:3], 1.0], ["b", *before], [before[0] + 1, *before[1:]], before[:3], None):
        assert not is_identity(other, now, slide)
    work = SlideWork(tmp_path / "out", {"a": now}, paths={"a": str(slide)})
    path = record_of(tmp_path / "out", "a")
    path.parent.mkdir(parents=True)
    for first, known in (("a", True), ("b", False)):
        path.write_text(f"{json.dumps([first, *before])}\n{{}}\n")
        shared = replace(work, identities={"a": ["a", *now]})
        assert shared.succeeded("a") == known
    tiling = SlideTiling("a", str(slide), np.zeros((1, 2), np.int64), 0.5, 64, (0.5, 0.5), (1, 1))
    facts = SlideTiles([tiling]).fingerprint()
    assert facts["sizes"] == digest_of_sizes([slide]) and facts["samples"] == digest_of_samples([slide])
    assert facts.keys() == {"names", "sizes", "samples", "parts"}


def test_tiles_of_an_earlier_version_are_not_made_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "slides").mkdir()
    spotted = np.full((512, 512, 3), 245, np.uint8)
    spotted[100:400, 100:400] = (170, 60, 140)
    write_dicom(tmp_path / "slides", [spotted, halves(spotted, 2)], 0.5)
    tile(data=tmp_path / "slides", out=tmp_path / "t", **_TILED)
    for path in (tmp_path / "t" / "records").iterdir():
        record = json.loads(path.read_text())
        record["identity"][:2] = identity_of(record["path"])
        path.write_text(json.dumps(record))
    (tmp_path / "slides").rename(tmp_path / "moved")
    capfd.readouterr()
    tile(data=tmp_path / "moved", out=tmp_path / "t", **_TILED)
    shown = capfd.readouterr().err
    assert "1 slide, 1 done before" in shown and "done again" not in shown


def test_a_folder_is_scanned_once_for_all_of_its_dicom_slides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [write_dicom(tmp_path, [np.full((64, 64, 3), 90, np.uint8)] * 2, 0.5, name) for name in ("A", "B", "C")]
    scans = []
    monkeypatch.setattr(os, "scandir", lambda *given, scan=os.scandir: scans.append(given) or scan(*given))
    assert [len(files_of(path)) for path in paths * 2] == [2] * 6 and len(scans) == 1
    (tmp_path / "more.dcm").touch()
    os.utime(tmp_path, ns=(1, 1))
    files_of(paths[1])
    shutil.copy(paths[1], tmp_path / "more.dcm")  # it was not yet written when the folder was scanned
    assert files_of(paths[1]) == [str(paths[1]), str(tmp_path / "B1.dcm"), str(tmp_path / "more.dcm")]
    assert len(scans) == 2


def test_a_slide_of_one_file_is_known_by_it(tmp_path: Path) -> None:
    for name in ("a.tiff", "b.mrxs", "c.vms", "d.dcm"):  # without their other files
        (tmp_path / name).write_bytes(os.urandom(99))
        assert files_of(tmp_path / name) == [str(tmp_path / name)]
        assert identity_of_slide(tmp_path / name) == identity_of(tmp_path / name)
    assert files_of(tmp_path / "gone.dcm") == [str(tmp_path / "gone.dcm")]
