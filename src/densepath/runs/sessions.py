"""The record of where and how a run was computed: an entry for its start, and one for each time it was resumed."""

from __future__ import annotations

import platform
import re
import shlex
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

from densepath.core.errors import counted
from densepath.core.streams import say
from densepath.core.system import cores
from densepath.runs.folder import SESSIONS, train_longer
from densepath.version import __version__

_PACKAGES = ("torch", "torchvision", "timm", "lightning")


def command_line() -> str:
    """The command that started this process, as it can be typed."""
    program = Path(sys.argv[0])
    name = "densepath" if program.name == "__main__.py" and program.parent.name == "densepath" else program.name
    return shlex.join([name, *sys.argv[1:]])


def begin_session(
    out: Path,
    step: int,
    total: int,
    config: Mapping[str, Any] | None,
    data: Mapping[str, Any],
    device: torch.device,
    processes: int,
) -> None:
    """Report whether a run is resumed or complete, and record the session if there are steps to do.

    Args:
        out, step, data, device, processes: as for :func:`record_session`.
        total: the number of optimizer steps of the whole run.
        config: the options of the run, if they are known.
    """
    if step >= total:
        more = f"; {train_longer(out, config)}" if config else ""
        say(f"densepath: the run in {out} is complete ({counted(step, 'step')}){more}")
        return
    if step:
        say(f"densepath: resuming {out} at step {step} of {total}")
    record_session(out, step, device, processes, data)


def record_session(out: Path, step: int | None, device: torch.device, processes: int, data: Mapping[str, Any]) -> None:
    """Append an entry to the record in a run folder. A full disk does not stop the run.

    Args:
        out: the run folder.
        step: the number of optimizer steps done before; None for a run with several trainings, which record theirs.
        device: the device of the first process.
        processes: number of processes.
        data: number and digests of the images.
    """
    gpu = device.type == "cuda"
    entry = {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        **({} if step is None else {"step": step}),
        "command": command_line(),
        "folder": str(Path.cwd()),  # where relative paths of the command start
        "machine": f"{platform.node()}, {platform.platform()}, {cores()} CPU cores",
        "devices": f"{processes} x {torch.cuda.get_device_name(device) if gpu else device.type}",
        "matmul_precision": _matmul_precision(),
        "versions": {
            "densepath": __version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in _PACKAGES},
            "cuda": torch.version.cuda if gpu else None,
        },
        "data": dict(data),
    }
    with suppress(OSError), (out / SESSIONS).open("a", encoding="utf-8") as file:
        file.write(yaml.safe_dump([entry], sort_keys=False, allow_unicode=True))


def planned_steps(out: Path, steps: int) -> int:
    """The optimizer steps of the whole run in a folder: ``steps``, or one more if it was started with that.

    Up to version 0.1 the product of epochs and steps was not rounded: 2.2 epochs of 25 steps were 56 steps, not 55.
    """
    with suppress(OSError):  # a new run
        text = (out / SESSIONS).read_text(encoding="utf-8", errors="replace")
        started = re.search(r"^    steps: (\d+)$", text, re.MULTILINE)
        if started and int(started[1]) == steps + 1:
            return steps + 1
    return steps


def _matmul_precision() -> str | None:
    """The caller's precision of matrix products of float32; None where parts of torch have different ones."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
