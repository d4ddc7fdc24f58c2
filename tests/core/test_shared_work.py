"""Work that processes share through a folder, with real processes that are killed in the middle."""

import errno
import os
import signal
import time
from collections import Counter
from contextlib import closing
from itertools import chain
from types import SimpleNamespace

import pytest
import yaml

from densepath.core import locks, waiting
from densepath.core import work_folder as work_folder_module
from densepath.core.errors import UserError
from densepath.core.shared_work import LOCKS, Shard, claimed
from densepath.core.waiting import Stuck, progress
from densepath.core.work_folder import work_folder
from densepath.core.worker_processes import share_work

_NAMES = [f"folder/slide {number}" for number in range(24)]


def _done(out, name):
    return (out / "done" / name.replace("/", "_")).exists()


def _work(out, name):
    (out / "done" / name.replace("/", "_")).write_text(name)
    with (out / "finished").open("a") as file:
        file.write(f"{name}\n")


def _worker(out, stops_at=None):
    """A process that does items; it stops in the middle of one, and says which by a pipe."""
    ready, told = os.pipe()
    child = os.fork()
    if child:
        return child, ready
    status = 1
    try:
        for count, name in enumerate(claimed(out, _NAMES, lambda name: _done(out, name))):
            if count == stops_at:
                os.write(told, name.encode())
                time.sleep(60)
            time.sleep(0.01)
            _work(out, name)
        status = 0
    finally:
        os._exit(status)


def test_four_workers_of_which_two_are_killed_do_every_item_once(tmp_path):
    (tmp_path / "done").mkdir()
    workers = [_worker(tmp_path, stops_at) for stops_at in (1, 3, None, None)]
    interrupted = []
    for child, ready in workers[:2]:
        interrupted.append(os.read(ready, 100).decode())
        os.kill(child, signal.SIGKILL)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child, _ in workers] == [-9, -9, 0, 0]
    assert len(set(interrupted)) == 2
    assert Counter((tmp_path / "finished").read_text().splitlines()) == Counter(_NAMES)
    assert list(claimed(tmp_path, _NAMES, lambda name: _done(tmp_path, name))) == []
    assert list((tmp_path / LOCKS).iterdir()) == []


def test_an_item_is_yielded_once_and_held_by_one_iterator_of_a_process(tmp_path):
    done = set()
    with closing(claimed(tmp_path, "abc", done.__contains__)) as mine:
        assert next(mine) == "a"
        others = claimed(tmp_path, "abc", done.__contains__)
        assert next(others) == "b"
        done.update("ab")
        assert list(mine) == ["c"]  # not done afterwards, and yet not yielded again
        assert list(others) == ["c"]  # nobody holds it any more


def test_an_item_that_is_finished_between_the_look_and_the_lock_is_not_done_again(tmp_path):
    looks = iter([False, True])
    assert list(claimed(tmp_path, ["a"], lambda name: next(looks))) == []


def test_a_holder_without_signs_of_life_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DENSEPATH_WAIT_LIMIT", "1")
    monkeypatch.setenv("DENSEPATH_WAIT_NOTICE", "0.4")
    (tmp_path / "done").mkdir()
    child, ready = _worker(tmp_path, 0)
    try:
        assert os.read(ready, 100).decode() == _NAMES[0]
        os.kill(child, signal.SIGSTOP)
        refusal = rf"no {_NAMES[0]} from other processes for 1 s; process {child} on .* holds it, but does not respond"
        with pytest.raises(Stuck, match=refusal):
            list(claimed(tmp_path, _NAMES[:1], lambda name: False))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert f"waiting for {_NAMES[0]} from other processes since" in capsys.readouterr().err


def test_a_file_system_without_locks_is_reported_once(tmp_path, monkeypatch, capsys):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "lockf", none)
    assert list(claimed(tmp_path, "abc", lambda name: False)) == list("abc")
    assert capsys.readouterr().err.count("has no locks") == 1


def test_shards_share_all_items(tmp_path):
    shares = [list(claimed(tmp_path, _NAMES, lambda name: False, Shard.of(f"{k}/5"))) for k in range(1, 6)]
    assert sorted(chain(*shares)) == sorted(_NAMES) and max(map(len, shares)) - min(map(len, shares)) == 1
    assert str(Shard.of("2/8")) == "2/8" and Shard.of("2/8") == Shard(1, 8)
    for wrong in ("0/8", "9/8", "3", "a/b", "1/0", "-1/4", ""):
        with pytest.raises(UserError, match="give for instance 2/8 for the second of eight: 1/8 to 8/8"):
            Shard.of(wrong)


_ARRAY = {
    f"SLURM_ARRAY_TASK_{name}": value for name, value in (("ID", "8"), ("MIN", "2"), ("STEP", "3"), ("COUNT", "4"))
}
_SRUN = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}


