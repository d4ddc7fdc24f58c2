"""The state of a run: saved by all processes together, and taken up again bit for bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from densepath.core.distributed import rank, world_size
from densepath.core.errors import UserError
from densepath.core.stopwatch import Stopwatch
from densepath.nets.norms import gather_statistics, name_statistics, set_statistics
from densepath.runs.checkpoints import CHECKPOINTS, newest_checkpoint, write_checkpoint
from densepath.training.random_state import random_state, seed_generators, set_random_state
from densepath.training.task import Task
from densepath.training.updates import Updates

_SET_BY = {"images": "data", "steps": "length", "processes": "number of processes (--devices, or the launcher's)"}


class Saver:
    """Saves a run and restores it.

    Each process keeps running statistics of its own in its batch norms; the weights in a checkpoint, and those of every
    process at the end of the run, have their mean. As they are moving averages, it is what one process would hold that
    has the images of all of them, in batch-norm groups.

    Args:
        task: what is trained.
        out: the run folder.
        config: what the run was asked for, kept in the checkpoints as JSON.
        facts: numbers that must be the same when the run is resumed.
        total: optimizer steps of the whole run.
        seed: of the generators that draw from a stream.
        resume: take up the newest checkpoint in ``out``, if there is one.

    Attributes:
        start: optimizer steps that the checkpoint holds; 0 without one.
        saved: the step of the newest checkpoint; -1 without one.

    Raises:
        UserError: no readable checkpoint, or one of a run with other facts or weights.
    """

    def __init__(
        self,
        task: Task,
        out: Path,
        *,
        config: Mapping[str, Any],
        facts: Mapping[str, int],
        total: int,
        seed: int,
        resume: bool,
    ) -> None:
        self._task, self._out, self._total, self._seed = task, out, total, seed
        self._notes = {"config": json.dumps(config), "facts": dict(facts)}
        self._state = newest_checkpoint(out / CHECKPOINTS) if resume else None
        self.start = 0
        self.saved = -1
        if self._state:
            _check_facts(facts, self._state["facts"], out)
            load_task(task, self._state, out)
            self.start = self.saved = self._state["step"]
        self._watch = Stopwatch()
        self._saved_at = self._watch.read()

    def restore(self, updates: Updates) -> None:
        """Take up the optimizer, its schedule and this process's statistics, when the weights lie on their device."""
        self._updates = updates
        if self._state:
            (optimizer,), (schedule,) = self._state["optimizers"], self._state["schedules"]
            updates.optimizer.load_state_dict(optimizer)
            updates.schedule.load_state_dict(schedule)
            if world_size() > 1 and len(self._state.get("statistics", ())) == world_size():
                set_statistics(self._task, self._state["statistics"][rank()])

    def restore_generators(self) -> None:
        """Take up the generators, or start them; once the loader has drawn what it draws when it starts."""
        kept = self._state["random"] if self._state else []
        self._state = None
        if rank() < len(kept):
            set_random_state(kept[rank()])
        else:
            seed_generators(self._seed, rank())

    def minutes(self) -> float:
        """Since the last checkpoint, or the start."""
        return (self._watch.read() - self._saved_at) / 60

    def save(self, step: int) -> None:
        """Write a checkpoint of the state after a step. All processes call this."""
        states = [random_state()]
        if world_size() > 1:
            states *= world_size()
            dist.all_gather_object(states, random_state())
        statistics = gather_statistics(self._task)
        if rank() == 0:
            weights = self._task.state_dict()
            weights.update(name_statistics(self._task, statistics.mean(0)))
            state = {
                "step": step,
                **self._notes,
                "state_dict": weights,
                "statistics": statistics,  # of each process
                "optimizers": [self._updates.optimizer.state_dict()],
                "schedules": [self._updates.schedule.state_dict()],
                "random": states,
            }
            write_checkpoint(self._out / CHECKPOINTS, state)
        if world_size() > 1:
            dist.barrier()  # a launcher may end the others as soon as one process has left
        if step == self._total:
            set_statistics(self._task, statistics.mean(0))  # what is exported is what was saved
        self._saved_at, self.saved = self._watch.read(), step


def load_task(task: Task, state: dict[str, Any], out: Path) -> None:
    """Give a task the weights and buffers of a checkpoint.

    Raises:
        UserError: the checkpoint is of another one.
    """
    try:
        task.load_state_dict(state["state_dict"])
    except RuntimeError as error:
        why = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise UserError(
            f"the checkpoint in {out} does not fit what is trained ({why}); resume it as it was started"
        ) from None


def _check_facts(now: Mapping[str, int], then: Mapping[str, int], out: Path) -> None:
    for name, number in now.items():
        if then.get(name) != number:
            raise UserError(
                f"the run in {out} was started with {then.get(name)} {name}, but there are {number} now; "
                f"resume it with the same {_SET_BY.get(name, 'options')}, or name another folder"
            )
