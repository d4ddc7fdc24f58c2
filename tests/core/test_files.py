"""A failure leaves no partial files."""

import os
import shutil
import socket
import subprocess
import sys
import time

import pytest

from densepath.core.errors import UserError
from densepath.core.file_beside import file_beside
from densepath.core.files import Unchanged, atomic_write, check_writable, require_new_file, require_new_folder
from densepath.core.remains import _machine, final_name, remove_abandoned, remove_remains

NAMESPACE = ("unshare", "--map-root-user", "--mount")


def can_mount():
    """Whether a disk of one's own can be mounted here."""
    trial = [*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return bool(shutil.which("unshare")) and subprocess.run(trial, capture_output=True, check=False).returncode == 0


def write_folder(target):
    with atomic_write(require_new_folder(target, "the data")) as temporary:
        (temporary / "deep").mkdir(parents=True)
        (temporary / "deep" / "file").write_text("text")
        (temporary / "file").write_text("text")


def content(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_finished_file_replaces_the_old_one(tmp_path):
    target = tmp_path / "deep" / "file.txt"
    for text in ("first", "second"):
        with atomic_write(target) as temporary:
            temporary.write_text(text)
        assert target.read_text() == text
    assert [p.name for p in target.parent.iterdir()] == ["file.txt"]


def test_a_file_replaces_a_link_and_not_what_it_leads_to(tmp_path):
    """Which may be an object of git-annex or DVC: its content must not change."""
    (tmp_path / "object").write_text("kept")
    (tmp_path / "link").symlink_to("object")
    with atomic_write(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert not (tmp_path / "link").is_symlink() and (tmp_path / "link").read_text() == "new"
    assert (tmp_path / "object").read_text() == "kept" and content(tmp_path) == ["link", "object"]


def test_a_pipe_gets_the_bytes_of_a_finished_file_and_an_open_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "file").write_text("begun, ")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    for path in (tmp_path / "pipe", tmp_path / "link"):
        check_writable(path)
        with atomic_write(path) as temporary:
            temporary.write_text("text")
        with pytest.raises(KeyboardInterrupt), atomic_write(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt
    with (tmp_path / "file").open("a") as file, pytest.raises(UserError, match="is a file that is open; give the path"):
        check_writable(f"/proc/self/fd/{file.fileno()}")
    assert os.read(reader, 100) == b"texttext" and (tmp_path / "file").read_text() == "begun, "
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo() and content(tmp_path) == ["file", "link", "pipe"]


@pytest.mark.parametrize("check", [check_writable, lambda path: atomic_write(path).__enter__()])
def test_a_file_does_not_replace_a_socket(tmp_path, check, monkeypatch):
    monkeypatch.chdir(tmp_path)  # paths of sockets are short
    with socket.socket(socket.AF_UNIX) as server, pytest.raises(UserError, match="s is a disk or a socket; give"):
        server.bind("s")
        check(tmp_path / "s")
    assert (tmp_path / "s").is_socket()


def test_a_file_next_to_a_result_replaces_only_its_former_one(tmp_path):
    out, table, picture = (tmp_path / f"a.{suffix}" for suffix in ("json", "csv", "png"))
    for rows in ("image,dice,iou\n", None):
        assert file_beside(out, ".csv", ("image", "dice")) == table and file_beside(out, ".png") == picture
        if rows:
            table.write_text(rows)
    picture.write_text("mine")
    with pytest.raises(UserError, match=r"a\.png exists, and the picture of .*a\.json would replace it; use another"):
        file_beside(out, ".png")
    out.write_text("{}")
    assert file_beside(out, ".png") == picture
    table.write_text("image,label\n")
    with pytest.raises(UserError, match=r"a\.csv exists, and the table of"):
        file_beside(out, ".csv", ("image", "dice"))


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_failure_leaves_the_old_file_and_no_temporary_files(tmp_path, kind):
    old = tmp_path / "old"
    old.write_text("kept")
    with pytest.raises(KeyboardInterrupt), atomic_write(old) as temporary:
        if kind == "file":
            temporary.write_text("half")
        else:
            temporary.mkdir()
            (temporary / "half").write_text("half")
        raise KeyboardInterrupt
    assert old.read_text() == "kept"
    assert [p.name for p in tmp_path.iterdir()] == ["old"]


def test_a_folder_appears_when_it_is_complete(tmp_path):
    with atomic_write(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "file").write_text("text")
        assert not (tmp_path / "folder").exists()
    assert (tmp_path / "folder" / "file").read_text() == "text"


def test_a_folder_that_is_not_empty_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="not empty"):
        require_new_folder(tmp_path, "a run")
    with pytest.raises(UserError, match="is not a folder"):
        require_new_folder(tmp_path / "file", "a run")
    assert require_new_folder(tmp_path / "new", "a run") == tmp_path / "new"


def test_a_folder_may_be_a_link_or_empty_below_a_parent_that_is_not_writable(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    write_folder(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path / "real") == ["deep", "deep/file", "file"]


def test_a_folder_may_be_a_mount_point(tmp_path):
    if not can_mount():
        pytest.skip("no file system can be mounted here")
    (tmp_path / "disk").mkdir()
    program = (
        "import os, sys; from pathlib import Path; from densepath.core.files import atomic_write, require_new_folder\n"
        f"with atomic_write(require_new_folder({str(tmp_path / 'disk')!r}, 'data')) as part:\n"
        "    part.mkdir(); (part / 'file').write_text('text')\n"
        f"print(os.listdir({str(tmp_path / 'disk')!r}))"
    )
    script = f'mount -t tmpfs tmpfs {tmp_path}/disk && exec "$0" -c "$1"'
    done = subprocess.run(
        [*NAMESPACE, "sh", "-c", script, sys.executable, program], capture_output=True, text=True, check=False
    )
    assert done.stdout == "['file']\n", done.stderr


def test_a_file_that_cannot_be_written_is_refused_before_work_begins(tmp_path):
    check_writable(tmp_path / "new" / "deep" / "scores.json")
    assert content(tmp_path) == []
    (tmp_path / "file").write_text("text")
    with pytest.raises(UserError, match="file is not a folder"):
        check_writable(tmp_path / "file" / "deep" / "scores.json")
    with pytest.raises(UserError, match="is a folder; give the path of a file"):
        check_writable(tmp_path)
    if not can_mount():
        pytest.skip("no file system can be mounted here")
    program = "import sys; from densepath.core.files import check_writable; check_writable(sys.argv[1])"
    script = f'mount -t tmpfs -o ro tmpfs {tmp_path} && exec "$0" -c "$1" {tmp_path}/new/scores.json'
    done = subprocess.run(
        [*NAMESPACE, "sh", "-c", script, sys.executable, program], capture_output=True, text=True, check=False
    )
    assert f"UserError: {tmp_path}/new/scores.json cannot be written (Read-only file system); use" in done.stderr


def test_an_interrupted_folder_leaves_an_empty_one_empty(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path) as temporary:
        temporary.mkdir()
        (temporary / "half").write_text("half")
        raise KeyboardInterrupt
    assert content(tmp_path) == []


@pytest.fixture(scope="module")
def dead():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return str(process.pid)


@pytest.mark.parametrize("inside", [True, False])
def test_what_killed_writers_have_left_is_removed_by_the_next(tmp_path, dead, inside):
    target, here = tmp_path / "data", _machine()
    target.mkdir()
    folder = target if inside else tmp_path
    gone = [f".data.{dead}@{here}.part", f".data.{dead}.part", ".data.1@another-machine.part"]
    kept = [f".data.{os.getpid()}@{here}.part", ".other.1.part", ".mine.part"]
    for name in (*gone, *kept) if not inside else gone:
        (folder / name).mkdir()
        (folder / name / "half").write_text("half")
    long_ago = time.time() - 2 * 24 * 3600
    for name in gone[1:]:
        os.utime(folder / name, (long_ago, long_ago))
    write_folder(target)
    assert content(target) == ["deep", "deep/file", "file"]
    if not inside:
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept[1:], "data", kept[0]])


def test_what_a_killed_writer_of_a_folder_inside_a_folder_has_left_is_removed(tmp_path):
    with atomic_write(tmp_path / "data") as outer, atomic_write(outer) as inner:
        inner.mkdir()
        left = tmp_path / inner.name.replace(f".{os.getpid()}@", ".4194305@")  # above the largest process number
        inner.rename(left)
        inner.mkdir()
    shutil.rmtree(tmp_path / "data")
    assert final_name(left.name) == "data"
    require_new_folder(tmp_path / "data", "the data")
    assert not left.exists()


@pytest.mark.parametrize("check", [require_new_file, check_writable])
def test_what_a_killed_writer_of_a_file_has_left_is_removed(tmp_path, dead, check):
    left, other = tmp_path / f".store.{dead}@{_machine()}.part", tmp_path / f".stores.{dead}@{_machine()}.part"
    left.touch()
    other.touch()
    check(tmp_path / "store")
    assert list(tmp_path.iterdir()) == [other]


@pytest.mark.parametrize("name", [".data.4194305@another-machine.part", ".data.4194305.part"])
def test_what_another_or_an_unnamed_machine_writes_now_stays(tmp_path, name):
    (tmp_path / name).mkdir()
    write_folder(tmp_path / "data")
    assert (tmp_path / name).exists()


def test_a_mapped_file_that_changes_is_named(tmp_path):
    path = tmp_path / "store"
    path.write_text("0123456789")
    mapped = Unchanged(path)
    mapped.check()
    (tmp_path / "other").write_text("new")
    os.replace(tmp_path / "other", path)
    mapped.check()  # the mapping keeps the old file
    mapped = Unchanged(path)
    os.truncate(path, 1)
    with pytest.raises(UserError, match=r"store was truncated while .* \(3 bytes then, 1 now\)"):
        mapped.check()
    path.unlink()
    mapped.check()


@pytest.mark.parametrize("name", ["s" * 240, "\u7247" * 80])
def test_a_name_as_long_as_the_file_system_allows_can_be_written(name, tmp_path):
    with atomic_write(tmp_path / name) as part:
        part.write_text("x")
        left = part.name
    assert [path.name for path in tmp_path.iterdir()] == [name]
    dead = tmp_path / left.replace(f".{os.getpid()}@", ".4194305@")  # above the largest process number
    dead.touch()
    remove_abandoned(tmp_path / name)
    assert not dead.exists()


def test_in_a_shared_folder_only_remains_of_ended_processes_are_removed(tmp_path):
    with atomic_write(tmp_path / "sub/a") as part:
        part.write_text("x")
        dead = part.with_name(part.name.replace(f".{os.getpid()}@", ".4194305@"))
        dead.touch()
        remove_remains(tmp_path, shared=True)
        assert part.exists() and not dead.exists()
