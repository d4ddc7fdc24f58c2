"""Runs as jobs of submitit: results, failures and logs as of processes; a cancelled job saves its state."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import pytest

from densepath.benchmark import executors
from densepath.benchmark.devices import job_slots
from densepath.benchmark.executors import execute, make_submit
from densepath.benchmark.run_folder import RunFolder
from densepath.benchmark.runner import Runner
from densepath.benchmark.table_runs import Run
from densepath.core.errors import UserError

submitit = pytest.importorskip("submitit")
SCORES = '{"scale": "percent", "mean_iou": 50.0}'


@pytest.mark.parametrize("executor", ["debug", "local"])
def test_jobs_run_after_their_parents_and_fail_with_their_last_line(executor, tmp_path, monkeypatch):
    scripts = {"bad": "import sys; sys.exit('densepath: error: no luck')"}
    note = f"open({str(tmp_path / 'order')!r}, 'a').write('{{}} ')"

    def command(folder, devices, workers=None):
        script = scripts.get(folder.run.label, note.format(folder.run.label))
        return [sys.executable, "-S", "-c", f"{script}\nopen('scores.json', 'w').write('{SCORES}')"]

    monkeypatch.setattr(RunFolder, "command", command)
    first = _probe("first")
    runs = [_probe("after", first), first, _probe("bad")]
    submit = make_submit(executor, tmp_path / "jobs", [])
    runner = Runner(tmp_path / "runs", runs, job_slots(2, executor), lambda: None, submit)
    runner.run()
    assert (tmp_path / "order").read_text() == "first after "
    assert [why.split(" (log")[0] for why in runner.failed.values()] == ["no luck"]
    assert RunFolder(tmp_path / "runs", first).result() == {"mean_iou": 50.0}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR2, signal.SIGTERM])
def test_a_cancelled_job_ends_its_command_once(tmp_path, number):
    script = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (open('saved', 'a').write('x'), sys.exit(143)))\n"
        "open('ready', 'w').close()\n"
        "time.sleep(60)"
    )

    def interrupt():
        while not (tmp_path / "ready").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert execute([sys.executable, "-S", "-c", script], str(tmp_path), "log", {}) == 143
    thread.join()
    assert (tmp_path / "saved").read_text() == "x"


def test_a_job_on_this_machine_is_stopped_without_a_traceback(tmp_path, capfd):
    """It is waited for as long as its command saves its state, and Ctrl-C in a terminal reaches submitit, too."""
    script = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(2), open('saved', 'a').write('x'), sys.exit(143)))\n"
        "open('ready', 'w').close()\n"
        "time.sleep(60)"
    )
    (tmp_path / "run").mkdir()
    submit = make_submit("local", tmp_path / "jobs", [])
    job = submit([sys.executable, "-S", "-c", script], tmp_path / "run", Path("log"), {})
    while not (tmp_path / "run" / "ready").exists():
        assert job.poll() is None
        time.sleep(0.02)
    os.kill(int(job._job.job_id), signal.SIGINT)
    job.stop(signal.SIGTERM)
    while job.poll() is None:
        time.sleep(0.02)
    assert job.returncode == 143 and (tmp_path / "run" / "saved").read_text() == "x"
    assert "Traceback" not in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("send", [signal.raise_signal, lambda number: os.kill(os.getpid(), number)])
def test_an_interrupt_while_a_job_is_submitted_comes_after_it(send, tmp_path, monkeypatch):
    """Also if the process has another thread, to which the system gives what this one blocks."""
    submit = make_submit("local", tmp_path / "jobs", [])
    received = []

    def start(executor, *given):
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())  # which its process inherits
        send(signal.SIGINT)
        time.sleep(0.05)
        return len(received)

    monkeypatch.setattr(submitit.AutoExecutor, "submit", start)
    before, ended = signal.signal(signal.SIGINT, lambda number, frame: received.append(number)), threading.Event()
    threading.Thread(target=ended.wait, daemon=True).start()
    try:
        assert submit(["command"], tmp_path, Path("log"), {})._job == 0
    finally:
        signal.signal(signal.SIGINT, before)
        ended.set()
    assert received == [signal.SIGINT]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_thread_submits_jobs_without_interrupts(tmp_path, monkeypatch):
    submit, masks = make_submit("local", tmp_path / "jobs", []), []
    look = lambda *given: masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))  # noqa: E731
    monkeypatch.setattr(submitit.AutoExecutor, "submit", look)
    thread = threading.Thread(target=submit, args=(["command"], tmp_path, Path("log"), {}))
    thread.start()
    thread.join()
    assert len(masks) == 1 and signal.SIGINT in masks[0]


def test_a_job_on_this_machine_is_told_to_stop_until_it_has(monkeypatch):
    """The first SIGTERM may come before submitit or the command's process handles it."""
    monkeypatch.setattr(executors, "_STOP_EVERY", 0.0)
    sent = []
    monkeypatch.setattr(os, "kill", lambda *given: sent.append(given))
    job = Mock(job_id="7", state="RUNNING")
    job.done.side_effect = [False, False, False, True]
    job.result.return_value = (143, 1.0)
    submitted = executors.SubmittedJob(job, local=True)
    assert submitted.poll() is None and sent == []
    submitted.stop(signal.SIGTERM)
    assert [submitted.poll() for _ in range(4)] == [None, None, 143, 143]
    assert sent == [(7, signal.SIGTERM)] * 3


