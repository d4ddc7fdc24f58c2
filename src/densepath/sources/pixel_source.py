"""What a source of images is: the protocols that training, probes and detectors read pixels through."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from torch import Tensor

from densepath.core.errors import UserError

# The statistics of ImageNet, which most published weights of color images were trained with.
_RGB_MEAN, _RGB_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class PixelSpec:
    """What the numbers of a source's pixels mean, and how a network sees them.

    A network sees ``((x - low) / (high - low) clamped to [0, 1] - mean) / std``. It is part of a run's record and of
    exported weights: whoever applies a network normalizes as its training did.

    Args:
        ndim: spatial dimensions d: 2 for images, 3 for volumes.
        channels: C, the channels of a pixel.
        window: (low, high), the stored values that become 0 and 1, e.g. (-1000, 1000) for CT in Hounsfield units.
        mean, std: of each channel, for values in [0, 1].

    Raises:
        UserError: values that make no sense together.
    """

    ndim: int = 2
    channels: int = 3
    window: tuple[float, float] = (0.0, 255.0)
    mean: tuple[float, ...] = _RGB_MEAN
    std: tuple[float, ...] = _RGB_STD

    def __post_init__(self) -> None:
        if self.ndim not in (2, 3):
            raise UserError(f"images have 2 or 3 dimensions, not {self.ndim}")
        if self.channels < 1:
            raise UserError(f"images have at least one channel, not {self.channels}")
        low, high = self.window
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise UserError(f"the window must be two numbers, the smaller first, not {low}, {high}")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != self.channels or not all(math.isfinite(value) for value in values):
                raise UserError(f"{name} needs {self.channels} numbers, one per channel, not {list(values)}")
        if not all(value > 0 for value in self.std):
            raise UserError(f"std must be positive, not {list(self.std)}")

    def record(self) -> dict[str, Any]:
        """The specification in the plain types of YAML and JSON."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> PixelSpec:
        """The specification that :meth:`record` wrote."""
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in record.items()}
        return cls(**values)


@dataclass(frozen=True, eq=False)
class Gathered:
    """Images of one batch, or of a part of it.

    Args:
        pixels: (B, *spatial, C) of the source's own dtype, on one canvas: each image, or the box of it that was read,
            in the low corner, zeros around it.
        sizes: (B, d) int64, the sizes of the whole images in pixels, on the CPU.
        index: (B,) int64, the images' positions in their source, on the CPU.
        corrupt: positions of the images that could not be read, each with file name and reason.
        boxes: (B, 2, d) int64 on the CPU: the low corner (included) and the high corner (excluded) of the box of each
            image that ``pixels`` holds, in the order of the tensor's axes; None where it holds whole images.
    """

    pixels: Tensor
    sizes: Tensor
    index: Tensor
    corrupt: dict[int, str]
    boxes: Tensor | None = None


class PixelSource(Protocol):
    """Where pixels come from: tiles in files, packed tiles, tiles of slides, volumes.

    Attributes:
        spec: what the pixels' numbers mean.
        reads_boxes: whether :meth:`gather` reads boxes for less than whole images. Then :meth:`sizes` costs little,
            views are planned before anything is read, and only the boxes that they need are.
    """

    spec: PixelSpec
    reads_boxes: bool

    def __len__(self) -> int:
        """How many images it holds."""
        ...

    def names(self, position: int) -> str:
        """What an image is called: its path, where it has one."""
        ...

    def sizes(self, index: Tensor) -> Tensor:
        """(B, d) int64: the sizes in pixels, in the order of the tensor's axes, of the images at ``index`` (B,)."""
        ...

    def spacing(self, index: Tensor) -> Tensor | None:
        """(B, d) float32: the distance of neighboring pixels along each axis, in µm or mm; None where unknown."""
        ...

    def gather(self, index: Tensor, boxes: Tensor | None = None, pin: bool = False) -> Gathered:
        """The images at the positions ``index`` (B,) int64; a corrupt one is replaced by the next that can be read.

        Args:
            index: positions in the source, on the CPU.
            boxes: (B, 2, d) the boxes wanted, as in :class:`Gathered`. A source that does not read boxes gives whole
                images.
            pin: into page-locked memory, from where a GPU fetches the pixels while other work runs.
        """
        ...

    def smallest(self) -> tuple[int, int]:
        """The position of the image with the shortest side, and that side in pixels; of many files, among a sample."""
        ...


class PerImage(Protocol):
    """What is known of each image of a source: its class, its label map, its cells."""

    def __len__(self) -> int:
        """How many images it knows of: as many as the source holds."""
        ...

    def gather(self, index: Tensor, pin: bool = False) -> Tensor:
        """What is known of the images at the positions ``index`` (B,) int64: (B, ...), on the CPU.

        Args:
            index: positions in the source, on the CPU.
            pin: into page-locked memory, from where a GPU fetches it while other work runs.
        """
        ...
