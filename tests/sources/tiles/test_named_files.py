"""Files that belong to slides by their names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from densepath.core.errors import UserError
from densepath.sources.tiles.named_files import NamedFiles


def _named(folder: Path, files: Sequence[str], slides: Sequence[str]) -> NamedFiles:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return NamedFiles(folder, ("_patches.h5", ".h5"), "coords", "files", slides)


def test_a_file_need_not_be_in_the_folder_of_its_slide(tmp_path: Path) -> None:
    named = _named(tmp_path, ["20x/patches/s_patches.h5", "t.svs.h5", "b/u.h5"], ["a/s", "b/t", "u", "v"])
    found = [named.of(name) for name in ("a/s", "b/t", "u", "v")]
    assert found == [f"{tmp_path}/{name}" for name in ("20x/patches/s_patches.h5", "t.svs.h5", "b/u.h5")] + [None]


def test_the_file_of_a_slide_is_not_that_of_another_one_of_the_same_name(tmp_path: Path) -> None:
    named = _named(tmp_path, ["a/s.h5", "b/t.h5"], ["a/s", "b/s", "t", "b/t"])
    assert named.of("a/s") == f"{tmp_path}/a/s.h5" and named.of("b/s") is None
    assert named.of("b/t") == f"{tmp_path}/b/t.h5" and named.of("t") is None


@pytest.mark.parametrize("file", ["s.h5", "other/s.h5"])
def test_a_file_that_may_be_of_several_slides_is_of_none(file: str, tmp_path: Path) -> None:
    named = _named(tmp_path, [file], ["a/s", "b/s"])
    with pytest.raises(UserError, match=r"s\.h5 may be of any of 2 slides s; put this one's at .*/a/s_patches\.h5"):
        named.of("a/s")


def test_folders_of_slides_may_be_below_others(tmp_path: Path) -> None:
    named = _named(tmp_path, ["20x/patches/a/s_patches.h5", "20x/patches/b/s_patches.h5"], ["a/s", "b/s"])
    assert [named.of(name) for name in ("a/s", "b/s")] == [f"{tmp_path}/20x/patches/{k}/s_patches.h5" for k in "ab"]


def test_two_files_of_a_slide_are_refused(tmp_path: Path) -> None:
    named = _named(tmp_path, ["a/s.h5", "a/s_patches.h5", "x/t.h5", "y/t.h5"], ["a/s", "t"])
    for name in ("a/s", "t"):
        with pytest.raises(UserError, match="has 2 files of this slide"):
            named.of(name)
