"""``densepath tile``: what it writes, stops and continuations, processes that share a folder, bad slides."""

from __future__ import annotations

import csv
import errno
import gzip
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import h5py
import numpy as np
import pytest
import tifffile
from PIL import Image

from densepath.cli import main
from densepath.core.digests import digest_of_file
from densepath.core.errors import UserError
from densepath.core.geojson import read_features
from densepath.core.polygons import fill
from densepath.core.remains import temporary_name
from densepath.sources import patience
from densepath.sources.corrupt import CorruptImage
from densepath.sources.slides import open as slides_open
from densepath.sources.slides.decoded_tiles import recent_tiles
from densepath.sources.slides.open import open_slide
from densepath.sources.slides.slide import NO_MPP
from densepath.sources.tiles import one_slide, per_slide
from densepath.sources.tiles.coords import given_size
from densepath.sources.tiles.identity import identity_of
from densepath.sources.tiles.one_slide import Job
from densepath.sources.tiles.slide_tiles import read_tiles
from densepath.sources.tiles.tile import tile
from densepath.sources.tiles.tile_files import read_tile_folder
from densepath.sources.tiles.tiled_slide import open_tiled
from densepath.sources.tiles.tissue import find_tissue

_ASKED: dict[str, Any] = {"mpp": 1.0, "size": 64, "workers": 0}


def _rows(out: Path) -> dict[str, dict[str, str]]:
    with (out / "slides.csv").open(newline="") as file:
        return {row["slide"]: row for row in csv.DictReader(file)}


def _content(out: Path) -> dict[str, bytes]:
    """The files of a folder, without the log and hidden ones."""
    paths = (path for path in sorted(out.rglob("*")) if path.is_file() and path.name != "tile.log")
    return {str(p.relative_to(out)): p.read_bytes() for p in paths if ".locks" not in p.parts}


def _changed(out: Path) -> dict[str, int]:
    paths = (
        path for path in out.rglob("*") if path.is_file() and path.name != "tile.log" and ".locks" not in path.parts
    )
    return {str(path): path.stat().st_mtime_ns for path in paths}


