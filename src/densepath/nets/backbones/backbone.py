"""The interface of a backbone: a network that returns the feature maps of its stages f1..f5, in 2D or 3D."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from densepath.core.errors import UserError
from densepath.core.records import UNLIKE


class Backbone(nn.Module):
    """A network that returns the feature maps of its stages, and can stop early.

    Methods, concepts and downstream tasks use only this interface. To use your own network as a backbone, derive a
    subclass and implement :meth:`forward`.

    Args:
        net: the network; its state dict, with ``net.`` before each key, is that of the backbone.
        name: name of the network, by which :func:`build_backbone` builds another one; it ends in "*" for a network that
            differs from the one of that name, as in "resnet18*".
        channels: stage -> its number of channels, ascending.
        strides: stage -> the distance of its positions along each axis, in pixels; as many numbers as images have
            dimensions.
        in_channels: channels of the images.
        patch_size: pixels; the sides of images must be multiples of it. 1 for a ConvNet.

    Attributes:
        net, name, channels, strides, in_channels, patch_size: the arguments.
        stages: the stages that exist, ascending: (1, 2, 3, 4, 5) for a ResNet, (2, 3, 4, 5) for a ConvNeXt.
        deepest: the last stage.
        ndim: dimensions of the images: 2, or 3 for volumes.
        library: the library whose tensor names ``net`` has: "timm", or "densepath" for its own networks.
    """

    library: ClassVar[str] = "densepath"

    def __init__(
        self,
        net: nn.Module,
        name: str,
        channels: Mapping[int, int],
        strides: Mapping[int, tuple[int, ...]],
        in_channels: int = 3,
        patch_size: int = 1,
    ) -> None:
        super().__init__()
        self.net: Any = net
        self.name = name
        self.channels: dict[int, int] = dict(channels)
        self.strides: dict[int, tuple[int, ...]] = dict(strides)
        self.in_channels = in_channels
        self.patch_size = patch_size
        self.stages: tuple[int, ...] = tuple(self.channels)
        self.deepest: int = self.stages[-1]
        self.ndim: int = len(self.strides[self.deepest])

    @property
    def architecture(self) -> str:
        """The name, without the mark of a network that differs from it."""
        return self.name.removesuffix(UNLIKE)

    @abstractmethod
    def forward(self, x: Tensor, last: int = 5) -> dict[int, Tensor]:
        """Compute the stages up to ``last`` and nothing after it.

        Args:
            x: (B, in_channels, *size) normalized images.
            last: the deepest stage to compute; all if it is deeper than the deepest that exists.

        Returns:
            Stage i -> f_i, (B, channels[i], *grid(i, *size)).

        Raises:
            UserError: the network has no stage ``last``, or does not take images of this size.
        """

    def grid(self, stage: int, *size: int) -> tuple[int, ...]:
        """The positions of f_stage along each axis, for images of a size in pixels."""
        return tuple(-(-side // stride) for side, stride in zip(size, self.strides[stage], strict=True))

    def check_stage(self, stage: int) -> None:
        """Check that f_stage exists.

        Raises:
            UserError: it does not; the message lists the existing stages.
        """
        if stage not in self.channels:
            have = ", ".join(f"f{i}" for i in self.stages)
            raise UserError(f"{self.name} has no stage f{stage}; choose one of {have}")

    def check_size(self, *size: int) -> None:
        """Check that the network takes images of a size, in pixels along each axis.

        Raises:
            UserError: they have another number of dimensions, are empty, or cannot be divided into patches.
        """
        if len(size) != self.ndim:
            raise UserError(
                f"{self.name} takes images of {self.ndim} dimensions, but these have {len(size)}; "
                "choose another backbone"
            )
        if any(side < 1 for side in size):
            raise UserError(f"images have {' x '.join(map(str, reversed(size)))} px; give a size of at least 1")
        if any(side % self.patch_size for side in size):
            raise UserError(
                f"{self.name} divides images into patches of {self.patch_size} px, and "
                f"{' x '.join(map(str, reversed(size)))} px is not a multiple of that; use a size that is one, "
                f"e.g. {max(1, size[0] // self.patch_size) * self.patch_size}"
            )

    def check_reach(self, *size: int) -> None:
        """Check that images of a size have more than a part of one position of the deepest map.

        Raises:
            UserError: they are smaller than its stride along each axis.
        """
        strides = self.strides[self.deepest]
        if all(side < stride for side, stride in zip(size, strides, strict=True)):
            raise UserError(
                f"views of {' x '.join(map(str, reversed(size)))} px are too small for {self.name}, whose deepest map "
                f"has one position for {' x '.join(map(str, reversed(strides)))} px; use a larger view_size"
            )

    def last_stage(self) -> tuple[nn.Module, ...]:
        """The modules that compute the deepest map from the one before it, or from any part of that, in order.

        Raises:
            UserError: the network cannot compute its last stage separately.
        """
        raise UserError(f"{self.name} cannot run only its last stage; use a ResNet, ConvNeXt or RegNet")

    def stem_and_stages(self, pooled: bool = False) -> tuple[tuple[nn.Module, ...], ...]:
        """The modules of the stem, which computes the first map, and of each stage, which computes the next one.

        Without f1, the stem is everything before the last module of f2.

        Args:
            pooled: whether the max-pool after f1, as a ResNet has it, belongs to the stem.

        Returns:
            One tuple of modules for the stem, and one for each stage from f2 on.

        Raises:
            UserError: the network cannot be divided; or it has no such max-pool and ``pooled`` is set.
        """
        raise UserError(
            f"{self.name} is not a ConvNet that can be divided after its stem; use a ResNet, ConvNeXt or RegNet"
        )
