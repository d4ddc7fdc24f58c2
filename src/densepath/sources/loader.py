"""The order of a run, and its batches."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from densepath.core.errors import UserError
from densepath.core.random import permute
from densepath.sources.batch import ImageBatch, new_canvas
from densepath.sources.corrupt import Damage
from densepath.sources.open import ImageFiles, PackedTiles
from densepath.sources.pixel_source import Gathered, PerImage
from densepath.sources.prefetch import ahead
from densepath.sources.workers import end_workers, into_shared_memory, out_of_shared_memory

_AHEAD = 2  # batches
_CHUNK = 32  # images that a worker decodes at a time: what is under way is bounded whatever the batch size
_GRACE = 10  # seconds that a worker lives on after SIGTERM
_BLOCK = 8192  # positions that are shuffled at a time

_Order = Callable[[], Iterator[tuple[int, Tensor]]]  # each step with the positions (B,) of its images


class ImageBatches:
    """The batches of a run, in an order that depends on the seed alone.

    Step ``s`` takes the positions ``s G`` to ``(s + 1) G`` of its epoch's permutation, G being the images of all
    processes together; each process takes its slice of them. What does not fill a batch at an epoch's end is left out.
    A damaged image is replaced by the next one of the source that can be read; it is named once on the log.

    Args:
        images: the source. Packed tiles are gathered by one thread (none if they lie on the GPU), files are decoded
            by ``workers`` processes, or by the thread if there are none.
        batch_size: images in a batch of one process.
        seed: of the order.
        epochs, max_steps: the length of the run, in epochs or in batches of one process; ``max_steps`` counts if both
            are given.
        rank, world_size: which of how many processes this is.
        workers: processes that decode files.
        start_step: the first step, for a run that is resumed.
        device: where the training runs; for a GPU the batches come in page-locked memory.
        extras: what is known of each image, by name, which then comes with the batches.

    Raises:
        UserError: the batches of all processes together need more images than there are; while iterating: more than
            1% of the images are damaged, or a worker process died.
    """

    def __init__(
        self,
        images: ImageFiles | PackedTiles,
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
        extras: Mapping[str, PerImage] | None = None,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"batch_size {batch_size}, rank {rank}, world_size {world_size}")
        if max_steps is None and epochs is None:
            raise ValueError("one of max_steps and epochs is needed")
        self.images = images
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
            raise UserError(
                f"a batch of {batch_size} images{processes} needs more than the {len(images)} images of the source; "
                "use a smaller batch_size or more images"
            )
        self.total_steps = max_steps if max_steps is not None else math.ceil((epochs or 0) * self.steps_per_epoch)
        self._damage = Damage(len(images), images.damaged if isinstance(images, PackedTiles) else None)

    def __len__(self) -> int:
        return max(0, self.total_steps - self.start_step)

    @property
    def damaged(self) -> tuple[str, ...]:
        """The damaged files that this process knows of."""
        return tuple(self.images.names(position) for position in sorted(self._damage.found))

    def __iter__(self) -> Iterator[ImageBatch]:
        return self._made(self._order)

    def each_image(self) -> Iterator[ImageBatch]:
        """This process's share of all images, once: every ``world_size``-th, from that of its rank on.

        The last batch may be smaller. Where an image is damaged another takes its place.
        """
        share = torch.arange(self.rank, len(self.images), self.global_size // self.batch_size)
        return self._made(lambda: ((0, index) for index in share.split(self.batch_size)))

    def _made(self, order: _Order) -> Iterator[ImageBatch]:
        if isinstance(self.images, PackedTiles):
            batches = self._from_store(self.images, order)
            return batches if self.images.pixels.is_cuda else ahead(batches, _AHEAD)
        # Workers are started in the thread, or the death of one would interrupt the main thread wherever it is
        loaders: list[Any] = []
        parts = self._from_files(self.images, order, loaders)
        return ahead(parts, _AHEAD, abandon=lambda: end_workers(loaders))

    def _from_store(self, images: PackedTiles, order: _Order) -> Generator[ImageBatch, None, None]:
        pin = self._pins()
        for step, index in order():
            yield self._batch(step, images.gather(index, pin))

    def _from_files(self, files: ImageFiles, order: _Order, loaders: list[Any]) -> Generator[ImageBatch, None, None]:
        pin = self._pins()
        parts = self._decoded(files, order, loaders)
        for step, index in order():
            batch = list(islice(parts, math.ceil(len(index) / _CHUNK)))
            damaged = {position: what for part in batch for position, what in part.corrupt.items()}
            new = [position for position, what in damaged.items() if self._damage.add(position, what)]
            self._damage.check()
            yield self._batch(step, join(batch, pin), tuple(files.names(position) for position in new))

    def _decoded(self, files: ImageFiles, order: _Order, loaders: list[Any]) -> Iterator[Gathered]:
        """Images in chunks, decoded by other processes if there are any; who decodes them joins ``loaders``."""
        loader = DataLoader(
            _Decoder(files),
            batch_size=None,
            sampler=(chunk for _, index in order() for chunk in index.split(_CHUNK)),
            num_workers=self.workers,
            prefetch_factor=2 if self.workers else None,
            worker_init_fn=outlive_signals,
            generator=torch.Generator(),  # or it would draw from the user's global one
        )
        with telling_of_death(self.workers, "use fewer workers, or pack the images first"):
            loaders.append(iter(loader))
            try:
                yield from loaders[-1]
            finally:
                loaders.clear()

    def _batch(self, step: int, gathered: Gathered, damaged: tuple[str, ...] = ()) -> ImageBatch:
        epoch, progress = step / self.steps_per_epoch, step / self.total_steps
        # Those of the images that were read, which may stand in for damaged ones.
        pin = self._pins()
        extras = {name: extra.gather(gathered.index, pin) for name, extra in self.extras.items()}
        return ImageBatch(
            gathered.pixels,
            gathered.sizes,
            gathered.index,
            step,
            epoch,
            progress,
            damaged,
            gathered.boxes,
            extras=extras,
        )

    def _order(self) -> Iterator[tuple[int, Tensor]]:
        """Each step of the run with the positions (B,) of its images in the source."""
        step = self.start_step
        lane = self.rank * self.batch_size + torch.arange(self.batch_size)
        while step < self.total_steps:
            epoch, first = divmod(step, self.steps_per_epoch)
            steps = min(max(1, _BLOCK // self.batch_size), self.steps_per_epoch - first, self.total_steps - step)
            position = torch.arange(first, first + steps)[:, None] * self.global_size + lane
            for index in permute(position, len(self.images), self.seed, epoch):
                yield step, index
                step += 1

    def _pins(self) -> bool:
        """Whether batches go into page-locked memory, which this thread must then ask the right GPU for."""
        if self.device.type != "cuda":
            return False
        torch.cuda.set_device(self.device)
        return True


class _Decoder(Dataset[Gathered]):
    def __init__(self, files: ImageFiles) -> None:
        self.files = files

    def __getitem__(self, index: Tensor) -> Gathered:
        return into_shared_memory(self.files.gather(index))


@contextmanager
def telling_of_death(workers: int, remedy: str) -> Iterator[None]:
    """Say that a process died that decodes images, where the loader in use says something else.

    Args:
        workers: how many such processes there are.
        remedy: what to do about it.

    Raises:
        UserError: one of them died.
    """
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        if workers and (why := out_of_shared_memory(error)):
            raise UserError(why) from error
        # What came through from a worker that lives begins with "Caught"
        if not workers or str(error).startswith("Caught"):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"a process that decodes images died, most likely for want of memory ({reason}); {remedy}"
        ) from error


def outlive_signals(worker: int) -> None:
    """Ctrl-C and a cluster's SIGTERM reach workers too, while the main process still ends its step and saves."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))  # whose signal then ends the process


def join(parts: list[Gathered], pin: bool = False) -> Gathered:
    """Lay the parts of a batch on one canvas."""
    sizes = torch.cat([part.sizes for part in parts])
    index = torch.cat([part.index for part in parts])
    height, width = sizes.amax(dim=0).tolist()
    canvas = new_canvas(len(index), height, width, pin)
    places = canvas.numpy()
    start = 0
    for part in parts:
        count, high, wide = part.pixels.shape[:3]
        place = places[start : start + count]
        place[:, :high, :wide] = part.pixels.numpy()
        place[:, high:] = 0
        place[:, :high, wide:] = 0
        start += count
    return Gathered(canvas, sizes, index, {})
