"""Fine-tuning a detector on outlined objects: the transfer task of the ConCL paper."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from densepath.annotations.coco import CocoImages, open_split
from densepath.annotations.splits import check_objects, fit_window, match_categories
from densepath.core.closing import command, say_end
from densepath.core.errors import UserError, counted, that_or_these
from densepath.core.locks import sole_writer
from densepath.core.log import logged
from densepath.core.records import TRAIN_LOG
from densepath.core.result import Result
from densepath.core.stopwatch import Stopwatch
from densepath.nets.weights.pixels import pixels_of_weights
from densepath.nets.weights.pretrained import backbone_of_weights
from densepath.runs.checkpoints import CHECKPOINTS, has_checkpoint
from densepath.runs.closing import draw_safely, files_of_run
from densepath.runs.folder import open_run, read_config
from densepath.runs.progress import say
from densepath.training.agreement import refusing_together
from densepath.training.hardware import choose_device, choose_precision, divide_batch
from densepath.training.intervals import Intervals
from densepath.training.resolve import resolve
from densepath.transfer.detection.config import FREE, DetectConfig
from densepath.transfer.detection.detector_file import DETECTOR_FILE, load_detector, save_detector
from densepath.transfer.detection.detectors import DETECTORS, TRANSFORMER_DETECTORS
from densepath.transfer.detection.evaluation import evaluate_detector
from densepath.transfer.detection.fine_tuning import fine_tune, settle_batch_norm
from densepath.transfer.detection.preparation import (
    batches_of_run,
    begun_run,
    hardware_of_run,
    load_backbone,
    notes_of_run,
    open_images,
    record_of_run,
    recorded_pixels,
    solver_of_run,
)
from densepath.version import __version__

_CPU_SECONDS, _GLAS_SIZES = 4.5, (400, 522)  # for an image of these sizes in training, with a ResNet-18 on two cores
_LONG = 12  # hours


def detect(config: DetectConfig | str | Path | None = None, **options: Any) -> dict[str, float]:
    """Fine-tune a detector on outlined objects and score it on the test images: see :func:`densepath.detect`.

    Args:
        config: a configuration, the name of a recipe of ``detect``, or the path of a YAML file.
        options: fields of :class:`DetectConfig` that override those of ``config``.

    Returns:
        box_ap, box_ap50, box_ap75, and for detectors with masks mask_ap, mask_ap50, mask_ap75, in percent, and the
        metrics of objects with a score of at least 0.5: object_f1, object_dice, aji, aji_plus, dq, sq, pq in percent,
        object_hausdorff_px in pixels (an empty dictionary on all processes but the first).

    Raises:
        UserError: the data, the weights or an option are invalid.
    """
    return dict(run(resolve(DetectConfig, config, options, recipes="detect")).scores)


def run(config: DetectConfig, draw_curves: Callable[[Path], Path] | None = None) -> Result:
    """Fine-tune or evaluate a detector with a configuration. Errors as for :func:`detect`.

    Args:
        config: the configuration.
        draw_curves: draws the measurements in a run folder at the end; None for no picture.
    """
    return _evaluate(config) if config.evaluate else _fine_tune(config, draw_curves)


def _evaluate(config: DetectConfig) -> Result:
    """Score the detector in the run folder again."""
    watch, out = Stopwatch(), Path(config.out)
    device = choose_device(config.devices)
    model, notes = load_detector(out / DETECTOR_FILE)
    _check_evaluation(config, read_config(out) or {})
    orientation = config.orientation or notes.orientation
    test = open_split(config.data, "test", notes.spec, model.finds_masks, orientation)
    match_categories(test, notes.category_names, f"the detector in {out}")
    check_objects(test)
    half = choose_precision(config.precision, device.type) == "bf16-mixed"
    with sole_writer(out), logged(out / TRAIN_LOG):
        scores = evaluate_detector(model.to(device), notes, test, out, pictures=config.pictures, bfloat16=half)
        return _finish(watch, out, scores, test)


def _finish(watch: Stopwatch, out: Path, scores: dict[str, float], test: CocoImages) -> Result:
    """Print the last lines of a run, and return its result."""
    files = files_of_run(out, weights=out / DETECTOR_FILE)
    commands = (command("predict", out, "--data", Path(test.folder), "--out", Path(f"{out}_predictions")),)
    say_end(watch, "", {"detector": out / DETECTOR_FILE, "pictures": out / "pictures"}, commands)
    return Result(out, scores, files, commands)


def _fine_tune(config: DetectConfig, draw_curves: Callable[[Path], Path] | None) -> Result:
    watch, out = Stopwatch(), Path(config.out)
    old = begun_run(out) if config.resume else None
    hardware = hardware_of_run(config, old)
    if config.detector not in DETECTORS:
        raise UserError(f"no detector is called {config.detector!r}; use one of {', '.join(DETECTORS)}")
    divide_batch(config.batch_size, hardware.world_size)
    solver = solver_of_run(config)
    spec = pixels_of_weights(config.weights) if old is None else recorded_pixels(old, out)
    backbone = config.backbone or (backbone_of_weights(config.weights) if old is None else old.get("backbone"))
    config = replace(config, backbone=backbone)
    train, test, facts = open_images(config, spec, hardware)
    if old is None:
        spec = fit_window(train, test)

    torch.manual_seed(config.seed)
    notes = notes_of_run(config, train, spec)
    model = notes.build()
    fresh = old is None or not has_checkpoint(out / CHECKPOINTS)
    line = load_backbone(model, config) if fresh else f"the {config.backbone} of {out}"
    record = record_of_run(config, hardware, solver, spec)
    batches = batches_of_run(config, train, solver, hardware)
    first = hardware.rank == 0
    with ExitStack() as opened:
        if first:
            with refusing_together(hardware):
                opened.enter_context(open_run(out, record, resume=config.resume, **_kept()))
            say(f"densepath: {config.detector} on {line}; {counted(solver.steps, 'step')}")
            for fact in (*facts, *_without_gpu(config, solver.steps, hardware.kind)):
                say(f"densepath: {fact}")
        model = fine_tune(
            model,
            notes,
            solver,
            batches,
            out,
            hardware=hardware,
            intervals=Intervals(config.log_every, config.save_every_steps, config.save_every_minutes),
            config=record,
            seed=config.seed,
            resume=config.resume,
            limits=config.optimizer,
        )
        if not first:
            return Result(out)
        settle = min(config.precise_bn_batches, solver.steps)
        if settle:
            settle_batch_norm(model, notes, batches.beyond(settle), hardware, config.seed)
        save_detector(out / DETECTOR_FILE, model, notes)
        half = hardware.precision == "bf16-mixed"
        scores = evaluate_detector(model, notes, test, out, pictures=config.pictures, bfloat16=half)
        if draw_curves is not None:
            draw_safely(partial(draw_curves, out))
        return _finish(watch, out, scores, test)


def _kept() -> dict[str, Any]:
    """What a resumed run may change, the values of options that it did not have, and the note in its record."""
    return {"free": FREE, "defaults": DetectConfig(data="", out="").record(), "note": f"densepath {__version__}"}


def _without_gpu(config: DetectConfig, steps: int, kind: str) -> list[str]:
    """A line on the time that a run takes on hardware of this kind, if that is a CPU and the time is long."""
    hours = steps * config.batch_size * _CPU_SECONDS * (sum(config.train_size) / sum(_GLAS_SIZES)) ** 2 / 3600
    if kind != "cpu" or config.detector.endswith("_small") or hours < _LONG:
        return []
    advice = "" if config.detector in TRANSFORMER_DETECTORS else "; --config glas_small takes less than half an hour"
    return [
        f"warning: without a GPU this takes long: {steps * config.batch_size:,} images with the {config.detector} of a "
        f"ResNet-18 are roughly {hours:.0f} hours on two cores{advice}"
    ]


def _check_evaluation(config: DetectConfig, trained: dict[str, Any]) -> None:
    """Refuse options that have no effect without training.

    Raises:
        UserError: an option has neither its default nor the value that the detector was trained with.
    """
    defaults = DetectConfig(data="", out="").record()
    asked = {name: value for name, value in config.record().items() if name not in (*FREE, "precision")}
    idle = [name for name, value in asked.items() if value not in (defaults[name], trained.get(name, defaults[name]))]
    if idle:
        raise UserError(
            f"evaluate scores a detector as it was trained, so {', '.join(idle)} would have no effect; leave "
            f"{that_or_these(idle)} out"
        )
