"""Batch norms with statistics over groups of a process's images, or over the images of all processes.

Networks are converted in place, as torch does for its sharded and parametrized modules: a layer gets another class, and
keeps its tensors, its hooks, and its name in the state dict. In evaluation mode all of them are plain batch norms.
"""

from __future__ import annotations

import copy
from functools import cache, partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm as SyncBatchNormFunction
from torch.nn.modules.batchnorm import _BatchNorm

from densepath.core.distributed import total, world_size
from densepath.core.errors import UserError, counted
from densepath.core.losses import full_precision
from densepath.nets.running_statistics import running_statistics

Network = TypeVar("Network", bound=nn.Module)


class _Ghost(_BatchNorm):
    """Batch norm over groups of images: each group of a batch is normalized by its own statistics.

    Running statistics follow the mean of the groups' statistics: the mean over the processes of a data-parallel run
    with one group per process.

    Args:
        group: images in a group; a batch in training is a multiple of it.
        images: number of images B of a batch of K views, K * B rows, of which row k * B + b is of image b: a group has
            all rows of its images. 0: each row is of one image.

    Raises:
        UserError: a batch in training cannot be divided into groups.

    Source: Hoffer et al., "Train longer, generalize better", NeurIPS 2017, section 4 ("ghost batch norm").
    """

    group: int
    images: int

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.count_groups(x) == 1:
            return super().forward(x)
        count = self.count_groups(x)
        pieces = x.split(self.group)  # views, also in channels-last format; that of group g and view k is k * count + g
        views = len(pieces) // count
        parts = pieces if views == 1 else [torch.cat(pieces[number::count]) for number in range(count)]
        means, variances = torch.zeros(2, len(parts), self.num_features, dtype=self.weight.dtype, device=x.device)
        # With a momentum of 1, each row becomes the statistics of its group.
        normalized = [
            F.batch_norm(part, mean, variance, self.weight, self.bias, training=True, momentum=1.0, eps=self.eps)
            for part, mean, variance in zip(parts, means, variances, strict=True)
        ]
        _follow(self, means.mean(0), variances.mean(0))
        if views > 1:
            split = [part.split(self.group) for part in normalized]
            normalized = [part[view] for view in range(views) for part in split]
        return torch.cat(normalized)

    def count_groups(self, x: Tensor) -> int:
        """The number of groups of a batch in training."""
        images = self.images or len(x)
        if len(x) % images or images % self.group:
            raise UserError(
                f"a batch of {counted(len(x), 'image')} cannot be divided into batch-norm groups of {self.group}"
            )
        return images // self.group

    def by_group(self, rows: Tensor) -> Tensor:
        """Rows (N, C) as (groups, rows of a group, C)."""
        count = self.count_groups(rows)
        return rows.unflatten(0, (-1, count, self.group)).transpose(0, 1).flatten(1, 2)

    def as_before(self, groups: Tensor) -> Tensor:
        """The inverse of :meth:`by_group`."""
        return groups.unflatten(1, (-1, self.group)).transpose(0, 1).flatten(0, 2)


class _Synchronized(_BatchNorm):
    """Batch norm over the images of all processes: on a GPU with torch's functions, which do not support CPUs.

    It is not an ``nn.SyncBatchNorm``, which data-parallel training refuses on a CPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(x)
        if x.device.type != "cpu":
            running, share = (self.running_mean, self.running_var), float(_count_batch(self))
            everyone = (dist.group.WORLD, world_size())
            return SyncBatchNormFunction.apply(x, self.weight, self.bias, *running, self.eps, share, *everyone)
        wide = full_precision(x)
        over, shape = (0, *range(2, x.ndim)), (-1, *[1] * (x.ndim - 2))
        count = torch.full((1,), x.numel() / x.shape[1], dtype=wide.dtype)
        *sums, count = total(torch.cat((wide.sum(over), count))).split((self.num_features, 1))
        mean = sums[0] / count
        # From centered values: a difference of two large sums is not accurate enough for a small variance.
        centered = wide - mean.view(shape)
        variance = total(centered.square().sum(over)) / count
        _follow(self, mean.detach(), (variance * count / (count - 1)).detach())
        scale = torch.rsqrt(variance + self.eps) * self.weight
        return torch.addcmul(self.bias.view(shape), centered, scale.view(shape)).to(x.dtype)


class GhostBatchNorm1d(_Ghost, nn.BatchNorm1d):
    """Batch norm of vectors (B, C) over groups of images."""


class GhostBatchNorm2d(_Ghost, nn.BatchNorm2d):
    """Batch norm of feature maps (B, C, h, w) over groups of images."""


class GhostBatchNorm3d(_Ghost, nn.BatchNorm3d):
    """Batch norm of feature maps of volumes (B, C, d, h, w) over groups of volumes."""


class SynchronizedBatchNorm1d(_Synchronized, nn.BatchNorm1d):
    """Batch norm of vectors (B, C) over the images of all processes."""


class SynchronizedBatchNorm2d(_Synchronized, nn.BatchNorm2d):
    """Batch norm of feature maps (B, C, h, w) over the images of all processes."""


class SynchronizedBatchNorm3d(_Synchronized, nn.BatchNorm3d):
    """Batch norm of feature maps of volumes (B, C, d, h, w) over the volumes of all processes."""


class _Activated:
    """Dropout and activation of timm's norms, after the normalization."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))  # type: ignore[misc]


