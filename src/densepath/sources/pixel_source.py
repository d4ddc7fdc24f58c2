"""The protocols of image sources, through which training, probes and detectors read pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from densepath.core.errors import UserError, counted

# ImageNet's statistics, with which most published weights for color images were trained.
_RGB_MEAN, _RGB_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Approximately those of ImageNet's luma: weights for color images see them when they are given grey ones.
_GREY_MEAN, _GREY_STD = 0.449, 0.226
_MOST_OF_8_BITS = 255


@dataclass(frozen=True)
class PixelSpec:
    """The meaning of a source's pixel values, and their normalization for a network.

    A network sees ``((x - low) / (high - low) clamped to [0, 1] - mean) / std``. It is part of a
    run's record and of exported weights, so that a network is always applied with the normalization of its training.

    Args:
        ndim: spatial dimensions d: 2 for images, 3 for volumes.
        channels: C, the number of channels of a pixel.
        window: (low, high), the stored values that become 0 and 1, e.g. (-1000, 1000) for CT in Hounsfield units.
        mean, std: mean and standard deviation of each channel, for values in [0, 1].
        bits: 8 or 16, of the image files that are read, where the window does not show it; None where it does: a
            window up to 255 is of 8 bits.

    Raises:
        UserError: the values are inconsistent.
    """

    ndim: int = 2
    channels: int = 3
    window: tuple[float, float] = (0.0, 255.0)
    mean: tuple[float, ...] = _RGB_MEAN
    std: tuple[float, ...] = _RGB_STD
    bits: int | None = None

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
                raise UserError(f"{name} needs {counted(self.channels, 'number')}, one per channel, not {list(values)}")
        if not all(value > 0 for value in self.std):
            raise UserError(f"std must be positive, not {list(self.std)}")
        if self.bits not in (None, 8, 16):
            raise UserError(f"image files have 8 or 16 bits, not {self.bits!r}")
        if self.bits == (8 if high <= _MOST_OF_8_BITS else 16):
            object.__setattr__(self, "bits", None)

    @property
    def file_bits(self) -> int:
        """8 or 16: the bits with which image files are read."""
        return self.bits or (8 if self.window[1] <= _MOST_OF_8_BITS else 16)

    @property
    def image_dtype(self) -> type[np.uint8] | type[np.uint16]:
        """The dtype in which image files are read."""
        return np.uint8 if self.file_bits == 8 else np.uint16

    def record(self) -> dict[str, Any]:
        """The specification in the plain types of YAML and JSON, without bits that follow from the window."""
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}
        return {name: v for name, v in values.items() if v is not None}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> PixelSpec:
        """The specification that :meth:`record` wrote.

        Raises:
            UserError: the record is not a specification.
        """
        try:
            values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in record.items()}
            return cls(**values)
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UserError(f"{record!r} is not a specification of pixels; restore it") from error

    @classmethod
    def default(cls, channels: int, window: tuple[float, float] = (0.0, 255.0), ndim: int = 2) -> PixelSpec:
        """The default for a number of channels: ImageNet's statistics for RGB, those of its luma otherwise.

        All grey images and volumes get mean 0.449 and standard deviation 0.226, whatever their content: a network is
        less sensitive to these than to the window.
        """
        if channels == 3:
            return cls(ndim, channels, window)
        return cls(ndim, channels, window, (_GREY_MEAN,) * channels, (_GREY_STD,) * channels)

    def override(
        self,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        window: Sequence[float] | None = None,
        bits: int | None = None,
    ) -> PixelSpec:
        """The specification with the given values replaced.

        Args:
            mean, std, window: as for the class; None for no change.
            bits: of the image files that the window is for; None for those that follow from it. Without a window they
                stay.

        Raises:
            UserError: the values are inconsistent.
        """
        if window is not None and len(window) != 2:
            raise UserError(f"the window must be two numbers, the smaller first, not {list(window)}")
        given = {"mean": mean, "std": std, "window": window}
        values: dict[str, Any] = {n: tuple(float(x) for x in v) for n, v in given.items() if v is not None}
        if window is not None:
            values["bits"] = bits
        return replace(self, **values)

    def apply_window(self, pixels: Tensor) -> Tensor:
        """Map stored values, as floats, to [0, 1]. Overwrites and returns ``pixels``."""
        low, high = self.window
        if low:
            pixels.sub_(low)
        return pixels.div_(high - low).clamp_(0, 1)

    def normalize(self, colors: Tensor) -> Tensor:
        """Subtract the mean, divide by the standard deviation. Overwrites and returns ``colors`` (B, C, *spatial)."""
        mean, std = self._statistics(colors)
        return colors.sub_(mean).div_(std)

    def network_input(self, stored: Tensor) -> Tensor:
        """What a network sees of stored pixels: (B, *spatial, C) of any dtype -> (B, C, *spatial) float32."""
        if stored.dtype != torch.uint8 or self.window != (0.0, _MOST_OF_8_BITS):
            return self.normalize(self.apply_window(stored.movedim(-1, 1).to(torch.float32, copy=True)))
        # All values are in the window: one multiplication and addition, over whole rows, which a CPU vectorizes.
        mean, std = torch.tensor((self.mean, self.std)).repeat(1, stored.shape[-2]).to(stored.device, non_blocking=True)
        rows = stored.reshape(-1, len(mean)).to(torch.float32)
        torch.addcmul(-mean / std, rows, 1 / (std * _MOST_OF_8_BITS), out=rows)
        return rows.view(stored.shape).movedim(-1, 1)

    def restore(self, pixels: Tensor) -> Tensor:
        """The values in [0, 1] of normalized pixels (B, C, *spatial)."""
        mean, std = self._statistics(pixels)
        return (pixels * std + mean).clamp(0, 1)

    def to_rgb(self, image: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """An image (H, W, C) as 8-bit RGB (H, W, 3), for display and algorithms that need it: its window in 256 steps.

        8-bit RGB is returned unchanged.

        Raises:
            UserError: the images are volumes, or have neither 1 nor 3 channels.
        """
        if self.ndim != 2 or self.channels not in (1, 3):
            raise UserError(
                f"images of {self.ndim} dimensions and {self.channels} channels cannot be shown as pictures"
            )
        if image.dtype != np.uint8 or self.window != (0.0, 255.0):
            low, high = self.window
            steps = (image.astype(np.float64) - low).clip(0, high - low) * (255 / (high - low))
            image = np.rint(steps).astype(np.uint8)
        return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image

    def _statistics(self, pixels: Tensor) -> Tensor:
        """(2, C, 1, ...) on the device of the pixels."""
        statistics = torch.tensor((self.mean, self.std)).to(pixels.device, non_blocking=True)
        return statistics.view(2, 1, -1, *(1,) * (pixels.ndim - 2))


def check_unit_range(spec: PixelSpec) -> None:
    """Raise UserError if networks do not see values in [0, 1]."""
    if any(spec.mean) or any(value != 1 for value in spec.std):
        raise UserError(
            "with a sigmoid, pixels must be in [0, 1]; give --mean and --std as many zeros and ones as there are "
            "channels, or --no_method.sigmoid"
        )


@dataclass(frozen=True, eq=False)
class Gathered:
    """Images of one batch, or of a part of it.

    Args:
        pixels: (B, *spatial, C) of the source's dtype, on one canvas: each image, or the box of it that was read, in
            the low corner, with zeros around it.
        sizes: (B, d) int64, the sizes of the whole images in pixels, on the CPU.
        index: (B,) int64, the images' positions in their source, on the CPU.
        corrupt: positions of the images that could not be read, each with file name and reason.
        boxes: (B, 2, d) on the CPU: the low corner (included) and the high corner (excluded) of the box of each
            image that ``pixels`` contains, in the order of the tensor's axes; None for whole images. int64, or float64
            with ``extent``.
        extent: (B, d) int64 on the CPU: the pixels of each box on the canvas, for pixels of another resolution than the
            image's, such as those of a slide's level; None where a box has as many pixels as the image has there.
    """

    pixels: Tensor
    sizes: Tensor
    index: Tensor
    corrupt: dict[int, str]
    boxes: Tensor | None = None
    extent: Tensor | None = None


class PixelSource(Protocol):
    """A source of pixels: tiles in files, packed tiles, tiles of slides, volumes.

    Attributes:
        spec: the meaning of the pixel values; setting it changes the normalization for networks.
        dtype: dtype of the pixels.
        device: device of the pixels of :meth:`gather`.
        decodes: whether gathering is expensive on the CPU. Worker processes then share it; the source is sent to them.
        reads_boxes: whether reading boxes by :meth:`gather` is cheaper than reading whole images. Then :meth:`sizes` is
            cheap, views are planned before pixels are read, and only the boxes that they need are read.
        corrupt: the images known to be corrupt, by position: file name and reason.
    """

    spec: PixelSpec

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def decodes(self) -> bool: ...

    @property
    def reads_boxes(self) -> bool: ...

    @property
    def corrupt(self) -> Mapping[int, str]: ...

    def __len__(self) -> int:
        """The number of images."""
        ...

    def names(self, position: int) -> str:
        """The name of an image: its path, if it has one."""
        ...

    def sizes(self, index: Tensor) -> Tensor:
        """(B, d) int64: the sizes in pixels, in the order of the tensor's axes, of the images at ``index`` (B,)."""
        ...

    def spacing(self, index: Tensor) -> Tensor | None:
        """(B, d) float32: the distance of neighboring pixels along each axis, in µm or mm; None where unknown."""
        ...

    def read(self, position: int) -> npt.NDArray[Any]:
        """One image, (*spatial, C) on the CPU.

        Raises:
            CorruptImage: it cannot be read.
        """
        ...

    def gather(self, index: Tensor, boxes: Tensor | None = None, pin: bool = False) -> Gathered:
        """The images at the positions ``index`` (B,) int64; a corrupt one is replaced by the next readable one.

        Args:
            index: positions in the source, on the CPU.
            boxes: (B, 2, d) the boxes to read, as in :class:`Gathered`; clipped to an image that replaces another. A
                source that does not read boxes returns whole images.
            pin: into page-locked memory, from where a GPU fetches the pixels while other work runs.

        Returns:
            The images. If more are corrupt than a source may have, only those before the last corrupt one.
        """
        ...

    def smallest(self) -> tuple[int, int]:
        """The position of the image with the shortest side, and that side in pixels; for many files, in a sample."""
        ...

    def digest(self, cache: Path) -> str:
        """The identity of the images: equal for the same pixels in the same order, wherever they are stored.

        Args:
            cache: a folder in which digests of files are kept, so that the files are read once.
        """
        ...


def bits_of(images: PixelSource) -> int | None:
    """8 or 16: the bits of images, whatever window they are seen with; None for other pixels than those of files."""
    return {torch.uint8: 8, torch.uint16: 16}.get(images.dtype)
