"""Dead and hanging processes, with real ones; a process whose main thread waits must end by the watchdog."""

import os
import subprocess
import sys
import threading
import time

import pytest
import torch.distributed as dist

from densepath.core.errors import UserError
from densepath.core.waiting import progress
from densepath.runs import watchdog
from densepath.runs.signals import StopSignals
from densepath.runs.watchdog import PARENT, Watchdog

PATIENCE = {"DENSEPATH_WAIT_NOTICE": "0.5", "DENSEPATH_WAIT_LIMIT": "1"}


def watched(folder, act, rank=0, **environment):
    """Run something under a watchdog, in a process of its own: its exit code and what it says."""
    said = folder / "said.txt"
    child = os.fork()
    if not child:
        descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        sys.stderr = os.fdopen(descriptor, "w")
        os.environ.update(PATIENCE, **environment)
        watchdog._GRACE = 1.0
        code = 9
        try:
            with StopSignals() as signals, Watchdog(folder, rank, 3, signals) as dog:
                act(dog)
        except UserError:
            code = 7
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, said.read_text().splitlines()


@pytest.fixture
def store():
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


class Peers:
    """Threads that send the heartbeats of other processes."""

    def __init__(self, store, ranks, work=lambda: 0):
        self.done = threading.Event()
        self.threads = [threading.Thread(target=self.beat, args=(store.clone(), rank, work)) for rank in ranks]

    def beat(self, store, rank, work):
        number = 0
        while not self.done.wait(0.1):
            number += 1
            store.set(f"densepath/heartbeat/{rank}", f"{number} {work()}")

    def __enter__(self):
        for thread in self.threads:
            thread.start()

    def __exit__(self, *about):
        self.done.set()
        for thread in self.threads:
            thread.join()


def python(program):
    return subprocess.Popen([sys.executable, "-c", program])


def joined_with(store, dog):
    watchdog._get_default_store = lambda: dist.TCPStore("127.0.0.1", store.port, is_master=False)
    dog.joined()


def test_a_process_that_dies_after_the_beginning_is_named(tmp_path, store):
    def act(dog):
        dog.started([python("import time; time.sleep(60)"), python("import os; os.kill(os.getpid(), 9)")])
        joined_with(store, dog)
        while True:
            progress(1)
            time.sleep(0.1)

    with Peers(store, (1, 2)):
        code, lines = watched(tmp_path, act)
    assert code == 2
    assert lines[-1].startswith(
        "densepath: error: rank 2 of this run was killed by signal 9; start again with --resume"
    )


def test_a_process_that_ends_before_the_beginning_is_named(tmp_path):
    code, lines = watched(tmp_path, lambda dog: (dog.started([python("raise SystemExit(3)")]), time.sleep(60)))
    assert code == 2
    assert lines[-1].startswith("densepath: error: rank 1 of this run ended with exit code 3 before it began")


def test_processes_end_when_the_one_that_started_them_leaves_with_an_error(tmp_path):
    def act(dog):
        children = [python("import time; time.sleep(60)")]
        (tmp_path / "child").write_text(str(children[0].pid))
        dog.started(children)
        raise UserError("of rank 0")

    code, _ = watched(tmp_path, act)
    assert code == 7
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "child").read_text()), 0)


def test_a_process_ends_when_the_one_that_started_it_is_dead(tmp_path):
    code, lines = watched(tmp_path, lambda dog: time.sleep(60), rank=1, **{PARENT: "1"})
    assert code == 2
    assert lines[-1].startswith("densepath: error: rank 0 of this run has ended")


def test_heartbeats_without_progress_end_the_run_but_work_of_any_process_does_not(tmp_path, store):
    began = time.monotonic()

    def hang(dog):
        joined_with(store, dog)
        time.sleep(60)

    with Peers(store, (1, 2), lambda: int(min(time.monotonic() - began, 4) * 10)):  # which work for four seconds
        code, lines = watched(tmp_path, hang)
    assert time.monotonic() - began > 5.5
    assert code == 2
    assert lines[-1].startswith("densepath: error: no process of this run has made progress for 2 s")


def test_a_process_that_never_begins_is_named_while_others_send_heartbeats(tmp_path, store):
    def act(dog):
        joined_with(store, dog)
        while True:
            progress(1)
            time.sleep(0.1)

    with Peers(store, (1,)):
        code, lines = watched(tmp_path, act)
    assert code == 2
    assert lines[-1].startswith("densepath: error: rank 2 did not answer for 1 s")