class GhostBatchNormAct2d(_Activated, GhostBatchNorm2d):
    """:class:`GhostBatchNorm2d` with timm's activation after it."""


class SynchronizedBatchNormAct2d(_Activated, SynchronizedBatchNorm2d):
    """:class:`SynchronizedBatchNorm2d` with timm's activation after it."""


@cache
def _kinds() -> tuple[dict[type, type], dict[type, type]]:
    """The grouped and the synchronized class for each class of batch norm."""
    from timm.layers import BatchNormAct2d  # timm takes as long to import as torch

    plain: tuple[type, ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d)
    ghost = (GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d, GhostBatchNormAct2d)
    synced = (SynchronizedBatchNorm1d, SynchronizedBatchNorm2d, SynchronizedBatchNorm3d, SynchronizedBatchNormAct2d)
    return dict(zip(plain, ghost, strict=True)), dict(zip(plain, synced, strict=True))


def normalize_rows(norm: nn.Module, x: Tensor, valid: Tensor | None = None) -> Tensor:
    """Apply a batch norm to rows of which some do not exist: these do not enter its statistics.

    Running statistics follow those of the groups (see :func:`group_batch_norm`) with two rows or more.

    Args:
        norm: a batch norm of vectors, grouped or synchronized or neither; or an identity.
        x: (N, C).
        valid: (N,) bool: the rows that exist; all by default. The others are transformed in the same way.
    """
    if valid is None or not isinstance(norm, _BatchNorm) or not norm.training:
        return norm(x)
    over = total if isinstance(norm, _Synchronized) else nn.Identity()
    divide = norm.by_group if isinstance(norm, _Ghost) else partial(torch.unsqueeze, dim=0)
    rows = divide(full_precision(x))  # (G, n, C)
    weight = divide(valid.to(rows.dtype).unsqueeze(1))
    count = over(weight.sum(1, keepdim=True))  # (G, 1, 1)
    # Not as products of matrices, which autocast would compute in low precision.
    mean = over((weight * rows).sum(1, keepdim=True)) / count.clamp(min=1)
    variance = over((weight * (rows - mean).square()).sum(1, keepdim=True)) / count.clamp(min=1)
    several = (count > 1).to(rows.dtype)
    known, several = several.any(), several / several.sum().clamp(min=1)
    found = (mean, variance * count / (count - 1).clamp(min=1))
    kept = zip(found, running_statistics(norm).values(), strict=True)
    _follow(norm, *(torch.where(known, (several * new).sum((0, 1)), old.to(new.dtype)) for new, old in kept))
    scale = torch.rsqrt(variance + norm.eps) * norm.weight
    made = torch.addcmul(norm.bias, rows - mean, scale)
    return (norm.as_before(made) if isinstance(norm, _Ghost) else made[0]).to(x.dtype)


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
    if isinstance(norm, _Ghost):
        return norm.group
    return rows * (world_size() if norm is None or isinstance(norm, _Synchronized | nn.SyncBatchNorm) else 1)


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
    for norm in _convert(network, _kinds()[0]):
        norm.group, norm.images = group, images


def synchronize_batch_norm(network: nn.Module) -> None:
    """Compute batch statistics over the images of all processes. Raises as :func:`group_batch_norm`."""
    _convert(network, _kinds()[1])


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
    plain = {ours: theirs for kinds in _kinds() for theirs, ours in kinds.items()}
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


def _count_batch(norm: Any) -> float | Tensor:
    """Count a batch. Returns its weight in the running statistics."""
    norm.num_batches_tracked.add_(1)
    return 1 / norm.num_batches_tracked if norm.momentum is None else norm.momentum


@torch.no_grad()
def _follow(norm: Any, mean: Tensor, variance: Tensor) -> None:
    """Move the running statistics towards those of a batch."""
    share = _count_batch(norm)
    # .data: as torch's own batch norms, which save these statistics for the backward pass, but do not use them there.
    norm.running_mean.data.lerp_(mean.to(norm.running_mean.dtype), share)
    norm.running_var.data.lerp_(variance.to(norm.running_var.dtype), share)
