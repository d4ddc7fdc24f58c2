"""Order, parallel execution, failures and interruption of runs, with commands that take no time."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from densepath.benchmark import runner as runner_module
from densepath.benchmark.devices import Device, parse_devices
from densepath.benchmark.run_folder import RunFolder
from densepath.benchmark.runner import Runner
from densepath.benchmark.table_runs import Run
from densepath.core.errors import UserError

SCORES = '{"scale": "percent", "mean_iou": 50.0}'


def probe(name, parent=None):
    """A run of the probe; its identity is its name."""
    return Run("probe", name, 0, "data", {}, None if parent else "random", parent, {"name": name}, 1, None)


@pytest.fixture
def play(tmp_path, monkeypatch):
    """A function that executes runs whose commands are the given Python scripts, on some devices."""

    def run(scripts, runs, devices=1, changed=lambda: None):
        def command(folder, devices, workers=None):
            script = scripts.get(folder.run.label, "")
            return [sys.executable, "-S", "-c", f"{script}\nopen('scores.json', 'w').write('{SCORES}')"]

        monkeypatch.setattr(RunFolder, "command", command)
        made = []

        def count():
            made.append(1)
            changed()

        runner = Runner(tmp_path, runs, [Device(str(i), "cpu", "a machine") for i in range(devices)], count)
        try:
            runner.run()
        finally:
            runner.changes = len(made)
        return runner

    return run


def test_runs_on_two_devices_are_parallel(play, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    # Opening one end of a pipe waits until the other end is opened.
    scripts = {"a": f"open('{tmp_path}/fifo', 'w').close()", "b": f"open('{tmp_path}/fifo').read()"}
    runs = [probe("a"), probe("b")]
    assert play(scripts, runs, devices=2).failed == {}
    assert [RunFolder(tmp_path, run).result() for run in runs] == [{"mean_iou": 50.0}] * 2


def test_a_run_waits_for_its_parent_and_fails_with_it(play, tmp_path):
    first, second = probe("first"), probe("bad")
    after, never, other = probe("after", first), probe("never", second), probe("other")
    note = f"open('{tmp_path}/order', 'a').write('{{}} ')"
    scripts = {name: note.format(name) for name in ("first", "after", "never", "other")}
    scripts["bad"] = "import sys; sys.exit('densepath: error: no luck')"
    # A run that depends on the first one comes before it here, and has to wait.
    runner = play(scripts, [after, first, second, never, other], devices=1)
    assert (tmp_path / "order").read_text() == "first after other "
    assert runner.failed.keys() == {second.name, never.name}
    assert runner.failed[second.name].startswith("no luck (log: ")
    assert runner.failed[never.name] == f"{second.name} failed"
    assert runner.changes == 3
    assert RunFolder(tmp_path, second).notes()["error"] == "no luck"
    # A second call runs only what failed.
    del scripts["bad"]
    again = play(scripts, [first, after, second, never, other])
    assert again.failed == {} and again.changes == 2
    assert (tmp_path / "order").read_text() == "first after other never "
    assert "error" not in RunFolder(tmp_path, second).notes()


def test_a_killed_run_does_not_affect_others(play, tmp_path):
    scripts = {"a": "import os; os.kill(os.getpid(), 9)", "b": "import sys; sys.exit(3)"}
    runner = play(scripts, [probe("a"), probe("b"), probe("c")])
    assert [why.split(" (log")[0] for why in runner.failed.values()] == ["killed by signal 9", "exit code 3"]
    assert RunFolder(tmp_path, probe("c")).result() == {"mean_iou": 50.0}


def test_a_run_without_a_result_has_failed(play, tmp_path):
    runner = play({"a": "import os; os._exit(0)"}, [probe("a")])
    assert "holds no result" in runner.failed[probe("a").name]
    assert RunFolder(tmp_path, probe("a")).result() is None


def test_a_damaged_run_and_a_table_that_is_not_written_do_not_affect_others(play, tmp_path, capsys):
    os.mkfifo(tmp_path / "fifo")
    # "long" starts with "first", and ends when "after" has started.
    scripts = {"long": f"open('{tmp_path}/fifo').read()", "after": f"open('{tmp_path}/fifo', 'w').close()"}
    first, long, damaged, elsewhere = (probe(name) for name in ("first", "long", "damaged", "elsewhere"))
    runs = [first, long, damaged, elsewhere, probe("after", first)]

    def changed():
        if not (tmp_path / damaged.name).exists():
            (tmp_path / damaged.name).mkdir()
            (tmp_path / damaged.name / "run.json").write_text("")
            (tmp_path / elsewhere.name).mkdir()
            (other := RunFolder(tmp_path, elsewhere)).begin(["by another process"], "another machine")
            (other.path / "scores.json").write_text(SCORES)
            other.finish(1.0)
        for run in runs:
            RunFolder(tmp_path, run).result()

    runner = play(scripts, runs, devices=2, changed=changed)
    assert runner.failed.keys() == {damaged.name} and "cannot be read" in runner.failed[damaged.name]
    others = [run for run in runs if run is not damaged]
    assert [RunFolder(tmp_path, run).result() for run in others] == [{"mean_iou": 50.0}] * 4
    assert capsys.readouterr().err.count("the table was not written: ") == runner.changes == 4


@pytest.mark.parametrize("step", ["lock", "begin", "finish", "pause"])
def test_a_run_whose_folder_cannot_be_written_does_not_affect_others(play, tmp_path, monkeypatch, step):
    os.mkfifo(tmp_path / "fifo")
    # "long" is at work when "full" fails, and ends when "after" has started.
    scripts = {"long": f"open('{tmp_path}/fifo').read()", "after": f"open('{tmp_path}/fifo', 'w').close()"}
    scripts["full"] = "import sys; sys.exit(3)" if step == "pause" else ""
    real = getattr(RunFolder, step)

    def fail(folder, *given):
        if folder.run.label == "full":
            raise OSError(errno.EIO, "Input/output error", str(folder.path))
        return real(folder, *given)

    monkeypatch.setattr(RunFolder, step, fail)
    long, full, after = map(probe, ("long", "full", "after"))
    runner = play(scripts, [long, full, after], devices=2)
    assert runner.failed == {full.name: f"{tmp_path / full.name}: Input/output error"}
    assert [RunFolder(tmp_path, run).result() for run in (long, after)] == [{"mean_iou": 50.0}] * 2


def test_a_missing_program_is_named_and_the_folder_where_the_system_names_no_file(play, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path / "missing")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "link"))
    program = play({}, [probe("a")]).failed[probe("a").name]
    assert program == f"{tmp_path / 'link'}: No such file or directory"
    monkeypatch.setattr(RunFolder, "begin", lambda *_: os.fsync(10**6))
    assert play({}, [probe("a")]).failed == {probe("a").name: f"{tmp_path / probe('a').name}: Bad file descriptor"}


def test_a_table_on_a_broken_disk_does_not_end_the_runs(play, tmp_path, capsys):
    def changed():
        raise OSError(errno.EIO, "Input/output error")

    assert play({}, [probe("a"), probe("b")], changed=changed).failed == {}
    assert capsys.readouterr().err.count(f"the table was not written: {tmp_path}: Input/output error") == 2


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
    assert RunFolder(tmp_path, probe("a")).result() is None
    assert not RunFolder(tmp_path, probe("b")).path.exists()
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
    assert end.tb is not None  # it keeps the process object, whose exit status was not read yet
    assert os.waitpid(int((tmp_path / "pid").read_text()), 0)[1] == signal.SIGKILL


def test_a_folder_is_locked_until_the_last_process_in_it_ends(tmp_path):
    folder = RunFolder(tmp_path, probe("a"))
    lock = folder.lock()
    # The process that took the lock is gone, as after a kill; the run is still alive.
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
    folder = RunFolder(tmp_path, probe("a"))
    assert folder.lock() is None
    (tmp_path / "go").write_bytes(b"")
    while (lock := folder.lock()) is None:
        pass
    os.close(lock)
    assert folder.result() is None  # no runner collected it
    assert play({}, [probe("a")]).failed == {}
    assert folder.result() == {"mean_iou": 50.0}


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_of_another_process_is_waited_for(play, tmp_path, monkeypatch, finished):
    run = probe("a")
    folder = RunFolder(tmp_path, run)
    lock = folder.lock()
    folder.begin(["by another process"], "another machine")

    def let_go(line):
        if "another process" in line:
            if finished:
                (folder.path / "scores.json").write_text('{"scale": "percent", "mean_iou": 25.0}')
                folder.finish(1.0)
            os.close(lock)

    monkeypatch.setattr(runner_module, "say", let_go)
    monkeypatch.setattr(runner_module, "_POLL_ELSEWHERE", 0.0)
    runner = play({}, [run])
    assert runner.failed == {} and runner.changes == 1
    assert folder.result() == {"mean_iou": 25.0 if finished else 50.0}


def test_a_silent_process_is_waited_for_only_so_long(play, tmp_path, monkeypatch, capsys):
    run, other = probe("a"), probe("b")
    child = probe("c", run)
    lock = RunFolder(tmp_path, run).lock()
    monkeypatch.setenv("DENSEPATH_WAIT_NOTICE", "0.2")
    monkeypatch.setenv("DENSEPATH_WAIT_LIMIT", "1")
    monkeypatch.setattr(runner_module, "_POLL_ELSEWHERE", 0.0)
    try:
        failed = play({}, [run, child, other]).failed
    finally:
        os.close(lock)
    assert failed.keys() == {run.name, child.name} and RunFolder(tmp_path, other).result()
    assert f"no result of {run.name} from another process for 1 s; another process holds" in failed[run.name]
    said = capsys.readouterr().err
    assert said.count(f"densepath: waiting for result of {run.name} from another process since") >= 2
    assert play({}, [run]).failed == {}


def test_a_process_that_writes_is_waited_for_beyond_the_limit_and_until_a_signal(play, tmp_path, monkeypatch, capsys):
    run = probe("a")
    folder = RunFolder(tmp_path, run)
    lock = folder.lock()
    monkeypatch.setenv("DENSEPATH_WAIT_LIMIT", "0.4")
    monkeypatch.setattr(runner_module, "_POLL_ELSEWHERE", 0.0)
    (folder.path / "run").mkdir()
    began, look = time.monotonic(), RunFolder.times_of_changes
    (folder.path / "run" / "config.yaml").touch()
    os.utime(folder.path / "run" / "config.yaml", (later := time.time() + 3600, later))  # the clock was set back

    def write_on(folder):
        (folder.path / "run" / "metrics.csv").write_text(str(time.monotonic()))
        if time.monotonic() - began > 1.2:
            os.kill(os.getpid(), signal.SIGTERM)
        return look(folder)

    monkeypatch.setattr(RunFolder, "times_of_changes", write_on)
    try:
        with pytest.raises(SystemExit) as end:
            play({}, [run])
    finally:
        os.close(lock)
    assert end.value.code == 143
    assert capsys.readouterr().err.splitlines()[1:] == ["densepath: stopped; give the same command to resume"]


def test_a_disk_without_locks_is_reported_and_used(play, tmp_path, monkeypatch, capsys):
    def without(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("densepath.benchmark.run_folder.fcntl.flock", without)
    assert play({}, [probe("a")]).failed == {}
    assert "has no locks; do not start this table twice" in capsys.readouterr().err


def test_the_folder_of_another_run_is_refused(tmp_path):
    folder = RunFolder(tmp_path, probe("a"))
    folder.path.mkdir()
    (folder.path / "run.json").write_text('{"digest": "another"}')
    with pytest.raises(UserError, match="another run"):
        folder.result()


@pytest.mark.parametrize("result", [[1, 2], 3, {"mean_iou": "x"}, {"mean_iou": None}])
def test_a_result_of_another_form_is_refused(tmp_path, result):
    folder = RunFolder(tmp_path, probe("a"))
    folder.path.mkdir()
    folder.begin([], "a machine")
    (folder.path / "run.json").write_text(json.dumps({**folder.notes(), "result": result}))
    with pytest.raises(UserError, match=r"run\.json cannot be read; delete the folder"):
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
def test_devices_are_parsed(devices, names, environments, monkeypatch):
    cuda = SimpleNamespace(device_count=lambda: 2, get_device_name=lambda number: f"GPU {number}")
    monkeypatch.setattr("densepath.benchmark.devices.torch", SimpleNamespace(cuda=cuda))
    monkeypatch.setattr("densepath.benchmark.devices.cores", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    made = parse_devices(devices)
    assert [device.name for device in made] == names
    assert [dict(device.environment) for device in made] == environments


@pytest.mark.parametrize(("scale", "shown"), [(None, 50.25), ("percent", 0.5025)])
def test_scores_without_a_scale_are_shares_of_an_earlier_version(tmp_path, scale, shown):
    """Both the scores of a run that ends now and those of a table that was done before."""
    folder = RunFolder(tmp_path, probe("a"))
    written = {"mean_iou": 0.5025} | ({"scale": scale} if scale else {})
    folder.path.mkdir()
    folder.begin([], "a machine")
    (folder.path / "scores.json").write_text(json.dumps(written))
    assert folder.finish(1.0) == folder.result() == {"mean_iou": pytest.approx(shown)}
    assert folder.notes()["scale"] == "percent"
    notes = {**folder.notes(), "result": {"mean_iou": 0.5025}}
    del notes["scale"]
    (folder.path / "run.json").write_text(json.dumps(notes | ({"scale": scale} if scale else {})))
    assert folder.result() == {"mean_iou": pytest.approx(shown)}


def test_scores_of_an_unknown_scale_are_refused(tmp_path):
    folder = RunFolder(tmp_path, probe("a"))
    folder.path.mkdir()
    folder.begin([], "a machine")
    (folder.path / "scores.json").write_text('{"scale": "permille", "mean_iou": 502.5}')
    with pytest.raises(UserError, match="scale 'permille'; evaluate again"):
        folder.finish(1.0)
