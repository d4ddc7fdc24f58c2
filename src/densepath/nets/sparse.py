"""Sparse encoding by a ConvNet: masked patches of the images are not seen, and do not enter batch statistics.

Dense layers emulate sparse ones: the input of windowed layers is zero at masked positions, and norms get only the
visible positions. The network is changed by hooks, only during a pass.

Source: SparK (ICLR 2023), section 3.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from densepath.core.errors import UserError
from densepath.core.masking import enlarge
from densepath.nets.backbones import Backbone

_MIXING = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)  # of several positions, in a window
_POINTWISE = (nn.ReLU, nn.SiLU, nn.GELU, nn.Linear, nn.LayerNorm)
_IDLE = (nn.Identity, nn.Dropout, nn.Dropout2d)


class Visible:
    """The visible patches of a batch of images, as masks and indices for maps of any resolution, each computed once.

    Args:
        patches: (B, g, g) bool, on the device of the maps.
        count: number of visible patches of each image, equal for all.
    """

    def __init__(self, patches: Tensor, count: int) -> None:
        self.patches, self.count = patches, count
        self._masks: dict[tuple[int, torch.dtype], Tensor] = {}
        self._rows: dict[int, Tensor] = {}

    def mask(self, side: int, dtype: torch.dtype = torch.bool) -> Tensor:
        """(B, 1, side, side): one at visible positions, zero at masked ones."""
        if (side, dtype) not in self._masks:
            self._masks[side, dtype] = enlarge(self.patches, side).to(dtype)
        return self._masks[side, dtype]

    def clean(self, x: Tensor) -> Tensor:
        """A map (B, C, side, side) with zeros at masked positions."""
        return x * self.mask(x.shape[-1], x.dtype)

    def fill(self, x: Tensor, token: Tensor) -> Tensor:
        """A map (B, C, side, side) with a vector of length C at masked positions."""
        return torch.where(self.mask(x.shape[-1]), x, token.to(x.dtype).view(1, -1, 1, 1))

    def gather(self, x: Tensor) -> Tensor:
        """The visible positions of a map (B, C, side, side), patch by patch: (B, C, 1, n), channels last."""
        rows: Tensor = _Gather.apply(x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]), self.rows(x.shape[-1]))
        return rows.view(len(x), 1, -1, x.shape[1]).permute(0, 3, 1, 2)

    def scatter(self, x: Tensor) -> Tensor:
        """The inverse of :meth:`gather`: a map (B, C, side, side), channels last, with zeros at masked positions."""
        side = self.patches.shape[-1] * isqrt(x.shape[-1] // self.count)
        rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        full: Tensor = _Scatter.apply(rows, self.rows(side), len(x) * side**2)
        return full.view(len(x), side, side, x.shape[1]).permute(0, 3, 1, 2)

    def rows(self, side: int) -> Tensor:
        """(B * n,) int64: indices of the visible positions of maps (B, C, side, side) in the batch, patch by patch."""
        if side not in self._rows:
            count, along, device = len(self.patches), self.patches.shape[-1], self.patches.device
            # By sorting, because ``nonzero`` would synchronize with the device.
            visible = self.patches.flatten(1).byte().argsort(dim=1, descending=True, stable=True)[:, : self.count]
            size = side // along
            corner = (visible // along * side + visible % along) * size
            steps = torch.arange(size, device=device)
            inside = (steps[:, None] * side + steps).flatten()
            image = torch.arange(count, device=device)[:, None] * side**2
            self._rows[side] = ((image + corner)[:, :, None] + inside).flatten()
        return self._rows[side]


class _Gather(torch.autograd.Function):
    """Rows of a matrix, each at most once: the gradient needs no atomic additions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.total = len(x)
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _spread(gradients[0], ctx.saved_tensors[0], ctx.total), None


class _Scatter(torch.autograd.Function):
    """Rows put into a matrix of zeros."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, total: int) -> Tensor:
        ctx.save_for_backward(rows)
        return _spread(x, rows, total)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0].index_select(0, ctx.saved_tensors[0]), None, None


def _spread(x: Tensor, rows: Tensor, total: int) -> Tensor:
    return x.new_zeros(total, x.shape[1]).index_copy_(0, rows, x)


def check_sparse(backbone: Backbone) -> None:
    """Check that a network can be run sparsely: all of its layers work on windows or on single positions.

    Raises:
        UserError: it has another layer, as networks with squeeze-and-excitation or attention do.
    """
    from timm.layers import GELU, DropPath, GELUTanh, LayerNorm, LayerNorm2d

    of_timm = (GELU, GELUTanh, LayerNorm, LayerNorm2d, DropPath)
    for name, module in backbone.net.named_modules():
        known = isinstance(module, (*_MIXING, *_POINTWISE, *_IDLE, *of_timm, _BatchNorm)) or any(module.children())
        if not known or "Attention" in type(module).__name__:
            raise UserError(
                f"{backbone.name} has a {type(module).__name__} ({name}), which has no sparse form here; use a plain "
                "ConvNet, e.g. resnet18, regnetx_002 or convnext_atto"
            )


def encode_sparsely(
    backbone: Backbone, pixels: Tensor, visible: Visible, stages: Sequence[int] | None = None
) -> dict[int, Tensor]:
    """The stages of partly masked images.

    Args:
        backbone: a backbone that :func:`check_sparse` accepts.
        pixels: (B, 3, S, S), normalized; S is a multiple of the grid's side g, and S / g of the deepest stride.
        visible: the visible patches.
        stages: the stages to return; all by default.

    Returns:
        Stage i -> (B, channels[i], S / 2**i, S / 2**i), zero at masked positions. The values of masked pixels have no
        effect.
    """
    stages = stages or backbone.stages
    with _sparse(backbone.net, visible):
        maps = backbone(pixels, last=max(stages))
    return {stage: visible.clean(maps[stage]) for stage in stages}


@contextmanager
def _sparse(network: nn.Module, visible: Visible) -> Iterator[None]:
    """Hooks: windowed layers see zeros at masked positions, and batch norms get only the visible positions."""
    handles = []

    def before_window(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (visible.clean(inputs[0]),)

    def before_norm(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (visible.gather(inputs[0]),)

    def after_norm(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return visible.scatter(output)

    for module in network.modules():
        if isinstance(module, _MIXING) and module.kernel_size not in (1, (1, 1)):
            handles.append(module.register_forward_pre_hook(before_window))
        elif isinstance(module, _BatchNorm):
            handles.append(module.register_forward_pre_hook(before_norm))
            handles.append(module.register_forward_hook(after_norm))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
