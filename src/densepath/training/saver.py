"""The state of a run: saved by all processes together, and restored bit for bit."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from densepath.core.distributed import rank, world_size
from densepath.core.errors import UserError
from densepath.core.keywords import quoted
from densepath.core.records import CONFIG
from densepath.core.stopwatch import Stopwatch
from densepath.core.streams import say
from densepath.nets.running_statistics import gather_statistics, name_statistics, set_statistics
from densepath.nets.weights import read_weights
from densepath.nets.weights.checks import only_weights, require_numbers
from densepath.runs.checkpoints import CHECKPOINTS, newest_checkpoint, write_checkpoint
from densepath.runs.folder import AT_STEP, BEST, EXPORTED, KEPT, changed_options, from_weights, train_longer
from densepath.runs.metrics import METRICS
from densepath.runs.old_options import rename_record
from densepath.training.meter import Meter
from densepath.training.model_card import rename_card
from densepath.training.random_state import random_state, seed_generators, set_random_state
from densepath.training.sharding import collect, divide_state
from densepath.training.task import Task
from densepath.training.threads import keep_threads
from densepath.training.updates import Updates

_SET_BY = {"images": "data", "steps": "length", "processes": "number of processes (--devices, or the launcher's)"}
# Digests, which runs of earlier versions lack, and what a change means.
_DIGESTS = {
    "names": "the names of the images, or their order, are not those that the run in {out} was started with",
    "sizes": "files of images have been replaced since the run in {out} was started: their sizes differ",
    "samples": "files of images have been replaced since the run in {out} was started: their contents differ",
    "pixels": "images of the packed store have been replaced since the run in {out} was started: their pixels differ",
    "parts": "files of slides of several files have been replaced since the run in {out} was started",
    "conversion": "the volumes were converted again since the run in {out} was started: with other affine maps, or "
    "with the window of each volume instead of a common one, or the reverse",
    "annotations": "the annotations are not those that the run in {out} was started with",
    "cells": "the cells are not those that the run in {out} was started with",
    "cells_found": "the cells have been found again since the run in {out} was started, and are others",
    "regions": "the label maps, masks or saliency model are not those that the run in {out} was started with",
    "regions_numbers": "the run in {out} was started by a version that numbered the labels of each map from 0, so that "
    "a number may not have meant the same in all images",
}
_SINCE = {"regions_numbers": "regions"}  # a run that lacks the first digest is refused, unless it has the second one
_BY_IMAGE = " (--fraction chooses patients where any are known; up to version 0.1 it chose images)"


class Saver:
    """Saves a run and restores it.

    Each process has its own running statistics in its batch norms; the weights in a checkpoint, and those of every
    process at the end of the run, have their mean. As they are moving averages, the mean is what a single process with
    all the images in batch-norm groups would have.

    Args:
        task: the task to save.
        out: the run folder.
        config: the options of the run, kept in the checkpoints as JSON.
        facts: numbers and digests that must be the same when the run is resumed.
        seed: seed of the stateful random generators.
        resume: restore the newest checkpoint in ``out``, if there is one.
        free: dotted names of options in ``config`` that may change when a run is resumed.

    Attributes:
        start: number of optimizer steps done at the restored checkpoint; 0 without one.
        saved: the step of the newest checkpoint; -1 without one.

    Raises:
        UserError: no checkpoint is readable, or it belongs to a run with other facts or weights; or a run with trained
            weights has none.
    """

    def __init__(
        self,
        task: Task,
        out: Path,
        *,
        config: Mapping[str, Any],
        facts: Mapping[str, int | str],
        seed: int,
        resume: bool,
        free: Collection[str] = (),
    ) -> None:
        self._task, self._out, self._seed = task, out, seed
        self._notes = {"config": json.dumps(config), "facts": dict(facts)}
        self._state = newest_checkpoint(out / CHECKPOINTS) if resume else None
        self.start = 0
        self.saved = -1
        if resume and not self._state:
            _start_again(out)
        if self._state:
            _check_config(config, self._state.get("config"), free, out)
            _check_facts(facts, self._state, out, config)
            load_task(task, self._state, out)
            keep_threads(self._state.get("threads"))
            self.start = self.saved = self._state["step"]
        self._watch = Stopwatch()
        self._saved_at = self._watch.read()

    def restore(self, updates: Updates, meter: Meter) -> None:
        """Restore the optimizer, its schedule and this process's statistics, after the weights are on their device.

        The measurements of ``meter`` are saved and restored, too.
        """
        self._updates, self._meter = updates, meter
        if self._state:
            (optimizer,), (schedule,) = self._state["optimizers"], self._state["schedules"]
            updates.optimizer.load_state_dict(divide_state(optimizer, updates.optimizer))
            updates.schedule.load_state_dict(schedule)
            if world_size() > 1 and len(self._state.get("statistics", ())) == world_size():
                set_statistics(self._task, self._state["statistics"][rank()])

    def begin(self, device: torch.device) -> None:
        """Restore the measurements, and restore or seed the random generators, after the loader has drawn from them."""
        state, self._state = self._state or {}, None
        measured, kept = state.get("measured", ()), state.get("random", ())
        if rank() < len(measured):
            self._meter.restore(measured[rank()], device)
        if rank() < len(kept):
            set_random_state(kept[rank()])
        else:
            seed_generators(self._seed, rank())

    def minutes(self) -> float:
        """Minutes since the last checkpoint, or since the start."""
        return (self._watch.read() - self._saved_at) / 60

    def save(self, step: int, best: bool = False, last: bool = False) -> None:
        """Write a checkpoint of the state after a step. All processes call this.

        Args:
            step: number of optimizer steps done.
            best: the checkpoint is also kept as the best one.
            last: the run ends with it: the task gets the mean statistics that are saved.
        """
        states = [(random_state(), self._meter.state())]
        if world_size() > 1:
            mine, states = states[0], states * world_size()
            dist.all_gather_object(states, mine)
        statistics = gather_statistics(self._task)
        weights, optimizer = (collect(part.state_dict()) for part in (self._task, self._updates.optimizer))
        if rank() == 0:
            weights.update(name_statistics(self._task, statistics.mean(0)))
            state = {
                "step": step,
                **self._notes,
                "state_dict": weights,
                "statistics": statistics,  # of each process
                "optimizers": [optimizer],
                "schedules": [self._updates.schedule.state_dict()],
                "random": [generators for generators, _ in states],
                "measured": [measured for _, measured in states],  # since the last row of metrics.csv
                "threads": torch.get_num_threads(),
            }
            write_checkpoint(self._out / CHECKPOINTS, state, best)
        if world_size() > 1:
            dist.barrier()  # a launcher may kill the other processes as soon as one has exited
        if last:
            set_statistics(self._task, statistics.mean(0))  # the exported weights equal the saved ones
        self._saved_at, self.saved = self._watch.read(), step


def _start_again(out: Path) -> None:
    """Say that a run without a checkpoint starts again; raise UserError if that would replace its trained weights."""
    during = (KEPT, AT_STEP, BEST.name)  # written during the run, also before its first checkpoint
    if any(not path.name.startswith(during) for path in (out / EXPORTED).parent.glob("*.safetensors")):
        raise UserError(
            f"{out} has trained weights but no checkpoint: its checkpoints were removed; use the weights "
            f"(--weights {quoted(out)}), or name another folder to train again"
        )
    if rank() == 0 and (out / METRICS).exists():
        say(f"densepath: {out} has no checkpoint, so the run starts again")


def set_aside_export(out: Path, total: int) -> None:
    """Rename exported weights of a run that continues, and their card: their name means that the run is complete.

    Args:
        out: the run folder.
        total: optimizer steps of the whole run.
    """
    path = out / EXPORTED
    try:
        step = int(read_weights(path).metadata["steps"])
    except (UserError, LookupError, ValueError):  # there are none, or none that can be read
        return
    if step < total:
        aside = path.with_name(f"{AT_STEP}{step}{path.suffix}")
        path.replace(aside)
        rename_card(path, aside)


def load_task(task: Task, state: dict[str, Any], out: Path) -> None:
    """Load the weights and buffers of a checkpoint into a task.

    Raises:
        UserError: the checkpoint belongs to another task.
    """
    require_numbers(only_weights(task, state["state_dict"]), f"the checkpoint in {out}", task.state_dict())
    try:
        task.load_state_dict(state["state_dict"])
    except RuntimeError as error:
        why = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise UserError(
            f"the checkpoint in {out} does not fit the network of this run ({why}); resume it as it was started"
        ) from None


def _check_config(now: Mapping[str, Any], text: Any, free: Collection[str], out: Path) -> None:
    """Check that a checkpoint belongs to a run with these options: it may be copied from another folder."""
    then = json.loads(text) if isinstance(text, str) else {}
    changed = changed_options(rename_record(then), now, free, defaults=now) if then and now else []
    if changed:
        raise UserError(
            f"the checkpoint in {out} belongs to a run with other values of {', '.join(changed)} than {out / CONFIG}; "
            "undo what was changed there, put the folder's own checkpoint back, or name another folder"
        )


def changed_facts(now: Mapping[str, int | str], then: Mapping[str, int | str]) -> list[str]:
    """The names of facts that differ from those of another start; digests only if both have them for the same kind."""
    changed = []
    for name, fact in now.items():
        kinds = {str(value).partition(" ")[0] for value in (then.get(name), fact) if " " in str(value)}
        lacking = name not in then and (name not in _SINCE or _SINCE[name] in then)
        unknown = lacking or len(kinds) > 1  # files cannot be compared with packed images
        if then.get(name) != fact and not (name in _DIGESTS and unknown):
            changed.append(name)
    return changed


def is_complete(state: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is the last one of its run."""
    since, patience = state.get("state_dict", {}).get("patience.since", 0), config.get("patience") or 0
    return state.get("step", 0) >= state.get("facts", {}).get("steps", 0) or 0 < patience <= int(since)


def _check_facts(now: Mapping[str, int | str], state: Mapping[str, Any], out: Path, config: Mapping[str, Any]) -> None:
    then = state["facts"]
    for name in changed_facts(now, then):
        if name in _SINCE and is_complete(state, config):  # it is not trained further
            continue
        if name in _DIGESTS:
            text = _DIGESTS[name].format(out=out) + (_BY_IMAGE if config.get("fraction", 1) < 1 else "")
            if name in _SINCE:
                raise UserError(f"{text}; start it again in another folder")
            raise UserError(f"{text}; restore them, or start another run: {from_weights(out)}")
        longer = train_longer(out, config) if name == "steps" else "name another folder"
        raise UserError(
            f"the run in {out} was started with {then.get(name)} {name}, but there are {now[name]} now; "
            f"resume it with the same {_SET_BY.get(name, 'options')}, or {longer}"
        )
