import os
import sys
from types import ModuleType

import pytest
import torch

from densepath.core.errors import UserError
from densepath.core.system import processes_on_node
from densepath.training import hardware
from densepath.training.hardware import choose_device, choose_hardware

LAUNCHERS = ("TORCHELASTIC_RUN_ID", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    hardware._explain_slurm.cache_clear()


def test_a_cpu_can_be_asked_for_where_there_are_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = choose_hardware("cpu:2", "32")
    assert (found.kind, found.devices, found.world_size, found.rank) == ("cpu", 2, 2, 0)
    assert found.device == torch.device("cpu")


@pytest.mark.parametrize("devices", ["gpu", "cpu:x", 0, -1, "cpu:0", "1.5", 10**21, "cpu:1025"])
def test_nonsense_is_refused(devices):
    with pytest.raises(UserError, match="devices"):
        choose_hardware(devices)


def test_a_notebook_cannot_start_further_processes(monkeypatch):
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))
    assert choose_hardware("cpu:1", "32").world_size == 1
    with pytest.raises(UserError, match=r"cannot repeat what runs in a notebook.*; start it from a script or the comm"):
        choose_hardware("cpu:2", "32")


def test_more_gpus_than_there_are_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_hardware(2, "32").world_size == 2
    with pytest.raises(UserError, match="2 GPUs"):
        choose_hardware(3, "32")


def test_torchrun_says_how_many_and_which(monkeypatch):
    settings = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "TORCHELASTIC_RUN_ID": "x"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    found = choose_hardware("cpu", "32")
    assert (found.devices, found.nodes, found.world_size) == (4, 2, 8)
    assert (found.rank, found.local_rank) == (5, 1)
    with pytest.raises(UserError, match="launcher started 4"):
        choose_hardware("cpu:3", "32")


def test_slurm_says_how_many_and_which(monkeypatch):
    settings = {"NTASKS": "4", "NTASKS_PER_NODE": "2", "NNODES": "2", "PROCID": "3", "LOCALID": "1", "NODEID": "1"}
    settings |= {"STEP_ID": "0", "STEP_NUM_TASKS": "4", "STEP_NUM_NODES": "2", "STEP_TASKS_PER_NODE": "2(x2)"}
    for name, value in settings.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    found = choose_hardware("cpu", "32")
    assert (found.devices, found.nodes, found.rank, found.local_rank) == (2, 2, 3, 1)
    assert processes_on_node() == 2


def test_srun_may_start_any_step(monkeypatch):
    """Without --ntasks-per-node, and on fewer machines than the job has: Lightning's own environment refuses these."""
    settings = {"NTASKS": "2", "NNODES": "3", "PROCID": "1", "LOCALID": "1", "NODEID": "0", "JOB_NAME": "train"}
    settings |= {"STEP_ID": "0", "STEP_NUM_TASKS": "2", "STEP_NUM_NODES": "1"}
    for name, value in settings.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    found = choose_hardware("cpu", "32")
    assert (found.devices, found.nodes, found.rank, found.environment.world_size()) == (2, 1, 1, 2)
    found.environment.validate_settings(found.devices, found.nodes)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "3")
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "2")
    with pytest.raises(UserError, match="srun started 3 processes on 2 machines; give each the same number"):
        choose_hardware("cpu", "32")


def test_a_task_of_one_process_needs_no_launcher(monkeypatch):
    for name, value in {"NTASKS": "2", "STEP_ID": "0", "PROCID": "1", "LOCALID": "1", "STEP_NUM_TASKS": "3"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert choose_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device() == torch.device("cuda", 1)
    monkeypatch.setenv("SLURM_LOCALID", "2")
    assert choose_device() == torch.device("cuda", 0)
    with pytest.raises(UserError, match="this machine has 2 GPUs"):
        choose_device(3)


# What the script of a job has, an interactive shell in a job, and a shell that was given variables.
ALONE = {
    "script": {"JOB_NAME": "train", "PROCID": "0", "LOCALID": "0", "NODEID": "0", "TASKS_PER_NODE": "2"},
    "shell": {"JOB_NAME": "interactive", "PROCID": "0", "STEP_ID": "4294967290", "STEP_NUM_TASKS": "1"},
    "variables": {},
}


@pytest.mark.parametrize("where", ALONE)
def test_a_job_of_two_tasks_without_srun_is_a_run_of_one_process_and_reports_it(monkeypatch, where, capsys):
    for name, value in {"NTASKS": "2", "NNODES": "1", **ALONE[where]}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    found = choose_hardware("cpu", "32")
    assert (found.world_size, found.rank, processes_on_node()) == (1, 0, 1)
    assert choose_hardware("cpu:2", "32").world_size == 2  # which the run itself starts
    said = capsys.readouterr().err
    assert said.count("srun did not start this process") == (where != "shell")


@pytest.mark.parametrize(("gains", "expected"), [(True, "bf16-mixed"), (False, "32")])
def test_bfloat16_is_chosen_where_the_hardware_computes_with_it(monkeypatch, gains, expected):
    monkeypatch.setattr(hardware, "_cpu_has_bfloat16", lambda: gains)
    assert choose_hardware("cpu", "auto").precision == expected
    assert choose_hardware("cpu", "32").precision == "32"
    assert choose_hardware("cpu", "bf16-mixed").precision == "bf16-mixed"


def test_an_unknown_precision_is_refused():
    with pytest.raises(UserError, match="precision"):
        choose_hardware("cpu", "fp8")
