"""The devices on which the runs of a grid compute, one run at a time on each."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from densepath.benchmark.identity import hardware_name
from densepath.core.errors import UserError, counted
from densepath.core.system import check_processes, cores

_MAX_WORKERS = 16
_JOBS = 4


@dataclass(frozen=True)
class Device:
    """A device, or a share of the CPU, that computes one run at a time.

    Args:
        name: "cuda:0", "cpu" or "cpu:1".
        devices: the run's ``--devices``.
        hardware: name of the hardware.
        environment: environment variables of the run's process.
        workers: the run's ``--workers``; None leaves the choice to the run.
    """

    name: str
    devices: str
    hardware: str
    environment: Mapping[str, str] = field(default_factory=dict)
    workers: int | None = None


def parse_devices(devices: int | str) -> list[Device]:
    """Parse ``--devices``.

    Args:
        devices: "auto" (one GPU, or the CPU if there is none), a number of GPUs (without a GPU: of parallel runs on
            the CPU), "cuda:0,1" for certain GPUs, "cpu", or "cpu:2" for two parallel runs.

    Raises:
        UserError: the value is invalid or too large, or there are fewer GPUs.
    """
    text = str(devices)
    gpus = torch.cuda.device_count()
    if text == "auto":
        text = "1"
    if number := re.fullmatch(r"(?:cpu:)?(\d+)", text):
        check_processes(devices, int(number[1]))
    if text.isdecimal():
        text = f"cuda:{','.join(map(str, range(int(text))))}" if gpus else f"cpu:{text}"
    if match := re.fullmatch(r"cpu(?::([1-9]\d*))?", text):
        return _on_cpu(int(match[1] or 1))
    if not re.fullmatch(r"cuda:\d+(,\d+)*", text):
        raise UserError(f"devices is {devices!r}; give auto, a number, cuda:0,1, cpu or cpu:2")
    chosen = list(dict.fromkeys(int(number) for number in text.removeprefix("cuda:").split(",")))
    if max(chosen) >= gpus:
        raise UserError(f"devices is {devices!r}, but this machine has {counted(gpus, 'GPU')}; name other ones")
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    workers = max(1, min(cores() // len(chosen) - 1, _MAX_WORKERS)) if len(chosen) > 1 else None
    return [
        Device(
            f"cuda:{number}",
            "1",
            torch.cuda.get_device_name(number),
            {"CUDA_VISIBLE_DEVICES": visible[number] if visible else str(number)},
            workers,
        )
        for number in chosen
    ]


def job_slots(devices: int | str, executor: str) -> list[Device]:
    """Places for jobs on machines that are not known yet: each takes the GPU that its job has, or else the CPU.

    Raises:
        UserError: ``devices`` is not a number, or is too large.
    """
    text = str(devices)
    if text != "auto" and not (text.isdecimal() and int(text)):
        raise UserError(f"devices is {devices!r}; with an executor give the number of jobs at a time")
    count = _JOBS if text == "auto" else int(text)
    check_processes(devices, count, "jobs")
    return [Device(f"{executor}:{number}", "auto", f"a job of {executor}") for number in range(count)]


def _on_cpu(count: int) -> list[Device]:
    # Otherwise each run would start as many threads as there are cores, and the runs would slow each other down.
    threads = {"OMP_NUM_THREADS": str(max(1, cores() // count))} if count > 1 else {}
    environment = threads if "OMP_NUM_THREADS" not in os.environ else {}
    names = [f"cpu:{number}" for number in range(count)] if count > 1 else ["cpu"]
    return [Device(name, "cpu", hardware_name(), environment) for name in names]
