"""Fine-tuning a detector on outlined objects: the transfer task of the ConCL paper."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from densepath.annotations.coco import CocoImages, open_split
from densepath.annotations.splits import check_objects, check_splits, fit_window, match_categories, summarize_split
from densepath.core.closing import command, say_end
from densepath.core.errors import UserError, counted, that_or_these
from densepath.core.locks import sole_writer
from densepath.core.log import logged
from densepath.core.records import TRAIN_LOG
from densepath.core.result import Result
from densepath.core.spacing import evenly_spaced
from densepath.core.stopwatch import Stopwatch
from densepath.nets.weights import load_weights
from densepath.nets.weights.filter_norms import filter_norms, set_filter_norms
from densepath.nets.weights.pixels import pixels_of_weights
from densepath.nets.weights.pretrained import backbone_of_weights
from densepath.runs.checkpoints import CHECKPOINTS, has_checkpoint
from densepath.runs.closing import draw_safely, files_of_run
from densepath.runs.folder import open_run, read_config
from densepath.runs.progress import say
from densepath.sources.pixel_source import PixelSpec
from densepath.sources.slides.resolution import same_mpp
from densepath.training.agreement import refusing_together
from densepath.training.hardware import choose_device, choose_hardware, choose_precision, choose_workers, divide_batch
from densepath.training.intervals import Intervals
from densepath.training.resolve import resolve
from densepath.transfer.detection.config import FREE, DetectConfig
from densepath.transfer.detection.detector_file import DETECTOR_FILE, DetectorNotes, load_detector, save_detector
from densepath.transfer.detection.detectors import BASE_LR, BOXES_ONLY, DETECTORS, TRANSFORMER_DETECTORS
from densepath.transfer.detection.evaluation import evaluate_detector
from densepath.transfer.detection.fine_tuning import fine_tune, settle_batch_norm
from densepath.transfer.detection.samples import TrainingBatches
from densepath.transfer.detection.solver import make_solver
from densepath.version import __version__

_WINDOW = PixelSpec().window  # of 8-bit images
_SAMPLED = 16  # images whose µm per pixel are read
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
    watch = Stopwatch()
    out, resume = Path(config.out), config.resume
    old = read_config(out) if resume else None
    if old is not None and not old.keys() >= {"detector", "precision", "mean", "std"}:
        raise UserError(f"{out} holds another kind of run; name another folder")
    precision = config.precision
    if old is not None and precision == "auto":
        precision = old["precision"]  # as on the hardware where the run was started
    hardware = choose_hardware(config.devices, precision)
    if config.detector not in DETECTORS:
        raise UserError(f"no detector is called {config.detector!r}; use one of {', '.join(DETECTORS)}")
    divide_batch(config.batch_size, hardware.world_size)
    solver = make_solver(
        config.schedule,
        config.max_steps,
        config.warmup_steps,
        config.drops,
        config.batch_size,
        config.lr,
        base_steps=config.base_steps,
        base_lr=BASE_LR[config.detector],
        optimizer="adamw" if config.detector in TRANSFORMER_DETECTORS else "sgd",
    )
    spec = pixels_of_weights(config.weights) if old is None else _recorded(old, out)
    backbone = config.backbone or (backbone_of_weights(config.weights) if old is None else old.get("backbone"))
    config = replace(config, backbone=backbone)
    outlines = config.detector not in BOXES_ONLY
    with refusing_together(hardware):
        splits = (open_split(config.data, split, spec, outlines, config.orientation) for split in ("train", "test"))
        train, test = splits
        train.keep_fraction(config.fraction, config.seed)
        facts = check_splits(train, test)
    facts += [summarize_split(train, "training"), summarize_split(test, "test")]
    facts += config.optimizer.without_effect()
    if old is None:
        spec = fit_window(train, test)

    torch.manual_seed(config.seed)
    found = (tuple(config.anchor_sizes), config.detections_per_image, spec.window)
    notes = DetectorNotes(
        config.detector,
        str(config.backbone),
        tuple(train.category_ids),
        tuple(train.category_names),
        config.test_size,
        spec.mean,
        spec.std,
        *found,
        int(median(min(train.size(i)) for i in range(len(train)))),  # as tested: whole, also if trained on crops
        config.orientation,
        training_mpp(train),
        spec.bits,
    )
    model = notes.build()
    fresh = old is None or not has_checkpoint(out / CHECKPOINTS)
    line = f"the {config.backbone} of {out}"
    if fresh:
        norms = filter_norms(model.backbone) if config.rescale_filters else {}
        line = load_weights(model.backbone, config.weights)
        if config.rescale_filters:
            line += f", {counted(len(set_filter_norms(model.backbone, norms)), 'layer')} rescaled"
    record = replace(config, precision=hardware.precision, lr=solver.lr).record()
    record |= {"mean": spec.mean, "std": spec.std} | ({} if spec.window == _WINDOW else {"window": spec.window})
    record |= {} if spec.bits is None else {"bits": spec.bits}
    batches = TrainingBatches(
        train,
        batch_size=config.batch_size,
        total_steps=solver.steps,
        seed=config.seed,
        sizes=config.train_size,
        crop=config.train_crop,
        rank=hardware.rank,
        world_size=hardware.world_size,
        workers=choose_workers(hardware) if config.workers is None else config.workers,
    )
    first = hardware.rank == 0
    kept: dict[str, Any] = {
        "free": FREE,
        "defaults": DetectConfig(data="", out="").record(),
        "note": f"densepath {__version__}",
    }
    with ExitStack() as opened:
        if first:
            with refusing_together(hardware):
                opened.enter_context(open_run(out, record, resume=resume, **kept))
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
            resume=resume,
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


def training_mpp(images: CocoImages) -> float | None:
    """The µm per pixel of images; None if they are unknown, or differ."""
    found = [images.mpp(position) for position in evenly_spaced(_SAMPLED, len(images))]
    known = [mpp for mpp in found if mpp is not None]
    same = len(known) == len(found) and same_mpp(max(known), min(known))
    return float(median(known)) if same else None


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


def _recorded(config: dict[str, Any], out: Path) -> PixelSpec:
    """The specification of the pixels of a detector's run.

    Raises:
        UserError: the configuration has none that is valid.
    """
    recorded = {"window": list(_WINDOW)}
    recorded |= {name: config[name] for name in ("mean", "std", "window", "bits") if name in config}
    try:
        return PixelSpec.from_record(recorded | {"channels": len(recorded["mean"])})
    except (UserError, TypeError) as error:
        raise UserError(f"the run in {out} has no mean and std of its channels; start it again") from error
