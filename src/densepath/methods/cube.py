"""Cube++: a generator restores volumes whose cubes were shuffled and rotated, against a discriminator."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densepath.core.errors import UserError
from densepath.core.losses import full_precision
from densepath.methods.base import Losses
from densepath.methods.collapse import output_spread
from densepath.methods.model_genesis import ModelGenesis
from densepath.nets.backbones import Backbone
from densepath.views.cubes import ShuffledCubes, check_cubes
from densepath.views.view import Batch

_WIDTH = 16  # channels after the discriminator's first convolution
_LAYERS = 4


class Cube(ModelGenesis):
    """Revisiting Rubik's cube.

    A view is divided into cubes, which change places and are rotated. A U-Net G restores it, and a discriminator D
    tells restored from true volumes:

    L = mean |G(x') - x|**p + w mean softplus(-D(G(x'))) + mean softplus(D(G(x'))) + mean softplus(-D(x)),

    where the second term changes only G, and the last two only D. In evaluation L is the first term: the others say how
    good D is. No code was released, and the paper leaves much open:
    the options are our choices, the discriminator of four convolutions too.

    Args:
        backbone: the encoder of G.
        side: of a cube in pixels; 16 in the paper, for views of 64 x 64 x 32.
        permute: whether cubes change places.
        rotation: "xy", "all" or "none": see :class:`~densepath.views.cubes.ShuffledCubes`.
        error: the reconstruction error: "l1" (p = 1) or "l2".
        adversarial_weight: w; 0 for no discriminator.
        resize: as in :class:`ModelGenesis`.

    Source: Tao et al., MICCAI 2020, arXiv 2007.08826.
    """

    corruptions = (ShuffledCubes(),)

    def __init__(
        self,
        backbone: Backbone,
        side: int = 16,
        permute: bool = True,
        rotation: Literal["none", "xy", "all"] = "xy",
        error: Literal["l1", "l2"] = "l1",
        adversarial_weight: float = 0.01,
        resize: bool = False,
    ) -> None:
        super().__init__(backbone, resize)
        if error not in ("l1", "l2"):
            raise UserError(f"the error is l1 or l2, not {error!r}")
        self.side, self.error, self.adversarial_weight = side, error, adversarial_weight
        self.discriminator = discriminator(backbone.in_channels, backbone.ndim) if adversarial_weight else None
        cubes = ShuffledCubes(side, permute, rotation)
        self.views = partial(self.views, corruptions=(cubes,))  # type: ignore[method-assign]

    def forward(self, batch: Batch) -> Losses:
        target = batch["target"].pixels * self.std + self.mean
        made = self.predict(batch["image"].pixels)
        loss = F.l1_loss(made, target) if self.error == "l1" else F.mse_loss(made, target)
        terms, total = {"restoration_loss": loss}, loss
        if self.discriminator is not None and self.training:
            fooled = F.softplus(-self.judge(made, frozen=True)).mean()
            told = F.softplus(self.judge(made.detach())).mean() + F.softplus(-self.judge(target)).mean()
            total = loss + self.adversarial_weight * fooled + told
            terms |= {"adversarial_loss": fooled, "discriminator_loss": told}
        statistics = {"output_spread": output_spread(made, target)}
        return Losses(total, {name: value.detach() for name, value in terms.items()}, statistics)

    def judge(self, pixels: Tensor, frozen: bool = False) -> Tensor:
        """The scores (B, 1) of volumes in [0, 1]: high for true ones. ``frozen``: without gradient for D."""
        assert self.discriminator is not None
        if not frozen:
            return full_precision(self.discriminator(pixels))
        weights = {name: value.detach() for name, value in self.discriminator.named_parameters()}
        return full_precision(torch.func.functional_call(self.discriminator, weights, (pixels,)))

    def check(self, sizes: Mapping[str, tuple[int, ...]], batch_size: int, processes: int = 1) -> None:
        super().check(sizes, batch_size, processes)
        check_cubes("cubes", sizes["image"], self.side)


def discriminator(in_channels: int, ndim: int) -> nn.Sequential:
    """Convolutions of 3 with a stride of 2 and leaky ReLUs, the mean over positions, and a linear layer."""
    convolution, pool = ((nn.Conv2d, nn.AdaptiveAvgPool2d), (nn.Conv3d, nn.AdaptiveAvgPool3d))[ndim - 2]
    layers: list[nn.Module] = []
    for number in range(_LAYERS):
        layers += [convolution(in_channels, _WIDTH * 2**number, 3, stride=2, padding=1), nn.LeakyReLU(0.2)]
        in_channels = _WIDTH * 2**number
    return nn.Sequential(*layers, pool(1), nn.Flatten(), nn.Linear(in_channels, 1))
