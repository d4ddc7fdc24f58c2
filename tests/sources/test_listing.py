"""What folders, lists and patterns mean."""

from __future__ import annotations

import os
import pickle
import tempfile
from pathlib import Path
from typing import IO

import pytest

from densepath.core.errors import UserError
from densepath.sources import path_table as names
from densepath.sources.listing import find_images
from densepath.sources.path_table import PathTable


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def found(source: Path | str, root: Path) -> list[str]:
    return [str(path.relative_to(root)) for path in find_images(source)]


def test_folder_is_searched_in_depth_in_the_order_of_its_names(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.PNG", "b/10.jpeg", "a.tif", "c/d/e.webp", "c/a.bmp", "B.jpg", "notes.txt", "c/d/f.svs")
    assert found(tmp_path, tmp_path) == ["B.jpg", "a.tif", "b/10.jpeg", "b/2.PNG", "c/a.bmp", "c/d/e.webp"]


def test_hidden_files_and_folders_are_not_images(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "._a.png", ".cache/b.png")
    assert found(tmp_path, tmp_path) == ["a.png"]


def test_links_are_followed_but_never_in_circles(tmp_path: Path) -> None:
    touch(tmp_path, "data/a.png", "store/b.png")
    os.symlink(tmp_path / "store", tmp_path / "data" / "linked")
    os.symlink(tmp_path / "data", tmp_path / "data" / "circle")
    assert found(tmp_path / "data", tmp_path / "data") == ["a.png", "linked/b.png"]


def test_list_keeps_its_order_and_repeats_and_is_relative_to_its_own_folder(tmp_path: Path) -> None:
    touch(tmp_path, "x/b.png", "x/a.png", "c d.png")
    listing = tmp_path / "x" / "tiles.csv"
    listing.write_text(f"\ufeffb.png\n\n# a comment\n  {tmp_path / 'c d.png'} \r\na.png\nb.png", encoding="utf-8")
    assert [path.name for path in find_images(listing)] == ["b.png", "c d.png", "a.png", "b.png"]
    assert all(path.exists() for path in find_images(listing))


def test_pattern_is_sorted_and_keeps_only_images(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.png", "a/1.png", "a/1.txt", "a/z/3.jpg")
    assert found(f"{tmp_path}/**/*", tmp_path) == ["a/1.png", "a/z/3.jpg", "b/2.png"]
    assert found(f"{tmp_path}/?/*.png", tmp_path) == ["a/1.png", "b/2.png"]


def test_one_image_is_a_source_too(tmp_path: Path) -> None:
    touch(tmp_path, "[1].png")
    assert found(tmp_path / "[1].png", tmp_path) == ["[1].png"]


def test_names_that_are_not_unicode_survive(tmp_path: Path) -> None:
    name = os.fsdecode(b"tile-\xff\xe9.png")
    touch(tmp_path, name)
    assert found(tmp_path, tmp_path) == [name]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("absent", "does not exist"),
        ("absent/*.png", "does not exist"),
        ("empty", "contain no PNG, JPEG, TIFF, WebP or BMP image"),
        ("other", "contain no PNG, JPEG, TIFF, WebP or BMP image"),
        ("other/a.svs", "is not a PNG, JPEG, TIFF, WebP or BMP image"),
        ("other/*", "is not a PNG, JPEG, TIFF, WebP or BMP image"),
        ("absent.txt", "cannot be read (No such file or directory)"),
        ("blank.txt", "names no image"),
        ("", "does not exist"),
    ],
)
def test_sources_without_images_are_refused_in_one_line(tmp_path: Path, source: str, says: str) -> None:
    (tmp_path / "empty").mkdir()
    touch(tmp_path, "other/a.svs")
    (tmp_path / "blank.txt").write_text("\n# nothing\n")
    with pytest.raises(UserError) as error:
        find_images(tmp_path / source if source else "")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_list_names_the_lines_of_missing_files(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    (tmp_path / "list.txt").write_text("a.png\n" + "".join(f"gone{k}.png\n" for k in range(5)))
    with pytest.raises(UserError, match=r"line 2: gone0\.png; line 3: gone1\.png; line 4: gone2\.png and 2 more"):
        find_images(tmp_path / "list.txt")


def test_names_cost_their_bytes_and_eight_more_each() -> None:
    strings = [f"slide {k}/tïle.png" for k in range(1000)]
    names = PathTable.of(iter(strings))
    assert list(names) == strings
    assert names.text.nbytes + names.starts.nbytes == sum(len(os.fsencode(s)) for s in strings) + 8 * 1001
    with pytest.raises(IndexError):
        names[1000]


def test_names_of_millions_lie_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    strings = [f"folder/é{number}.png" for number in range(1000)]
    few = PathTable.of(strings)
    opened: list[IO[bytes]] = []
    make = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: opened.append(make()) or opened[-1])
    monkeypatch.setattr(names, "_IN_MEMORY", 100)
    monkeypatch.setattr(names, "_BLOCK", 7)
    many = PathTable.of(iter(strings))
    assert len(opened) == 2 and all(file.closed for file in opened)
    assert list(many) == list(few) == strings
    assert list(pickle.loads(pickle.dumps(many))) == strings
