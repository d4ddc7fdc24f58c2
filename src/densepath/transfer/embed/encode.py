"""Encoding images in batches: decoded by threads ahead of the network."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from densepath.core.system import usable_cores
from densepath.core.threads import in_threads
from densepath.core.waiting import progress
from densepath.sources.corrupt import CorruptImage, can_pass

_AT_ONCE = 2**24  # pixels in a pass of the network: bounds its memory for large images
_MOST_THREADS = 32


class Readable(Protocol):
    """Images that are read one by one, from several threads."""

    def read(self, position: int) -> npt.NDArray[Any] | CorruptImage:
        """An image (*size, C), or why it cannot be read."""


class Encodes(Protocol):
    """A network of stored pixels."""

    dim: int  # numbers for each image

    def __call__(self, pixels: Tensor) -> Tensor:
        """(B, *size, C) -> (B, dim)."""
        ...


@dataclass(frozen=True, eq=False)
class Encoded:
    """The features of a batch.

    Args:
        batch: number of the batch.
        positions: positions of the images in their source, without those that cannot be read.
        features: (n, D) float32.
        damaged: file name and reason of those that are damaged.
        failed: the same of those that a later attempt may read, see :func:`~densepath.sources.corrupt.can_pass`.
    """

    batch: int
    positions: list[int]
    features: npt.NDArray[np.float32]
    damaged: list[str]
    failed: list[str]


def batches_of(positions: Sequence[int], batch_size: int) -> list[Sequence[int]]:
    """The batches of consecutive images; they decide the numbers to the last bit, so they are the same for any number
    of processes."""
    return [positions[first : first + batch_size] for first in range(0, len(positions), batch_size)]


@torch.inference_mode()
def encode(
    encoder: Encodes, inputs: Readable, batches: Sequence[Sequence[int]], device: torch.device, half: bool = False
) -> Generator[Encoded, None, None]:
    """Encode batches of images, one after another.

    Images of different sizes are not padded: those of one size go through the network together.

    Args:
        encoder: on ``device``.
        inputs: the images.
        batches: positions of images.
        device: where to compute.
        half: compute in automatic mixed precision, bfloat16.

    Raises:
        Stuck: a file does not respond.
    """
    with closing(_decoded(inputs, batches)) as decoded:
        waiting: tuple[int, list[int], Tensor, list[str], list[str]] | None = None
        for number, batch in enumerate(batches):
            images: list[npt.NDArray[Any]] = []
            positions, damaged, failed = [], list[str](), list[str]()
            for position, image in zip(batch, decoded, strict=False):
                if isinstance(image, CorruptImage):
                    (failed if can_pass(image) else damaged).append(str(image))
                else:
                    images.append(image)
                    positions.append(position)
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                started = (number, positions, _pass(encoder, images, device), damaged, failed)
            if waiting is not None:  # a GPU computes this batch while the one before it is copied back
                yield _finished(*waiting)
            waiting = started
        if waiting is not None:
            yield _finished(*waiting)


def _decoded(
    inputs: Readable, batches: Sequence[Sequence[int]]
) -> Generator[npt.NDArray[Any] | CorruptImage, None, None]:
    threads = min(_MOST_THREADS, usable_cores())
    largest, pixels = max(map(len, batches), default=0), _AT_ONCE

    def read(position: int) -> npt.NDArray[Any] | CorruptImage:
        nonlocal pixels
        image = inputs.read(position)
        if not isinstance(image, CorruptImage):
            pixels = max(1, int(np.prod(image.shape[:-1])))
        return image

    def ahead() -> int:
        """The next batch is decoded while the network computes, as far as its images are small."""
        return min(largest, _AT_ONCE // pixels)

    yield from in_threads(read, chain.from_iterable(batches), threads, "image data", ahead=ahead)


def _pass(encoder: Encodes, images: Sequence[npt.NDArray[Any]], device: torch.device) -> Tensor:
    """(n, D) on the device."""
    features = torch.empty(len(images), encoder.dim, device=device)
    rows: dict[tuple[int, ...], list[int]] = {}
    for row, image in enumerate(images):
        rows.setdefault(image.shape, []).append(row)
    for shape, same in rows.items():
        count = max(1, _AT_ONCE // int(np.prod(shape[:-1])))
        for first in range(0, len(same), count):
            part = same[first : first + count]
            pixels = torch.from_numpy(np.stack([images[row] for row in part]))
            features[part] = encoder(pixels.to(device, non_blocking=True))
    return features


def _finished(batch: int, positions: list[int], features: Tensor, damaged: list[str], failed: list[str]) -> Encoded:
    progress(1)
    return Encoded(batch, positions, features.cpu().numpy(), damaged, failed)


def collect(encoded: Iterable[Encoded]) -> tuple[list[int], npt.NDArray[np.float32], list[str], list[str]]:
    """All batches together: positions, features (N, D), damaged images, and those that a later attempt may read."""
    parts = list(encoded)
    positions = [position for part in parts for position in part.positions]
    damaged = [name for part in parts for name in part.damaged]
    failed = [name for part in parts for name in part.failed]
    return positions, np.concatenate([part.features for part in parts]), damaged, failed
