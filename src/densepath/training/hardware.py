"""The hardware of a run: devices, processes, precision."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from densepath.core.errors import UserError, counted
from densepath.core.streams import say
from densepath.core.system import check_processes, cores, first_on_node, program, slurm_tasks
from densepath.nets.small_maps import compute_small_maps_in_float32
from densepath.training.threads import use_idle_cores

if TYPE_CHECKING:
    from lightning.fabric.plugins.environments import ClusterEnvironment

Precision = Literal["auto", "32", "bf16-mixed"]
Strategy = Literal["ddp", "fsdp"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of mallopt(3)


@dataclass(frozen=True)
class Hardware:
    """The hardware of a run, as :func:`choose_hardware` found it.

    Args:
        kind: "cuda" or "cpu".
        devices: number of processes on this machine, one device each.
        nodes: number of machines.
        rank, local_rank: this process among all, and on this machine.
        precision: "32", or "bf16-mixed" for automatic mixed precision in bfloat16.
        channels_last: whether weights and pixels are stored channels last: faster for convolutions in bfloat16.
        deterministic: whether a GPU uses only algorithms that give the same bits each time. A CPU always does.
        environment: the launcher of the processes.
        strategy: "ddp": each process has all weights, or "fsdp": they are divided among the processes.
    """

    kind: Literal["cuda", "cpu"]
    devices: int
    nodes: int
    rank: int
    local_rank: int
    precision: Literal["32", "bf16-mixed"]
    channels_last: bool
    deterministic: bool
    environment: ClusterEnvironment
    strategy: Strategy = "ddp"

    @property
    def world_size(self) -> int:
        """Number of processes of the run, over all machines."""
        return self.devices * self.nodes

    @property
    def device(self) -> torch.device:
        """This process's device."""
        return torch.device("cuda", self.local_rank) if self.kind == "cuda" else torch.device("cpu")

    @property
    def memory_format(self) -> torch.memory_format:
        """Memory layout of pixel tensors with four dimensions."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def lay_out(self, network: nn.Module) -> None:
        """Store the weights of a network in the memory layout of its pixels, also for volumes (five dimensions)."""
        formats = {4: torch.channels_last, 5: torch.channels_last_3d} if self.channels_last else {}
        network._apply(lambda x: x.to(memory_format=formats[x.ndim]) if x.ndim in formats else x)

    def place(self, network: nn.Module, device: torch.device) -> None:
        """Move a network to a device, in the memory layout of its pixels; one to be sharded stays where it is."""
        if self.kind == "cpu" and self.precision == "bf16-mixed":
            compute_small_maps_in_float32(network)
        if self.strategy == "ddp":
            self.lay_out(network)
            network.to(device)


def choose_hardware(
    devices: int | str = "auto",
    precision: Precision = "auto",
    channels_last: bool = True,
    deterministic: bool = False,
    strategy: Strategy = "ddp",
) -> Hardware:
    """Choose the hardware of a run.

    Args:
        devices: "auto" (one GPU, or else the CPU), N (processes on as many GPUs, or on the CPU), "cpu" or "cpu:N".
            Under torchrun and SLURM their own settings give the number of processes.
        precision: "auto" uses bfloat16 if the hardware supports it natively.
        channels_last, deterministic, strategy: see :class:`Hardware`.

    Raises:
        UserError: there are fewer GPUs than requested, no program for further processes, or a value is invalid.
    """
    if strategy not in ("ddp", "fsdp"):
        raise UserError(f"strategy is {strategy!r}; use ddp or fsdp")
    kind, count = _parse_devices(devices)
    environment, nodes, started = _find_launcher()
    if started:
        if count not in (1, started):
            raise UserError(
                f"the launcher started {counted(started, 'process', 'processes')} on this machine but devices is "
                f"{count}; leave devices out"
            )
        count = started
    elif count > 1 and program() is None:
        raise UserError(
            f"devices is {devices!r}, but another process cannot repeat what runs in a notebook, an interactive "
            "session or python -c; start it from a script or the command line"
        )
    _check_gpus(kind, count)
    if kind == "cpu":
        use_idle_cores(count)
    local_rank = environment.local_rank() if count > 1 or nodes > 1 else 0
    return Hardware(
        kind=kind,
        devices=count,
        nodes=nodes,
        rank=environment.global_rank() if started else local_rank,
        local_rank=local_rank,
        precision=choose_precision(precision, kind),
        channels_last=channels_last,
        deterministic=deterministic,
        environment=environment,
        strategy=strategy,
    )


def choose_device(devices: int | str = "auto") -> torch.device:
    """The device of a task of one process, whatever has started it. Arguments and errors as for the hardware of a run.

    Processes that a launcher has started side by side take different GPUs.
    """
    kind, count = _parse_devices(devices)
    _check_gpus(kind, count)
    if kind == "cpu":
        use_idle_cores()
        return torch.device("cpu")
    text = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
    return torch.device("cuda", int(text) % torch.cuda.device_count() if text.isdecimal() else 0)


def choose_workers(hardware: Hardware) -> int:
    """The number of processes that decode images for one device, if the user does not set it."""
    share = cores() // hardware.devices
    # On a CPU the training itself needs the cores; with a GPU only decoding does.
    return min(share // 4, 2) if hardware.kind == "cpu" else max(1, min(share - 1, 16))


def divide_batch(batch_size: int, processes: int, accumulate: int = 1) -> int:
    """Number of images in one batch of one process."""
    parts = processes * accumulate
    if batch_size < 1 or batch_size % parts:
        gradients = f" with accumulate {accumulate}" if accumulate > 1 else ""
        raise UserError(
            f"batch_size is {batch_size}, which cannot be divided among "
            f"{counted(processes, 'process', 'processes')}{gradients}; make it a multiple of {parts}"
        )
    return batch_size // parts


def keep_freed_memory(hardware: Hardware) -> None:
    """Let the C library keep the memory of freed tensors for the next ones, on a CPU.

    By default the GNU C library returns large blocks to the system, which fills each page with zeros before it hands it
    out again: a fifth of the time of a step at 224 px. Other C libraries are left unchanged.
    """
    if hardware.kind != "cpu":
        return
    try:
        tune = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    for option in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):
        tune(option, 2**31 - 1)
    tune(_ARENA_MAX, 1)  # memory that a thread of the loader has freed serves the others too


def _parse_devices(devices: int | str) -> tuple[Literal["cuda", "cpu"], int]:
    kind: Literal["cuda", "cpu"] = "cuda" if torch.cuda.is_available() else "cpu"
    text = str(devices)
    if text == "auto":
        return kind, 1
    if text == "cpu" or text.startswith("cpu:"):
        kind, text = "cpu", text.removeprefix("cpu").removeprefix(":") or "1"
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"devices is {devices!r}; give a number, auto, cpu or cpu:N")
    check_processes(devices, count := int(text))
    return kind, count


def _check_gpus(kind: str, count: int) -> None:
    if kind == "cuda" and count > torch.cuda.device_count():
        raise UserError(
            f"devices is {count}, but this machine has {counted(torch.cuda.device_count(), 'GPU')}; ask for fewer"
        )


def _find_launcher() -> tuple[ClusterEnvironment, int, int]:
    """The launcher, the number of machines, and the processes that it started on each (0: this package starts them)."""
    from lightning.fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment

    from densepath.training.slurm import Slurm

    if TorchElasticEnvironment.detect():
        here, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        return TorchElasticEnvironment(), world // here, here
    if Slurm.detect():
        world = slurm_tasks()
        if world > 1:
            nodes = int(os.environ.get("SLURM_STEP_NUM_NODES", os.environ.get("SLURM_NNODES", "1")))
            if world % nodes:
                raise UserError(
                    f"srun started {counted(world, 'process', 'processes')} on {counted(nodes, 'machine')}; give "
                    "each the same number (--ntasks-per-node)"
                )
            return Slurm(), nodes, world // nodes
        _explain_slurm(os.environ["SLURM_NTASKS"])
    return LightningEnvironment(), 1, 0


@cache  # once
def _explain_slurm(tasks: str) -> None:
    """Explain why a job of several tasks is a run of one process: srun did not start the others."""
    if tasks != "1" and "SLURM_STEP_ID" not in os.environ and first_on_node():
        say(
            f"densepath: SLURM_NTASKS is {tasks}, but srun did not start this process, so it is the only one; "
            f"for {tasks} processes start it by srun"
        )


def choose_precision(precision: Precision, kind: str) -> Literal["32", "bf16-mixed"]:
    """The precision of a device of this kind; "auto" is resolved. Raises UserError for another value."""
    if precision not in ("auto", "32", "bf16-mixed"):
        raise UserError(f"precision is {precision!r}; use auto, 32 or bf16-mixed")
    if precision != "auto":
        return precision
    gains = torch.cuda.is_bf16_supported(including_emulation=False) if kind == "cuda" else _cpu_has_bfloat16()
    return "bf16-mixed" if gains else "32"


def _cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 (AVX-512 BF16 or AMX); emulated, it would be slower than float32."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)
