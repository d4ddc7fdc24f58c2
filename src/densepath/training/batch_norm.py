"""The images over which batch norms compute their statistics: an option of the run, not of its method."""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import contextmanager
from typing import Literal

from torch import nn

from densepath.core.errors import UserError, counted
from densepath.methods.base import Method
from densepath.nets.norms import set_batch_norm

BatchNorm = Literal["auto", "per_process", "synchronized"]


@contextmanager
def reporting_lonely_values(options: Container[str]) -> Iterator[None]:
    """Turn the error of a batch norm that gets one value per channel into one that the user can understand.

    Args:
        options: those of the verb, of which the message names some.

    Raises:
        UserError: a batch norm got one value per channel.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        smaller = " a smaller accumulate," if "accumulate" in options else ""
        raise UserError(
            "a batch norm got one value of each channel, which has no variance: a process holds a batch of one image, "
            f"and its features are 1 x 1; use a larger batch_size,{smaller} or a larger view_size"
        ) from error


def share_statistics(
    method: Method, batch_norm: BatchNorm, group: int, batch_size: int, processes: int
) -> Literal["per_process", "synchronized"]:
    """Set up all batch norms of a method, once, before it is trained.

    Args:
        method: the method to train.
        batch_norm: "per_process", "synchronized", or "auto": as in the method's paper.
        group: number of images of a process that share their statistics; 0 for all of them.
        batch_size: images of a forward pass, over all processes.
        processes: number of processes; each has the same number of images.

    Returns:
        The choice: "auto" is resolved.

    Raises:
        UserError: the groups or the batches do not fit, or a batch norm cannot be converted.
    """
    over = method.batch_norm if batch_norm == "auto" else batch_norm
    local = batch_size // processes
    set_batch_norm(method, over, group, local if method.views_together > 1 else 0)
    normed_head = any(isinstance(module, nn.BatchNorm1d) for module in method.modules())
    if group and method.heads_of_positions and normed_head:
        raise UserError(
            "heads with batch norms that also get the positions of views have no groups of images; give "
            "--batch_norm_group 0 or --no_method.head_batch_norm"
        )
    if group and local % group:
        raise UserError(
            f"batch-norm groups of {counted(group, 'image')} do not divide the {local} that a process holds in a "
            "batch; set --batch_norm_group to a divisor of that (or 0: all of them), or change batch_size, accumulate "
            "or the number of processes"
        )
    together = (batch_size if over == "synchronized" else group or local) * method.views_together
    if together < 2 and normed_head:
        raise UserError("the batch norms of its heads need at least two images each; make the batch larger")
    return over
