"""Lock files, with real processes that hold them."""

import errno
import os
import signal
import threading
import time
from contextlib import contextmanager

import pytest

from densepath.core.errors import UserError
from densepath.core.locks import refuse_held, shared_work, sole_writer
from densepath.core.waiting import Stuck


@contextmanager
def process_in(block):
    """A process that stays in a block until it is killed."""
    ready, told = os.pipe()
    child = os.fork()
    if not child:
        try:
            with block():
                os.write(told, b"x")
                time.sleep(60)
        finally:
            os._exit(1)
    os.read(ready, 1)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_second_writer_is_refused_until_the_first_has_ended_however(tmp_path):
    folder = tmp_path / "run"
    with process_in(lambda: sole_writer(folder)) as holder:
        refusal = rf"another process writes to .*/run \(process {holder} on .*\); wait until it has ended"
        with pytest.raises(UserError, match=refusal), sole_writer(folder):
            pass
        with pytest.raises(UserError, match=refusal):
            refuse_held(folder)
    refuse_held(folder)
    with sole_writer(folder):
        assert [path.name for path in folder.iterdir()] == [".lock"]
        (folder / "file").write_text("")
    assert [path.name for path in folder.iterdir()] == ["file"]


def test_a_child_of_the_writer_does_not_hold_the_folder(tmp_path):
    def writer_with_child():
        @contextmanager
        def block():
            with sole_writer(tmp_path):
                child = os.fork()
                if not child:
                    time.sleep(60)
                (tmp_path / "child").write_text(str(child))
                yield

        return block()

    with process_in(writer_with_child):
        pass
    child = int((tmp_path / "child").read_text())
    try:
        with sole_writer(tmp_path):
            os.kill(child, 0)  # it still lives
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_full_disk_does_not_stop_the_lock(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("densepath.core.locks.os.write", full)
    with sole_writer(tmp_path / "run"):
        assert (tmp_path / "run" / ".lock").exists()


def test_nothing_is_left_of_a_folder_that_was_not_written_to(tmp_path):
    with pytest.raises(KeyboardInterrupt), sole_writer(tmp_path / "run"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/run cannot be created"), sole_writer(tmp_path / "file" / "run"):
        pass


def test_shared_work_is_waited_for_as_long_as_its_process_gives_signs_of_life(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DENSEPATH_WAIT_LIMIT", "1")
    monkeypatch.setenv("DENSEPATH_WAIT_NOTICE", "0.5")
    path = tmp_path / "lock"
    with process_in(lambda: shared_work(path, "label maps")) as holder:
        end = threading.Timer(2.5, os.kill, (holder, signal.SIGKILL))
        end.start()
        start = time.monotonic()
        with shared_work(path, "label maps"):
            assert time.monotonic() - start > 2
        end.join()
    assert "densepath: waiting for label maps from another process since 1 s" in capsys.readouterr().err


def test_shared_work_of_a_process_that_is_stopped_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setenv("DENSEPATH_WAIT_LIMIT", "1")
    path = tmp_path / "lock"
    with process_in(lambda: shared_work(path, "label maps")) as holder:
        os.kill(holder, signal.SIGSTOP)
        refusal = r"no label maps from another process for 1 s; it holds .*/lock, but does not respond"
        with pytest.raises(Stuck, match=refusal), shared_work(path, "label maps"):
            pass
