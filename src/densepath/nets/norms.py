"""Batch norms with statistics over groups of a process's images, or over the images of all processes.

Networks are converted in place, as torch does for its sharded and parametrized modules: a layer gets another class, and
keeps its tensors, its hooks, and its name in the state dict. In evaluation mode all of them are plain batch norms.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from densepath.core.distributed import total, world_size
from densepath.core.errors import UserError
from densepath.core.losses import full_precision
from densepath.nets.batch_norms import Ghost, Synchronized, converted_classes, follow_statistics
from densepath.nets.running_statistics import running_statistics

Network = TypeVar("Network", bound=nn.Module)


def normalize_rows(norm: nn.Module, x: Tensor, valid: Tensor | None = None) -> Tensor:
    """Apply a batch norm to rows of which some do not exist: these do not enter its statistics.

    Running statistics follow those of the groups (see :func:`group_batch_norm`) of all processes with two rows or more:
    a process whose rows do not exist follows those of the others. All processes call this equally often.

    Args:
        norm: a batch norm of vectors, grouped or synchronized or neither; or an identity.
        x: (N, C).
        valid: (N,) bool: the rows that exist; all by default. The others are transformed in the same way.
    """
    if valid is None or not isinstance(norm, _BatchNorm) or not norm.training:
        return norm(x)
    over = total if isinstance(norm, Synchronized) else nn.Identity()
    divide = norm.by_group if isinstance(norm, Ghost) else partial(torch.unsqueeze, dim=0)
    rows = divide(full_precision(x))  # (G, n, C)
    weight = divide(valid.to(rows.dtype).unsqueeze(1))
    count = over(weight.sum(1, keepdim=True))  # (G, 1, 1)
    # Not as products of matrices, which autocast would compute in low precision.
    mean = over((weight * rows).sum(1, keepdim=True)) / count.clamp(min=1)
    variance = over((weight * (rows - mean).square()).sum(1, keepdim=True)) / count.clamp(min=1)
    _follow_groups(norm, mean, variance * count / (count - 1).clamp(min=1), (count > 1).to(rows.dtype))
    scale = torch.rsqrt(variance + norm.eps) * norm.weight
    made = torch.addcmul(norm.bias, rows - mean, scale)
    return (norm.as_before(made) if isinstance(norm, Ghost) else made[0]).to(x.dtype)


@torch.no_grad()
def _follow_groups(norm: _BatchNorm, mean: Tensor, variance: Tensor, several: Tensor) -> None:
    """Let the running statistics follow the mean over groups (G, 1, C) that have ``several`` (G, 1, 1) rows, if any."""
    everywhere = nn.Identity() if isinstance(norm, Synchronized) else total  # whose groups are those of all processes
    groups = everywhere(several.sum())
    share = several / groups.clamp(min=1)
    found = everywhere(torch.cat([(share * each).sum((0, 1)) for each in (mean, variance)])).split(norm.num_features)
    kept = zip(found, running_statistics(norm).values(), strict=True)
    follow_statistics(norm, *(torch.where(groups > 0, new, old.to(new.dtype)) for new, old in kept))


def set_batch_norm(network: nn.Module, over: str, group: int = 0, images: int = 0) -> None:
    """Choose the rows over which all batch norms of a network compute their statistics.

    Args:
        network: a backbone, or a whole method.
        over: "per_process": the rows of each process; or "synchronized": those of all processes.
        group: images that share statistics, for "per_process"; 0 for all of a process.
        images: as for :func:`group_batch_norm`.

    Raises:
        UserError: ``over`` is unknown, or synchronized with groups; or as for :func:`group_batch_norm`.
    """
    if over not in ("per_process", "synchronized"):
        raise UserError(f"unknown batch_norm {over!r}; there are: auto, per_process, synchronized")
    if over == "synchronized":
        if group:
            raise UserError(
                "synchronized batch norms have no groups; give --batch_norm_group 0, or --batch_norm per_process"
            )
        synchronize_batch_norm(network)
    elif group:
        group_batch_norm(network, group, images)


def normalized_together(network: nn.Module, rows: int) -> int:
    """The number of rows of the global batch that share batch statistics.

    Args:
        network: the network, whose first batch norm is used.
        rows: rows of the batch on each process.

    Returns:
        The images of a group, or the rows of a process or of all processes; of all if there are no batch norms.
    """
    norm = next((module for module in network.modules() if isinstance(module, _BatchNorm)), None)
    if isinstance(norm, Ghost):
        return norm.group
    return rows * (world_size() if norm is None or isinstance(norm, Synchronized | nn.SyncBatchNorm) else 1)


def group_batch_norm(network: nn.Module, group: int, images: int = 0) -> None:
    """Compute batch statistics separately for each ``group`` images of a batch.

    Args:
        network: a backbone, or a whole method.
        group: images in a group.
        images: number of images of a batch, if several views of each pass together, one view of all after another.

    Raises:
        UserError: the groups have less than two images, or the network has batch norms of an unsupported class.
    """
    if group < (1 if images else 2):
        raise UserError(f"batch norms need groups of at least two images, not {group}")
    for norm in _convert(network, converted_classes()[0]):
        norm.group, norm.images = group, images


def synchronize_batch_norm(network: nn.Module) -> None:
    """Compute batch statistics over the images of all processes. Raises as :func:`group_batch_norm`."""
    _convert(network, converted_classes()[1])


def to_group_norm(network: Network, groups: int = 8) -> Network:
    """Replace all batch norms of a network, in place, by group norms with the same weights and biases.

    For fine-tuning with a few large volumes in a batch. A norm whose channels cannot be divided by ``groups`` has the
    largest number of groups below that which divides them. The running statistics are lost.

    Args:
        network: the network; not itself a batch norm.
        groups: groups of channels: 8 in the released PCRL. 1 is a layer norm.

    Returns:
        The network.
    """
    if groups < 1:
        raise UserError(f"group norms need at least one group, not {groups}")
    for parent in list(network.modules()):
        for name, norm in list(parent.named_children()):
            if isinstance(norm, _BatchNorm):
                count = max(n for n in range(1, groups + 1) if norm.num_features % n == 0)
                made = nn.GroupNorm(count, norm.num_features, norm.eps, norm.affine)
                if norm.affine:
                    made.weight, made.bias = norm.weight, norm.bias
                # timm's norms of RegNet and EfficientNet have the activation in them
                after = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if part is not None]
                setattr(parent, name, nn.Sequential(made, *after) if after else made)
    return network


def plain_batch_norm(network: Network) -> Network:
    """The network with plain batch norms, for export: itself, or a copy with the same tensors if it was converted."""
    plain = {ours: theirs for kinds in converted_classes() for theirs, ours in kinds.items()}
    if not any(type(module) in plain for module in network.modules()):
        return network
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    copied = copy.deepcopy(network, shared)
    for module in copied.modules():
        module.__class__ = plain.get(type(module), type(module))
    return copied


def _convert(network: nn.Module, kinds: dict[Any, Any]) -> list[Any]:
    converted = []
    for name, module in network.named_modules():
        if not isinstance(module, _BatchNorm):
            continue
        if type(module) not in kinds or not module.track_running_stats or not module.affine:
            raise UserError(
                f"the batch norm {name} is a {type(module).__name__}, whose statistics can only be per process; "
                "give --batch_norm per_process --batch_norm_group 0, or another backbone"
            )
        module.__class__ = kinds[type(module)]
        converted.append(module)
    return converted
