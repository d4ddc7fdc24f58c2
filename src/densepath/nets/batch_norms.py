"""Batch norms with statistics over groups of a process's images, or over the images of all processes: the layers."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm as SyncBatchNormFunction
from torch.nn.modules.batchnorm import _BatchNorm

from densepath.core.distributed import total, world_size
from densepath.core.errors import UserError, counted
from densepath.core.losses import full_precision


class Ghost(_BatchNorm):
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
        count = self.count_groups(x) if self.training else 1
        if count == 1:
            return super().forward(x)
        if torch.compiler.is_compiling() and x.numel() > count * self.num_features:  # else torch's own error
            return self._in_one_expression(x, count)
        pieces = x.split(self.group)  # views, also in channels-last format; that of group g and view k is k * count + g
        views = len(pieces) // count
        parts = pieces if views == 1 else [torch.cat(pieces[number::count]) for number in range(count)]
        means, variances = torch.zeros(2, len(parts), self.num_features, dtype=self.weight.dtype, device=x.device)
        # With a momentum of 1, each row becomes the statistics of its group.
        normalized = [
            F.batch_norm(part, mean, variance, self.weight, self.bias, training=True, momentum=1.0, eps=self.eps)
            for part, mean, variance in zip(parts, means, variances, strict=True)
        ]
        follow_statistics(self, means.mean(0), variances.mean(0))
        if views > 1:
            split = [part.split(self.group) for part in normalized]
            normalized = [part[view] for view in range(views) for part in split]
        return torch.cat(normalized)

    def _in_one_expression(self, x: Tensor, count: int) -> Tensor:
        """The same for a compiler, which makes a few operations of it; otherwise it takes more memory and time."""
        rows = full_precision(x).unflatten(0, (-1, count, self.group))  # (views, groups, images, C, *spatial)
        over, shape = (0, 2, *range(4, rows.ndim)), (-1, *[1] * (x.ndim - 2))
        variance, mean = torch.var_mean(rows, over, correction=0, keepdim=True)
        values = rows.numel() // mean.numel()
        variances = variance.detach().mean(1).flatten() * (values / (values - 1))
        follow_statistics(self, mean.detach().mean(1).flatten(), variances)
        scale = torch.rsqrt(variance + self.eps) * self.weight.view(shape)
        return ((rows - mean) * scale + self.bias.view(shape)).flatten(0, 2).to(x.dtype)

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


class Synchronized(_BatchNorm):
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
        follow_statistics(self, mean.detach(), (variance * count / (count - 1)).detach())
        scale = torch.rsqrt(variance + self.eps) * self.weight
        return torch.addcmul(self.bias.view(shape), centered, scale.view(shape)).to(x.dtype)


class GhostBatchNorm1d(Ghost, nn.BatchNorm1d):
    """Batch norm of vectors (B, C) over groups of images."""


class GhostBatchNorm2d(Ghost, nn.BatchNorm2d):
    """Batch norm of feature maps (B, C, h, w) over groups of images."""


class GhostBatchNorm3d(Ghost, nn.BatchNorm3d):
    """Batch norm of feature maps of volumes (B, C, d, h, w) over groups of volumes."""


class SynchronizedBatchNorm1d(Synchronized, nn.BatchNorm1d):
    """Batch norm of vectors (B, C) over the images of all processes."""


class SynchronizedBatchNorm2d(Synchronized, nn.BatchNorm2d):
    """Batch norm of feature maps (B, C, h, w) over the images of all processes."""


class SynchronizedBatchNorm3d(Synchronized, nn.BatchNorm3d):
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
def converted_classes() -> tuple[dict[type, type], dict[type, type]]:
    """The grouped and the synchronized class for each class of batch norm."""
    from timm.layers import BatchNormAct2d  # timm takes as long to import as torch

    plain: tuple[type, ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d)
    ghost = (GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d, GhostBatchNormAct2d)
    synced = (SynchronizedBatchNorm1d, SynchronizedBatchNorm2d, SynchronizedBatchNorm3d, SynchronizedBatchNormAct2d)
    return dict(zip(plain, ghost, strict=True)), dict(zip(plain, synced, strict=True))


def _count_batch(norm: Any) -> float | Tensor:
    """Count a batch. Returns its weight in the running statistics."""
    norm.num_batches_tracked.add_(1)
    return 1 / norm.num_batches_tracked if norm.momentum is None else norm.momentum


@torch.no_grad()
def follow_statistics(norm: Any, mean: Tensor, variance: Tensor) -> None:
    """Move the running statistics towards those of a batch."""
    share = _count_batch(norm)
    # .data: as torch's own batch norms, which save these statistics for the backward pass, but do not use them there.
    norm.running_mean.data.lerp_(mean.to(norm.running_mean.dtype), share)
    norm.running_var.data.lerp_(variance.to(norm.running_var.dtype), share)
