"""The order of a run, and its batches."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from densepath.core.errors import UserError, counted
from densepath.core.random import permute, permute_blocks
from densepath.core.single_values import check_choice
from densepath.sources.batch import ImageBatch, join
from densepath.sources.corrupt import CorruptLog
from densepath.sources.per_image import PerBox, PerImage
from densepath.sources.pixel_source import Gathered, PixelSource
from densepath.sources.prefetch import ahead
from densepath.sources.workers import (
    InWorkers,
    end_workers,
    from_worker,
    outlive_signals,
    report_dead_workers,
    start_workers,
)

_AHEAD = 2  # batches
_CHUNK = 32  # images that a worker decodes at a time: bounds the memory for any batch size
_SHUFFLED = 8192  # positions that are shuffled at a time
_BLOCK, _WINDOW = 16, 64  # images in a row, and such blocks that are mixed, of the order "block"

Shuffle = Literal["full", "block"]
_Order = Iterator[tuple[int, Tensor]]  # each step with the positions (B,) of its images


class Plan(Protocol):
    """The views of a batch, drawn before its pixels are read."""

    def boxes(self, sizes: Tensor) -> Tensor:
        """(B, 2, d) int64: the box of each image, of sizes (B, d), that its views need."""
        ...


# Draws the views of images: (B,) positions in the source, (B, d) sizes, (B, d) spacing or None, epochs done -> plan.
DrawViews = Callable[[Tensor, Tensor, Tensor | None, float], Plan]


@dataclass(frozen=True, eq=False)
class _Planned:
    """A batch before it is read.

    Args:
        step: step of the run.
        index: (B,) positions in the source.
        plan: the plan of its views, if they are drawn first.
        boxes: (B, 2, d) the boxes that the views need.
    """

    step: int
    index: Tensor
    plan: Plan | None = None
    boxes: Tensor | None = None

    def chunks(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Parts of at most _CHUNK images, with their boxes."""
        for start in range(0, len(self.index), _CHUNK):
            rows = slice(start, start + _CHUNK)
            yield self.index[rows], None if self.boxes is None else self.boxes[rows]


