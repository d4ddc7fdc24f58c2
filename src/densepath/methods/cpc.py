"""3D-CPC: predicts the codes of patches from those before them, against codes of other places."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densepath.core.distillation import deviation
from densepath.core.errors import UserError
from densepath.core.losses import full_precision
from densepath.core.regions import global_pool
from densepath.methods.base import Losses, Method
from densepath.nets.backbones import Backbone
from densepath.views.augment import Augment
from densepath.views.crops import Window, pose_of
from densepath.views.cubes import PatchJitter, check_cubes, divide
from densepath.views.declarations import Declaration
from densepath.views.view import Batch


class CPC(Method):
    """Contrastive predictive coding in volumes.

    A view is divided into a grid of patches, each jittered and encoded once: z = linear(GAP(f(patch))). The last axis
    of the grid has R rows. In each column, a GRU reads the first half of them as an inverted pyramid (of row i the
    neighbors up to R/2 - 1 - i columns away, mirrored at the borders), and linear layers W_k predict each later row k
    from its last state c. With the scores s = mean over k and components of (W_k c) z_k, and s' those with the z_k of
    another column,

    L = 1/2 mean (softplus(-s) + softplus(s')).

    The released code has a flattening and a dense layer instead of GAP, encodes patches again for each column, and
    takes the other column from any image of the batch; here it is of the same image, so that a run is the same on any
    number of processes. Its crop of 95% of a view, padded again, is left out: views are windows at random places.

    Batch norms see patches: a group of ``--batch_norm_group`` is one of patches, not of views.

    Args:
        backbone: the encoder of a patch.
        side: of a patch in pixels; 32 as released, for views of 128 px.
        rows: R.
        dim: dimension of the codes.
        hidden_dim: of the GRU's state.

    Source: Taleb et al., "3D self-supervised methods for medical imaging", NeurIPS 2020, and its released code.
    """

    batch_norm = "synchronized"

    def __init__(
        self, backbone: Backbone, side: int = 32, rows: int = 4, dim: int = 1024, hidden_dim: int = 256
    ) -> None:
        super().__init__()
        if side < 1 or rows < 2 or dim < 1 or hidden_dim < 1:
            raise UserError(f"CPC needs at least two rows, and a side and dimensions from 1, not {rows} and {side}")
        self.backbone, self.side, self.rows = backbone, side, rows
        self.code = nn.Linear(backbone.channels[backbone.deepest], dim)
        self.context = nn.GRU(dim, hidden_dim, batch_first=True)
        self.predictors = nn.ModuleList(nn.Linear(hidden_dim, dim) for _ in range(rows - rows // 2))
        self.views = partial(self.views, side=side)  # type: ignore[method-assign]

    @staticmethod
    def views(augment: Augment | None = None, side: int = 32) -> dict[str, Declaration]:
        """A window with jittered patches."""
        view = (augment or Augment(flip=0.0, jitter=0.0, grayscale=0.0, blur=0.0)).random_view()
        appearance = (*view.appearance, PatchJitter(side))
        return {"image": replace(view, crop=Window(**pose_of(view.crop)), appearance=appearance)}

    def forward(self, batch: Batch) -> Losses:
        codes = self.encode(batch["image"].pixels)  # (B, columns..., R, dim)
        later = codes[..., self.rows // 2 :, :].flatten(1, -3)  # (B, K, rows, dim)
        context = self.read(codes).flatten(1, -2)  # (B, K, hidden_dim)
        predicted = torch.stack([layer(context) for layer in self.predictors], dim=2)  # (B, K, rows, dim)
        predicted, later = full_precision(predicted), full_precision(later)
        other = self.other_columns(batch, later.shape[1])
        wrong = later.gather(1, other.to(later.device, non_blocking=True)[..., None, None].expand_as(later))
        scores, wrong_scores = ((predicted * each).mean((2, 3)) for each in (later, wrong))
        loss = (F.softplus(-scores).mean() + F.softplus(wrong_scores).mean()) / 2
        correct = ((scores > 0).float().mean() + (wrong_scores <= 0).float().mean()) / 2
        unit = F.normalize(later.detach().flatten(0, 2), dim=1)
        return Losses(loss, {"patch_loss": loss.detach()}, {"correct": correct, "key_spread": deviation(unit)})

    def encode(self, pixels: Tensor) -> Tensor:
        """The codes (B, *grid, dim) of the patches of views."""
        grid = [n // self.side for n in pixels.shape[2:]]
        patches = divide(pixels, self.side).transpose(1, 2).flatten(0, 1)  # (B * patches, C, side**d)
        maps = self.backbone(patches.unflatten(2, (self.side,) * len(grid)))
        code: Tensor = self.code(global_pool(maps[self.backbone.deepest]))
        return code.view(len(pixels), *grid, -1)

    def read(self, codes: Tensor) -> Tensor:
        """The last state (B, columns..., hidden_dim) of the GRU in each column, after the first half of the rows."""
        columns, half = codes.shape[1:-2], self.rows // 2
        sequence = []
        for row in range(half):
            reach = half - 1 - row
            for shift in itertools.product(range(-reach, reach + 1), repeat=len(columns)):
                moved = codes[..., row, :]
                for axis, (step, n) in enumerate(zip(shift, columns, strict=True), start=1):
                    rows = mirrored(torch.arange(n) + step, n).to(codes.device, non_blocking=True)
                    moved = moved.index_select(axis, rows)
                sequence.append(moved)
        read = torch.stack(sequence, dim=-2).flatten(0, len(columns))  # (B * K, T, dim)
        _, state = self.context(read)
        return state[0].view(len(codes), *columns, -1)

    def other_columns(self, batch: Batch, columns: int) -> Tensor:
        """(B, K) int64, on the CPU: for each column another one of the same image."""
        step = 1 + (batch.uniform(columns) * (columns - 1)).long()
        return (torch.arange(columns) + step) % columns

    def check(self, sizes: Mapping[str, tuple[int, ...]], batch_size: int, processes: int = 1) -> None:
        self.backbone.check_size(*[self.side] * self.backbone.ndim)
        size = sizes["image"]
        check_cubes("patches", size, self.side)
        if size[-1] != self.rows * self.side or math.prod(size[:-1]) == self.side ** (len(size) - 1):
            raise UserError(
                f"views of {' x '.join(map(str, size))} have no {self.rows} rows of patches of {self.side} along the "
                "last axis in several columns; choose other --view_size, --method.side and --method.rows"
            )

    def chance(self) -> Mapping[str, float]:
        return {"patch_loss": math.log(2)}


def mirrored(index: Tensor, n: int) -> Tensor:
    """Indices from 0 to n - 1 of positions that may lie outside, mirrored at the first and the last one."""
    index = index.abs()
    return torch.where(index >= n, 2 * (n - 1) - index, index).clamp(0, n - 1)
