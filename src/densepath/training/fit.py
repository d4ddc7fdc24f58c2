"""The training loop: any LightningModule over any batches, measured, saved, and resumed bit for bit."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import lightning as L
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy, Strategy

from densepath.core.errors import UserError
from densepath.runs.checkpoints import CHECKPOINTS, newest_checkpoint
from densepath.runs.lost_peers import in_company
from densepath.runs.metrics import MetricsFile
from densepath.runs.progress import Progress, say
from densepath.runs.signals import Interrupted, StopSignals
from densepath.training.hardware import Hardware, keep_freed_memory
from densepath.training.loggers import make_loggers
from densepath.training.meter import Meter
from densepath.training.run_callback import DrawStep, Evaluate, Intervals, RunCallback

_SET_BY = {"images": "data", "steps": "length", "processes": "number of processes (--devices, or the launcher's)"}


class Batches(Protocol):
    """What :func:`fit` iterates over.

    A batch has a length, its number of images, and may have an ``index``, which images they are.

    Attributes:
        start_step: the batch, counted from 0 over the whole run, that iterating starts with.
        total_steps: batches of this process in the whole run.
    """

    start_step: int
    total_steps: int

    def __iter__(self) -> Iterator[Any]: ...


class _Timed:
    """The remaining batches as Lightning wants them: with a length."""

    def __init__(self, batches: Batches, meter: Meter) -> None:
        self._batches, self._meter = batches, meter

    def __len__(self) -> int:
        return self._batches.total_steps - self._batches.start_step

    def __iter__(self) -> Iterator[Any]:
        return self._meter.timed(self._batches)


def fit(
    module: L.LightningModule,
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
    """Train a module to the end of its batches.

    The module's ``training_step`` returns a dictionary of scalars: "loss", which is minimized, and what else is to be
    measured (tensors need not leave their device). Its ``configure_optimizers`` returns one optimizer, perhaps with a
    learning-rate schedule per step. Each process calls this function alike.

    Args:
        module: what is trained.
        batches: this process's batches; their ``start_step`` is set on resuming.
        out: the run folder: ``metrics.csv`` and ``checkpoints/`` are made in it.
        hardware: where it computes.
        intervals: how often things are logged, saved, evaluated.
        config: what the run was asked for, kept in the checkpoints as JSON.
        facts: numbers that must be the same when the run is resumed, such as that of the images.
        accumulate: batches per optimizer step.
        seed: of the generators that draw from a stream (other randomness is the module's own).
        resume: go on from the newest checkpoint in ``out``, if there is one.
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
        UserError: no readable checkpoint, a loss that is not finite, a missing logger, a disk that is full, or another
            process that is gone.
        Interrupted: a signal asked to stop; the state is saved.
    """
    total = batches.total_steps // accumulate
    if total < 1:
        raise UserError(
            f"the run has {batches.total_steps} batches, fewer than the {accumulate} of one step; make it longer"
        )
    state = newest_checkpoint(out / CHECKPOINTS) if resume else None
    start = 0
    if state:
        start = state["step"]
        _check_facts(facts or {}, state["facts"], out)
        load_module(module, state, out)
        if start >= total:
            if hardware.rank == 0:
                say(f"densepath: the run in {out} is complete ({start} steps)")
            return start
        if hardware.rank == 0:
            say(f"densepath: going on with {out} at step {start} of {total}")
    batches.start_step = start * accumulate
    module.to(memory_format=hardware.memory_format)
    keep_freed_memory(hardware)

    first = hardware.rank == 0
    meter: Meter = Meter()
    extra = make_loggers(loggers, out, name) if first else []
    progress = Progress(start, total, shown=first)
    with StopSignals() as signals, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.")
        callback = RunCallback(
            out,
            {"config": json.dumps(config or {}), "facts": dict(facts or {})},
            intervals,
            total=total,
            accumulate=accumulate,
            seed=seed,
            state=state,
            meter=meter,
            metrics=MetricsFile(out / "metrics.csv", start) if first else None,
            progress=progress,
            signals=signals,
            loggers=extra,
            evaluate=evaluate,
            draw=draw,
        )
        try:
            trainer = _make_trainer(hardware, callback, extra, total - start, accumulate, equal_shapes)
            with in_company(hardware.world_size, out), suppress(Interrupted):  # in the middle of work aside; said below
                trainer.fit(module, train_dataloaders=_Timed(batches, meter))
        finally:
            progress.close()
    if callback.stopped_by:
        if first:
            say(f"densepath: stopped and saved; the same command with --resume goes on with {out}")
        raise Interrupted(callback.stopped_by)
    return total


def load_module(module: L.LightningModule, state: dict[str, Any], out: Path) -> None:
    """Give a module the weights and buffers of a checkpoint.

    Raises:
        UserError: the checkpoint is of another module.
    """
    try:
        module.load_state_dict(state["state_dict"])
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


def _make_strategy(hardware: Hardware) -> Strategy | str:
    """One process, or several that average their gradients and keep their own batch statistics."""
    if hardware.world_size == 1:
        return "auto"
    return DDPStrategy(find_unused_parameters=False, broadcast_buffers=False, gradient_as_bucket_view=True)


def _make_trainer(
    hardware: Hardware,
    callback: L.Callback,
    loggers: list[Logger],
    steps: int,
    accumulate: int,
    equal_shapes: bool,
) -> L.Trainer:
    for library in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.ERROR)
    trainer = L.Trainer(
        accelerator=hardware.kind,
        devices=hardware.devices,
        num_nodes=hardware.nodes,
        strategy=_make_strategy(hardware),
        plugins=[hardware.environment],
        precision="bf16-mixed" if hardware.precision == "bf16-mixed" else "32-true",
        deterministic="warn" if hardware.deterministic else None,
        benchmark=hardware.kind == "cuda" and equal_shapes and not hardware.deterministic,
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        callbacks=[callback],
        logger=loggers or False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        use_distributed_sampler=False,
    )
    # Lightning would make every process wait for the device at every step, to ask whether one was told to stop.
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    return trainer
