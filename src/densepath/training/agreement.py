"""Checks before the first step that all processes of a run were started alike; if not, they all refuse to start."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from densepath.core.distributed import world_size
from densepath.core.errors import UserError
from densepath.core.plain import plain
from densepath.core.waiting import limit_seconds
from densepath.runs.folder import differences
from densepath.training.hardware import Hardware
from densepath.training.processes import join_processes, quiet_lightning
from densepath.training.saver import changed_facts

# A process that refuses to start waits no longer for the others: they may have ended for the same reason.
_LONGEST = 120.0  # seconds
_NAMES = {
    "names": "names of images, or another order",
    "sizes": "sizes of image files",
    "samples": "contents of image files",
    "pixels": "pixels of packed images",
    "parts": "files of slides",
    "conversion": "conversion of volumes",
    "cells_found": "found cells",
    "classes": "labels of images",
    "regions": "label maps",
    "teacher": "weights of the teacher",
    "tokenizer": "weights of the tokenizer",
}


@dataclass(frozen=True)
class Start:
    """How one process starts.

    Args:
        step: number of optimizer steps done before.
        facts: numbers and digests of its data, as ``facts`` and ``checksums`` of
            :func:`~densepath.training.loop.train`.
        config: its options.
        refusal: why it does not start; "" if it does.
    """

    step: int = 0
    facts: Mapping[str, int | str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    refusal: str = ""


@contextmanager
def refusing_together(hardware: Hardware) -> Iterator[None]:
    """Pass a UserError of this block on to the other processes, in which :func:`require_equal_starts` raises it.

    They would wait for this process otherwise. The blocks of a run follow each other: one within another would pass the
    error on twice.

    Args:
        hardware: has the processes, which have not been joined yet.
    """
    try:
        yield
    except UserError as error:
        _meet(hardware, Start(refusal=str(error)))
        raise


def require_equal_ends(hardware: Hardware, mine: Start, free: Collection[str]) -> None:
    """Check that a run that is complete in this process is so in all that a launcher has started.

    Without the check a process that starts from the first step would wait for this one.

    Args:
        hardware: has the processes, which have not been joined yet.
        mine, free: as for :func:`require_equal_starts`.

    Raises:
        UserError: as for :func:`require_equal_starts`.
    """
    _check(_meet(hardware, mine), free)


def require_equal_starts(mine: Start, free: Collection[str]) -> None:
    """Check that all processes start with the same data and options at the same step. All processes call this.

    Args:
        mine: how this process starts.
        free: dotted names of options that may differ.

    Raises:
        UserError: on all processes, if one of them differs from the first, or refuses to start.
    """
    _check(_gather(mine), free)


def _meet(hardware: Hardware, mine: Start) -> list[Start]:
    """Join the processes, unless this one would have to start them, and tell them how this one starts.

    Returns:
        How each process starts; nothing if they do not come in time.
    """
    if hardware.world_size > 1 and hardware.environment.creates_processes_externally:
        with suppress(RuntimeError, UserError), quiet_lightning():
            limit = timedelta(seconds=min(_LONGEST, limit_seconds()))
            join_processes(hardware, equal_shapes=True, timeout=limit)
            return _gather(mine)
    return []


def _check(starts: Sequence[Start], free: Collection[str]) -> None:
    for rank, start in enumerate(starts):
        if start.refusal:
            raise UserError(f"rank {rank} does not start: {start.refusal}")
    for rank, start in enumerate(starts[1:], 1):
        difference = _difference(starts[0], start, free)
        if difference:
            raise UserError(f"rank {rank} has {difference}")


def _gather(mine: Start) -> list[Start]:
    starts = [mine] * world_size()
    if world_size() > 1:
        dist.all_gather_object(starts, mine)
    return starts


def _difference(first: Start, other: Start, free: Collection[str]) -> str:
    """What a process has that the first one has not, and what to do; "" if they are alike."""
    options = differences(plain(first.config), plain(other.config), free)
    if options == ["precision"]:
        return "another precision than rank 0 (auto depends on the hardware); give all the same, such as --precision 32"
    if options:
        return f"other values of {', '.join(options)} than rank 0; start all processes with the same options"
    for name in (*changed_facts(other.facts, first.facts), *changed_facts(first.facts, other.facts)):
        here, there = other.facts.get(name), first.facts.get(name)
        numbers = isinstance(here, int) and isinstance(there, int)
        what = f"{here} {name}, but rank 0 has {there}" if numbers else f"other {_NAMES.get(name, name)} than rank 0"
        return f"{what}; give all processes the same data"
    if other.step != first.step:
        return (
            f"{other.step} steps done, but rank 0 has {first.step}; give all processes the same run folder, and "
            "--resume to all or none"
        )
    return ""
