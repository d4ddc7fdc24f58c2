"""What ends a run over many slides, and what costs one of them."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from densepath.core.errors import UserError
from densepath.core.files import atomic_write
from densepath.core.log import logged
from densepath.core.shared_work import same_input
from densepath.sources.corrupt import CorruptImage
from densepath.sources.slides.resolution import MppTable
from densepath.sources.tiles.identity import identity_of_slide
from densepath.transfer.slides.precision import begun_precision
from densepath.transfer.slides.slide_list import ListedSlide
from densepath.transfer.slides.slide_work import SlideWork, as_corrupt, attempt, without_tiles


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (CorruptImage("a.tiff", "cut off"), "cut off"),
        (OSError(errno.EIO, "network drive"), "[Errno 5] network drive"),
        (MemoryError(), "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "CUDA out of memory"),
        (KeyError("x"), "a bug in densepath, please report it: KeyError: 'x'"),
    ],
)
def test_a_slide_is_passed_over(error: Exception, why: str, tmp_path: Path) -> None:
    def work(name: str) -> dict[str, str]:
        raise error

    with logged(tmp_path / "log"):
        assert attempt("a", tmp_path, work) == {"problem": why}
    said = (tmp_path / "log").read_text()
    assert f"densepath: a: {why}" in said and ("Traceback" in said) == isinstance(error, KeyError)
    assert attempt("a", tmp_path, lambda name: {"objects": name}) == {"objects": "a"}


def test_a_damaged_slide_keeps_its_reason() -> None:
    slide = ListedSlide("a", "a.tiff", MppTable())
    with pytest.raises(CorruptImage, match=r"^a\.tiff: cut off$"), as_corrupt(slide):
        raise CorruptImage("a.tiff", "cut off")
    with pytest.raises(CorruptImage, match=r"^a\.tiff: needs h5py$"), as_corrupt(slide):
        raise UserError("needs h5py")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), UserError("no"), SystemExit()])
def test_a_full_disk_ends_all_work(error: BaseException, tmp_path: Path) -> None:
    def work(name: str) -> dict[str, str]:
        raise error

    with pytest.raises(SystemExit if isinstance(error, SystemExit) else UserError):
        attempt("a", tmp_path, work)


def test_files_of_a_killed_command_are_removed(tmp_path: Path) -> None:
    if not (child := os.fork()):
        try:
            with atomic_write(tmp_path / "heat_maps" / "a.tif") as part:
                part.touch()
                os._exit(1)
        finally:
            os._exit(2)
    os.waitpid(child, 0)
    assert len(list((tmp_path / "heat_maps").iterdir())) == 1
    with atomic_write(tmp_path / "heat_maps" / "b.tif") as part:  # of a command that still works
        part.touch()
        SlideWork(tmp_path, {"a": 1}).do(lambda name: False, lambda name: {"objects": 0})
        assert list((tmp_path / "heat_maps").iterdir()) == [part]


def test_files_of_another_slide_are_removed(tmp_path: Path) -> None:
    """Also where the slide that replaced it is damaged."""
    file, kept = tmp_path / "a.png", tmp_path / "b.png"

    def do(identity: int, fails: bool = False) -> None:
        def work(name: str) -> dict[str, int]:
            if fails:
                raise CorruptImage(name, "cut off")
            file.touch()
            return {}

        shared = SlideWork(tmp_path, {"a": identity}, lambda name: [file])
        shared.do(shared.succeeded, work)

    kept.touch()
    do(1)
    do(1, fails=True)  # it is done
    assert file.exists()
    do(2, fails=True)
    assert not file.exists() and kept.exists()
    file.touch()  # of an earlier version
    do(2, fails=True)
    assert not file.exists()


def test_tables_of_all_slides_are_removed_before_a_slide_is_done_again(tmp_path: Path) -> None:
    """Otherwise those of a command that is killed would be of the former slides."""
    table = tmp_path / "slides.csv"

    def do(identity: int) -> list[bool]:
        seen: list[bool] = []
        shared = SlideWork(tmp_path, {"a": identity}, tables=[table])
        shared.do(shared.succeeded, lambda name: {"seen": seen.append(table.exists())})
        return seen

    do(1)
    table.touch()
    assert do(1) == [] and table.exists()
    assert do(2) == [False]


def test_results_of_slides_on_a_disk_that_is_not_mounted_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also those of a slide of which something is missing, such as a picture."""
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    paths = {name: str(disk / name) for name in "ab"}
    for path in paths.values():
        Path(path).write_text(path)

    def do() -> tuple[list[str], dict[str, Any]]:
        done: list[str] = []

        def work(name: str) -> dict[str, int]:
            done.append(name)
            if not os.path.exists(paths[name]):
                raise CorruptImage(name, "the file is missing")
            (out / name).touch()
            (out / f"{name}.png").touch()
            return {"objects": len(name)}

        identities = {name: [name, *identity_of_slide(path), None] for name, path in paths.items()}
        shared = SlideWork(out, identities, lambda name: [out / name, out / f"{name}.png"], paths=paths)
        shared.do(lambda name: shared.succeeded(name) and (out / f"{name}.png").exists(), work)
        return done, shared.found()

    whole = {name: {"objects": 1} for name in paths}
    assert do() == (["a", "b"], whole)
    disk.rename(tmp_path / "elsewhere")
    assert do() == ([], whole)
    (out / "a.png").unlink()
    capsys.readouterr()
    assert do() == (["a"], whole)
    assert "densepath: a: the file is missing" in capsys.readouterr().err and (out / "a").exists()
    (tmp_path / "elsewhere").rename(disk)
    assert do() == (["a"], whole) and (out / "a.png").exists()
    (disk / "b").write_text("another slide")
    assert do() == (["b"], whole)


