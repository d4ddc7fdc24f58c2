"""What folders, lists and patterns mean."""

from __future__ import annotations

import errno
import fnmatch
import os
import pickle
import tempfile
import threading
import time
import unicodedata
from pathlib import Path
from typing import IO, Any

import pytest

from densepath.core.errors import UserError
from densepath.core.waiting import Stuck
from densepath.sources import listing
from densepath.sources import path_table as names
from densepath.sources.listing import Passed, find_images, list_images, walk
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


def test_folders_that_link_to_each_other_are_read_once(tmp_path: Path) -> None:
    for number in range(8):
        touch(tmp_path, f"data/{number}/{number}.png")
        for other in range(8):
            os.symlink(tmp_path / "data" / str(other), tmp_path / "data" / str(number) / f"to{other}")
    touch(tmp_path, "store/.hidden/x.png", "store/y.png", "data/.own/z.png")
    for name, target in {"0first": "store", "linked": "store", "again": "store", "own": "data/.own"}.items():
        os.symlink(tmp_path / target, tmp_path / "data" / name)
    passed = Passed()
    names = [os.path.relpath(name, tmp_path / "data") for name in list_images(tmp_path / "data", passed=passed)]
    assert names == ["0/0.png", "0first/y.png", *(f"{k}/{k}.png" for k in range(1, 8)), "own/z.png"]
    assert passed.describe() == "66 links to folders that are read already"


def test_links_that_lead_nowhere_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.csv", "c.CSV", "noted")
    for name in ("loop.png", "loop"):
        os.symlink(name, tmp_path / name)
    os.symlink("gone.png", tmp_path / "broken.png")
    os.mkfifo(tmp_path / "pipe.png")
    passed = Passed()
    assert [os.path.basename(name) for name in list_images(tmp_path, passed=passed)] == ["a.png"]
    assert passed.describe() == "2 .csv files, 2 broken links, 2 other files, 1 special file"


def test_a_folder_of_any_depth_is_searched(tmp_path: Path) -> None:
    folders = [tmp_path / "/".join("d" * depth) for depth in range(1, 1201)]
    for folder in folders:
        os.mkdir(folder)
    image = f"{folders[-1]}/a.png"
    with open(image, "wb"):
        pass
    try:
        assert list(list_images(tmp_path)) == [image]
    finally:  # too deep for what pytest removes folders with
        os.unlink(image)
        for folder in reversed(folders):
            os.rmdir(folder)


EXCLUDED = {
    "*_anno.png": ["a/1.png", "b/sub/4.png"],
    "a/*": ["b/2_anno.png", "b/sub/4.png"],
    "b": ["a/1.png", "a/3_anno.png"],
    "sub/": ["a/1.png", "a/3_anno.png", "b/2_anno.png"],
    "*/sub": ["a/1.png", "a/3_anno.png", "b/2_anno.png"],
    "?.png": ["a/3_anno.png", "b/2_anno.png"],
}


@pytest.mark.parametrize("pattern", EXCLUDED)
def test_patterns_exclude_images_by_path_folder_and_name(tmp_path: Path, pattern: str) -> None:
    touch(tmp_path, "x/a/1.png", "x/b/2_anno.png", "x/a/3_anno.png", "x/b/sub/4.png")
    (tmp_path / "x" / "list.txt").write_text("a/1.png\na/3_anno.png\nb/2_anno.png\nb/sub/4.png\n")
    for source in (tmp_path / "x", tmp_path / "x" / "list.txt", f"{tmp_path}/x/**/*.png"):
        names = [str(path.relative_to(tmp_path / "x")) for path in find_images(source, [pattern])]
        assert names == EXCLUDED[pattern]
    with pytest.raises(UserError, match="--exclude leaves out all images"):
        find_images(tmp_path / "x", [pattern, "*"])


