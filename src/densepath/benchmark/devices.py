"""Where the runs of a grid compute: one at a time on each device."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from densepath.benchmark.identity import hardware_name
from densepath.core.errors import UserError
from densepath.core.system import cores

_MOST_WORKERS = 16


@dataclass(frozen=True)
class Slot:
    """Room for one run.

    Args:
        name: "cuda:0", "cpu" or "cpu:1".
        devices: what the run is told.
        hardware: in words.
        environment: variables of its process.
        workers: processes that decode images for it; None where it decides by itself.
    """

    name: str
    devices: str
    hardware: str
    environment: Mapping[str, str] = field(default_factory=dict)
    workers: int | None = None


def make_slots(devices: int | str) -> list[Slot]:
    """Read what ``--devices`` says.

    Args:
        devices: "auto" (one GPU, or else the CPU), a number of GPUs (or of runs side by side where there is none),
            "cuda:0,1" for certain GPUs, "cpu", or "cpu:2" for two runs side by side.

    Raises:
        UserError: it says something else, or there are not so many GPUs.
    """
    text = str(devices)
    gpus = torch.cuda.device_count()
    if text == "auto":
        text = "1"
    if text.isdecimal():
        text = f"cuda:{','.join(map(str, range(int(text))))}" if gpus else f"cpu:{text}"
    if match := re.fullmatch(r"cpu(?::([1-9]\d*))?", text):
        return _on_cpu(int(match[1] or 1))
    if not re.fullmatch(r"cuda:\d+(,\d+)*", text):
        raise UserError(f"devices is {devices!r}; give auto, a number, cuda:0,1, cpu or cpu:2")
    chosen = list(dict.fromkeys(int(number) for number in text.removeprefix("cuda:").split(",")))
    if max(chosen) >= gpus:
        raise UserError(f"devices is {devices!r}, but this machine has {gpus} GPUs; name others")
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    workers = max(1, min(cores() // len(chosen) - 1, _MOST_WORKERS)) if len(chosen) > 1 else None
    return [
        Slot(
            f"cuda:{number}",
            "1",
            torch.cuda.get_device_name(number),
            {"CUDA_VISIBLE_DEVICES": visible[number] if visible else str(number)},
            workers,
        )
        for number in chosen
    ]


def _on_cpu(count: int) -> list[Slot]:
    # Each run would take all cores for its threads, and they would wait for each other.
    threads = {"OMP_NUM_THREADS": str(max(1, cores() // count))} if count > 1 else {}
    environment = threads if "OMP_NUM_THREADS" not in os.environ else {}
    names = [f"cpu:{number}" for number in range(count)] if count > 1 else ["cpu"]
    return [Slot(name, "cpu", hardware_name(), environment) for name in names]
