"""What the training loop asks of what it trains."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from densepath.methods.base import Tick
from densepath.training.updates import Updates

LongWork = Callable[[], AbstractContextManager[Tick]]


class Task(nn.Module):
    """A network with its losses, its optimizer, and what belongs to its steps.

    A step is made of one or more batches. What only one of them could change twice belongs into :meth:`before_step` or
    :meth:`after_step`: momentum encoders, queues, centres.
    """

    @abstractmethod
    def updates(self) -> Updates:
        """How the weights are updated; asked for once, when they lie where they are trained."""

    @abstractmethod
    def inputs(self, batch: Any) -> Any:
        """What :meth:`forward` takes, on the network's device; without gradient and in full precision."""

    def before_step(self, inputs: Any, long_work: LongWork) -> None:
        """What happens once for each step, before anything of it is computed.

        Args:
            inputs: of the step's first batch.
            long_work: the context of what takes long; gives what is to be called now and then.
        """

    @abstractmethod
    def forward(self, inputs: Any) -> dict[str, Tensor | float]:
        """The "loss", a scalar to minimize, and other scalars to be measured, which need not leave their device."""

    def after_step(self) -> None:
        """What happens once for each step, when the weights have been updated."""
