"""Fine-tuning a detector on outlined objects: the transfer task of the ConCL paper."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from densepath.annotations.coco import CocoImages, open_split
from densepath.core.errors import UserError
from densepath.core.random import check_seed
from densepath.nets.filter_norms import filter_lengths, give_lengths
from densepath.nets.weight_pixels import pixels_of_weights
from densepath.nets.weights import load_weights
from densepath.runs.checkpoints import CHECKPOINTS, has_checkpoint
from densepath.runs.folder import open_run, read_config
from densepath.runs.progress import say
from densepath.sources.pixel_source import PixelSpec
from densepath.training.hardware import Precision, choose_hardware, choose_workers
from densepath.training.run_callback import Intervals
from densepath.transfer.detection.anchors import ANCHOR_SIZES, check_anchor_sizes
from densepath.transfer.detection.detector import DETECTIONS
from densepath.transfer.detection.detector_file import DetectorNotes, load_detector, save_detector
from densepath.transfer.detection.detectors import BASE_LR, DETECTORS, TRANSFORMER_DETECTORS
from densepath.transfer.detection.evaluation import evaluate_detector
from densepath.transfer.detection.fine_tuning import fine_tune, settle_batch_norm
from densepath.transfer.detection.samples import TrainingBatches
from densepath.transfer.detection.solver import STEPS, make_solver
from densepath.version import __version__

DETECTOR_FILE = Path("exported") / "detector.safetensors"
_LEAST_SIZE = 32  # pixels
_WINDOW = PixelSpec().window  # of 8-bit images
# What may change when a run is resumed: none of it changes what is computed.
_FREE = ("data", "out", "workers", "devices", "pictures", "log_every", "save_every_steps", "save_every_minutes")


def detect(
    *,
    data: str | Path,
    out: str | Path,
    weights: str | Path = "random",
    backbone: str = "resnet18",
    detector: str = "mask_rcnn_fpn",
    rescale_filters: bool = False,
    anchor_sizes: tuple[int, ...] = ANCHOR_SIZES,
    detections_per_image: int = DETECTIONS,
    schedule: str = "1x",
    base_steps: int = STEPS,
    max_steps: int | None = None,
    warmup_steps: int | None = None,
    drops: tuple[float, ...] = (0.8,),
    batch_size: int = 16,
    lr: float | None = None,
    train_size: tuple[int, int] = (400, 522),
    train_crop: int | None = None,
    test_size: int = 522,
    precise_bn_batches: int = 200,
    pictures: int = 8,
    seed: int = 0,
    workers: int | None = None,
    devices: int | str = "auto",
    precision: Precision = "auto",
    log_every: int = 20,
    save_every_steps: int = 0,
    save_every_minutes: float = 10.0,
    resume: bool = False,
    evaluate: bool = False,
) -> dict[str, float]:
    """Fine-tune a detector on outlined objects and score it on the test images.

    The defaults are the paper's for GlaS. The recipes glas, crag and monuseg hold what suits these data sets.

    Args:
        data: a folder as ``densepath data`` writes it: images and COCO instances, train and test.
        out: the run folder. It gets ``metrics.json``, ``predictions.json`` (COCO results), ``pictures/``,
            ``exported/detector.safetensors``, and what every run has.
        weights: of the backbone: a file, a run folder, "random", or a timm name.
        backbone: a timm name.
        detector: "mask_rcnn_fpn"; "mask_rcnn_c4", whose head is the backbone's own stage 5; "mask_rcnn_dc5", with a
            dilated stage 5; "retinanet", which finds boxes alone; or "vitdet", for a vision transformer with patches of
            16 px, trained by AdamW with layer-wise rates. With "_small" behind its name each has narrow heads, for a
            CPU.
        rescale_filters: give the backbone's filters in front of batch norms the length that they have in a new
            network. That changes no feature, and lets layers go on learning whose filters pre-training made long, as
            it does with large steps. Published results of fine-tuning are without it.
        anchor_sizes: of the boxes that it starts from, in pixels of the resized image: one for each of five levels, for
            C4 and DC5 as many as you like.
        detections_per_image: at most; also in scoring.
        schedule: "0.5x", "1x", "2x", "3x" or "5x".
        base_steps: of the schedule 1x.
        max_steps: takes the place of the schedule.
        warmup_steps: of linear warm-up; 1000, but with ``max_steps`` a fifth of them at most.
        drops: shares of the run after which the learning rate is divided by 10.
        batch_size: images per step, over all devices.
        lr: learning rate; 0.02 (RetinaNet: 0.01, ViTDet: 1e-4) for 16 images, and in proportion for other batch sizes.
        train_size: least and greatest short edge in training, drawn uniformly, in pixels.
        train_crop: side of a square that is cut out of each training image, anywhere, before it is resized, in pixels;
            for large images with many objects.
        test_size: short edge in testing, in pixels.
        precise_bn_batches: training batches over which the batch-norm statistics are averaged before the evaluation
            (never more than were trained on; 0 keeps the running ones).
        pictures: test images to draw with their true and their found outlines.
        seed: of new weights, order, sizes, flips, and of what the detector samples.
        workers: processes that decode images, on each device; as many as help by default.
        devices: "auto", a number, "cpu" or "cpu:N".
        precision: "auto", "32" or "bf16-mixed".
        log_every: write measurements every so many steps.
        save_every_steps: write a checkpoint every so many steps; 0 for never.
        save_every_minutes: write a checkpoint every so many minutes; 0 for never.
        resume: go on with the run in ``out``.
        evaluate: train nothing; score the detector that ``out`` holds once more, on the test images of ``data`` at the
            size that it was trained for. Scores, predictions and pictures replace those in ``out``. Options of training
            may be as they were, and no others.

    Returns:
        box_ap, box_ap50, box_ap75, and where the detector finds masks mask_ap, mask_ap50, mask_ap75, from 0 to 1
        (nothing on all processes but the first).

    Raises:
        UserError: the data, the weights or an option are not what they should be.

    Source: Yang et al., "ConCL", ECCV 2022, section 4.1, and its released Detectron2 configurations.
    """
    asked = dict(locals())
    out = Path(out)
    for name, number in (("precise_bn_batches", precise_bn_batches), ("pictures", pictures)):
        if number < 0:
            raise UserError(f"{name} is {number}; give a number, or 0 for none")
    old = read_config(out) if resume else None
    if old is not None and not old.keys() >= {"detector", "precision", "mean", "std"}:
        raise UserError(f"{out} holds another kind of run; name another folder")
    if old is not None and precision == "auto":
        precision = old["precision"]  # that of the hardware where it was started
    hardware = choose_hardware(devices, precision)
    half = hardware.precision == "bf16-mixed"
    if evaluate:
        model, notes = load_detector(out / DETECTOR_FILE)
        _check_evaluation(asked, read_config(out) or {})
        test = open_split(data, "test", notes.spec)
        if tuple(test.category_ids) != notes.category_ids:
            raise UserError(f"{test.annotations} has other categories than the detector in {out} was trained on")
        return evaluate_detector(model.to(hardware.device), notes, test, out, pictures=pictures, bfloat16=half)
    if detector not in DETECTORS:
        raise UserError(f"no detector is called {detector!r}; use one of {', '.join(DETECTORS)}")
    if batch_size < 1 or batch_size % hardware.world_size:
        raise UserError(f"batch_size is {batch_size}; give a multiple of the {hardware.world_size} devices")
    if workers is not None and workers < 0:
        raise UserError(f"workers is {workers}; give a number of processes, or 0 for none")
    if not _LEAST_SIZE <= train_size[0] <= train_size[1] or test_size < _LEAST_SIZE:
        sizes = f"train_size is {list(train_size)} and test_size {test_size}"
        raise UserError(f"{sizes}; give the least and the greatest, of {_LEAST_SIZE} pixels or more")
    if train_crop is not None and train_crop < _LEAST_SIZE:
        raise UserError(f"train_crop is {train_crop}; give {_LEAST_SIZE} pixels or more")
    if detections_per_image < 1:
        raise UserError(f"detections_per_image is {detections_per_image}; give at least 1")
    check_anchor_sizes(anchor_sizes)
    solver = make_solver(
        schedule,
        max_steps,
        warmup_steps,
        drops,
        batch_size,
        lr,
        base_steps=base_steps,
        base_lr=BASE_LR[detector],
        optimizer="adamw" if detector in TRANSFORMER_DETECTORS else "sgd",
    )
    spec = pixels_of_weights(weights) if old is None else _recorded(old, out)
    train, test = open_split(data, "train", spec), open_split(data, "test", spec)
    names = _category_names(train, test)

    check_seed(seed)
    torch.manual_seed(seed)
    found = (tuple(anchor_sizes), detections_per_image, spec.window)
    notes = DetectorNotes(detector, backbone, tuple(train.category_ids), names, test_size, spec.mean, spec.std, *found)
    model = notes.build()
    fresh = old is None or not has_checkpoint(out / CHECKPOINTS)
    line = f"the {backbone} of {out}"
    if fresh:
        lengths = filter_lengths(model.backbone) if rescale_filters else {}
        line = load_weights(model.backbone, weights)
        if rescale_filters:
            line += f", {len(give_lengths(model.backbone, lengths))} layers rescaled"
    config = {name: str(value) if isinstance(value, Path) else value for name, value in asked.items()}
    config |= {"precision": hardware.precision, "lr": solver.lr, "mean": spec.mean, "std": spec.std}
    if spec.window != _WINDOW:
        config["window"] = spec.window
    del config["resume"], config["evaluate"]
    batches = TrainingBatches(
        train,
        batch_size=batch_size,
        total_steps=solver.steps,
        seed=seed,
        sizes=train_size,
        crop=train_crop,
        rank=hardware.rank,
        world_size=hardware.world_size,
        workers=choose_workers(hardware) if workers is None else workers,
    )
    first = hardware.rank == 0
    with open_run(out, config, resume=resume, free=_FREE, note=f"densepath {__version__}") if first else nullcontext():
        if first:
            say(f"densepath: {detector} on {line}; {len(train)} training images, {solver.steps} steps")
        intervals = Intervals(log_every, save_every_steps, save_every_minutes)
        model = fine_tune(
            model,
            notes,
            solver,
            batches,
            out,
            hardware=hardware,
            intervals=intervals,
            config=config,
            seed=seed,
            resume=resume,
        )
        if not first:
            return {}
        settle = min(precise_bn_batches, solver.steps)
        if settle:
            settle_batch_norm(model, notes, batches.beyond(settle), hardware, seed)
        save_detector(out / DETECTOR_FILE, model, notes)
        return evaluate_detector(model, notes, test, out, pictures=pictures, bfloat16=half)


def _check_evaluation(asked: dict[str, Any], config: dict[str, Any]) -> None:
    """Check that nothing is asked of a detector that stands which only its training could bring about.

    Raises:
        UserError: an option is neither as it is by default nor as the detector was trained.
    """
    defaults = {name: parameter.default for name, parameter in inspect.signature(detect).parameters.items()}

    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value

    asked = {name: value for name, value in asked.items() if name not in (*_FREE, "evaluate", "resume", "precision")}
    idle = [n for n, v in asked.items() if plain(v) not in (plain(defaults[n]), plain(config.get(n, defaults[n])))]
    if idle:
        raise UserError(
            f"evaluate scores a detector as it was trained, so {', '.join(idle)} would have no effect; leave that out"
        )


def _category_names(train: CocoImages, test: CocoImages) -> tuple[str, ...]:
    """The names of the labels 1, 2, ...

    Raises:
        UserError: there is nothing to learn, or it is not what the test images hold.
    """
    truth = train.coco_ground_truth()
    if not truth["annotations"]:
        raise UserError(f"{train.annotations} outlines no object; there is nothing to learn from it")
    if train.category_ids != test.category_ids:
        raise UserError(f"{train.annotations} and {test.annotations} have other categories; make them the same")
    names = {category["id"]: category.get("name", str(category["id"])) for category in truth["categories"]}
    return tuple(names[i] for i in train.category_ids)


def _recorded(config: dict[str, Any], out: Path) -> PixelSpec:
    """How the detector of a run sees pixels.

    Raises:
        UserError: the configuration says something else.
    """
    said = {"window": list(_WINDOW)} | {name: config[name] for name in ("mean", "std", "window") if name in config}
    try:
        return PixelSpec.from_record(said | {"channels": len(said["mean"])})
    except (UserError, TypeError) as error:
        raise UserError(f"the run in {out} names no mean and std of its channels; start it again") from error
