"""The command line when it is told to stop, and when nobody reads what it says; in forked processes."""

import os
import signal
import time

import pytest

from densepath.cli import main
from densepath.runs.signals import StopSignals
from densepath.synthetic import tissue

TISSUE = "--train 400 --test 3 --size 64"


def called(words, prepare=lambda: None):
    """The process that runs a command line."""
    child = os.fork()
    if not child:
        code = 1
        try:
            prepare()
            code = main(words.split())
        except SystemExit as stop:
            code = stop.code
        finally:
            os._exit(code)
    return child


def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("exists", [True, False])
def test_a_data_set_that_is_not_finished_leaves_nothing(tmp_path, exists):
    dest = tmp_path / "data"
    if exists:
        dest.mkdir()
    child = called(f"data tissue {dest} {TISSUE}")
    end = time.monotonic() + 60
    while not any(tmp_path.rglob("*.png")):
        assert time.monotonic() < end
        time.sleep(0.01)
    os.kill(child, signal.SIGTERM)
    assert ended(child) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == ([dest] if exists else [])
    assert not exists or list(dest.iterdir()) == []


def test_the_command_line_leaves_signals_as_they_were(tmp_path, monkeypatch):
    monkeypatch.setattr(tissue, "write_tissue", lambda *words, **options: None)
    before = signal.getsignal(signal.SIGTERM)
    assert main(["--version"]) == 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_that_a_program_around_python_handles_is_left_alone(monkeypatch):
    real = signal.getsignal
    before = real(signal.SIGTERM), real(signal.SIGINT)
    monkeypatch.setattr(signal, "getsignal", lambda signum: None if signum == signal.SIGTERM else real(signum))
    with StopSignals():
        assert real(signal.SIGTERM) is before[0] and real(signal.SIGINT) is not before[1]
    assert (real(signal.SIGTERM), real(signal.SIGINT)) == before


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_leaves_signals_as_they_were(first):
    """A notebook that continues is ended by its terminal, and so is the next run."""
    before = {signum: signal.getsignal(signum) for signum in StopSignals.SIGNALS}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever the tests run under
    try:
        with StopSignals() as stop:
            signal.raise_signal(first)
            assert stop.received == first and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def full():
    descriptor = os.open("/dev/full", os.O_WRONLY)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)


def gone():
    ours, theirs = os.pipe()
    os.close(ours)
    os.dup2(theirs, 1)
    os.dup2(theirs, 2)


def closed():
    os.close(1)
    os.close(2)


@pytest.mark.parametrize("streams", [full, gone, closed])
def test_a_data_set_is_written_whatever_becomes_of_the_streams(tmp_path, streams):
    child = called(f"data tissue {tmp_path}/data --train 2 --test 1 --size 64", streams)
    assert ended(child) == 0
    assert len(list((tmp_path / "data").rglob("*.png"))) == 3
    assert ended(called(f"data tissue {tmp_path}/data", streams)) == 2
