"""The processes of a run: starts them, joins them into a group, and lets them agree."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from densepath.core.distributed import world_size
from densepath.runs.watchdog import PARENT
from densepath.training.caller_state import CUBLAS
from densepath.training.hardware import Hardware
from densepath.training.sharding import shard

if TYPE_CHECKING:
    from lightning.fabric import Fabric

# For one collective operation. The watchdog gives up on a dead process long before (see runs.watchdog); a live process
# may take long to evaluate, or to cluster features, while the others wait for it.
_TIMEOUT = timedelta(hours=6)


def start_processes(hardware: Hardware) -> list[subprocess.Popen[bytes]]:
    """Start the other processes of a run on this machine, unless a launcher has: each repeats this command line."""
    if hardware.world_size == 1 or hardware.environment.creates_processes_externally:
        return []
    shared = {
        "MASTER_ADDR": hardware.environment.main_address,
        "MASTER_PORT": str(hardware.environment.main_port),
        "NODE_RANK": "0",
        "WORLD_SIZE": str(hardware.world_size),
    }
    os.environ.update(shared, LOCAL_RANK="0")
    spec = sys.modules["__main__"].__spec__
    program = [os.path.abspath(sys.argv[0])] if spec is None else ["-m", spec.name.removesuffix(".__main__")]
    command = [sys.executable, *program, *sys.argv[1:]]
    return [
        subprocess.Popen(command, env={**os.environ, "LOCAL_RANK": str(number), PARENT: str(os.getpid())})
        for number in range(1, hardware.world_size)
    ]


@contextmanager
def other_processes(hardware: Hardware) -> Iterator[Sequence[subprocess.Popen[bytes]]]:
    """The other processes of this machine, see :func:`start_processes`, which end with this one."""
    environment = dict(os.environ)
    children = start_processes(hardware)
    try:
        yield children
    finally:
        for child in children:
            child.kill()
            child.wait()
        if children:  # or this process would seem to be started by a launcher the next time
            os.environ.clear()
            os.environ.update(environment)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Lightning logs only errors in this block."""
    import lightning.fabric  # noqa: F401  # on import it sets the levels of both, also that of its unused trainer

    loggers = [logging.getLogger(f"lightning.{part}") for part in ("fabric", "pytorch")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def join_processes(hardware: Hardware, equal_shapes: bool, timeout: timedelta = _TIMEOUT) -> Fabric:
    """Join the processes into a group, and set up Fabric.

    Settings of torch are changed for the process, also for what follows the training, such as tests: see
    :func:`~densepath.training.caller_state.state_of_the_caller`.

    Several processes average their gradients and keep their own batch statistics. Fabric then sets up a task as
    ``hardware.strategy`` says.

    Args:
        hardware: the hardware to compute on.
        equal_shapes: all batches have the same shape, so a GPU may time its algorithms once and keep the fastest.
        timeout: how long to wait for the other processes, now and in each collective operation.
    """
    from lightning.fabric import Fabric
    from lightning.fabric.strategies import DDPStrategy, ModelParallelStrategy

    if hardware.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
        os.environ[CUBLAS] = ":4096:8"
    torch.backends.cudnn.benchmark = hardware.kind == "cuda" and equal_shapes and not hardware.deterministic
    strategy: Any = "auto"
    if hardware.strategy == "fsdp":
        strategy = ModelParallelStrategy(
            lambda task, mesh: shard(task, mesh["data_parallel"]),
            data_parallel_size=hardware.world_size,
            tensor_parallel_size=1,
            timeout=timeout,
        )
    elif hardware.world_size > 1:
        strategy = DDPStrategy(
            timeout=timeout, find_unused_parameters=False, broadcast_buffers=False, gradient_as_bucket_view=True
        )
    fabric = Fabric(
        accelerator=hardware.kind,
        devices=hardware.devices,
        num_nodes=hardware.nodes,
        strategy=strategy,
        plugins=[hardware.environment],
        precision="bf16-mixed" if hardware.precision == "bf16-mixed" else "32-true",
    )
    fabric.launch()
    return fabric


@contextmanager
def without_sync(model: nn.Module, skip: bool) -> Iterator[None]:
    """If ``skip``, gradients are not averaged over the processes: for all batches of a step but the last.

    Sharded ones always are, because each process keeps only its part of them.
    """
    context: AbstractContextManager[Any] = nullcontext()
    no_sync = getattr(model, "no_sync", None)  # of DistributedDataParallel
    if skip and world_size() > 1 and no_sync is not None:
        context = no_sync()
    with context:
        yield


def agree(device: torch.device, *values: int) -> list[int]:
    """The maximum of each value over all processes; all processes call this."""
    if world_size() == 1:
        return list(values)
    agreed = torch.tensor(values, device=device)
    dist.all_reduce(agreed, dist.ReduceOp.MAX)
    return [int(value) for value in agreed.tolist()]