LISTS = {
    "header": "file\na.png\nc d.png\n",
    "columns": "path,label\na.png,1\nc d.png,2\n",
    "another column first": "label;Image\n1;a.png\n2;c d.png\n",
    "columns without header": "1\ta.png\n2\tc d.png\n",
    "the column of the header": "mask,image\nb.png,a.png\nb.png,c d.png\n",
    "double quotes": '"a.png"\n"c d.png",x\n',
    "single quotes": "'a.png'\n'c d.png'\n",
    "backslashes": ".\\a.png\n..\\x\\c d.png\n",
    "UTF-16": "a.png\nc d.png\n",
    "old line ends": "a.png\rc d.png\r",
    "commas before semicolons": "file,notes\na.png,tumour; dense\nc d.png,\n",
    "commas before semicolons, without header": "a.png,tumour; dense\nc d.png,\n",
    "line ends in quotes": 'file,notes\na.png,"two\nlines"\n# comment\nc d.png,x\n',
    "a header in a comment": "# list of A\n#id,file,notes\n1,a.png,x.png or y.png\n2,c d.png,\n",
    "a header in a comment, with blanks": '#id,file name,notes\n1,a.png,"x, y"\n2,c d.png,\n',
    "a comment before the header": "# file, tissue class\nFile Name,Class\na.png,1\nc d.png,2\n",
    "a delimiter that is named": "sep=;\nfile;notes, all\na.png;1,5\nc d.png;2\n",
    "a delimiter that is named, without header": "sep=;\na.png;1,5\nc d.png;2\n",
    "outlines": f'File Path,outline\na.png,"POLYGON (({"1 2, " * 50_000}))"\nc d.png,\n',
}


@pytest.mark.parametrize("kind", LISTS)
def test_lists_of_other_tools_are_read(tmp_path: Path, kind: str) -> None:
    touch(tmp_path, "x/a.png", "x/b.png", "x/c d.png")
    encoding = "utf-16" if kind == "UTF-16" else "utf-8"
    (tmp_path / "x" / "list.csv").write_bytes(LISTS[kind].encode(encoding))
    assert [path.name for path in find_images(tmp_path / "x" / "list.csv")] == ["a.png", "c d.png"]


def test_names_in_lists_may_look_like_tables(tmp_path: Path) -> None:
    names = ["a,b.png", "c;d.png", "'e'.png", "f\\g.png", "file"]
    touch(tmp_path, *names)
    (tmp_path / "list.txt").write_text("\n".join(reversed(names)))
    assert [path.name for path in find_images(tmp_path / "list.txt")] == names[::-1]


def test_a_text_list_may_begin_with_a_sentence(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "c, 2.png")
    (tmp_path / "list.txt").write_text("Images of A, 2021\na.png\nc, 2.png\n")
    assert [path.name for path in find_images(tmp_path / "list.txt")] == ["a.png", "c, 2.png"]


