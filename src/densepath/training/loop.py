"""The training loop: any task over any batches, measured, saved, and resumed bit for bit."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from densepath.core.errors import UserError
from densepath.core.waiting import listening
from densepath.nets.preserve_mode import preserve_mode
from densepath.runs.lost_peers import reporting_lost_peers
from densepath.runs.sessions import begin_session
from densepath.runs.signals import Interrupted, StopSignals
from densepath.runs.watchdog import Watchdog
from densepath.training.agreement import Start, refusing_together, require_equal_ends, require_equal_starts
from densepath.training.batch_norm import reporting_lonely_values
from densepath.training.hardware import Hardware, keep_freed_memory
from densepath.training.intervals import Intervals, due
from densepath.training.meter import Meter
from densepath.training.nonfinite import require_finite
from densepath.training.processes import join_processes, quiet_lightning, start_processes, without_sync
from densepath.training.random_state import untouched_generators
from densepath.training.recorder import Recorder
from densepath.training.run_control import RunControl
from densepath.training.saver import Saver, set_aside_export
from densepath.training.sharding import unshard, whole
from densepath.training.task import Batches, Task

Evaluate = Callable[[], Mapping[str, float]]
Keep = Callable[[int], None]  # of the weights after a step
DrawStep = Callable[[int], Sequence[Path]]  # step -> pictures


def train(
    task: Task,
    batches: Batches,
    out: Path,
    *,
    hardware: Hardware,
    intervals: Intervals,
    config: Mapping[str, Any] | None = None,
    facts: Mapping[str, int | str] | None = None,
    checksums: Mapping[str, str] | None = None,
    free: Collection[str] = (),
    accumulate: int = 1,
    seed: int = 0,
    resume: bool = False,
    loggers: Sequence[str] = (),
    evaluate: Evaluate | None = None,
    keep: Keep | None = None,
    draw: DrawStep | None = None,
    equal_shapes: bool = True,
    name: str = "densepath",
) -> int:
    """Train a task to the end of its batches. Each process of a run calls this function with the same arguments.

    Several processes check the clock, the signals and the losses only every ``log_every`` steps.

    Args:
        task: the task to train.
        batches: this process's batches; their ``start_step`` is set on resuming.
        out: the run folder: ``metrics.csv`` and ``checkpoints/`` are written to it.
        hardware: the hardware to compute on.
        intervals: intervals of logging, saving and evaluation.
        config: the options of the run, kept in the checkpoints as JSON.
        facts: numbers and digests that must be the same when the run is resumed, e.g. the number of images.
        checksums: digests that must be the same in all processes, besides ``facts``; they are not saved.
        free: dotted names of options in ``config`` that may change when the run is resumed.
        accumulate: batches per optimizer step.
        seed: seed of the stateful random generators (the task has its own random numbers besides).
        resume: continue from the newest checkpoint in ``out``, if there is one.
        loggers: loggers besides the CSV file: "tensorboard", "wandb".
        evaluate: returns further measurements every ``intervals.evaluate_every`` steps, on all processes. Generators
            and the training mode are restored after it.
        keep: keeps the weights every ``intervals.keep_every`` steps, on all processes, before a checkpoint of the step.
        draw: draws pictures every ``intervals.draw_every`` steps, on the first process; generators are restored.
        equal_shapes: all batches have the same shape, so a GPU may time its algorithms once and keep the fastest.
        name: name of the run in loggers.

    Returns:
        The number of optimizer steps done, including those before a resumption.

    Raises:
        UserError: no readable checkpoint, a loss of NaN or Inf, a missing logger, a disk without room for a checkpoint,
            data that does not arrive, or another process that has died, or has other data or options.
        Interrupted: a signal asked to stop; the state is saved.
    """
    total, first = batches.total_steps // accumulate, hardware.rank == 0
    if total < 1:
        raise UserError(f"a step takes {accumulate} batches, and the run has {batches.total_steps}; make it longer")
    with refusing_together(hardware):
        saver = Saver(task, out, config=config or {}, facts=facts or {}, seed=seed, resume=resume, free=free)
        if task.finished():
            total = saver.start
        if first:
            begin_session(out, saver.start, total, config, facts or {}, hardware.device, hardware.world_size)
            set_aside_export(out, total)
    mine = Start(saver.start, {**(facts or {}), **(checksums or {})}, config or {})
    # The initial weights are those of the first process, except where each process shards its own.
    free = free if hardware.strategy == "fsdp" else (*free, "weights")
    if saver.start >= total:
        require_equal_ends(hardware, mine, free)
        return saver.start
    batches.start_step = saver.start * accumulate
    keep_freed_memory(hardware)

    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", module=r"lightning\.")
        signals = stack.enter_context(StopSignals())
        logged = bool(saver.start) and due(saver.start, intervals.log_every)
        with refusing_together(hardware):
            recorder = Recorder(out, saver.start, total, first=first, loggers=loggers, name=name, logged=logged)
        stack.callback(recorder.close)
        watchdog = stack.enter_context(Watchdog(out, hardware.rank, hardware.world_size, signals))
        stack.enter_context(reporting_lonely_values(config or {}))
        stack.enter_context(reporting_lost_peers(hardware.world_size, out, signals))
        watchdog.started(start_processes(hardware))
        stack.enter_context(quiet_lightning())
        fabric = join_processes(hardware, equal_shapes)
        watchdog.joined()
        require_equal_starts(mine, free)
        hardware.place(task, fabric.device)
        model = fabric.strategy.setup_module(task)  # Fabric's own wrapper would copy each batch
        updates = task.updates()
        meter: Meter = Meter()
        saver.restore(updates, meter)
        run = RunControl(task, out, saver, meter, recorder, signals, intervals, fabric.device, total)
        stack.enter_context(listening(run.while_waiting))
        stack.enter_context(run.save_before_stopping())
        feed = stack.enter_context(closing(run.feed(batches)))

        for step in range(saver.start, total):
            run.between_steps(step)
            for number in range(accumulate):
                batch = next(feed)
                inputs = task.inputs(batch)
                if number == 0:
                    with fabric.autocast():
                        task.before_step(inputs, run.long_work)
                    run.in_step()
                with without_sync(model, number < accumulate - 1):
                    with fabric.autocast():
                        outputs = model(inputs)
                    fabric.backward(outputs["loss"] / accumulate)
                meter.record(step, outputs, batch)
            lr = updates.lr
            task.after_backward()
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
            ended, best, measured = False, False, dict[str, float]()
            if evaluate and due(done, intervals.evaluate_every):
                with meter.paused(), untouched_generators(), preserve_mode(task), whole(task):
                    measured = dict(evaluate())
                ended, best = task.finished(), task.is_best()
                if (ended or best) and not saves:
                    require_finite(task, meter, out, weights=True)
            logs, last = logs or ended, ended or done == total
            row = ({**meter.collect(), "lr": lr} if logs else {}) | measured
            recorder.write(done, row)
            recorder.warn(task.warnings(row, last) if logs else [])
            if draw and (due(done, intervals.draw_every) or (intervals.draw_every and last)):
                with meter.paused(), untouched_generators(), whole(task):
                    for path in draw(done) if first else ():
                        recorder.picture(done, path)
            if keep and due(done, intervals.keep_every):
                with meter.paused(), whole(task):
                    keep(done)
            if saves or ended or best:
                recorder.flush()
                with meter.paused():
                    saver.save(done, best, last)
            recorder.progress.step(done, row if logs else None)
            if ended:
                total = done
                break
            if stop:
                raise Interrupted(stop)
        run.stop_if_asked()
    signals.check()  # one may have come while workers and loggers ended
    unshard(task)
    task.cpu()
    return total
