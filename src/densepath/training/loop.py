"""The training loop: any task over any batches, measured, saved, and resumed bit for bit."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Protocol

from densepath.core.errors import UserError
from densepath.core.streams import say
from densepath.core.waiting import listening
from densepath.nets.preserve_mode import preserve_mode
from densepath.runs.lost_peers import reporting_lost_peers
from densepath.runs.signals import Interrupted, StopSignals
from densepath.runs.watchdog import Watchdog
from densepath.training.attendant import Attendant
from densepath.training.hardware import Hardware, keep_freed_memory
from densepath.training.intervals import Intervals, due
from densepath.training.meter import Meter
from densepath.training.nonfinite import require_finite
from densepath.training.processes import join_processes, start_processes, without_sync
from densepath.training.random_state import untouched_generators
from densepath.training.recorder import Recorder
from densepath.training.saver import Saver
from densepath.training.task import Task

Evaluate = Callable[[], Mapping[str, float]]
DrawStep = Callable[[int], Path]  # of a step; gives the picture


class Batches(Protocol):
    """What :func:`train` iterates over.

    A batch has a length, its number of images, and may have an ``index``, which images they are.

    Attributes:
        start_step: the batch, counted from 0 over the whole run, that iterating starts with.
        total_steps: batches of this process in the whole run.
    """

    start_step: int
    total_steps: int

    def __iter__(self) -> Iterator[Any]: ...


def train(
    task: Task,
    batches: Batches,
    out: Path,
    *,
    hardware: Hardware,
    intervals: Intervals,
    config: Mapping[str, Any] | None = None,
    facts: Mapping[str, int] | None = None,
    accumulate: int = 1,
    seed: int = 0,
    resume: bool = False,
    loggers: Sequence[str] = (),
    evaluate: Evaluate | None = None,
    draw: DrawStep | None = None,
    equal_shapes: bool = True,
    name: str = "densepath",
) -> int:
    """Train a task to the end of its batches. Each process of a run calls this function alike.

    Several processes look at the clock, the signals and the losses only every ``log_every`` steps, and agree there on
    what to do.

    Args:
        task: what is trained.
        batches: this process's batches; their ``start_step`` is set on resuming.
        out: the run folder: ``metrics.csv`` and ``checkpoints/`` are made in it.
        hardware: where it computes.
        intervals: how often things are logged, saved, evaluated.
        config: what the run was asked for, kept in the checkpoints as JSON.
        facts: numbers that must be the same when the run is resumed, such as that of the images.
        accumulate: batches per optimizer step.
        seed: of the generators that draw from a stream (other randomness is the task's own).
        resume: continue from the newest checkpoint in ``out``, if there is one.
        loggers: besides the CSV file: "tensorboard", "wandb".
        evaluate: gives further measurements every ``intervals.evaluate_every`` steps, on all processes. Generators and
            the training mode are put back after it.
        draw: draws a picture every ``intervals.draw_every`` steps, on the first process. Generators are put back after
            it.
        equal_shapes: all batches have the same shape, so a GPU may time its algorithms once and keep the fastest.
        name: what the run is called in loggers.

    Returns:
        The optimizer steps done, over all sittings.

    Raises:
        UserError: no readable checkpoint, a loss that is not finite, a missing logger, a disk that is full, data that
            does not come, or another process that is gone.
        Interrupted: a signal asked to stop; the state is saved.
    """
    total, first = batches.total_steps // accumulate, hardware.rank == 0
    if total < 1:
        raise UserError(
            f"the run has {batches.total_steps} batches, fewer than the {accumulate} of one step; make it longer"
        )
    saver = Saver(task, out, config=config or {}, facts=facts or {}, total=total, seed=seed, resume=resume)
    if first and saver.start:
        said = f"resuming {out} at step {saver.start} of {total}"
        say(f"densepath: {said if saver.start < total else f'the run in {out} is complete ({saver.start} steps)'}")
    if saver.start >= total:
        return saver.start
    batches.start_step = saver.start * accumulate
    keep_freed_memory(hardware)

    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", module=r"lightning\.")
        signals = stack.enter_context(StopSignals())
        recorder = Recorder(out, saver.start, total, first=first, loggers=loggers, name=name)
        stack.callback(recorder.close)
        watchdog = stack.enter_context(Watchdog(out, hardware.rank, hardware.world_size, signals))
        stack.enter_context(reporting_lost_peers(hardware.world_size, out, signals))
        watchdog.started(start_processes(hardware))
        fabric = join_processes(hardware, equal_shapes)
        watchdog.joined()

        hardware.lay_out(task)
        task.to(fabric.device)
        model = fabric.strategy.setup_module(task)  # itself, or wrapped: Fabric's own wrapper would copy each batch
        updates = task.updates()
        saver.restore(updates)
        meter: Meter = Meter()
        run = Attendant(task, out, saver, meter, recorder, signals, intervals, fabric.device, total)
        stack.enter_context(listening(run.while_waiting))
        stack.enter_context(run.saved_where_it_stands())
        feed = stack.enter_context(closing(run.feed(batches)))

        for step in range(saver.start, total):
            run.between(step)
            for number in range(accumulate):
                batch = next(feed)
                inputs = task.inputs(batch)
                if number == 0:
                    with fabric.autocast():
                        task.before_step(inputs, run.long_work)
                    run.within()
                with without_sync(model, number < accumulate - 1):
                    with fabric.autocast():
                        outputs = model(inputs)
                    fabric.backward(outputs["loss"] / accumulate)
                meter.record(step, outputs, batch)
            lr = updates.lr
            updates.freeze(step)
            updates.clip_gradients()
            updates.optimizer.step()
            updates.schedule.step()
            updates.optimizer.zero_grad()
            task.after_step()

            done = step + 1
            logs, saves, stop = run.agree(done)
            if logs or saves:
                require_finite(task, meter, out, weights=saves)
            row = {**meter.collect(), "lr": lr} if logs else {}
            if evaluate and due(done, intervals.evaluate_every):
                with meter.paused(), untouched_generators(), preserve_mode(task):
                    row |= evaluate()
            recorder.write(done, row)
            if draw and first and (due(done, intervals.draw_every) or (intervals.draw_every and done == total)):
                with meter.paused(), untouched_generators():
                    recorder.picture(done, draw(done))
            if saves:
                with meter.paused():
                    saver.save(done)
            recorder.progress.step(done, row if logs else None)
            if stop:
                raise Interrupted(stop)
    task.cpu()
    return total