def test_a_quote_that_is_not_closed_hides_no_images(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png")
    (tmp_path / "list.csv").write_text('file,note\na.png,"big\nb.png,x\n')
    with pytest.raises(UserError, match="line 2 has a quote that is not closed"):
        find_images(tmp_path / "list.csv")


def test_a_list_with_two_images_in_a_line_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png")
    (tmp_path / "list.csv").write_text("x,y\na.png,b.png\n")
    with pytest.raises(UserError, match=r"line 2 of .*list\.csv names 2 images; give one path per line, or a header"):
        find_images(tmp_path / "list.csv")


def test_a_list_that_has_its_files_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("file,File\na.png,b.png\n")
    with pytest.raises(UserError, match=r"list\.csv has two columns: file; rename one"):
        find_images(tmp_path / "list.csv")


def test_a_field_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text('file,x\na.png,"' + "t" * (2**24 + 1))
    with pytest.raises(UserError, match=r"list\.csv cannot be read \(field larger than field limit"):
        find_images(tmp_path / "list.csv")


@pytest.mark.parametrize(("on_disk", "in_list"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_in_lists_are_found_across_unicode_normalizations(tmp_path: Path, on_disk: str, in_list: str) -> None:
    names = {form: unicodedata.normalize(form, "drüse.png") for form in ("NFC", "NFD")}
    touch(tmp_path, names[on_disk])
    (tmp_path / "list.txt").write_text(names[in_list])
    assert [path.name for path in find_images(tmp_path / "list.txt")] == [names[on_disk]]


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
        ("br[a]ck/*.png", "a pattern; in a pattern, [abc] is one of these characters, and [[] is ["),
        ("empty", "contain no PNG, JPEG, TIFF, WebP, BMP or DICOM image"),
        ("other", "contain no PNG, JPEG, TIFF, WebP, BMP or DICOM image"),
        ("other/a.svs", "is not a PNG, JPEG, TIFF, WebP, BMP or DICOM image"),
        ("texts", "DICOM image, only 2 .txt files, 1 special file; check the path"),
        ("broken", "DICOM image, only 2 broken links; correct the links"),
        ("broken/*.png", "of images, only 2 broken links; correct the links"),
        ("broken/a.png", "broken/a.png is a link to gone.png, which does not exist"),
        ("[eo]*", "matches only folders; name the folder, such as "),
        ("other/*", "is not a PNG, JPEG, TIFF, WebP, BMP or DICOM image"),
        ("absent.txt", "cannot be read (No such file or directory)"),
        ("blank.txt", "names no image"),
        ("", "does not exist"),
    ],
)
def test_sources_without_images_are_refused_in_one_line(tmp_path: Path, source: str, says: str) -> None:
    (tmp_path / "empty").mkdir()
    touch(tmp_path, "other/a.svs", "texts/a.txt", "texts/b.txt")
    os.mkfifo(tmp_path / "texts" / "c.png")
    (tmp_path / "broken").mkdir()
    for name in ("a.png", "b.png"):
        os.symlink("gone.png", tmp_path / "broken" / name)
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


@pytest.mark.parametrize("source", ["", "/*.png"])
def test_a_disk_that_hangs_while_files_are_listed_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], source: str
) -> None:
    (tmp_path / "a.png").touch()
    answers, look = threading.Event(), os.scandir
    monkeypatch.setattr("os.scandir", lambda *place: answers.wait(60) and look(*place))
    monkeypatch.setenv("DENSEPATH_WAIT_NOTICE", "0.2")
    monkeypatch.setenv("DENSEPATH_WAIT_LIMIT", "0.6")
    try:
        with pytest.raises(Stuck, match=rf"no list of the files in {tmp_path}\S* for 1 s; a file .* does not respond"):
            find_images(f"{tmp_path}{source}")
        with pytest.raises(Stuck, match=f"no list of the files in {tmp_path} for 1 s"):
            walk(tmp_path, (".json",))
    finally:
        answers.set()
    assert "waiting for list of the files in" in capsys.readouterr().err


def test_a_slow_disk_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(8):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "a.png").touch()
    look = os.scandir
    monkeypatch.setattr("os.scandir", lambda *place: time.sleep(0.15) or look(*place))
    monkeypatch.setenv("DENSEPATH_WAIT_LIMIT", "1.2")  # for all folders together it would not be enough
    assert len(find_images(tmp_path)) == 8


def test_an_excluded_folder_may_be_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.png", "closed/b.png", "open/c.png")
    read = os.scandir

    def refusing(folder: str) -> Any:  # permissions do not stop an administrator, who may run the tests
        if folder.endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", folder)
        return read(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(UserError, match=r"closed cannot be read \(Permission denied\); check its permissions"):
        find_images(tmp_path)
    with pytest.raises(UserError, match="closed cannot be read"):
        find_images(tmp_path, exclude=["open"])
    passed = Passed()
    assert list(list_images(tmp_path, ["closed"], passed)) == [f"{tmp_path}/a.png", f"{tmp_path}/open/c.png"]
    assert not passed.unused


def test_the_folders_above_an_image_are_compared_with_patterns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []
    monkeypatch.setattr(
        listing, "fnmatchcase", lambda name, pattern: compared.append(name) or fnmatch.fnmatchcase(name, pattern)
    )
    names = [f"study/site/patient/{number}.png" for number in range(50)]
    assert [name for name in names if listing.matches_any(name, ["site/*", "*7.png"])] == names[7::10]
    assert listing.matches_any("study/site/patient", ["/", "./"]) is False
    assert len(compared) < 5 * len(names)


def test_a_path_may_have_many_folders() -> None:
    deep = f"{'folder/' * 1500}a.png"
    assert listing.matches_any(deep, ["b", "folder"]) and not listing.matches_any(f"/{deep}", ["b", "/", "."])
