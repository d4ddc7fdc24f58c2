"""The interface between the training loop and the networks that it trains."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn

from densepath.methods.base import Heartbeat
from densepath.training.updates import Updates

LongWork = Callable[[], AbstractContextManager[Heartbeat]]


class Batches(Protocol):
    """The batches that :func:`~densepath.training.loop.train` iterates over.

    The length of a batch is its number of images; it may have an ``index``, the positions of these images.

    Attributes:
        start_step: the first batch of an iteration, counted from 0 over the whole run.
        total_steps: number of batches of this process in the whole run.
    """

    start_step: int
    total_steps: int

    def __iter__(self) -> Iterator[Any]: ...


class Task(nn.Module):
    """A network with its losses, its optimizer, and its hooks before and after a step.

    A step consists of one or more batches. Updates that must happen once per step, of momentum encoders, queues and
    centers, belong in :meth:`before_step` or :meth:`after_step`.
    """

    @abstractmethod
    def updates(self) -> Updates:
        """The optimizer and its schedule; called once, after the weights are on their device."""

    @abstractmethod
    def inputs(self, batch: Any) -> Any:
        """The argument of :meth:`forward`, on the network's device; without gradient and in full precision."""

    def before_step(self, inputs: Any, long_work: LongWork) -> None:
        """Called once for each step, before anything else of it.

        Args:
            inputs: the inputs of the step's first batch.
            long_work: a context for long work; it yields a heartbeat, which must be called regularly.
        """

    @abstractmethod
    def forward(self, inputs: Any) -> dict[str, Tensor | float]:
        """The "loss", a scalar to minimize, and other scalars to log, which may stay on their device."""

    def warnings(self, row: Mapping[str, float], last: bool) -> list[str]:
        """Lines on measurements that show that the run fails; ``last`` if it ends. Each is printed once."""
        return []

    def finished(self) -> bool:
        """Whether the run ends before its last step, asked after each evaluation; the same on all processes.

        It follows from the task's state, so that a run that has ended is not continued when it is resumed.
        """
        return False

    def is_best(self) -> bool:
        """Whether the last evaluation is the best of the run, so that its checkpoint is kept; asked after each, and the
        same on all processes."""
        return False

    def after_backward(self) -> None:
        """Called once for each step, before the weights are updated."""

    def after_step(self) -> None:
        """Called once for each step, after the weights have been updated."""
