"""Fully sharded data parallelism (FSDP): weights, gradients and optimizer states are divided among the processes.

Each parameter is a DTensor, of which every process holds a part. Blocks of transformers, those of momentum copies too,
are put together when they compute, and then freed; all other parameters are whole during the passes of a batch.

Source: Zhao et al., PyTorch FSDP, VLDB 2023; ``fully_shard`` of torch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from densepath.core.distributed import rank
from densepath.core.errors import UserError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Network = TypeVar("Network", bound=nn.Module)

_OPTIMIZERS = ("sgd", "adamw")  # the others scale a step by norms of whole tensors
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_STATE = "__composable_api_state_key"  # where torch keeps what it knows of a sharded module, which cannot be copied


def require_shardable(network: nn.Module, optimizer: str, processes: int) -> None:
    """Check that a run can be sharded.

    Raises:
        UserError: it cannot.
    """
    if processes < 2:
        raise UserError("strategy fsdp divides the weights among several processes, but this run has one; use ddp")
    if optimizer not in _OPTIMIZERS:
        raise UserError(f"strategy fsdp does not support the optimizer {optimizer}; use adamw or sgd, or strategy ddp")
    if not blocks_of(network):
        raise UserError("strategy fsdp shards the blocks of vision transformers, and the backbone has none; use ddp")


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The blocks of all transformers in a network: the children of each sequence that is called ``blocks``."""
    named = [module for name, module in network.named_modules() if name.rpartition(".")[2] == "blocks"]
    return [block for blocks in named for block in blocks.children()]


def shard(network: Network, mesh: DeviceMesh) -> Network:
    """Shard a network in place over the processes of a mesh of one dimension."""
    from torch.distributed.fsdp import fully_shard

    network._apply(lambda x: x.contiguous())  # the only layout that can be sharded
    for block in blocks_of(network):
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)
    return network


@contextmanager
def whole(network: nn.Module) -> Iterator[None]:
    """Within it every process has all weights, to compute with or to copy; all processes enter it.

    Changes of the weights are lost.
    """
    restore = unshard(network)
    try:
        yield
    finally:
        restore()


@torch.no_grad()
def unshard(network: nn.Module) -> Callable[[], None]:
    """Make a network an ordinary one with all weights on every process; all processes call this.

    Returns:
        A function that makes it sharded again, as it was.
    """
    sharded = [module for module in network.modules() if hasattr(module, "set_reshard_after_forward")]
    kept = [
        (module, type(module), {name: own for name, own in vars(module).items() if name in _HOOKS or _STATE in name})
        for module in sharded
    ]
    gathered: dict[Tensor, nn.Parameter] = {}
    replaced: list[tuple[nn.Module, str, nn.Parameter]] = []
    for module in network.modules() if sharded else ():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if parameter not in gathered:
                gathered[parameter] = nn.Parameter(_full(parameter), requires_grad=parameter.requires_grad)
            module._parameters[name] = gathered[parameter]
            replaced.append((module, name, parameter))
    for module, kind, own in kept:
        module.__class__ = kind.__mro__[2]  # after the class that torch made for it, and FSDPModule
        for name in own:
            del vars(module)[name]
        vars(module).update({name: OrderedDict() for name in _HOOKS})

    def restore() -> None:
        for module, kind, own in kept:
            module.__class__ = kind
            vars(module).update(own)
        for module, name, parameter in replaced:
            module._parameters[name] = parameter

    return restore


def collect(state: Any) -> Any:
    """A nested state with whole tensors on the CPU in place of sharded ones, on the first process; all call this.

    The other processes have empty tensors there.
    """
    if isinstance(state, dict):
        return type(state)((key, collect(value)) for key, value in state.items())
    if isinstance(state, list | tuple):
        return type(state)(collect(value) for value in state)
    if isinstance(state, Tensor) and hasattr(state, "full_tensor"):
        full = _full(state.detach())
        return full.cpu() if rank() == 0 else full.new_empty(0)
    return state


def divide_state(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of an optimizer with whole tensors, divided like the parameters of this optimizer."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def divide(value: Any, like: Tensor) -> Any:
        if not hasattr(like, "full_tensor") or not isinstance(value, Tensor) or value.shape != like.shape:
            return value
        from torch.distributed.tensor import distribute_tensor

        dtensor: Any = like
        return distribute_tensor(value.to(like.device), dtensor.device_mesh, dtensor.placements, src_data_rank=None)

    states = {
        number: {name: divide(value, parameters[number]) for name, value in of_one.items()}
        for number, of_one in state["state"].items()
    }
    return {**state, "state": states}


def _full(x: Tensor) -> Tensor:
    dtensor: Any = x
    full: Tensor = dtensor.full_tensor() if hasattr(x, "full_tensor") else x
    return full.detach()
