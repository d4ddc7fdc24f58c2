"""As many threads as idle cores: chosen once, kept by a resumed run, and never against the user's own setting."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from densepath.core import system
from densepath.training import threads
from densepath.training.hardware import choose_device, choose_hardware


@pytest.fixture
def machine(monkeypatch):
    """A machine of eight cores where nothing sets the number of threads; returns how to make cores busy."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    set_to = [8]
    monkeypatch.setattr(torch, "get_num_threads", lambda: set_to[-1])
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    for module in (system, threads):
        monkeypatch.setattr(module, "cores", lambda: 8)
    monkeypatch.setattr(system, "is_command", True)
    monkeypatch.setattr(threads, "_chosen_for", [])
    return lambda idle: (monkeypatch.setattr(threads, "idle_cores", lambda: idle), set_to)[1]


@pytest.mark.parametrize(
    ("idle", "processes", "chosen"), [(7.7, 1, 8), (5.2, 1, 5), (0.1, 1, 1), (7.9, 2, 4), (2.0, 4, 1)]
)
def test_threads_are_as_many_as_idle_cores(machine, capsys, idle, processes, chosen):
    set_to = machine(idle)
    threads.use_idle_cores(processes)
    assert set_to[-1] == chosen
    assert ("OMP_NUM_THREADS" in capsys.readouterr().err) == (chosen < 8 // processes)


def test_the_number_is_not_chosen_again_nor_against_the_user(machine, monkeypatch):
    set_to = machine(3.0)
    threads.use_idle_cores()
    machine(1.0)
    for processes in (1, 2):
        threads.use_idle_cores(processes)
    assert set_to == [8, 3]
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    threads._chosen_for.clear()
    threads.use_idle_cores()
    threads.keep_threads(2)
    assert set_to == [8, 3]


def test_a_notebook_keeps_its_threads(machine, monkeypatch):
    set_to = machine(3.0)
    monkeypatch.setattr(system, "is_command", False)
    choose_hardware("cpu", "32")
    choose_device("cpu")
    assert set_to == [8]


def test_a_resumed_run_keeps_its_threads_as_far_as_there_are_cores(machine):
    set_to = machine(8.0)
    for kept in (2, None, 64):
        threads.keep_threads(kept)
    assert set_to == [8, 2, 8]


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="Linux only")
def test_a_busy_core_is_not_idle():
    some = {min(os.sched_getaffinity(0))}
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, some)
    try:
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
            assert system.idle_cores(0.5) < 0.5 and system.cores() == 1
            busy.kill()
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize("own", ["0::/job/step", "3:memory:/job/step\n2:cpu,cpuacct:/job/step"])
def test_limits_of_the_groups_above_count_too(monkeypatch, tmp_path, own):
    monkeypatch.setattr(system.os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(system, "_CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr(system, "_OWN_GROUPS", tmp_path / "own")
    (tmp_path / "own").write_text(own)
    free = system.available_memory()
    two = own.startswith("0")
    cpu, memory = (tmp_path / ("" if two else name) / "job" for name in ("cpu", "memory"))
    for group in (cpu, cpu / "step", memory, memory / "step"):
        group.mkdir(parents=True, exist_ok=True)
    quotas = {"cpu.max": "300000 100000"} if two else {"cpu.cfs_quota_us": "300000", "cpu.cfs_period_us": "100000"}
    none = {"cpu.max": "max 100000"} if two else {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}
    names = ("memory.max", "memory.current") if two else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for group, texts in (
        (cpu, quotas),
        (cpu / "step", none),
        (memory, dict(zip(names, ("5000", "3000"), strict=True))),
    ):
        for name, text in (texts | {"memory.stat": "inactive_file 1000\n"}).items():
            (group / name).write_text(text)
    assert system.cores() == 3
    assert free > 3000 and system.available_memory() == 3000


def test_cores_are_limited_by_a_quota_and_idle_ones_come_from_the_systems_ticks(monkeypatch, tmp_path):
    monkeypatch.setattr(system.os, "sched_getaffinity", lambda pid: set(range(4)))
    monkeypatch.setattr(system, "_CONTROL_GROUPS", tmp_path)
    for text, expected in (("max 100000", 4), ("250000 100000", 2), ("20000 100000", 1), ("broken", 4)):
        (tmp_path / "cpu.max").write_text(text)
        assert system.cores() == expected
    statistics = tmp_path / "stat"
    monkeypatch.setattr(system, "_STATISTICS", statistics)
    rows = [{0: "0 0 0 10 0 0 0 0", 1: "0 0 0 10 0 0 0 0", 9: "0 0 0 0 0 0 0 0"}]
    rows.append({0: "5 0 0 15 0 0 0 0", 1: "0 0 0 20 0 0 0 0", 9: "0 0 0 90 0 0 0 0"})
    texts = ["".join(f"cpu{core} {ticks} 0 0\n" for core, ticks in row.items()) for row in rows]
    statistics.write_text(texts[0])
    monkeypatch.setattr(system.time, "sleep", lambda seconds: statistics.write_text(texts[1]))
    assert system.idle_cores() == 4.0  # two of ours are not listed
    statistics.write_text(texts[0])
    monkeypatch.setattr(system.os, "sched_getaffinity", lambda pid: {0, 1})
    assert system.idle_cores() == 1.5  # half of the first core and the whole second; the tenth is not ours
    monkeypatch.setattr(system.os, "sched_getaffinity", lambda pid: set(range(4)))
    monkeypatch.setattr(system, "_STATISTICS", tmp_path / "missing")
    assert system.idle_cores() == 4.0
