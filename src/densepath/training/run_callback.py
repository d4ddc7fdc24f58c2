"""What happens between the steps: measuring, evaluating, saving, stopping."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.loggers import Logger

from densepath.core.distributed import rank, world_size
from densepath.core.errors import UserError
from densepath.core.stopwatch import Stopwatch
from densepath.methods.base import Tick
from densepath.nets.norms import gather_statistics, name_statistics, set_statistics
from densepath.nets.preserve_mode import untouched_modes
from densepath.runs.checkpoints import CHECKPOINTS, write_checkpoint
from densepath.runs.metrics import MetricsFile
from densepath.runs.progress import Progress
from densepath.runs.signals import Interrupted, StopSignals
from densepath.training.loggers import log_picture
from densepath.training.meter import Meter
from densepath.training.module import PretrainModule
from densepath.training.nonfinite import all_finite, end_run, first_of_all
from densepath.training.random_state import random_state, seed_generators, set_random_state, untouched_generators

Evaluate = Callable[[], Mapping[str, float]]
DrawStep = Callable[[int], Path]  # of a step; gives the picture


@dataclass(frozen=True)
class Intervals:
    """How often things happen, in optimizer steps (0: never) unless it says minutes.

    Args:
        log_every: measurements are written, and the loss is checked.
        save_every_steps, save_every_minutes: a checkpoint is written.
        evaluate_every: the evaluation is called.
        draw_every: a picture is drawn; and at the end of the run, if any are.
    """

    log_every: int = 10
    save_every_steps: int = 0
    save_every_minutes: float = 10.0
    evaluate_every: int = 0
    draw_every: int = 0

    def __post_init__(self) -> None:
        if self.log_every < 1:
            raise UserError(f"log_every is {self.log_every}; it must be at least 1")


class RunCallback(L.Callback):
    """Accompanies a run from its first or its resumed step to its last.

    Several processes look at the clock, the signals and the losses only every ``log_every`` steps, and agree there on
    what to do. Each keeps running statistics of its own in its batch norms; the weights in a checkpoint, and those of
    every process at the end of the run, have their mean. As they are moving averages, it is what one process would hold
    that has the images of all of them, in batch-norm groups.

    Args:
        out: the run folder.
        notes: entries of their own in the checkpoints.
        intervals: how often things happen.
        total: optimizer steps of the whole run.
        accumulate: batches per optimizer step.
        seed: of the generators that draw from a stream.
        state: the checkpoint to go on from.
        meter, metrics, progress, signals, loggers: where measurements and wishes come from and go to.
        evaluate: gives further measurements; called on all processes.
        draw: draws a picture; called on the first process.
    """

    def __init__(
        self,
        out: Path,
        notes: Mapping[str, Any],
        intervals: Intervals,
        *,
        total: int,
        accumulate: int,
        seed: int,
        state: dict[str, Any] | None,
        meter: Meter,
        metrics: MetricsFile | None,
        progress: Progress,
        signals: StopSignals,
        loggers: list[Logger],
        evaluate: Evaluate | None,
        draw: DrawStep | None = None,
    ) -> None:
        self.out, self.notes, self.intervals = out, notes, intervals
        self.total, self.accumulate, self.seed = total, accumulate, seed
        self.state = state
        self.start: int = state["step"] if state else 0
        self.meter, self.metrics, self.progress = meter, metrics, progress
        self.signals, self.loggers = signals, loggers
        self.evaluate, self.draw = evaluate, draw
        self.stopped_by: int | None = None
        self._lr = 0.0
        self._batch = 0
        self._saved_step = self.start if state else -1
        self._watch = Stopwatch()
        self._saved_at = self._watch.read()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.signals.install()
        if isinstance(pl_module, PretrainModule):
            pl_module.aside = partial(self.aside, trainer)
        if self.state:
            for optimizer, kept in zip(trainer.optimizers, self.state["optimizers"], strict=True):
                optimizer.load_state_dict(kept)
            for config, kept in zip(trainer.lr_scheduler_configs, self.state["schedules"], strict=True):
                config.scheduler.load_state_dict(kept)
            if world_size() > 1 and len(self.state.get("statistics", ())) == world_size():
                set_statistics(pl_module, self.state["statistics"][rank()])

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._batch = batch_idx
        if batch_idx > 0:
            return
        # Only now has the loader drawn what it draws when it starts.
        kept = self.state["random"] if self.state else []
        self.state = None
        self.meter.restart()
        self.progress.begin()
        if rank() < len(kept):
            set_random_state(kept[rank()])
        else:
            seed_generators(self.seed, rank())

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self._lr = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = self.start + batch_idx // self.accumulate
        if self.accumulate > 1:
            outputs["loss"] = outputs["loss"] * self.accumulate  # Lightning has divided it
        self.meter.record(step, outputs, batch)
        if (batch_idx + 1) % self.accumulate == 0:
            self._after_step(trainer, step + 1)

    @contextmanager
    def aside(self, trainer: L.Trainer) -> Iterator[Tick]:
        """For long work of all processes before a step: it is no time of training, and a signal stops it.

        The run is saved first, as it stands between the steps. In the middle of a step that is made of several batches
        it cannot be, and the work is done to its end.

        Yields:
            What all processes call equally often, with words for the user.

        Raises:
            Interrupted: from that call, where a signal asked any of the processes to stop.
        """
        step, within = divmod(self._batch, self.accumulate)
        step += self.start

        def tick(what: str) -> None:
            self.progress.note(what)
            stop = 0 if within else self._agree(trainer, self.signals.received or 0, False)[0]
            if stop:
                self.stopped_by = stop
                raise Interrupted(stop)

        with self.meter.paused():
            # What is not finite is told by the step that follows.
            if not within and self._saved_step != step and all_finite(trainer.lightning_module):
                self._save(trainer, step)
            yield tick

    def _after_step(self, trainer: L.Trainer, step: int) -> None:
        intervals, last = self.intervals, step == self.total
        logs = step % intervals.log_every == 0 or last
        saves = last or _due(step, intervals.save_every_steps)
        stop = 0
        if logs or saves or world_size() == 1:
            minutes = (self._watch.read() - self._saved_at) / 60
            late = 0 < intervals.save_every_minutes <= minutes
            stop, late = self._agree(trainer, self.signals.received or 0, late)
            saves = saves or late or stop > 0
        if logs or saves:
            self._require_finite(trainer.lightning_module, weights=saves)
        row = self._measure(trainer.lightning_module, step, logs)
        self._draw(step)
        self.progress.step(step, row if logs else None)
        if saves:
            with self.meter.paused():
                self._save(trainer, step)
        if stop and not last:
            self.stopped_by = stop
            trainer.should_stop = True

    def _measure(self, module: L.LightningModule, step: int, logs: bool) -> dict[str, float]:
        row: dict[str, float] = {}
        if logs:
            row = {"step": step, **self.meter.collect(), "lr": self._lr}
        if self.evaluate and _due(step, self.intervals.evaluate_every):
            with self.meter.paused(), untouched_generators(), untouched_modes(module):
                row |= {"step": step, **self.evaluate()}
        if row and self.metrics is not None:
            self.metrics.write(row)
        for logger in self.loggers if row else ():
            logger.log_metrics({name: value for name, value in row.items() if name != "step"}, step)
        return row

    def _draw(self, step: int) -> None:
        every = self.intervals.draw_every
        if self.draw is None or rank() > 0 or not (_due(step, every) or (every and step == self.total)):
            return
        with self.meter.paused(), untouched_generators():
            picture = self.draw(step)
        for logger in self.loggers:
            log_picture(logger, picture, step)

    def _agree(self, trainer: L.Trainer, stop: int, late: bool) -> tuple[int, bool]:
        """Every process learns of a signal or a due checkpoint that any of them knows of."""
        if world_size() == 1:
            return stop, late
        wishes = torch.tensor([stop, late], device=trainer.strategy.root_device)
        dist.all_reduce(wishes, dist.ReduceOp.MAX)
        stop, agreed = wishes.tolist()
        return stop, bool(agreed)

    def _require_finite(self, module: L.LightningModule, weights: bool) -> None:
        """Stop the run where a loss, or one of the weights that are about to be saved, is not a finite number."""
        bad = self.meter.not_finite()
        what = "the loss is"
        if weights and bad is None and not all_finite(module):
            bad, what = self.meter.newest(), "weights are"
        bad = first_of_all(bad)
        if bad is not None:
            end_run(self.out, what, bad)

    def _save(self, trainer: L.Trainer, step: int) -> None:
        states = [random_state()]
        if world_size() > 1:
            states *= world_size()
            dist.all_gather_object(states, random_state())
        module = trainer.lightning_module
        statistics = gather_statistics(module)
        if rank() == 0:
            weights = module.state_dict()
            weights.update(name_statistics(module, statistics.mean(0)))
            state = {
                "step": step,
                **self.notes,
                "state_dict": weights,
                "statistics": statistics,  # of each process
                "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
                "schedules": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
                "random": states,
            }
            write_checkpoint(self.out / CHECKPOINTS, state)
        trainer.strategy.barrier()  # a launcher may end the others as soon as one process has left
        if step == self.total:
            set_statistics(module, statistics.mean(0))  # what is exported is what was saved
        self._saved_at, self._saved_step = self._watch.read(), step


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