class ImageBatches:
    """The batches of a run, in an order that depends only on the seed.

    Step ``s`` takes the positions ``s G`` to ``(s + 1) G`` of its epoch's permutation, G being the images of all
    processes together; each process takes its slice of them. Images that do not fill a batch at the end of an epoch are
    left out. A corrupt image is replaced by the next readable one of the source; it is logged once.

    For a source that reads boxes, the views of a batch are drawn first, and only the boxes that they need are read. An
    image that replaces a corrupt one has its own views.

    Args:
        images: the source. A background thread reads it, except on a GPU; if its images must be decoded, ``workers``
            processes do so, or the thread if there are none.
        batch_size: images in a batch of one process.
        seed: seed of the order.
        epochs, max_steps: the length of the run, in epochs or in batches of one process; ``max_steps`` is used if
            both are given.
        rank, world_size: number of this process, from 0, and number of processes.
        workers: processes that decode images.
        start_step: the first step of a resumed run.
        device: where the training runs; for a GPU the batches come in page-locked memory.
        draw: draws the views of images before they are read (``ViewMaker.draw``); used for a source that reads boxes.
        extras: annotations of each image, by name, which are added to the batches.
        shuffle: "full": every order is equally likely. "block": 16 images in a row are read together, and mixed with
            those of 64 such blocks; for slides and files on a disk or a network drive.

    Raises:
        UserError: ``shuffle`` is neither, or the batches of all processes together need more images than the source
            has; while iterating: more than 1% of the images are corrupt, or a worker process died.
    """

    def __init__(
        self,
        images: PixelSource,
        *,
        batch_size: int,
        seed: int,
        max_steps: int | None = None,
        epochs: float | None = None,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        start_step: int = 0,
        device: torch.device | str | None = None,
        draw: DrawViews | None = None,
        extras: Mapping[str, PerImage | PerBox] | None = None,
        shuffle: Shuffle = "full",
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"batch_size {batch_size}, rank {rank}, world_size {world_size}")
        if max_steps is None and epochs is None:
            raise ValueError("give max_steps or epochs")
        check_choice("shuffle", shuffle, Shuffle)
        self.images = images
        self.draw = draw
        self.shuffle = shuffle
        self.extras = dict(extras or {})
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.global_size = batch_size * world_size
        self.workers = workers
        self.start_step = start_step
        self.device = torch.device(device or "cpu")
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.steps_per_epoch = len(images) // self.global_size
        if self.steps_per_epoch == 0:
            processes = f" in each of {world_size} processes" if world_size > 1 else ""
            remedy = "use a smaller batch_size or more images" if len(images) > 1 else "use more images"
            raise UserError(
                f"a batch of {counted(batch_size, 'image')}{processes} needs more than the "
                f"{counted(len(images), 'image')} of the source; {remedy}"
            )
        exact = round((epochs or 0) * self.steps_per_epoch, 6)  # 2.2 * 25 is 55.00000000000001
        self.total_steps = max_steps if max_steps is not None else math.ceil(exact)
        self._corrupt = CorruptLog(len(images), images.corrupt, ndim=images.spec.ndim)

    def __len__(self) -> int:
        return max(0, self.total_steps - self.start_step)

    @property
    def corrupt(self) -> tuple[str, ...]:
        """The corrupt files that this process found so far."""
        return tuple(self.images.names(position) for position in sorted(self._corrupt.found))

    def __iter__(self) -> Iterator[ImageBatch]:
        return self._made(self._order(), self.draw)

    def each_image(self, draw: DrawViews | None = None) -> Iterator[ImageBatch]:
        """This process's share of all images, once: every ``world_size``-th, starting at its rank.

        The last batch may be smaller. A corrupt image is replaced by another. ``draw`` is as for
        the class, for the views of these images.
        """
        share = torch.arange(self.rank, len(self.images), self.global_size // self.batch_size, device="cpu")
        return self._made(((0, index) for index in share.split(self.batch_size)), draw)

    def _made(self, order: _Order, draw: DrawViews | None) -> Iterator[ImageBatch]:
        loaders: list[Any] = []
        batches = self._batches(order, draw if self.images.reads_boxes else None, loaders)
        # Workers are started in the thread: otherwise the death of one would interrupt the main thread anywhere
        return (
            batches
            if self.images.device.type == "cuda"
            else ahead(batches, _AHEAD, abandon=partial(end_workers, loaders))
        )

    def _batches(self, order: _Order, draw: DrawViews | None, loaders: list[Any]) -> Generator[ImageBatch, None, None]:
        pin = self._pinned()
        batches = (self._plan_batch(step, index, draw) for step, index in order)
        by_workers = self.images.decodes and self.workers > 0
        read = self._decoded(batches, pin, loaders) if by_workers else self._gathered(batches, pin)
        for wanted, gathered in read:
            new = self._record_corrupt(gathered)
            while draw is not None and not torch.equal(gathered.index, wanted.index):
                wanted = self._plan_batch(wanted.step, gathered.index, draw)
                gathered = self.images.gather(wanted.index, wanted.boxes, pin)
                new += self._record_corrupt(gathered)
            yield self._batch(wanted, gathered, tuple(new))

    def _gathered(self, batches: Iterator[_Planned], pin: bool) -> Iterator[tuple[_Planned, Gathered]]:
        """Each batch, read in this thread."""
        for wanted in batches:
            yield wanted, self.images.gather(wanted.index, wanted.boxes, pin)

    def _decoded(
        self, batches: Iterator[_Planned], pin: bool, loaders: list[Any]
    ) -> Iterator[tuple[_Planned, Gathered]]:
        """Each batch, read in chunks by other processes; their iterator is added to ``loaders``."""
        ordered: deque[_Planned] = deque()

        def chunks() -> Iterator[tuple[Tensor, Tensor | None]]:
            for wanted in batches:
                ordered.append(wanted)
                yield from wanted.chunks()

        loader = DataLoader(
            InWorkers(self.images),
            batch_size=None,
            sampler=chunks(),
            num_workers=self.workers,
            prefetch_factor=2,
            worker_init_fn=outlive_signals,
            generator=torch.Generator(),  # otherwise it would draw from the global one
        )
        with report_dead_workers(self.workers, "use fewer workers, or pack the images first") as arrived:
            parts: Iterator[Gathered] = map(from_worker, start_workers(loader, loaders))
            try:
                while first := next(parts, None):
                    arrived.set()
                    wanted = ordered.popleft()
                    rest = islice(parts, math.ceil(len(wanted.index) / _CHUNK) - 1)
                    yield wanted, join([first, *rest], pin)
            finally:
                end_workers(loaders)  # they ignore the signal by which torch would end them
                loaders.clear()

    def _plan_batch(self, step: int, index: Tensor, draw: DrawViews | None) -> _Planned:
        """A batch of a step; if its views are drawn first, then for images that are not known to be corrupt."""
        if draw is None:
            return _Planned(step, index)
        if self._corrupt.found:
            index = torch.tensor([self._next_readable(position) for position in index.tolist()], dtype=torch.int64)
        sizes = self.images.sizes(index)
        plan = draw(index, sizes, self.images.spacing(index), step / self.steps_per_epoch)
        return _Planned(step, index, plan, plan.boxes(sizes))

    def _next_readable(self, position: int) -> int:
        while position in self._corrupt.found:
            position = (position + 1) % len(self.images)
        return position

    def _record_corrupt(self, gathered: Gathered) -> list[str]:
        """The names of newly found corrupt images. Raises UserError if there are too many."""
        new = [position for position, what in gathered.corrupt.items() if self._corrupt.add(position, what)]
        self._corrupt.check()
        return [self.images.names(position) for position in new]

    def _batch(self, wanted: _Planned, gathered: Gathered, corrupt: tuple[str, ...]) -> ImageBatch:
        # By the index of the images that were read: some may replace corrupt ones.
        pin = self._pinned()
        return ImageBatch.of(
            gathered,
            step=wanted.step,
            epoch=wanted.step / self.steps_per_epoch,
            progress=wanted.step / self.total_steps,
            corrupt=corrupt,
            spacing=self.images.spacing(gathered.index),
            plan=wanted.plan,
            extras={name: _read_extra(extra, gathered, pin) for name, extra in self.extras.items()},
            spec=self.images.spec,
        )

    def _order(self) -> Iterator[tuple[int, Tensor]]:
        """Each step of the run with the positions (B,) of its images in the source."""
        step = self.start_step
        lane = self.rank * self.batch_size + torch.arange(self.batch_size)
        while step < self.total_steps:
            epoch, first = divmod(step, self.steps_per_epoch)
            steps = min(max(1, _SHUFFLED // self.batch_size), self.steps_per_epoch - first, self.total_steps - step)
            position = torch.arange(first, first + steps)[:, None] * self.global_size + lane
            for index in self._shuffled(position, epoch):
                yield step, index
                step += 1

    def _shuffled(self, position: Tensor, epoch: int) -> Tensor:
        if self.shuffle == "full":
            return permute(position, len(self.images), self.seed, epoch)
        return permute_blocks(position, len(self.images), _BLOCK, _WINDOW, self.seed, epoch)

    def _pinned(self) -> bool:
        """Whether batches use page-locked memory; if so, select the GPU that this thread allocates it for."""
        if self.device.type != "cuda":
            return False
        torch.cuda.set_device(self.device)
        return True


def _read_extra(extra: PerImage | PerBox, images: Gathered, pin: bool) -> Tensor:
    if isinstance(extra, PerBox):
        return extra.gather_boxes(images.index, images.boxes, pin)
    return extra.gather(images.index, pin)
