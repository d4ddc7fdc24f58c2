"""The order, the side by side, the failures and the end of runs, with commands that take no time."""

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from densepath.benchmark import runner as room
from densepath.benchmark.devices import Slot, make_slots
from densepath.benchmark.grid import Cell
from densepath.benchmark.run_folder import CellFolder
from densepath.benchmark.runner import Runner
from densepath.core.errors import UserError

SCORES = '{"mean_iou": 0.5}'


def probe(name, parent=None):
    """A cell; the name makes it another one."""
    return Cell("probe", name, 0, "data", {}, None if parent else "random", parent, {"name": name}, 1, None)


@pytest.fixture
def play(tmp_path, monkeypatch):
    """Run cells whose commands are the given Python scripts, on some slots."""

    def run(scripts, cells, slots=1):
        def command(folder, devices, workers=None):
            script = scripts.get(folder.cell.label, "")
            return [sys.executable, "-S", "-c", f"{script}\nopen('scores.json', 'w').write('{SCORES}')"]

        monkeypatch.setattr(CellFolder, "command", command)
        made = []
        runner = Runner(
            tmp_path, cells, [Slot(str(i), "cpu", "a machine") for i in range(slots)], lambda: made.append(1)
        )
        try:
            runner.run()
        finally:
            runner.changes = len(made)
        return runner

    return run


def test_runs_on_two_slots_are_side_by_side(play, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    # Each end of a pipe is opened only when the other one is.
    scripts = {"a": f"open('{tmp_path}/fifo', 'w').close()", "b": f"open('{tmp_path}/fifo').read()"}
    cells = [probe("a"), probe("b")]
    assert play(scripts, cells, slots=2).failed == {}
    assert [CellFolder(tmp_path, cell).result() for cell in cells] == [{"mean_iou": 0.5}] * 2


def test_what_depends_on_a_run_follows_it_and_falls_with_it(play, tmp_path):
    first, second = probe("first"), probe("bad")
    after, never, other = probe("after", first), probe("never", second), probe("other")
    note = f"open('{tmp_path}/order', 'a').write('{{}} ')"
    scripts = {name: note.format(name) for name in ("first", "after", "never", "other")}
    scripts["bad"] = "import sys; sys.exit('densepath: error: no luck')"
    # What needs the first one comes before it here, and has to wait.
    runner = play(scripts, [after, first, second, never, other], slots=1)
    assert (tmp_path / "order").read_text() == "first after other "
    assert runner.failed.keys() == {second.name, never.name}
    assert runner.failed[second.name].startswith("no luck (log: ")
    assert runner.failed[never.name] == f"{second.name} failed"
    assert runner.changes == 3
    assert CellFolder(tmp_path, second).notes()["error"] == "no luck"
    # Given again, only what failed is run.
    del scripts["bad"]
    again = play(scripts, [first, after, second, never, other])
    assert again.failed == {} and again.changes == 2
    assert (tmp_path / "order").read_text() == "first after other never "
    assert "error" not in CellFolder(tmp_path, second).notes()


def test_a_killed_run_fails_alone(play, tmp_path):
    scripts = {"a": "import os; os.kill(os.getpid(), 9)", "b": "import sys; sys.exit(3)"}
    runner = play(scripts, [probe("a"), probe("b"), probe("c")])
    assert [why.split(" (log")[0] for why in runner.failed.values()] == ["killed by signal 9", "exit code 3"]
    assert CellFolder(tmp_path, probe("c")).result() == {"mean_iou": 0.5}


def test_a_run_without_a_result_has_failed(play, tmp_path):
    runner = play({"a": "import os; os._exit(0)"}, [probe("a")])
    assert "holds no result" in runner.failed[probe("a").name]
    assert CellFolder(tmp_path, probe("a")).result() is None


def test_ctrl_c_lets_the_runs_save_themselves(play, tmp_path):
    scripts = {
        "a": "import os, signal, sys\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (open('{tmp_path}/saved', 'w').close(), sys.exit(143)))\n"
        "os.kill(os.getppid(), signal.SIGINT)\n"
        "signal.pause()"
    }
    with pytest.raises(SystemExit) as end:
        play(scripts, [probe("a"), probe("b")])
    assert end.value.code == 130
    assert (tmp_path / "saved").exists()
    assert CellFolder(tmp_path, probe("a")).result() is None
    assert not CellFolder(tmp_path, probe("b")).path.exists()
    assert play({}, [probe("a"), probe("b")]).failed == {}


def test_the_second_ctrl_c_does_not_wait(play, tmp_path):
    scripts = {
        "a": "import os, signal\n"
        f"open('{tmp_path}/pid', 'w').write(str(os.getpid()))\n"
        "signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getppid(), signal.SIGINT))\n"
        "os.kill(os.getppid(), signal.SIGINT)\n"
        "while True: signal.pause()"
    }
    with pytest.raises(KeyboardInterrupt) as end:
        play(scripts, [probe("a")])
    assert end.tb is not None  # it holds the process, which nobody has asked how it ended
    assert os.waitpid(int((tmp_path / "pid").read_text()), 0)[1] == signal.SIGKILL


def test_a_folder_is_taken_until_the_last_process_in_it_ends(tmp_path):
    folder = CellFolder(tmp_path, probe("a"))
    lock = folder.lock()
    # The one who took it is gone, as after a kill; the run lives on.
    orphan = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock,))
    os.close(lock)
    assert folder.lock() is None
    orphan.communicate(b"\n")
    lock = folder.lock()
    assert lock is not None
    os.close(lock)


