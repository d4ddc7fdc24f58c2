"""Results of threads, in order; a thread that hangs does not keep the process."""

import errno
import os
import subprocess
import sys
import threading
import time

import pytest

from densepath.core.threads import OneBehind, in_threads
from densepath.core.waiting import Stuck


def test_results_come_in_order_and_errors_at_their_position():
    def slow_square(number):
        time.sleep(0.02 * (number % 3 == 0))
        if number == 7:
            raise OSError(errno.ETIMEDOUT, "a network disk")  # a TimeoutError that is not one of our waits
        return number**2

    results = in_threads(slow_square, range(20), threads=3, what="numbers")
    assert [next(results) for _ in range(7)] == [number**2 for number in range(7)]
    with pytest.raises(TimeoutError, match="a network disk"):
        next(results)


@pytest.mark.parametrize(("ahead", "most"), [(0, 9), (40, 43)])
def test_few_items_are_taken_ahead(ahead, most):
    taken = []
    items = (taken.append(n) or n for n in range(1000))
    results = in_threads(lambda item: item, items, threads=2, what="numbers", ahead=lambda: ahead)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    assert ahead <= len(taken) <= most
    before = threading.active_count()
    results.close()
    assert threading.active_count() == before - 2


def test_a_result_that_does_not_come_ends_the_wait(monkeypatch, capsys):
    monkeypatch.setenv("DENSEPATH_WAIT_LIMIT", "0.5")
    monkeypatch.setenv("DENSEPATH_WAIT_NOTICE", "0.2")
    forever = threading.Event()
    with pytest.raises(Stuck, match=r"no image data for .* s; a file or a process that reads files does not respond"):
        list(in_threads(lambda _: forever.wait(), [1], threads=1, what="image data"))
    forever.set()
    assert "densepath: waiting for image data since 0 s" in capsys.readouterr().err


def test_a_thread_that_hangs_does_not_keep_the_process(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    program = (
        "from densepath.core.threads import in_threads\n"
        f"list(in_threads(open, ['{tmp_path}/pipe'], threads=1, what='image data'))"
    )
    environment = {**os.environ, "DENSEPATH_WAIT_LIMIT": "0.5"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1 and "no image data for" in done.stderr


def test_work_is_done_one_behind_and_in_order():
    done, goes_on = [], threading.Event()

    def slow(item):
        assert goes_on.wait(60)
        done.append(item)

    with OneBehind() as behind:
        behind.submit(slow, 0)
        assert done == []  # the caller works meanwhile
        goes_on.set()
        for item in range(1, 4):
            behind.submit(slow, item)
    assert done == [0, 1, 2, 3]
    with pytest.raises(ZeroDivisionError), OneBehind() as behind:
        behind.submit(lambda: 1 / 0)
    with pytest.raises(KeyError), OneBehind() as behind:  # the caller's own error is more important
        behind.submit(lambda: 1 / 0)
        raise KeyError
