"""Results of worker processes, with and without shared memory."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from densepath.core.errors import UserError
from densepath.sources import workers
from densepath.sources.workers import (
    end_workers,
    from_worker,
    out_of_worker,
    outlive_signals,
    report_dead_workers,
    start_workers,
)

Usage = namedtuple("Usage", "total used free")
Named = namedtuple("Named", "where sizes")


@dataclass(frozen=True)
class Result:
    pixels: Tensor
    notes: dict[int, str]
    more: tuple[Named, ...]


class Results(Dataset):
    def __getitem__(self, number):
        sizes = [torch.tensor([number, 2])]
        pixels = torch.full((4, 4), number, dtype=torch.uint16)
        return out_of_worker(Result(pixels, {number: "broken"}, (Named("here", sizes),)))

    def __len__(self):
        return 3


@pytest.mark.parametrize("free", [2**30, 2**28 + 40, 0])
def test_a_result_is_the_same_with_and_without_shared_memory(monkeypatch, capsys, free):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**30, 0, free))
    workers._explain_copies.cache_clear()
    options = {"worker_init_fn": outlive_signals, "multiprocessing_context": "fork"}  # which knows what is replaced
    loader = DataLoader(Results(), batch_size=None, num_workers=1, **options)
    found = list(map(from_worker, loader))
    for number, result in enumerate(found):
        assert isinstance(result, Result) and result.notes == {number: "broken"}
        assert result.pixels.dtype == torch.uint16 and result.pixels.tolist() == [[number] * 4] * 4
        (named,) = result.more
        assert isinstance(named, Named) and named.where == "here" and named.sizes[0].tolist() == [number, 2]
        assert result.pixels.is_shared() == (free == 2**30)
    told = capsys.readouterr().err
    assert told.count("free in /dev/shm, so images are copied from worker processes") == (free < 2**30)


@pytest.mark.parametrize(
    ("how", "arrived", "is_command", "message"),
    [
        ("spawn", False, False, r"before its first image \(exited\): Python starts processes by spawn, .* __name__ =="),
        ("fork", False, False, "most likely out of memory"),
        ("spawn", True, False, "most likely out of memory"),
        ("spawn", False, True, "most likely out of memory"),
    ],
)
def test_a_script_without_a_guard_is_named_where_processes_import_it(monkeypatch, how, arrived, is_command, message):
    monkeypatch.setattr(workers, "get_start_method", lambda: how)
    monkeypatch.setattr(workers.system, "is_command", is_command)
    with pytest.raises(UserError, match=message), report_dead_workers(1, "use fewer") as first:
        if arrived:
            first.set()
        raise RuntimeError("exited")


@pytest.mark.parametrize("end", [end_workers, lambda loaders: loaders[0]._workers[0].kill()])
def test_torch_does_not_report_in_the_main_thread_that_a_worker_ended(end):
    # It handles SIGCHLD from here on, as this is the main thread
    images = DataLoader(Results(), batch_size=None, num_workers=1, multiprocessing_context="fork")  # so a child
    loader = start_workers(images, loaders := [])
    (worker,) = loader._workers
    end(loaders)
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet forgotten by the system
    signal.raise_signal(signal.SIGCHLD)
    del loader


class Hanging(Dataset):
    def __init__(self, folder):
        self.folder = folder

    def __getitem__(self, number):
        (Path(self.folder) / f"worker{number}").write_text(str(os.getpid()))
        with open(Path(self.folder) / "pipe"):
            pass

    def __len__(self):
        return 2


HANGING = """
import sys
from torch.utils.data import DataLoader
from densepath.sources.workers import outlive_signals
sys.path.insert(0, {tests!r})
from test_workers import Hanging

if __name__ == "__main__":
    images, how = Hanging({folder!r}), {how!r}
    options = {{"num_workers": 2, "worker_init_fn": outlive_signals, "multiprocessing_context": how}}
    next(iter(DataLoader(images, batch_size=None, **options)))
"""


@pytest.mark.parametrize("how", ["fork", "forkserver"])  # forkserver is the default of Python 3.14
def test_workers_that_hang_end_with_the_main_process(tmp_path, how):
    os.mkfifo(tmp_path / "pipe")
    program = tmp_path / "program.py"
    program.write_text(HANGING.format(tests=str(Path(__file__).parent), folder=str(tmp_path), how=how))
    main = subprocess.Popen([sys.executable, str(program)])
    numbers = [tmp_path / f"worker{k}" for k in range(2)]
    end = time.monotonic() + 120
    try:
        while not all(number.exists() and number.read_text() for number in numbers):
            assert main.poll() is None and time.monotonic() < end
            time.sleep(0.05)
    finally:
        main.kill()
        main.wait()
    end = time.monotonic() + 30
    while any(alive(int(number.read_text())) for number in numbers):
        assert time.monotonic() < end
        time.sleep(0.1)


def alive(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