def test_a_run_that_outlives_its_runner_keeps_its_folder(play, tmp_path):
    for name in ("started", "go"):
        os.mkfifo(tmp_path / name)
    scripts = {"a": f"open('{tmp_path}/started', 'w').close(); open('{tmp_path}/go').read()"}
    runner = os.fork()
    if runner == 0:
        try:
            play(scripts, [probe("a")])
        finally:
            os._exit(0)
    (tmp_path / "started").read_bytes()
    os.kill(runner, signal.SIGKILL)
    os.waitpid(runner, 0)
    folder = CellFolder(tmp_path, probe("a"))
    assert folder.lock() is None
    (tmp_path / "go").write_bytes(b"")
    while (lock := folder.lock()) is None:
        pass
    os.close(lock)
    assert folder.result() is None  # nobody was there to take it
    assert play({}, [probe("a")]).failed == {}
    assert folder.result() == {"mean_iou": 0.5}


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_in_other_hands_is_waited_for(play, tmp_path, monkeypatch, finished):
    cell = probe("a")
    folder = CellFolder(tmp_path, cell)
    lock = folder.lock()
    folder.begin(["by another process"], "another machine")

    def let_go(line):
        if "another process" in line:
            if finished:
                (folder.path / "scores.json").write_text('{"mean_iou": 0.25}')
                folder.finish(1.0)
            os.close(lock)

    monkeypatch.setattr(room, "say", let_go)
    monkeypatch.setattr(room, "_ELSEWHERE", 0.0)
    runner = play({}, [cell])
    assert runner.failed == {} and runner.changes == 1
    assert folder.result() == {"mean_iou": 0.25 if finished else 0.5}


def test_the_folder_of_another_run_is_refused(tmp_path):
    folder = CellFolder(tmp_path, probe("a"))
    folder.path.mkdir()
    (folder.path / "cell.json").write_text('{"digest": "another"}')
    with pytest.raises(UserError, match="another run"):
        folder.result()


@pytest.mark.parametrize(
    ("devices", "names", "environments"),
    [
        ("cuda:1,0", ["cuda:1", "cuda:0"], [{"CUDA_VISIBLE_DEVICES": "5"}, {"CUDA_VISIBLE_DEVICES": "3"}]),
        (1, ["cuda:0"], [{"CUDA_VISIBLE_DEVICES": "3"}]),
        ("auto", ["cuda:0"], [{"CUDA_VISIBLE_DEVICES": "3"}]),
        ("cpu:2", ["cpu:0", "cpu:1"], [{"OMP_NUM_THREADS": "4"}] * 2),
        ("cpu", ["cpu"], [{}]),
    ],
)
def test_devices_become_slots(devices, names, environments, monkeypatch):
    cuda = SimpleNamespace(device_count=lambda: 2, get_device_name=lambda number: f"GPU {number}")
    monkeypatch.setattr("densepath.benchmark.devices.torch", SimpleNamespace(cuda=cuda))
    monkeypatch.setattr("densepath.benchmark.devices.cores", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    slots = make_slots(devices)
    assert [slot.name for slot in slots] == names
    assert [dict(slot.environment) for slot in slots] == environments
