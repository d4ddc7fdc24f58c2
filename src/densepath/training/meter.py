"""Measurements of a run, without a device synchronization in each step."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from statistics import fmean
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from densepath.core.distributed import mean, world_size
from densepath.core.stopwatch import Stopwatch

BatchT = TypeVar("BatchT")
_TOGETHER = 1024  # values of one output that become one tensor, and losses that are looked at together


class Meter(Generic[BatchT]):
    """Collects the outputs of the steps; reads the values only when asked to, and each 1024th time.

    Of each output only its number is kept until then, a few bytes, and of the losses those that are not looked at yet.
    """

    def __init__(self) -> None:
        self._watch = Stopwatch()
        self.restart()

    def restart(self) -> None:
        """Forget what was recorded, and start the clock."""
        self._numbers: dict[str, array[float]] = {}
        self._tensors: dict[str, _Values] = {}
        self._losses: list[tuple[int, Tensor, Any]] = []
        self._looked_at = 0  # of these losses, those of the last step
        self._bad: tuple[int, list[int]] | None = None
        self._images = 0
        self._waited = 0.0
        self._paused = 0.0
        self._since = self._watch.read()

    def timed(self, batches: Iterable[BatchT]) -> Iterator[BatchT]:
        """The same batches; the time until each arrives counts as waiting."""
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
        """Time spent in this context does not count as training time."""
        start = self._watch.read()
        try:
            yield
        finally:
            self._paused += self._watch.read() - start

    def record(self, step: int, outputs: Mapping[str, Any], batch: Sized) -> None:
        """Record the outputs of one batch.

        Args:
            step: 0-based optimizer step that the batch belongs to.
            outputs: "loss" and other scalars.
            batch: the batch: its length is its number of images, its ``index``, if it has one, their positions.
        """
        for name, value in outputs.items():
            if isinstance(value, Tensor):
                self._tensors.setdefault(name, _Values()).append(_compact(value))
            else:
                self._numbers.setdefault(name, array("d")).append(value)
        self._losses.append((step, _compact(outputs["loss"]), getattr(batch, "index", None)))
        if len(self._losses) - self._looked_at >= _TOGETHER:
            self._look()
        self._images += len(batch)

    def state(self) -> dict[str, Any]:
        """What was recorded since the last :meth:`collect`, for a checkpoint; waits for the device."""
        return {
            "numbers": {name: numbers.tolist() for name, numbers in self._numbers.items()},
            "tensors": {name: values.joined().cpu() for name, values in self._tensors.items()},
        }

    def restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Continue from a state of :meth:`state`, so that means do not depend on where a run was stopped."""
        self._numbers = {name: array("d", numbers) for name, numbers in state["numbers"].items()}
        self._tensors = {name: _Values([values.to(device)]) for name, values in state["tensors"].items()}

    def not_finite(self) -> tuple[int, list[int]] | None:
        """The first step since the last :meth:`collect` whose loss is NaN or Inf, and its images.

        Waits for the device.
        """
        if len(self._losses) > self._looked_at:
            self._look()
        return self._bad

    def _look(self) -> None:
        """Look for a first loss of NaN or Inf among the new ones, and forget them, except those of the last step."""
        new = self._losses[self._looked_at :]
        losses = torch.stack([loss for _, loss, _ in new]).tolist()
        for value, (step, _, index) in zip(losses, new, strict=True):
            if self._bad is None and not math.isfinite(value):
                self._bad = step, index.tolist() if isinstance(index, Tensor) else []
        last = self._losses[-1][0]
        self._losses = [each for each in self._losses if each[0] == last]
        self._looked_at = len(self._losses)

    def newest(self) -> tuple[int, list[int]]:
        """The last recorded step, and its images."""
        step = self._losses[-1][0]
        batches = [index.tolist() for at, _, index in self._losses if at == step and isinstance(index, Tensor)]
        return step, [image for batch in batches for image in batch]

    def collect(self) -> dict[str, float]:
        """Means over the batches since the last call, over all processes; waits for the device.

        Returns:
            The means (of plain numbers: only over this process), ``images_per_second`` of all processes together, and
            ``waiting``, the share of the time that this process waited for data; both are 0 if no time has passed.
        """
        row = {name: fmean(numbers) for name, numbers in self._numbers.items()}
        if self._tensors:
            means = torch.stack([values.joined().double().mean() for values in self._tensors.values()])
            row |= zip(self._tensors, mean(means).tolist(), strict=True)
        seconds = self._watch.read() - self._since - self._paused
        known = seconds > 0  # false if the clock stood still or jumped back
        row["images_per_second"] = self._images * world_size() / seconds if known else 0.0
        row["waiting"] = min(self._waited / seconds, 1.0) if known else 0.0
        self.restart()
        return row


class _Values:
    """The values of an output, in order; each 1024 become one tensor.

    Args:
        together: tensors (N,) of earlier values.
    """

    def __init__(self, together: Iterable[Tensor] = ()) -> None:
        self._together, self._single = list(together), list[Tensor]()

    def append(self, value: Tensor) -> None:
        """Add a scalar."""
        self._single.append(value)
        if len(self._single) == _TOGETHER:
            self._together.append(torch.stack(self._single))
            self._single = []

    def joined(self) -> Tensor:
        """All values (N,)."""
        return torch.cat([*self._together, *([torch.stack(self._single)] if self._single else [])])


def _compact(value: Tensor) -> Tensor:
    """A scalar without its graph, in memory of its own: some losses are a corner of that of all their summands."""
    value = value.detach()
    return value if value.untyped_storage().nbytes() <= value.nbytes else value.clone()