@pytest.fixture(scope="session")
def tiled(painted_slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiles of the painted slides."""
    return Path(tile(data=painted_slides, out=tmp_path_factory.mktemp("tiled") / "t", **_ASKED))


def test_what_is_written(tiled: Path, painted_slides: Path) -> None:
    found = read_tile_folder(tiled)
    assert [(tiling.name, tiling.path) for tiling in found] == [
        ("a", str(painted_slides / "a.tiff")),
        ("sub/b", str(painted_slides / "sub/b.svs")),
    ]
    with (tiled / "tiles.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    rows = _rows(tiled)
    for tiling in found:
        tissue = find_tissue(open_slide(tiling.path))
        own = [row for row in table if row["slide"] == tiling.name]
        assert len(own) == len(tiling) == int(rows[tiling.name]["tiles"]) > 10
        assert [[int(row["x"]), int(row["y"])] for row in own] == tiling.corners.tolist()
        assert [[float(row["y_um"]), float(row["x_um"])] for row in own] == tiling.boxes_um()[:, :2].tolist()
        shares = tissue.share(tiling.boxes_um())
        assert [float(row["tissue"]) for row in own] == pytest.approx(shares, abs=1e-4) and shares.min() >= 0.25
        assert float(rows[tiling.name]["tissue_mm2"]) == pytest.approx(tissue.mm2, abs=1e-4)
        outlines = read_features(tiled / "tissue" / f"{tiling.name}.geojson")
        assert {each.category for each in outlines} == {"Tissue"} and len(outlines) == len(tissue.outlines())
        with Image.open(tiled / "masks" / f"{tiling.name}.png") as image:
            assert max(image.size) >= 900
            colors = {color for _, color in image.convert("RGB").getcolors(2**24)}
            assert {(0, 140, 0), (40, 60, 255)} <= colors
    with Image.open(tiled / "contact_sheet.png") as sheet:
        assert sheet.width > 2 * 220
    assert rows["a"]["width"] == "768" and rows["a"]["mpp"] == "1" and rows["a"]["problem"] == ""
    assert (tiled / "config.yaml").read_text().startswith("# densepath ")
    assert "2 slides, 0 done before" in (tiled / "tile.log").read_text()


def test_the_same_command_does_nothing_and_moved_slides_only_change_their_paths(
    tiled: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "t"
    result = tile(data=folder, out=out, **_ASKED)
    assert _content(out).keys() == _content(tiled).keys() and result["tiles"] > 30
    before = _changed(out)
    assert tile(data=folder, out=out, **_ASKED)["tiles"] == result["tiles"] and _changed(out) == before
    moved = Path(shutil.copytree(folder, tmp_path / "moved", copy_function=shutil.copyfile))
    shutil.rmtree(folder)
    tile(data=moved, out=out, **_ASKED)
    assert {Path(row["path"]).parts[-2] for row in _rows(out).values()} == {"moved", "sub"}
    changed = {Path(name).name for name, stamp in _changed(out).items() if before[name] != stamp}
    assert changed == {"slides.csv", "tiles.csv", "contact_sheet.png"}
    shutil.copy(moved / "a.tiff", moved / "sub/b.svs")  # another slide under this name
    tile(data=moved, out=out, **_ASKED)
    assert _rows(out)["sub/b"]["tiles"] == _rows(out)["a"]["tiles"]


def test_other_options_refuse_the_folder(tiled: Path, painted_slides: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tile", "--data", str(painted_slides), "--out", str(tiled), "--mpp", "1", "--size", "32", "--align"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert f"{tiled} was made with other values of size, align (see {tiled}/config.yaml); use those, or another" in said
    with pytest.raises(UserError, match="already exists and is not empty"):
        tile(data=painted_slides, out=painted_slides / "sub", **_ASKED)


def _dies_at(monkeypatch: pytest.MonkeyPatch, name: str, how: Callable[[], object]) -> None:
    """Let something happen in the middle of a slide, in all processes that are forked from now on."""
    find = Job._find

    def killed(self: Job, slide: str, *given: Any) -> Any:
        if slide == name:
            how()
        return find(self, slide, *given)

    monkeypatch.setattr(Job, "_find", killed)


def test_a_killed_command_continues(
    tiled: Path, painted_slides: Path, tmp_path: Path, monkeypatch: Any, in_child: Callable[..., int]
) -> None:
    out = tmp_path / "t"
    write = one_slide.write_tiling

    def killed(path: Path, *given: Any) -> None:
        if "sub" in str(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            (path.parent / temporary_name(path.name)).write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
        write(path, *given)

    monkeypatch.setattr(one_slide, "write_tiling", killed)
    child = in_child(lambda: tile(data=painted_slides, out=out, **_ASKED))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    monkeypatch.undo()
    with pytest.raises(UserError, match="unfinished; continue with the same densepath tile command"):
        read_tile_folder(out)
    kept = out / "records/a.json"
    stamp = kept.stat().st_mtime_ns
    tile(data=painted_slides, out=out, **_ASKED)
    assert kept.stat().st_mtime_ns == stamp and not list(out.rglob("*.part"))
    whole, continued = _content(tiled), _content(out)
    fixed = [name for name in whole if not name.endswith((".h5", ".json"))]  # HDF5 files name their folder
    assert {name: continued[name] for name in fixed} == {name: whole[name] for name in fixed}
    rows = [[json.loads(each[f"records/{name}.json"]) for name in ("a", "sub/b")] for each in (whole, continued)]
    assert [row | {"result": 0} for row in rows[0]] == [row | {"result": 0} for row in rows[1]]
    assert continued.keys() == whole.keys()


def test_four_commands_of_which_two_are_killed_tile_each_slide_once(
    painted_slides: Path, tmp_path: Path, four_processes: Callable[..., list[str]]
) -> None:
    slides, out = tmp_path / "slides", tmp_path / "t"
    slides.mkdir()
    names = [f"s{number}" for number in range(8)]
    for name in names:
        shutil.copy(painted_slides / "a.tiff", slides / f"{name}.tiff")
    done = four_processes(
        lambda: tile(data=slides, out=out, **_ASKED),
        begins=(Job, "_find", lambda job, slide, *rest: slide),
        ends=(per_slide, "write_record", lambda out, row, identity: row["slide"]),
    )
    assert sorted(done) == names
    assert len({tiling.corners.tobytes() for tiling in read_tile_folder(out)}) == 1 and len(_rows(out)) == 8


def test_a_slide_that_ends_its_process_costs_one_slide(
    painted_slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out, asked = tmp_path / "t", _ASKED | {"workers": 2}
    with monkeypatch.context() as patched:
        _dies_at(patched, "a", lambda: os.kill(os.getpid(), signal.SIGKILL))
        assert dict(tile(data=painted_slides, out=out, **asked)) | {"tiles": 0} == {
            "slides": 2,
            "problems": 1,
            "tiles": 0,
        }
    assert "densepath: a: reading it ends the process (SIGKILL)" in capfd.readouterr().err
    assert tile(data=painted_slides, out=out, **asked)["problems"] == 0  # it is tried again
    monkeypatch.setattr(one_slide, "grid_of", lambda *_: 1 / 0)
    assert main(["tile", "--data", str(painted_slides), "--out", str(tmp_path / "u"), "--workers", "1"]) == 2
    said = capfd.readouterr().err
    assert "a: a bug in densepath, please report it: ZeroDivisionError" in said and "none of 2 slides" in said


def test_errors_that_can_pass_are_tried_again(
    painted_slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = painted_slides / "a.tiff", tmp_path / "t"

    def fails(error: Exception) -> Callable[..., Any]:
        def fail(*_: Any) -> Any:
            raise error

        return fail

    missing = UserError("this slide needs a package")
    missing.__cause__ = ImportError("no such package")
    disk = OSError(errno.EIO, "Input/output error")
    monkeypatch.setattr(patience, "PAUSES", ())
    read = os.pread
    with tifffile.TiffFile(data) as tiff:
        lost = tiff.pages[1].dataoffsets[5]  # type: ignore[union-attr]

    def fails_in_part(number: int, count: int, offset: int) -> bytes:
        if offset == lost:
            raise disk
        return read(number, count, offset)

    with monkeypatch.context() as patched, pytest.raises(UserError, match="Input/output error"):
        recent_tiles.clear()
        patched.setattr(os, "pread", fails_in_part)  # tiles of the rest would look complete
        tile(data=data, out=out, **_ASKED)
    assert json.loads((out / "records/a.json").read_text())["again"]
    errors = [(os, "pread", disk), (slides_open, "open_tiff", disk), (one_slide, "open_slide", missing)]
    for owner, name, error in errors:
        with monkeypatch.context() as patched, pytest.raises(UserError, match=r"output error|damaged|needs a package"):
            patched.setattr(slides_open, "open_with_openslide", lambda path: None)
            patched.setattr(owner, name, fails(error))
            tile(data=data, out=out, **_ASKED)
        assert json.loads((out / "records/a.json").read_text())["again"]
    assert tile(data=data, out=out, **_ASKED)["problems"] == 0


def test_the_table_is_removed_before_the_records_of_slides_that_are_tried_again(
    painted_slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise embed, started between, would take them for slides without tiles, and remove their features."""
    out, removed = tmp_path / "t", []
    with monkeypatch.context() as patched:
        _dies_at(patched, "a", MagicMock(side_effect=MemoryError))
        tile(data=painted_slides, out=out, **_ASKED)
    unlink = Path.unlink

    def noted(path: Path, missing_ok: bool = False) -> None:
        removed.extend([path.name] * path.exists())
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", noted)
    assert tile(data=painted_slides, out=out, **_ASKED)["problems"] == 0
    assert removed.index("slides.csv") < removed.index("a.json")


def test_a_slide_whose_files_cannot_be_written_costs_one_slide(
    painted_slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = one_slide.write_outlines

    def refuse(path: Path, *given: Any) -> None:
        if path.name == "a.geojson":
            raise OSError(errno.ENAMETOOLONG, "File name too long")
        write(path, *given)

    monkeypatch.setattr(one_slide, "write_outlines", refuse)
    assert tile(data=painted_slides, out=tmp_path / "t", **_ASKED)["problems"] == 1
    assert "File name too long" in _rows(tmp_path / "t")["a"]["problem"]
    assert [tiling.name for tiling in read_tile_folder(tmp_path / "t")] == ["sub/b"]


def test_a_slide_with_a_very_long_name(painted_slides: Path, tmp_path: Path) -> None:
    data = tmp_path / f"{chr(0x7247) * 80}.tiff"  # 240 bytes, and a suffix
    shutil.copy(painted_slides / "a.tiff", data)
    assert tile(data=data, out=tmp_path / "t", **_ASKED)["problems"] == 0
    (tiling,) = read_tile_folder(tmp_path / "t", [data.name])
    assert len(tiling) and tiling.path == str(data)


def test_results_of_other_slides_are_not_mixed(
    painted_slides: Path, tiled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, other, more = (tmp_path / name for name in ("t", "other", "more"))
    tile(data=painted_slides, out=out, **_ASKED)
    before = _changed(out)
    for folder in (other, more):
        folder.mkdir()
        shutil.copy(painted_slides / "sub/b.svs", folder / "a.tiff")  # another slide of this name
    with pytest.raises(UserError, match=rf"holds results of other slides \({painted_slides}\); use another folder"):
        tile(data=other, out=out, **_ASKED)
    assert _changed(out) == before
    shutil.copytree(painted_slides / "sub", more / "sub")
    (more / "a.tiff").unlink()
    capsys.readouterr()
    tile(data=more, out=out, **_ASKED)
    assert f"keeps files of 1 slide not in {more}: a" in capsys.readouterr().err
    assert list(_rows(out)) == ["sub/b"]


def test_results_of_removed_slides_are_removed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other software reads the folders, not slides.csv; slides that are only left out keep theirs."""
    out = tmp_path / "t"
    tile(data=folder, out=out, **_ASKED)
    tile(data=folder, out=out, exclude=["a.tiff"], **_ASKED)
    (folder / "sub" / "b.svs").unlink()
    (folder / "sub" / "notes.txt").touch()  # otherwise it could be the folder of a disk that is not mounted
    tile(data=folder, out=out, **_ASKED)
    told = capsys.readouterr().err
    assert "removed the results of 1 slide whose files were removed: sub/b" in told and "keeps" not in told
    assert list(_rows(out)) == ["a"]
    assert [path for path in _content(out) if "sub/b" in path] == ["tissue/sub/b.geojson"]  # maybe corrected by hand


@pytest.mark.parametrize("empty", [True, False])
def test_results_of_slides_on_a_disk_that_is_not_mounted_stay(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], empty: bool
) -> None:
    out = tmp_path / "t"
    tile(data=folder, out=out, **_ASKED)
    before = {path: content for path, content in _content(out).items() if "sub/b" in path}
    (folder / "sub").rename(tmp_path / "disk")
    if empty:
        (folder / "sub").mkdir()
        (folder / "sub" / ".hidden").touch()
    tile(data=folder, out=out, **_ASKED)
    told = capsys.readouterr().err
    line = (
        "keeps the results of 1 slide whose folders are empty or missing (a disk that is not mounted?): sub/b; if they "
    )
    assert line + "were removed on purpose, remove the files of that name there" in told
    assert before.items() <= _content(out).items() and len(before) == 4 and "removed the results" not in told


def test_results_that_would_not_be_removed_are_not_reported_as_kept(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Slides that a list does not name any more may be anywhere."""
    listed, out = tmp_path / "list.txt", tmp_path / "t"
    listed.write_text(f"{folder}/a.tiff\n{folder}/sub/b.svs\n")
    tile(data=listed, out=out, **_ASKED)
    listed.write_text(f"{folder}/a.tiff\n")
    (folder / "sub").rename(tmp_path / "disk")
    capsys.readouterr()
    tile(data=listed, out=out, **_ASKED)
    assert "mounted" not in capsys.readouterr().err


def test_slides_that_are_being_moved_keep_their_results(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, other = tmp_path / "t", tmp_path / "other"
    tile(data=folder, out=out, **_ASKED)
    before = [path for path in _content(out) if "sub/b" in path]
    other.mkdir()
    (folder / "a.tiff").rename(other / "a.tiff")
    (folder / "sub" / "b.svs").rename(tmp_path / "b.svs")  # on its way
    tile(data=other, out=out, **_ASKED)
    told = capsys.readouterr().err
    assert f"keeps files of 1 slide not in {other}: sub/b" in told and "removed" not in told
    assert [path for path in _content(out) if "sub/b" in path] == before


def test_a_slide_replaced_by_one_of_its_size_is_named_by_every_reader(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "t"
    tile(data=folder, out=out, **_ASKED)
    with (folder / "a.tiff").open("ab") as file:
        file.write(b"other")
    with pytest.raises(
        UserError, match=r"replaced since they were tiled: .*a\.tiff \(other contents of the file\); run"
    ):
        read_tiles(out)
    (tiling, _) = read_tile_folder(out)
    with pytest.raises(
        CorruptImage, match="not the slide that was tiled: other contents of the file; run densepath tile"
    ):
        open_tiled(tiling)
    shutil.move(out / "records", tmp_path / "records")  # nobody recorded what the slides were
    read_tiles(out)
    shutil.move(tmp_path / "records", out / "records")
    tile(data=folder, out=out, **_ASKED)
    read_tiles(out)


def test_damaged_tiles_are_made_again_and_results_below_the_slides_are_not_slides(folder: Path) -> None:
    out = folder / "results"
    count = tile(data=folder, out=out, **_ASKED)["tiles"]
    (path,) = out.rglob("a_patches.h5")
    (out / "heat_maps").mkdir()
    shutil.copy(folder / "a.tiff", out / "heat_maps/a.tif")
    path.write_bytes(path.read_bytes()[:100])
    assert dict(tile(data=folder, out=out, **_ASKED)) == {"slides": 2, "problems": 0, "tiles": count}
    assert sum(map(len, read_tile_folder(out))) == count


def test_outlines_that_were_corrected_by_hand_are_kept_when_a_slide_is_tiled_again(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, outline = tmp_path / "t", tmp_path / "t/tissue/a.geojson"
    tile(data=folder, out=out, **_ASKED)
    written = outline.read_text()
    for found, expected in (
        ("corrected", "corrected"),
        ("corrected", "corrected"),
        (None, written),
        (written, written),
    ):
        outline.unlink() if found is None else outline.write_text(found)
        next(out.rglob("a_patches.h5")).unlink()
        capsys.readouterr()
        tile(data=folder, out=out, **_ASKED)
        assert outline.read_text() == expected
        assert ("it may have been corrected by hand" in capsys.readouterr().err) == (found == "corrected")
    outline.write_text("corrected")
    whole = (folder / "a.tiff").read_bytes()
    for now in (b"II*\0", whole):
        (folder / "a.tiff").write_bytes(now)
        tile(data=folder, out=out, **_ASKED)
    assert outline.read_text() == "corrected"
    outline.unlink()
    tile(data=folder, out=out, **_ASKED)  # as the message says
    assert outline.read_text() == written


def _fail_once(out: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure that may pass, after the slide has changed, and back."""
    whole = (folder / "a.tiff").read_bytes()
    (folder / "a.tiff").write_bytes(whole + b"1")
    with monkeypatch.context() as patch:
        patch.setattr(one_slide, "open_slide", MagicMock(side_effect=MemoryError))
        tile(data=folder, out=out, **_ASKED)
    assert json.loads((out / "records/a.json").read_text())["again"]
    (folder / "a.tiff").write_bytes(whole)


def _take_out(out: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = (folder / "a.tiff").read_bytes()
    (folder / "a.tiff").unlink()
    tile(data=folder, out=out, **_ASKED)
    assert not (out / "records/a.json").exists()
    (folder / "a.tiff").write_bytes(whole)


def _cut_record(out: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (out / "records/a.json").write_text("{")


def _former_version(out: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = out / "records/a.json"
    record = json.loads(path.read_text())
    del record["outlines"]
    path.write_text(json.dumps(record))
    next(out.rglob("a_patches.h5")).unlink()


@pytest.mark.parametrize("change", [_fail_once, _take_out, _cut_record, _former_version])
def test_outlines_of_which_nothing_is_recorded_are_kept_if_they_differ(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path, Path, pytest.MonkeyPatch], None],
) -> None:
    out, outline = tmp_path / "t", tmp_path / "t/tissue/a.geojson"
    tile(data=folder, out=out, **_ASKED)
    written = outline.read_text()
    for found in ("corrected", written):
        outline.write_text(found)
        change(out, folder, monkeypatch)
        capsys.readouterr()
        assert tile(data=folder, out=out, **_ASKED)["problems"] == 0
        assert outline.read_text() == (written if found == written else found)
        assert ("it may have been corrected by hand" in capsys.readouterr().err) == (found == "corrected")
    assert json.loads((out / "records/a.json").read_text())["outlines"] == digest_of_file(outline)


def test_a_stop_before_the_record_does_not_make_outlines_foreign(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, outline = tmp_path / "t", tmp_path / "t/tissue/a.geojson"
    tile(data=folder, out=out, **_ASKED)
    shutil.copy(folder / "sub/b.svs", folder / "a.tiff")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(one_slide, "write_tiling", MagicMock(side_effect=KeyboardInterrupt))
        tile(data=folder, out=out, **_ASKED)
    capsys.readouterr()
    tile(data=folder, out=out, **_ASKED)
    assert "by hand" not in capsys.readouterr().err
    assert json.loads((out / "records/a.json").read_text())["outlines"] == digest_of_file(outline)


def test_a_stop_before_the_first_record_leaves_no_outlines(
    tmp_path: Path, slide_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.full((200, 260, 3), (244, 242, 245), np.uint8)
    pixels[10:195, 10:250] = (190, 90, 160)
    asked = {"data": slide_of("slides/a.tiff", pixels, mpp=None), "out": tmp_path / "t", **_ASKED}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(one_slide, "write_tiling", MagicMock(side_effect=KeyboardInterrupt))
        tile(**asked, default_mpp=1.0)
    tile(**asked, default_mpp=2.0)
    assert "by hand" not in capsys.readouterr().err
    assert json.loads((tmp_path / "t/records/a.json").read_text())["outlines"] == digest_of_file(
        tmp_path / "t/tissue/a.geojson"
    )


def test_whether_a_slide_is_done_is_known_without_reading_its_outlines(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tile(data=folder, out=tmp_path / "t", **_ASKED)
    monkeypatch.setattr(one_slide, "digest_of_file", None)
    assert tile(data=folder, out=tmp_path / "t", **_ASKED)["problems"] == 0


def test_a_change_within_large_outlines_is_noticed(folder: Path, tmp_path: Path) -> None:
    """Of small ones, what is recorded of them stays the same."""
    counts, space = [], " " * 2**17
    (tmp_path / "given").mkdir()
    for end in (256, 512):
        features = json.dumps(_square(128, end))
        (tmp_path / "given/a.geojson").write_text(f"[{space}{features}{space}]")
        counts.append(
            tile(data=folder / "a.tiff", out=tmp_path / "t", tissue=str(tmp_path / "given"), **_ASKED)["tiles"]
        )
    assert counts == [4, 36]
    # Earlier versions recorded only the ends of large files: what they have done stays.
    path = tmp_path / "t/records/a.json"
    record = json.loads(path.read_text())
    former = [*record["identity"][:3], *identity_of(tmp_path / "given/a.geojson")]
    assert former != record["identity"]
    path.write_text(json.dumps(record | {"identity": former}))
    written = path.stat().st_mtime_ns
    tile(data=folder / "a.tiff", out=tmp_path / "t", tissue=str(tmp_path / "given"), **_ASKED)
    assert path.stat().st_mtime_ns == written
    for size in (0, 10, 2**16, 2**17):
        (tmp_path / "small").write_bytes(b"x" * size)
        assert identity_of(tmp_path / "small", whole=True) == identity_of(tmp_path / "small")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_full_disk_ends_the_command_with_one_line(
    workers: int, painted_slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match=r"masks/.*png cannot be written \(No space left on device\); free disk space"):
        tile(data=painted_slides, out=tmp_path / "t", **_ASKED | {"workers": workers})


def test_shards_tile_their_slides_and_the_last_one_writes_the_tables(
    painted_slides: Path, tiled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "t"
    tile(data=painted_slides, out=out, shard="2/2", **_ASKED)
    assert "the slides of shard 2/2 are done; other processes have 1 left, and the last" in capsys.readouterr().err
    assert not (out / "slides.csv").exists() and not (out / "records/a.json").exists()
    tile(data=painted_slides, out=out, shard="1/2", **_ASKED)
    assert _content(out)["tiles.csv"] == _content(tiled)["tiles.csv"]


def test_bad_slides_get_a_line_each(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = (folder / "a.tiff").read_bytes()
    (folder / "empty.svs").touch()
    (folder / "short.tiff").write_bytes(good[: len(good) // 2])
    Image.new("RGB", (90, 60)).save(folder / "label.tif")
    Image.new("RGB", (90, 60)).save(folder / "thumbnail.png")
    (folder / "table.csv").write_text("wsi,mpp\nsub/b.svs,40\nother.svs,0.25\n")
    (folder / "mpp.csv").write_text("wsi,mpp\nb,3.0\nother,0.25\n")
    words = ["tile", "--data", str(folder), "--out", str(tmp_path / "t"), "--mpp", "1", "--size", "64"]
    assert main([*words, "--workers", "0", "--mpp_table", str(folder / "mpp.csv")]) == 0
    said = capsys.readouterr().err
    assert "names 1 slide not in the data: other; correct it" in said
    assert "5 slides, 0 done before; passed over: " in said and "1 .png file" in said
    expected = {
        "empty": "the file is empty",
        "short": "truncated",
        "label": "not a slide: a TIFF without tiles",
        "sub/b": "its 3 µm per pixel are coarser than the asked 1",
        "a": "",
    }
    rows = _rows(tmp_path / "t")
    assert rows.keys() == expected.keys()
    for name, problem in expected.items():
        assert rows[name]["problem"].startswith(problem) and bool(rows[name]["problem"]) == bool(problem)
        assert (said.count(f"densepath: {name}: {problem}") == 1) == bool(problem)
    assert "2 slides" not in said and "5 slides, 4 with problems" in said
    assert [tiling.name for tiling in read_tile_folder(tmp_path / "t")] == ["a", "sub/b"]


def test_slides_without_mpp_or_tissue(tmp_path: Path, slide_of: Callable[..., Path]) -> None:
    glass = np.full((200, 260, 3), (244, 242, 245), np.uint8)
    slide_of("slides/glass.tiff", glass)
    slide_of("slides/unknown.tiff", glass, mpp=None)
    slide_of("slides/black.tiff", glass * 0)
    small = glass.copy()
    small[10:195, 10:250] = (190, 90, 160)
    slide_of("slides/small.tiff", small, mpp=(1.0, 0.9))
    with pytest.raises(UserError, match=r"none of 4 slides could be tiled \(black: no tissue found\); see .*csv"):
        tile(data=tmp_path / "slides", out=tmp_path / "t", mpp=1.0, size=300, workers=0)
    rows = _rows(tmp_path / "t")
    assert rows["glass"]["problem"] == rows["black"]["problem"] == "no tissue found"
    assert rows["unknown"]["problem"] == NO_MPP
    assert (rows["glass"]["mpp"], rows["small"]["mpp"]) == ("1", "0.9 x 1")
    assert rows["small"]["problem"] == "smaller than a tile of 300 µm"
    assert sorted(path.stem for path in (tmp_path / "t/masks").iterdir()) == ["black", "glass", "small"]
    asked: dict[str, Any] = {"data": tmp_path / "slides", "out": tmp_path / "u", "mpp": 0.5, "size": 32, "workers": 0}
    assert tile(**asked)["tiles"] > 4
    stamps = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "u/records").iterdir()}
    tile(**asked, default_mpp=1.0)  # only the slide that needs it is tiled again
    assert _rows(tmp_path / "u")["unknown"]["mpp"] == "1"
    changed = {p.name for p in (tmp_path / "u/records").iterdir() if p.stat().st_mtime_ns != stamps[p.name]}
    assert changed == {"unknown.json"}
    tile(**asked, default_mpp=2.0)
    assert _rows(tmp_path / "u")["unknown"]["mpp"] == "2"
    assert "default_mpp: 2.0\n" in (tmp_path / "u/config.yaml").read_text()
    (tmp_path / "mpp.csv").write_text("wsi,mpp\nsmall,0.8\n")
    tile(**asked, default_mpp=2.0, mpp_table=tmp_path / "mpp.csv")
    before = _content(tmp_path / "u")
    known = {"default_mpp": 2.0, "mpp_table": tmp_path / "mpp.csv"}
    for left_out in ({"default_mpp"}, {"mpp_table"}, {*known}):  # slides would lose their tiles
        them, said = (
            "it" if len(left_out) == 1 else "them",
            " and ".join(f"--{n} {known[n]}" for n in known if n in left_out),
        )
        with pytest.raises(
            UserError, match=rf"was made with {said} \(see .*\); give {them} again \(a new value is allowed"
        ):
            tile(**asked, **{name: value for name, value in known.items() if name not in left_out})
    assert _content(tmp_path / "u") == before


def test_a_damaged_tile_costs_its_place(folder: Path, tiled: Path, tmp_path: Path, damage: Callable[..., None]) -> None:
    damage(folder / "a.tiff", 5, page=1)
    result = tile(data=folder / "a.tiff", out=tmp_path / "t", **_ASKED)
    problem = _rows(tmp_path / "t")["a"]["problem"]
    assert problem.startswith("13.3% of it cannot be read: the tile at x 128, y 64 of its level of 192 x 160 px is")
    # Of level 0 these are x 512 to 768, y 256 to 512; the outline of the tissue changes around.
    (tiling,) = read_tile_folder(tmp_path / "t")
    whole = next(each for each in read_tile_folder(tiled) if each.name == "a")
    assert not [(x, y) for x, y in tiling.corners.tolist() if x > 512 and 256 < y < 448]
    apart = [[c for c in each.corners.tolist() if c[0] < 448] for each in (tiling, whole)]
    assert apart[0] == apart[1] and 20 < len(apart[0]) < result["tiles"] < len(whole)


def _outline(*corners: tuple[float, float], name: str = "Tissue") -> dict[str, Any]:
    ring = [list(corner) for corner in (*corners, corners[0])]
    properties = {"objectType": "annotation", "classification": {"name": name}}
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": properties}


def _square(low: float, high: float, **options: Any) -> dict[str, Any]:
    return _outline((low, low), (high, low), (high, high), (low, high), **options)


def test_outlines_give_the_tissue(painted_slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = tmp_path / "given"
    given.mkdir()
    features = [_square(128, 512, name="Region*"), _square(256, 384, name="Artifact*")]
    (given / "a.tiff.geojson.gz").write_bytes(gzip.compress(json.dumps(features).encode()))
    (given / "b.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [_square(100, 9000)]}))
    (given / "other.geojson").write_text("[]")
    result = tile(data=painted_slides, out=tmp_path / "t", tissue=str(given), **_ASKED)
    (tiling,) = read_tile_folder(tmp_path / "t")
    assert {tuple(c) for c in tiling.corners.tolist()} == {
        (x, y) for x in range(128, 512, 64) for y in range(128, 512, 64) if not (256 <= x < 384 and 256 <= y < 384)
    }
    assert float(_rows(tmp_path / "t")["a"]["tissue_mm2"]) == pytest.approx(0.384**2 - 0.128**2, abs=1e-4)
    assert "outside of this slide of 640 x 600 px; is it of another slide" in _rows(tmp_path / "t")["sub/b"]["problem"]
    assert f"{given} has 1 GeoJSON file of no slide: other.geojson" in capsys.readouterr().err
    assert result["problems"] == 1
    (given / "b.geojson").write_text("[]")
    tile(data=painted_slides, out=tmp_path / "t", tissue=str(given), **_ASKED)
    assert "no annotations with an area; outline the tissue" in _rows(tmp_path / "t")["sub/b"]["problem"]
    (given / "b.geojson").unlink()
    tile(data=painted_slides, out=tmp_path / "t", tissue=str(given), **_ASKED)
    assert _rows(tmp_path / "t")["sub/b"]["problem"] == "the folder of --tissue has no outlines of this slide"


@pytest.mark.parametrize("overlap", [0, 24])
def test_the_share_of_outlines_is_that_of_the_polygons(overlap: int, painted_slides: Path, tmp_path: Path) -> None:
    """Of small tiles, whose sides are few pixels of the overview."""
    given, angles = tmp_path / "given", np.linspace(0, 2 * np.pi, 60, endpoint=False)
    given.mkdir()
    circle = np.stack([300 + 205.3 * np.cos(angles), 310 + 190.7 * np.sin(angles)], axis=1)
    features = [_outline(*circle.tolist()), _square(250.4, 340.9, name="Ignore*")]
    (given / "a.geojson").write_text(json.dumps(features))
    options = _ASKED | {"size": 32, "overlap": overlap, "min_tissue": 0.02}
    tile(data=painted_slides / "a.tiff", out=tmp_path / "t", tissue=str(given), **options)
    fine = 8
    mask = np.zeros((640 * fine, 768 * fine), bool)
    for ring, inside in ((circle, True), (np.array(features[1]["geometry"]["coordinates"][0]), False)):
        top, left, part = fill([ring * fine], *mask.shape)
        mask[top : top + part.shape[0], left : left + part.shape[1]][part] = inside
    (tiling,) = read_tile_folder(tmp_path / "t")
    with (tmp_path / "t" / "tiles.csv").open(newline="") as file:
        shares = [float(row["tissue"]) for row in csv.DictReader(file)]
    true = [mask[y * fine : (y + 32) * fine, x * fine : (x + 32) * fine].mean() for x, y in tiling.corners.tolist()]
    np.testing.assert_allclose(shares, true, atol=0.01)
    assert min(true) < 0.1 and max(true) == 1


def _write_coords(path: Path, corners: Any, of_file: dict[str, Any] | None = None, **notes: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("coords", data=corners).attrs.update(notes)
        file.attrs.update(of_file or {})


@pytest.mark.parametrize("kind", ["trident", "clam", "stamp", "densepath", "plain"])
def test_tiles_of_other_software(
    kind: str, painted_slides: Path, tiled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, corners = tmp_path / "given", np.array([[64, 128], [128, 128], [300, 200]])
    names = {"trident": "20x/patches/b_patches.h5", "clam": "patches/b.h5", "stamp": "sub/b.h5", "plain": "b.h5"}
    path = given / names.get(kind, "")
    if kind == "trident":
        notes = {"patch_size": 64, "patch_size_level0": 64, "target_magnification": 10, "level0_magnification": 10}
        _write_coords(path, corners, **notes)
    elif kind == "clam":
        _write_coords(path, corners, patch_size=32, patch_level=1, downsample=np.array([2.0, 2.0]), name="b")
    elif kind == "stamp":
        of_file = {"unit": "um", "tile_size_um": 64.0, "tile_size_px": 64, "extractor": "x"}
        _write_coords(path, corners.astype(np.float32), of_file)
    elif kind == "plain":
        _write_coords(path, corners)
    else:
        given, corners = tiled, next(t for t in read_tile_folder(tiled) if t.name == "sub/b").corners
    asked = {"mpp": 1.0, "size": 64} if kind in ("clam", "plain") else {}
    tile(data=painted_slides, out=tmp_path / "t", coords=given, workers=0, **asked)
    found = {tiling.name: tiling for tiling in read_tile_folder(tmp_path / "t")}["sub/b"]
    assert (found.corners == corners).all() and (found.mpp, found.size) == (1.0, 64)
    if kind != "densepath":
        assert _rows(tmp_path / "t")["a"]["problem"] == "the folder of --coords has no file of this slide"
    if kind == "clam":
        _write_coords(path, corners * 10, patch_size=32, patch_level=1, downsample=2.0)
        _write_coords(given / "c.h5", corners)
        with pytest.raises(UserError, match=r"of tiles of no slide: c\.h5; give --mpp and --size"):
            tile(data=painted_slides, out=tmp_path / "u", coords=given, workers=0)
        with pytest.raises(UserError, match="none of 2 slides could be tiled"):
            tile(data=painted_slides, out=tmp_path / "t", coords=given, workers=0, **asked)
        assert (
            "x 640, y 1280 to x 3000, y 2000, outside of this slide of 640 x 600 px; of another one?"
            in _rows(tmp_path / "t")["sub/b"]["problem"]
        )
        assert "HDF5 file of tiles of no slide: c.h5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("notes", "asked", "problem"),
    [
        ({"patch_size": 64, "target_magnification": "20x"}, {}, "the attribute target_magnification '20x', not a pos"),
        ({"patch_size_level0": 0}, {"mpp": 1.0, "size": 64}, "the attribute patch_size_level0 0, not a positive numb"),
        ({"patch_size": 8, "downsample": [1.0, 0.0]}, {"mpp": 1.0, "size": 64}, "the attribute downsample 0.0, not a"),
        ({"size_um": np.nan}, {"mpp": 1.0, "size": 64}, "the attribute size_um nan, not a positive number; write it"),
    ],
)
def test_attributes_that_are_not_sizes_are_named(
    notes: dict[str, Any], asked: dict[str, Any], problem: str, painted_slides: Path, tmp_path: Path
) -> None:
    _write_coords(tmp_path / "given/b.h5", np.array([[64, 128], [128, 128]]), **notes)
    with pytest.raises(UserError, match="none of 2 slides could be tiled" if asked else "do not say the µm per pixel"):
        tile(data=painted_slides, out=tmp_path / "t", coords=tmp_path / "given", workers=0, **asked)
    if asked:
        assert f"b.h5 has {problem}" in _rows(tmp_path / "t")["sub/b"]["problem"]
    else:
        with pytest.raises(UserError, match=problem):
            given_size(str(tmp_path / "given/b.h5"))


def test_a_file_without_tiles_and_options_of_zero(painted_slides: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        _write_coords(tmp_path / "given" / f"{name}.h5", np.empty((0, 2), np.int64), mpp=1.0, patch_size=64)
    options: dict[str, Any] = {"data": painted_slides, "out": tmp_path / "t", "coords": tmp_path / "given"}
    with pytest.raises(UserError, match=r"mpp is 0\.0; give µm per pixel"):
        tile(mpp=0.0, workers=0, **options)
    with pytest.raises(UserError, match="its file of --coords has no tiles"):
        tile(workers=0, **options)


def test_given_tiles_of_another_size_keep_their_centers(painted_slides: Path, tmp_path: Path) -> None:
    of_file = {"unit": "um", "tile_size_um": 100.0, "tile_size_px": 50}
    _write_coords(tmp_path / "given/a.h5", np.array([[50.0, 70.0]]), of_file)
    _write_coords(tmp_path / "given/b.h5", np.array([[50.0, 70.0]]), of_file)
    tile(data=painted_slides, out=tmp_path / "t", coords=tmp_path / "given", mpp=1.0, size=64, workers=0)
    assert [tiling.corners.tolist() for tiling in read_tile_folder(tmp_path / "t")] == [[[68, 88]]] * 2
    (tmp_path / "given/a.h5").write_bytes(b"damaged")
    tile(data=painted_slides, out=tmp_path / "u", coords=tmp_path / "given", workers=0)
    (found,) = read_tile_folder(tmp_path / "u")
    assert (found.name, found.corners.tolist(), found.size, found.mpp) == ("sub/b", [[50, 70]], 50, 2.0)
    assert "a.h5 is not an HDF5 file, or is damaged" in _rows(tmp_path / "u")["a"]["problem"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mpp": 0.0}, "mpp is 0.0; give µm per pixel"),
        ({"mpp": "0.5"}, "mpp is '0.5'; give a number"),
        ({"size": 64.5}, "size is 64.5; give a whole number"),
        ({"holes": "filled"}, "holes is 'filled'; give keep or fill"),
        ({"table": "xlsx"}, "table is 'xlsx'; give csv or parquet"),
        ({"align": "no"}, "align is 'no'; give True or False"),
        ({"size": 4}, "size is 4; give the side of a tile"),
        ({"overlap": 64}, "overlap is 64; give a number of pixels from 0 to less than --size 64"),
        ({"min_tissue": 2.0}, "min_tissue is 2.0; give a share from 0 to 1"),
        ({"workers": -1}, "workers is -1"),
        ({"workers": 10**21}, "workers is 10*; give a number of processes up to 1,024"),
        ({"shard": "3/2"}, "shard is '3/2'"),
        ({"tissue": "nowhere"}, "tissue is nowhere, which is not a folder; give one with GeoJSON files"),
        ({"coords": "nowhere"}, "coords is nowhere, which is not a folder"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(
    wrong: dict[str, Any], message: str, painted_slides: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        tile(data=painted_slides, out=tmp_path / "t", **_ASKED | wrong)
    assert not (tmp_path / "t").exists()


def test_a_parquet_table(painted_slides: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    tile(data=painted_slides, out=tmp_path / "t", table="parquet", **_ASKED)
    found = parquet.read_table(tmp_path / "t/tiles.parquet").to_pydict()
    assert found["x"] == np.concatenate([t.corners[:, 0] for t in read_tile_folder(tmp_path / "t")]).tolist()
    assert set(found) == {"slide", "x", "y", "x_um", "y_um", "tissue"}


@pytest.mark.parametrize("other", ["slides", "default_mpp"])
def test_of_two_that_start_at_once_with_other_input_the_first_decides(
    other: str,
    painted_slides: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    in_child: Callable[..., int],
) -> None:
    out, asked = tmp_path / "t", {"data": painted_slides, "out": tmp_path / "t", **_ASKED, "workers": 0}
    begun, go = tmp_path / "begun", tmp_path / "go"

    def wait() -> None:
        begun.touch()
        while not go.exists():
            time.sleep(0.01)

    _dies_at(monkeypatch, "a", wait)
    child = in_child(lambda: tile(**asked))
    while not begun.exists():
        time.sleep(0.01)
    monkeypatch.undo()
    changed = {"data": painted_slides / "sub"} if other == "slides" else {"default_mpp": 0.7}
    with pytest.raises(UserError, match=r"another process fills .* from other data or with other options; use another"):
        tile(**asked | changed)
    go.touch()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert tile(**asked)["slides"] == len(read_tile_folder(out)) > 1