@pytest.mark.parametrize(
    ("variables", "shard"),
    [
        ({}, None),
        ({"RANK": "1", "WORLD_SIZE": "4"}, Shard(1, 4)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        ({"WORLD_SIZE": "4"}, None),
        (_SRUN, Shard(1, 2)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, None),  # in a job script, without srun
        (_ARRAY, None),  # its tasks may be other detectors or folds, each with a folder of its own
        (_ARRAY | {"RANK": "1", "WORLD_SIZE": "2"}, Shard(1, 2)),
        (_ARRAY | _SRUN, Shard(1, 2)),
    ],
)
def test_shards_of_launchers(variables, shard, monkeypatch):
    for name in {*_ARRAY, *_SRUN, "RANK", "WORLD_SIZE", "SLURM_NTASKS"}:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert Shard.of(None) == shard


@pytest.mark.parametrize("made", [1, 0])
def test_an_item_may_take_longer_than_the_limit_if_its_process_makes_progress(made, tmp_path, monkeypatch):
    monkeypatch.setenv("DENSEPATH_WAIT_LIMIT", "0.4")

    def work(name):
        for _ in range(7):
            time.sleep(0.1)
            progress(made)
        (tmp_path / name).touch()

    def shared():
        share_work(tmp_path, ["a"], lambda n: (tmp_path / n).exists(), work, workers=1, what="work", give_up=print)

    if made:
        shared()
    else:
        with pytest.raises(Stuck, match="no results of worker processes"):
            shared()


def test_no_wait_is_reported_while_results_come(tmp_path, monkeypatch, capsys):
    names, parent = ["a", "b", "c", "d"], os.getpid()
    made, seen = tmp_path / "made", tmp_path / "seen"
    made.mkdir()
    seen.mkdir()
    clock = SimpleNamespace(monotonic=lambda: 20.0 * len(os.listdir(seen)))
    monkeypatch.setattr(waiting, "time", clock)  # 20 s for each item, and a wait is reported after 30 s

    def is_done(name):
        if done := (made / name).exists() and os.getpid() == parent:
            (seen / name).touch()
        return done

    def work(name):
        while len(os.listdir(seen)) < names.index(name):  # one item at a time
            time.sleep(0.01)
        (made / name).touch()

    share_work(tmp_path, names, is_done, work, workers=1, what="work", give_up=print)
    assert "waiting" not in capsys.readouterr().err


def test_processes_that_start_at_the_same_time_share_a_new_folder(tmp_path, monkeypatch):
    require = work_folder_module.require_new_folder

    def late(path, what):
        with work_folder(path, {"data": "a"}, log="work.log"):  # another process begins between two looks
            pass
        require(path, what)

    calls = iter([late, require])
    monkeypatch.setattr(work_folder_module, "require_new_folder", lambda *given: next(calls)(*given))
    with work_folder(tmp_path / "out", {"data": "a"}, log="work.log"):
        assert next(calls, None) is None
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    monkeypatch.undo()
    with pytest.raises(UserError, match="not empty"), work_folder(tmp_path / "other", {}, log="work.log"):
        pass


def test_work_whose_changed_network_was_recorded_without_a_mark_continues(tmp_path):
    for name in ("resnet18", "resnet18*"):
        with work_folder(tmp_path / "out", {"backbone": name}, log="work.log"):
            pass
    other = work_folder(tmp_path / "out", {"backbone": "resnet50*"}, log="work.log")
    with pytest.raises(UserError, match="other values of backbone"), other:
        pass


def test_a_folder_of_another_command_is_refused_and_stays(tmp_path):
    with work_folder(tmp_path / "out", {"data": "a", "mpp": 1.0}, log="tile.log"):
        pass
    before = (tmp_path / "out" / "config.yaml").read_bytes()
    other = work_folder(tmp_path / "out", {"data": "a", "source": "blobs"}, log="cells.log")
    with pytest.raises(UserError, match=r"holds other work of densepath \(see .*\); use another folder"), other:
        pass
    assert (tmp_path / "out" / "config.yaml").read_bytes() == before


def test_options_that_the_record_lacks_may_be_given_later_and_are_recorded(tmp_path):
    def work(data="a", refused=False, **options):
        folder = work_folder(tmp_path / "out", {"data": data, **options}, log="work.log", later=("mpp", "size"))
        with folder as write_added:
            if not refused:
                write_added()
            return yaml.safe_load((tmp_path / "out/config.yaml").read_text())

    assert work(mpp=None) == {"data": "a", "mpp": None}
    assert work(mpp=0.5, refused=True) == {"data": "a", "mpp": None} == work(mpp=None)
    assert work(mpp=0.5) == {"data": "a", "mpp": 0.5} == work(mpp=0.5)
    for other in (0.25, None):
        with pytest.raises(UserError, match="was made with other values of mpp "):
            work(mpp=other)
    assert work(mpp=0.5, size=2) == {"data": "a", "mpp": 0.5, "size": 2}
    with pytest.raises(UserError, match="other values of data"):
        work(mpp=0.5, size=2, data="b")


def test_options_whose_last_value_is_recorded_may_change_but_not_be_left_out(tmp_path):
    """Also where the record of an earlier version lacks them."""

    def work(mpp, refused=False):
        with work_folder(tmp_path / "out", {"data": "a", "mpp": mpp}, log="work.log", latest=("mpp",)) as write_added:
            if not refused:
                write_added()
            return yaml.safe_load((tmp_path / "out/config.yaml").read_text())

    with work_folder(tmp_path / "out", {"data": "a"}, log="work.log"):
        pass
    assert work(None) == {"data": "a"} == work(0.5, refused=True)
    for value in (0.5, 0.25):
        assert work(value) == {"data": "a", "mpp": value}
    with pytest.raises(UserError, match=r"was made with --mpp 0.25 .*; give it again"):
        work(None)
