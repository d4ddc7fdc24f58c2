"""What a run measures, without making the device wait between one look and the next."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from statistics import fmean
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from densepath.core.distributed import mean, world_size
from densepath.core.stopwatch import Stopwatch

BatchT = TypeVar("BatchT")


class Meter(Generic[BatchT]):
    """Collects what the steps report; looks at the values only when asked to."""

    def __init__(self) -> None:
        self._watch = Stopwatch()
        self.restart()

    def restart(self) -> None:
        """Forget what was recorded, and start the clock."""
        self._numbers: dict[str, list[float]] = {}
        self._tensors: dict[str, list[Tensor]] = {}
        self._losses: list[tuple[int, Tensor, Any]] = []
        self._images = 0
        self._waited = 0.0
        self._aside = 0.0
        self._since = self._watch.read()

    def timed(self, batches: Iterable[BatchT]) -> Iterator[BatchT]:
        """The same batches; the time until each came counts as waiting."""
        iterator = iter(batches)
        while True:
            start = self._watch.read()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited += self._watch.read() - start
            yield batch

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done inside does not count as training time."""
        start = self._watch.read()
        try:
            yield
        finally:
            self._aside += self._watch.read() - start

    def record(self, step: int, outputs: Mapping[str, Any], batch: Sized) -> None:
        """Keep what one batch gave.

        Args:
            step: 0-based optimizer step that the batch belongs to.
            outputs: "loss" and other scalars.
            batch: whose length is its number of images; its ``index``, if it has one, says which they are.
        """
        for name, value in outputs.items():
            if isinstance(value, Tensor):
                self._tensors.setdefault(name, []).append(value.detach())
            else:
                self._numbers.setdefault(name, []).append(value)
        self._losses.append((step, outputs["loss"].detach(), getattr(batch, "index", None)))
        self._images += len(batch)

    def not_finite(self) -> tuple[int, list[int]] | None:
        """The first step since the last :meth:`collect` whose loss is not a finite number, and its images.

        Waits for the device.
        """
        if not self._losses:
            return None
        losses = torch.stack([loss for _, loss, _ in self._losses]).tolist()
        for value, (step, _, index) in zip(losses, self._losses, strict=True):
            if not math.isfinite(value):
                return step, index.tolist() if isinstance(index, Tensor) else []
        return None

    def newest(self) -> tuple[int, list[int]]:
        """The last step that was recorded, and its images."""
        step = self._losses[-1][0]
        batches = [index.tolist() for at, _, index in self._losses if at == step and isinstance(index, Tensor)]
        return step, [image for batch in batches for image in batch]

    def collect(self) -> dict[str, float]:
        """Means over the batches since the last call, over all processes; waits for the device.

        Returns:
            The reported values (plain numbers: of this process), ``images_per_second`` of all processes together, and
            ``waiting``: the share of the time that this process waited for data; both are 0 where the clock shows no
            time.
        """
        row = {name: fmean(numbers) for name, numbers in self._numbers.items()}
        if self._tensors:
            means = torch.stack([torch.stack(values).double().mean() for values in self._tensors.values()])
            row |= zip(self._tensors, mean(means).tolist(), strict=True)
        seconds = self._watch.read() - self._since - self._aside
        known = seconds > 0  # not where the clock stood still or jumped back
        row["images_per_second"] = self._images * world_size() / seconds if known else 0.0
        row["waiting"] = min(self._waited / seconds, 1.0) if known else 0.0
        self.restart()
        return row
