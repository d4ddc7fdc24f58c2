"""Training batches of outlined images, and their preprocessing: resized, flipped, normalized, padded."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.models.detection.image_list import ImageList

from densepath.annotations.coco import CocoImages
from densepath.core.errors import UserError
from densepath.core.random import permute, uniform
from densepath.sources.pixel_source import PixelSpec
from densepath.sources.prefetch import ahead
from densepath.sources.workers import (
    end_workers,
    from_worker,
    out_of_worker,
    outlive_signals,
    report_dead_workers,
    start_workers,
)

LONGEST = 1333  # pixels: the longer edge never exceeds it
DIVISOR = 32  # the largest stride of the backbone


@dataclass(eq=False)
class SampleBatch:
    """Images of different sizes with their instances, on the CPU.

    Args:
        samples: each with image (H, W, C), boxes (N, 4) x1 y1 x2 y2, labels (N,) from 1, masks (N, H, W) bool;
            its short_edge after resizing in pixels, and whether to flip it; and its aspect, the height of a pixel for
            a width of 1, if that is not 1.
        index: (B,) int64 indices of the images.
    """

    samples: list[dict[str, Any]]
    index: Tensor

    def __len__(self) -> int:
        return len(self.samples)


class Shown(NamedTuple):
    """An image and its augmentation.

    Args:
        position: index of the image.
        short_edge: short edge after resizing, in pixels.
        flip: whether it is flipped.
        place: position of a crop (x, y), from 0 (left, top) to 1.
    """

    position: int
    short_edge: int
    flip: bool
    place: tuple[float, float]


def draw(positions: Tensor, images: int, seed: int, sizes: tuple[int, int]) -> list[Shown]:
    """Draw samples from an endless stream of shuffled epochs.

    Args:
        positions: (B,) int64 positions in the stream.
        images: number of images.
        seed: seed of the stream.
        sizes: minimum and maximum short edge in pixels, drawn uniformly.
    """
    epochs = positions // images
    low, high = sizes
    shown = []
    for epoch in epochs.unique().tolist():
        index = permute(positions[epochs == epoch] % images, images, seed, epoch)
        resize, flip, *place = uniform(seed, epoch, index, view=0, stream=0).unbind(1)
        edges = low + (resize * (high - low + 1)).long()
        columns = (index, edges, flip < 0.5, torch.stack(place, 1))
        shown += [
            Shown(i, edge, flipped, (x, y))
            for i, edge, flipped, (x, y) in zip(*(column.tolist() for column in columns), strict=True)
        ]
    return shown


class _Samples(Dataset):
    """Images, or square crops of them, with their augmentation."""

    def __init__(self, images: CocoImages, crop: int | None) -> None:
        self.images = images
        self.crop = crop

    def __getitem__(self, shown: Shown) -> dict[str, Any]:
        if self.crop is None:
            sample = self.images[shown.position]
        else:
            height, width = self.images.size(shown.position)
            room = (max(width - self.crop, 0), max(height - self.crop, 0))
            left, top = (int(share * (most + 1)) for share, most in zip(shown.place, room, strict=True))
            sample = self.images.crop(shown.position, left, top, self.crop)
        sample |= shown._asdict()
        # Tensors are passed from worker processes through shared memory.
        return sample | {key: torch.from_numpy(sample[key]) for key in ("image", "masks")}


@dataclass
class TrainingBatches:
    """The training batches of a run, or of the rest of it.

    The global batch of a step has the same samples for any number of processes and workers.

    Args:
        images: images with their instances.
        batch_size: images per step, over all processes.
        total_steps: number of steps of the whole run.
        seed: seed of order, sizes and flips.
        sizes: minimum and maximum short edge in pixels, drawn uniformly.
        crop: side in pixels of a random square crop before resizing; None for whole images.
        start_step: the first step.
        rank, world_size: this process, and the number of processes that share each batch.
        workers: number of processes that decode images.
    """

    images: CocoImages
    batch_size: int
    total_steps: int
    seed: int
    sizes: tuple[int, int]
    crop: int | None = None
    start_step: int = 0
    rank: int = 0
    world_size: int = 1
    workers: int = 0

    def __len__(self) -> int:
        return self.total_steps - self.start_step

    def __iter__(self) -> Iterator[SampleBatch]:
        # Workers are started in the thread, or the death of one would interrupt the main thread wherever it is.
        loaders: list[Any] = []
        return ahead(self._decoded(loaders), 1, abandon=lambda: end_workers(loaders))

    def _decoded(self, loaders: list[Any]) -> Generator[SampleBatch, None, None]:
        loader: DataLoader = DataLoader(
            _Samples(self.images, self.crop),
            batch_sampler=self.plan(),
            num_workers=self.workers,
            collate_fn=_collate,
            worker_init_fn=outlive_signals,
            generator=torch.Generator(),  # otherwise it would use the global generator
        )
        try:
            with report_dead_workers(self.workers, "use fewer workers") as arrived:
                started = start_workers(loader, loaders)
                try:
                    for samples in map(from_worker, started):
                        arrived.set()
                        yield samples
                finally:
                    end_workers(loaders)  # they ignore the signal by which torch would end them
                    loaders.clear()
        except UserError as error:
            # A worker's error includes its traceback; the message is in the last line.
            text = str(error.args[0]).strip()
            raise UserError(text.splitlines()[-1].partition("UserError: ")[2] or text) from None

    def plan(self) -> Iterator[list[Shown]]:
        """The images and augmentations of each batch."""
        share = self.batch_size // self.world_size
        for step in range(self.start_step, self.total_steps):
            first = step * self.batch_size + self.rank * share
            yield draw(torch.arange(first, first + share), len(self.images), self.seed, self.sizes)

    def beyond(self, steps: int) -> TrainingBatches:
        """The batches of further steps after the end of the run, on one process."""
        end = self.total_steps
        return replace(self, start_step=end, total_steps=end + steps, rank=0, world_size=1)


def _collate(samples: list[dict[str, Any]]) -> Any:
    return out_of_worker(SampleBatch(samples, torch.tensor([sample["position"] for sample in samples])))


def resized_shape(height: float, width: float, short_edge: int) -> tuple[int, int]:
    """Height and width of an image resized to ``short_edge``, or less if its long edge would exceed ``LONGEST``."""
    scale = min(short_edge / min(height, width), LONGEST / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def into_detector(
    samples: Sequence[dict[str, Any]], spec: PixelSpec, device: torch.device
) -> tuple[ImageList, list[dict[str, Tensor]]]:
    """Convert samples to the images and targets of :class:`~densepath.transfer.detection.detector.Detector`.

    Images are resized with antialiasing, and boxes with them; masks keep their resolution.

    Args:
        samples: as in :class:`SampleBatch`.
        spec: how the detector's pixels are normalized.
    """
    images, targets = [], []
    for sample in samples:
        pixels = torch.as_tensor(sample["image"]).to(device, non_blocking=True)
        height, width = pixels.shape[:2]
        shape = resized_shape(height * sample.get("aspect", 1), width, sample["short_edge"])
        scale = torch.tensor([width / shape[1], height / shape[0]] * 2, device=device)
        resized = F.interpolate(
            spec.apply_window(pixels.permute(2, 0, 1)[None].to(torch.float32, copy=True)),
            shape,
            mode="bilinear",
            antialias=True,
            align_corners=False,
        )
        boxes = torch.as_tensor(sample["boxes"]).to(device, torch.float32, non_blocking=True)
        masks = torch.as_tensor(sample["masks"]).to(device, non_blocking=True)
        if sample["flip"]:
            resized, masks = resized.flip(-1), masks.flip(-1)
            x1, y1, x2, y2 = boxes.unbind(1)
            boxes = torch.stack((width - x2, y1, width - x1, y2), dim=1)
        images.append(spec.normalize(resized)[0])
        labels = torch.as_tensor(sample["labels"]).to(device, non_blocking=True)
        targets.append({"boxes": boxes / scale, "labels": labels, "masks": masks, "scale": scale})
    return padded(images), targets


def padded(images: Sequence[Tensor]) -> ImageList:
    """Images (C, H_i, W_i) in one tensor, padded with zeros at the bottom and on the right."""
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    height, width = (-(-max(side) // DIVISOR) * DIVISOR for side in zip(*sizes, strict=True))
    batch = images[0].new_zeros(len(images), len(images[0]), height, width)
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return ImageList(batch, sizes)