def test_a_slide_without_its_result_has_failed(tmp_path: Path) -> None:
    """One of which another file cannot be made has not, but the last line names it."""
    result, picture = tmp_path / "a.csv", tmp_path / "a.png"

    def do(fails: bool = True) -> tuple[dict[str, Any], str]:
        def work(name: str) -> dict[str, int]:
            if fails:
                raise CorruptImage(name, "cut off")
            result.touch()
            return {"objects": 2}

        identities = {"a": 1, "b": 1}
        shared = SlideWork(tmp_path, identities, lambda name: [result, picture], lambda name: result.exists())
        shared.do(lambda name: name == "b" or (shared.succeeded(name) and picture.exists()), work)
        return shared.found(), shared.missing()

    done = {"a": {"objects": 2}}
    assert do(fails=False) == (done, "")
    assert do() == (done, "; missing files of 1 slide could not be made: a: cut off") and result.exists()
    result.unlink()
    assert do() == ({"a": {"problem": "cut off"}}, "")
    assert do(fails=False) == (done, "")
    result.unlink()
    picture.touch()
    assert do() == ({}, "")  # left to another process


def test_files_of_slides_that_have_no_tiles_any_more_are_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """But not those of other slides of these names, and not while another process is at work on other slides."""
    for path in (tmp_path / "A" / "s.tiff", tmp_path / "B" / "s.tiff"):
        path.parent.mkdir()
        path.write_text(path.parent.name)
    out, tiles = tmp_path / "out", tmp_path / "tiles"
    tiles.mkdir()
    (tiles / "slides.csv").write_text("slide,path,tiles\nt,/t.tiff,1\n")

    def do(identities: dict[str, Any]) -> None:
        def work(name: str) -> dict[str, str]:
            (out / name).touch()
            return {"path": str(tmp_path / "A" / f"{name}.tiff")}

        is_former = without_tiles(tiles, out)
        shared = SlideWork(out, identities, lambda name: [out / name], is_whole=False, is_former=is_former)
        shared.do(shared.succeeded, work)

    moved = ["s", *identity_of_slide(tmp_path / "B" / "s.tiff")]  # what is recorded of A/s.tiff
    for identity, path, removed in (
        (["s", 1, 2], tmp_path / "B" / "s.tiff", False),
        (["s", 1, 2], tmp_path / "A" / "s.tiff", True),
        (moved, tmp_path / "B" / "s.tiff", True),
    ):
        do({"s": identity})
        (tiles / "slides.csv").write_text(f"slide,path,tiles\ns,{path},0\n")
        with same_input(out, "others"):
            assert is_refused_elsewhere(lambda: do({"t": ["t", 1, 2]}))
        assert (out / "s").exists() and is_recorded(out, "s")
        do({"t": ["t", 1, 2]})
        assert (out / "s").exists() == is_recorded(out, "s") == (not removed)
        said = f"removed the results of 1 former slide from {out}: s"
        assert (said in capsys.readouterr().err) == removed


def test_files_of_a_slide_that_is_tiled_again_stay(tmp_path: Path) -> None:
    """A disk failed when it was tiled."""
    slide, out, tiles = tmp_path / "s.tiff", tmp_path / "out", tmp_path / "tiles"
    slide.touch()
    shared = SlideWork(out, {"s": ["s", *identity_of_slide(slide)]})
    shared.do(shared.succeeded, lambda name: {"path": str(slide)})
    (tiles / "records").mkdir(parents=True)
    (tiles / "slides.csv").write_text(f"slide,path,tiles\ns,{slide},0\n")
    for again in (True, False):
        (tiles / "records" / "s.json").write_text(json.dumps({"slide": "s", "identity": [], "again": again}))
        assert without_tiles(tiles, out)("s") != again


def is_refused_elsewhere(work: Callable[[], None]) -> bool:
    """Whether a process of its own is refused: the locks of this one do not stop it itself."""
    if not (child := os.fork()):
        try:
            work()
        except UserError:
            os._exit(3)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


def is_recorded(out: Path, name: str) -> bool:
    return (out / "records" / f"{name}.json").exists()


def test_all_results_of_a_folder_have_one_precision(tmp_path: Path) -> None:
    assert begun_precision(tmp_path, "auto", "32") == "32"
    (tmp_path / "config.yaml").write_text("precision: bf16-mixed\n")
    assert begun_precision(tmp_path, "auto", "32") == begun_precision(tmp_path, "bf16-mixed", "32") == "bf16-mixed"
    with pytest.raises(UserError, match="was begun with --precision bf16-mixed; use that"):
        begun_precision(tmp_path, "32", "32")