def test_a_job_that_slurm_no_longer_has_is_a_failure(tmp_path, monkeypatch):
    """Without accounting submitit does not learn that the cluster has ended a job."""
    squeue = tmp_path / "squeue"
    squeue.write_text(f"#!/bin/sh\ncat {tmp_path}/answer\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(executors, "ASK_EVERY", 0.0)
    job = Mock(job_id="7", state="UNKNOWN")
    job.done.return_value = False
    submitted = executors.SubmittedJob(job)
    answers = ["RUNNING", "", "COMPLETING", "", ""]
    found = []
    for answer in answers:
        (tmp_path / "answer").write_text(answer)
        found.append(submitted.poll())
    assert found == [None, None, None, None, 1]


def test_a_run_took_the_time_of_its_command_and_not_that_in_a_queue(tmp_path, monkeypatch):
    monkeypatch.setattr(RunFolder, "command", lambda folder, devices, workers=None: ["command"])

    def submit(command, cwd, log, environment):
        (cwd / "scores.json").write_text(SCORES)
        job = Mock(job_id="7")
        job.result.return_value = (0, 12345.0)
        return executors.SubmittedJob(job)

    run = _probe("probe")
    Runner(tmp_path, [run], job_slots(1, "debug"), lambda: None, submit).run()
    assert RunFolder(tmp_path, run).notes()["seconds"] == 12345.0


def test_the_time_of_a_job_that_ends_in_the_queue_does_not_count(tmp_path, monkeypatch):
    monkeypatch.setattr(RunFolder, "command", lambda folder, devices, workers=None: ["command"])

    def submit(command, cwd, log, environment):
        time.sleep(0.2)
        job = Mock(job_id="7")
        job.result.side_effect = RuntimeError("cancelled")
        return executors.SubmittedJob(job)

    run = _probe("probe")
    Runner(tmp_path, [run], job_slots(1, "debug"), lambda: None, submit).run()
    assert RunFolder(tmp_path, run).notes()["seconds"] == 0


def test_a_job_holds_its_folder_when_its_submitter_has_ended(tmp_path):
    folder = RunFolder(tmp_path, _probe("probe"))
    folder.path.mkdir()
    wait = (
        "import sys, time\nopen('ready', 'w').close()\nwhile not __import__('os').path.exists('end'): time.sleep(0.02)"
    )
    command = [sys.executable, "-S", "-c", wait]
    job = threading.Thread(target=_execute, args=(command, folder.path))
    job.start()
    while not (folder.path / "ready").exists():
        time.sleep(0.02)
    assert folder.lock() is None
    (folder.path / "end").touch()
    job.join()
    lock = folder.lock()
    assert lock is not None
    os.close(lock)


def test_mistakes_are_lines(tmp_path):
    with pytest.raises(UserError, match="NAME=VALUE"):
        make_submit("debug", tmp_path, ["gpus"])
    with pytest.raises(UserError, match=r"executor_options timeout_min=\[1 is not valid YAML"):
        make_submit("debug", tmp_path, ["timeout_min=[1"])
    with pytest.raises(UserError, match="cannot be used"):
        make_submit("local", tmp_path, ["no_such_parameter=1"])
    with pytest.raises(UserError, match="needs a time limit"):
        make_submit("slurm", tmp_path, ["gpus_per_node=1"])
    with pytest.raises(UserError, match="use one of local, slurm, debug"):
        make_submit("pbs", tmp_path, [])
    with pytest.raises(UserError, match="number of jobs"):
        job_slots("cuda:0", "slurm")
    with pytest.raises(UserError, match="up to 1,024"):
        job_slots(10**21, "slurm")
    assert [slot.name for slot in job_slots("auto", "slurm")] == [f"slurm:{number}" for number in range(4)]


def _execute(command: list[str], folder: Path) -> None:
    """In a process, as jobs are: only the main thread may handle signals."""
    call = f"execute({command!r}, {str(folder)!r}, 'log', {{}})"
    subprocess.run([sys.executable, "-c", f"from densepath.benchmark.executors import execute; {call}"], check=True)


def _probe(name: str, parent: Run | None = None) -> Run:
    return Run("probe", name, 0, "data", {}, None if parent else "random", parent, {"name": name}, 1, None)
