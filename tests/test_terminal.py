"""The command line when its terminal is lost: a real pseudo-terminal, whose other end is closed while a verb works."""

import os
import pty
import select
import signal
import sys
import time

import pytest

from densepath.runs.checkpoints import newest_checkpoint
from densepath.synthetic.tissue import write_tiles

PRETRAIN = (
    "pretrain --config concl_small --backbone test_resnet --batch_size 8 --view_size 64 --devices cpu "
    "--workers 0 --log_every 1"
)


def in_terminal(words, nohup=False):
    """The process that runs a command line in a terminal of its own, and the other end of the terminal."""
    child, terminal = pty.fork()
    if not child:  # a new program: networks cannot be trained in a fork of a process that has trained one
        signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)  # whatever the tests run under
        os.execv(sys.executable, [sys.executable, "-m", "densepath", *words.split()])
    return child, terminal


def read_until(terminal, text):
    end, shown = time.monotonic() + 180, b""
    while text not in shown:
        assert time.monotonic() < end, shown
        if select.select([terminal], [], [], 1)[0]:
            shown += os.read(terminal, 4096)


def ended(child):
    """The exit code of a process, which must end soon."""
    end = time.monotonic() + 180
    while not (found := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pytest.fail("it did not end")
        time.sleep(0.05)
    return os.waitstatus_to_exitcode(found[1])


@pytest.mark.parametrize("nohup", [False, True])
def test_a_run_that_loses_its_terminal_saves_itself(tmp_path, nohup):
    write_tiles(tmp_path / "tiles", 16, 64, 0)
    command = f"{PRETRAIN} --data {tmp_path}/tiles --out {tmp_path}/run"
    child, terminal = in_terminal(f"{command} --max_steps 100000", nohup)
    read_until(terminal, b"loss")
    os.close(terminal)
    if nohup:
        rows = (tmp_path / "run" / "metrics.csv").stat().st_size
        end = time.monotonic() + 180
        while (tmp_path / "run" / "metrics.csv").stat().st_size == rows:  # it goes on without its terminal
            assert time.monotonic() < end
            time.sleep(0.05)
        os.kill(child, signal.SIGTERM)
    assert ended(child) == 128 + (signal.SIGTERM if nohup else signal.SIGHUP)
    saved = newest_checkpoint(tmp_path / "run" / "checkpoints")["step"]
    last = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[-1]
    assert saved >= int(last.split(",")[0]) > 0


def test_work_that_loses_its_terminal_cleans_up(tmp_path):
    child, terminal = in_terminal(f"data tissue {tmp_path}/data --train 400 --test 3 --size 64")
    end = time.monotonic() + 180
    while not any(tmp_path.rglob("*.png")):
        assert time.monotonic() < end
        time.sleep(0.01)
    os.close(terminal)
    assert ended(child) == 128 + signal.SIGHUP
    assert list(tmp_path.iterdir()) == []
