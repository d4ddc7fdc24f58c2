"""The logits of a whole image or volume, from overlapping windows, in memory that its first axis does not change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from math import ceil, prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from densepath.core.waiting import progress
from densepath.sources.pixel_source import PixelSpec

_SIGMA = 1 / 8  # of a window's side, as in nnU-Net and MONAI
_AT_ONCE = 2**19  # pixels in a pass of the network

Net = Callable[[Tensor], Tensor]


class SlidingWindow:
    """Averages the logits of overlapping windows, weighed by a Gaussian around the center of each.

    An image that is not longer than a window along an axis is not divided along it: then the result is that of the
    network for the whole image.

    Args:
        net: (B, C, *window) normalized pixels -> (B, K, *window) logits.
        spec: of the stored pixels.
        window: sides of a window in pixels, in the order of the tensor's axes.
        overlap: share of a window that the next one covers.
        multiple: sides of inputs are padded with zeros to multiples of it.
        device: where to compute.
        half: compute in automatic mixed precision, bfloat16.
    """

    def __init__(
        self,
        net: Net,
        spec: PixelSpec,
        window: Sequence[int],
        overlap: float = 0.5,
        multiple: int = 1,
        device: torch.device | None = None,
        half: bool = False,
    ) -> None:
        self._net, self.spec, self.window, self._overlap = net, spec, tuple(window), overlap
        self._multiple, self._device, self.half = multiple, device or torch.device("cpu"), half

    def slabs(self, pixels: npt.NDArray[Any]) -> Iterator[tuple[int, Tensor]]:
        """Parts of the logits of an image (*size, C), along its first axis: the first index, and (K, n, *rest)."""
        size = pixels.shape[:-1]
        window = [min(side, n) for side, n in zip(self.window, size, strict=True)]
        axes = [_axis(n, side, self._overlap) for n, side in zip(size, window, strict=True)]
        slab: Tensor | None = None
        for number, start in enumerate(axes[0][0]):
            rest = [list(zip(*axis, strict=True)) for axis in axes[1:]]
            places = [((start, axes[0][1][number]), *others) for others in product(*rest)]
            for corners, weights, logits in self._windows(pixels, places, window):
                if slab is None:
                    slab = logits.new_zeros(len(logits), window[0], *size[1:])
                here = (
                    slice(None),
                    slice(None),
                    *(slice(a, a + n) for a, n in zip(corners[1:], window[1:], strict=True)),
                )
                slab[here] += logits * weights
            assert slab is not None
            last = number + 1 == len(axes[0][0])
            done = window[0] if last else axes[0][0][number + 1] - start
            yield start, slab[:, :done]
            if not last:
                slab = torch.cat((slab[:, done:], torch.zeros_like(slab[:, :done])), dim=1)

    def classes(self, pixels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """The class (*size) of the largest logit."""
        out = np.empty(pixels.shape[:-1], np.uint8)
        for start, logits in self.slabs(pixels):
            out[start : start + logits.shape[1]] = logits.argmax(0).to(torch.uint8).cpu().numpy()
        return out

    def _windows(
        self, pixels: npt.NDArray[Any], places: Sequence[Any], window: Sequence[int]
    ) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Corner, weights and logits (K, *window) of each window."""
        count = max(1, _AT_ONCE // prod(window))
        for first in range(0, len(places), count):
            part = places[first : first + count]
            corners = [[corner for corner, _ in place] for place in part]
            boxes = [tuple(slice(a, a + n) for a, n in zip(corner, window, strict=True)) for corner in corners]
            logits = self._logits(np.stack([pixels[box] for box in boxes]))
            progress(1)
            for corner, place, own in zip(corners, part, logits, strict=True):
                weights = torch.ones((), device=self._device)
                for _, along in place:
                    weights = weights.unsqueeze(-1) * along.to(self._device)
                yield corner, weights, own

    @torch.inference_mode()
    def _logits(self, pixels: npt.NDArray[Any]) -> Tensor:
        """(B, *window, C) stored pixels -> (B, K, *window)."""
        x = torch.from_numpy(pixels).to(self._device).movedim(-1, 1).to(torch.float32)
        x = self.spec.normalize(self.spec.apply_window(x))
        size = x.shape[2:]
        more = [ceil(n / self._multiple) * self._multiple - n for n in size]
        x = F.pad(x, [side for n in reversed(more) for side in (0, n)]) if any(more) else x
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.half):
            logits = self._net(x).float()
        return logits[(slice(None), slice(None), *map(slice, size))]


def _axis(length: int, window: int, overlap: float) -> tuple[list[int], list[Tensor]]:
    """The starts of the windows along an axis, evenly spread, and their weights, which add up to 1 at each pixel."""
    step = max(1, int(window * (1 - overlap)))
    count = ceil((length - window) / step) + 1
    starts = [round(k * (length - window) / max(1, count - 1)) for k in range(count)]
    at = torch.arange(window, dtype=torch.float64) - (window - 1) / 2
    bell = torch.exp(-0.5 * (at / (_SIGMA * window)) ** 2)
    total = torch.zeros(length, dtype=torch.float64)
    for start in starts:
        total[start : start + window] += bell
    return starts, [(bell / total[start : start + window]).float() for start in starts]
