"""A queue of keys."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densepath.core.distributed import gather
from densepath.core.errors import UserError, counted


class Queue(nn.Module):
    """A ring buffer of unit vectors that takes any number of rows without synchronization with the device.

    New rows replace the oldest ones only after the optimizer step: all batches that a step accumulates are contrasted
    with the same rows, as one large batch would be.

    Args:
        size: number of rows.
        dim: length of a row.

    Source: the dictionary of He et al., MoCo, CVPR 2020; the concept queue of ConCL.
    """

    rows: Tensor
    pointer: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        if size < 1:
            raise UserError(f"a queue needs at least one row, not {size}")
        self.size = size
        # Masked-out rows are written to the extra row.
        rows = torch.zeros(size + 1, dim)
        rows[:size] = F.normalize(torch.randn(size, dim), dim=1)
        self.register_buffer("rows", rows)
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self._pending: list[tuple[Tensor, Tensor | None]] = []  # of the current step

    def keys(self) -> Tensor:
        """(size, dim): the rows themselves, not a copy; they change only in :meth:`after_step`."""
        return self.rows[: self.size]

    def check_size(self, rows: int) -> None:
        """Check that the rows of a step fit. Raises UserError."""
        if self.size < rows:
            raise UserError(
                f"a queue of {counted(self.size, 'key')} is smaller than the {rows} of a batch; use "
                f"--method.queue_size {rows} or more"
            )

    @torch.no_grad()
    def enqueue(self, rows: Tensor, mask: Tensor | None = None) -> None:
        """Collect the rows of all processes, ordered by rank; they replace the oldest ones after the step.

        Args:
            rows: (N, dim) unit vectors; N is equal on all processes.
            mask: (N,) bool: the rows to add; all by default.

        Raises:
            UserError: more rows than the queue holds.
        """
        rows = gather(rows)
        if len(rows) > self.size:
            raise UserError(
                f"the queue holds {counted(self.size, 'key')} but one batch adds up to {len(rows)}; "
                "make the queue larger or the batch smaller"
            )
        self._pending.append((rows, None if mask is None else gather(mask)))

    @torch.no_grad()
    def after_step(self) -> None:
        """Write the rows of the step to the queue, batch by batch."""
        for rows, mask in self._pending:
            self._write(rows, torch.ones(len(rows), dtype=torch.bool, device=rows.device) if mask is None else mask)
        self._pending.clear()

    def _write(self, rows: Tensor, mask: Tensor) -> None:
        target = (self.pointer + mask.cumsum(0) - 1) % self.size
        self.rows.index_copy_(0, torch.where(mask, target, self.size), rows.to(self.rows.dtype))
        self.rows[self.size].zero_()
        self.pointer.copy_((self.pointer + mask.sum()) % self.size)
