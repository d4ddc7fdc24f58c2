"""Pre-training: from a folder of images to a backbone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from densepath.annotations.coco import open_split
from densepath.core.distributed import rank
from densepath.core.errors import UserError
from densepath.core.random import check_seed
from densepath.methods import Method
from densepath.nets.backbones import Backbone, build_backbone
from densepath.nets.norms import gather_statistics, plain_batch_norm, set_statistics
from densepath.nets.weights import load_weights
from densepath.runs.checkpoints import CHECKPOINTS, has_checkpoint
from densepath.runs.folder import check_run, open_run, read_config
from densepath.runs.progress import say
from densepath.sources.loader import ImageBatches
from densepath.sources.open import cache_images, check_size, find_source
from densepath.sources.pixel_source import PixelSource, PixelSpec
from densepath.training.batch_norm import BatchNorm, share_statistics
from densepath.training.export import EXPORTED, export_backbone, export_parts
from densepath.training.feature_pass import Sweep
from densepath.training.fit import fit
from densepath.training.hardware import Hardware, Precision, choose_hardware, choose_workers
from densepath.training.load_run import pixels_of
from densepath.training.module import PretrainModule
from densepath.training.optimizers import Optimizer
from densepath.training.recipes import all_options, find_method
from densepath.training.reconstruction_images import Draw, Gallery
from densepath.training.run_callback import Intervals
from densepath.version import __version__
from densepath.views.augment import Augment
from densepath.views.maker import ViewMaker

Probe = Callable[[Backbone, Path, PixelSpec], Mapping[str, float]]

DEFAULT_EPOCHS = 200.0
# What may change when a run is resumed: none of it changes what is computed. (The number of processes may not: it is
# one of the run's facts.)
_FREE = (
    *("data", "out", "resume", "workers", "cache", "devices", "loggers", "probe_data", "probe_every", "picture_every"),
    *("log_every", "save_every_steps", "save_every_minutes"),
    *(f"method_options.{name}" for name in ("concept_cache", "concept_files", "labels")),  # where files lie, as data
    *(f"method_options.{name}" for name in ("teacher", "teacher_weights", "tokenizer")),  # known by their checksums
)
_PAPER = Optimizer()


def pretrain(
    *,
    data: str | Path,
    out: str | Path,
    method: str = "concl",
    method_options: dict[str, Any] | None = None,
    backbone: str = "resnet18",
    weights: str | Path = "random",
    seed: int = 0,
    epochs: float | None = None,
    max_steps: int | None = None,
    batch_size: int = 256,
    accumulate: int = 1,
    batch_norm: BatchNorm = "auto",
    batch_norm_group: int = 0,
    view_size: int = 224,
    augment: Augment | None = None,
    optimizer: Optimizer = _PAPER,
    workers: int | None = None,
    cache: Literal["auto", "ram", "none"] = "auto",
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    window: tuple[float, float] | None = None,
    devices: int | str = "auto",
    precision: Precision = "auto",
    channels_last: bool = True,
    deterministic: bool = False,
    resume: bool = False,
    save_every_steps: int = 0,
    save_every_minutes: float = 10.0,
    log_every: int = 10,
    loggers: Sequence[str] = (),
    probe_data: str | Path | None = None,
    probe_every: float = 10.0,
    probe: Probe | None = None,
    picture_every: float = 10.0,
    draw: Draw | None = None,
) -> Path:
    """Learn features from unlabelled images.

    A recipe's meaning does not depend on the hardware: ``batch_size`` counts the images of one optimizer step over all
    devices. The run folder holds ``config.yaml``, ``metrics.csv``, ``checkpoints/`` and, at the end,
    ``exported/backbone.safetensors``. With ``resume`` a run that was stopped, or killed, goes on as if nothing had
    happened: on a CPU with the same number of threads, and on a GPU with ``deterministic``, to the same bits.

    Args:
        data: a folder of images, a text list of files, a glob, or a packed store.
        out: the run folder.
        method: the pre-training method, e.g. "moco_v2" or "concl".
        method_options: its hyper-parameters, where they differ from the method's defaults.
        backbone: a timm ConvNet or plain vision transformer, as the method has it.
        weights: what the backbone starts from: "random", a file, a run folder, or a timm name.
        seed: of the weights, the order of the images, and the views.
        epochs: passes over the images; 200 if ``max_steps`` is not given either.
        max_steps: length of the run in optimizer steps, instead of epochs.
        batch_size: images per optimizer step, over all devices and accumulated batches.
        accumulate: split each optimizer step into this many batches, which need less memory. Batch norms and the
            momentum encoder see the small batches.
        batch_norm: whose images have their batch statistics in common: those of each process ("per_process"), those of
            all ("synchronized"), or as in the method's paper ("auto").
        batch_norm_group: divide the images of a process into groups of this many that have their batch statistics in
            common; 0 for one group. With groups a run is the same on any number of processes, up to rounding.
        view_size: height and width of the views in pixels.
        augment: how views vary; the method's own way by default.
        optimizer: how the weights are updated.
        workers: processes that decode images, per device; as many as help by default.
        cache: "ram" keeps decoded images in memory, "auto" where they fit, "none" never.
        mean: of each channel, for pixels in [0, 1]; ImageNet's for RGB by default, 0.449 for grey images.
        std: of each channel; ImageNet's for RGB by default, 0.226 for grey images.
        window: the two stored values that become 0 and 1; by default all that 8 bits hold, of 16-bit images all bits
            that a sample of them uses.
        devices: "auto" (one GPU, or the CPU), a number of processes, "cpu" or "cpu:N".
        precision: "auto", "32" or "bf16-mixed".
        channels_last: memory layout of the convolutions.
        deterministic: hold a GPU to algorithms that give the same bits each time, which are slower. torch warns where
            it has none.
        resume: go on with the run in ``out``, if there is one.
        save_every_steps: write a checkpoint every so many optimizer steps; 0 for never.
        save_every_minutes: write a checkpoint every so many minutes; 0 for never.
        log_every: write measurements every so many optimizer steps.
        loggers: besides the CSV file: "tensorboard", "wandb".
        probe_data: labelled images that the backbone is probed on during the run.
        probe_every: epochs between probes; 0 for never.
        probe: scores a backbone on ``probe_data``; it is told how the backbone sees pixels.
        picture_every: epochs between pictures of what a method predicts, if it predicts pixels; 0 for none.
        draw: makes such a picture; without, there are none.

    Returns:
        The run folder.

    Raises:
        UserError: options that do not fit each other or the data, or a folder that holds another run.
        Interrupted: Ctrl-C or SIGTERM; the state is saved.
    """
    asked = dict(locals())
    out = Path(out)
    if epochs is not None and max_steps is not None:
        raise UserError("both epochs and max_steps are given (a recipe may have set one of them); set one to null")
    if probe_data is not None and probe is None:
        raise UserError("probe_data is given without a probe; pass the function that scores a backbone on it")
    if probe_data is not None:
        for split in ("train", "test"):
            open_split(Path(probe_data), split)  # now, rather than epochs later
    if view_size < 1:
        raise UserError(f"view_size is {view_size}; give a number of pixels")
    if workers is not None and workers < 0:
        raise UserError(f"workers is {workers}; give a number of processes, or 0 for none")
    if epochs is None and max_steps is None:
        asked["epochs"] = epochs = DEFAULT_EPOCHS
    old = read_config(out) if resume else None
    if old is not None and precision == "auto":
        precision = old.get("precision", precision)  # that of the hardware where it was started
    hardware = choose_hardware(devices, precision, channels_last, deterministic)
    batch = _divide_batch(batch_size, hardware.world_size, accumulate)

    check_seed(seed)
    images = find_source(data)
    images.spec = _choose_pixels(images, old, mean, std, window)
    torch.manual_seed(seed)
    network = build_backbone(backbone, images.spec.channels)
    if network.ndim != images.spec.ndim:
        raise UserError(
            f"{backbone} takes images of {network.ndim} dimensions, and those of {data} have {images.spec.ndim}; "
            "choose another backbone"
        )
    fresh = old is None or not has_checkpoint(out / CHECKPOINTS)
    loaded = load_weights(network, weights) if fresh else None
    options = all_options(method, method_options)
    learner = find_method(method)(network, **options)
    together = batch * hardware.world_size
    asked["batch_norm"] = share_statistics(learner, batch_norm, batch_norm_group, together, hardware.world_size)
    learner.check(view_size, batch * hardware.world_size, hardware.world_size)
    config = _record(asked, hardware, options) | {"pixels": images.spec.record()}
    first = hardware.rank == 0
    # Runs of earlier versions do not name their pixels, which were RGB of 8 bits
    free = _FREE if old is None or "pixels" in old else (*_FREE, "pixels", "mean", "std", "window")
    if first:
        check_run(out, config, resume=resume, free=free)  # now, rather than after hours of looking at the images

    images = cache_images(images, cache, hardware.device)
    check_size(images, view_size // 2)
    found = learner.prepare(images)
    batches = ImageBatches(
        images,
        batch_size=batch,
        seed=seed,
        max_steps=None if max_steps is None else max_steps * accumulate,
        epochs=epochs,
        rank=hardware.rank,
        world_size=hardware.world_size,
        workers=choose_workers(hardware) if workers is None else workers,
        device=hardware.device,
        extras=learner.extras,
    )
    steps, steps_per_epoch = batches.total_steps // accumulate, batches.steps_per_epoch / accumulate
    seen = {name: view for name, view in learner.views(augment).items() if name not in learner.unused_views}
    views = ViewMaker(seen, view_size, seed, images.spec, memory_format=hardware.memory_format)
    sweep = Sweep(batches, view_size, hardware.memory_format)
    module = PretrainModule(learner, views, optimizer, steps, steps_per_epoch, sweep)
    probe_steps, draw_steps = (
        max(1, round(every * steps_per_epoch)) if every > 0 else 0 for every in (probe_every, picture_every)
    )
    gallery = Gallery(learner, images, views, draw, out) if draw is not None and learner.predicts_pixels() else None
    with open_run(out, config, resume=resume, free=free, note=f"densepath {__version__}") if first else nullcontext():
        if first and loaded:
            say(f"densepath: {loaded}")
        if first and found:
            say(f"densepath: {found}")
        if first and optimizer.warmup_steps(steps, steps_per_epoch) < optimizer.warmup_epochs * steps_per_epoch:
            say(
                f"densepath: the warm-up of {optimizer.warmup_epochs:g} epochs is longer than half of the run, and cut "
                "to that"
            )
        done = fit(
            module,
            batches,
            out,
            hardware=hardware,
            intervals=Intervals(log_every, save_every_steps, save_every_minutes, probe_steps, draw_steps),
            config=config,
            facts={"images": len(images), "steps": steps, "processes": hardware.world_size},
            accumulate=accumulate,
            seed=seed,
            resume=resume,
            loggers=loggers,
            evaluate=None
            if probe is None or probe_data is None
            else partial(_probe, probe, learner, Path(probe_data), images.spec),
            draw=gallery,
            name=out.name,
        )
        if first:
            export_backbone(out / EXPORTED, learner.exported_backbone(), "timm", config, done)
            export_parts(out / EXPORTED.parent, learner.exported_parts(), config, done)
    return out


def _choose_pixels(
    images: PixelSource,
    old: Mapping[str, Any] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    window: Sequence[float] | None,
) -> PixelSpec:
    """What the images' numbers mean: as the resumed run has it, else as asked for, else as the images say.

    Raises:
        UserError: values that make no sense for these images.
    """
    if old is None:
        return images.spec.override(mean, std, window)
    recorded = pixels_of(old)
    if (recorded.ndim, recorded.channels) != (images.spec.ndim, images.spec.channels):
        raise UserError(
            f"the run learns from images of {recorded.channels} channels, and these have {images.spec.channels}; "
            "resume it with the same images, or name another folder"
        )
    return recorded


def _divide_batch(batch_size: int, processes: int, accumulate: int) -> int:
    """Images in one batch of one process."""
    parts = processes * accumulate
    if accumulate < 1 or batch_size < 1 or batch_size % parts:
        raise UserError(
            f"batch_size {batch_size} cannot be divided among {processes} processes with accumulate {accumulate}; "
            f"make it a multiple of {max(parts, 1)}"
        )
    return batch_size // parts


def _record(asked: dict[str, Any], hardware: Hardware, options: dict[str, Any]) -> dict[str, Any]:
    """Everything that a run was asked for, resolved, in the plain types of YAML."""
    record = {name: value for name, value in asked.items() if name not in ("probe", "draw", "resume")}
    record |= {name: str(record[name]) for name in ("data", "out", "weights")}
    record |= {"precision": hardware.precision, "method_options": options, "loggers": list(record["loggers"])}
    record["optimizer"] = asdict(record["optimizer"])
    record["augment"] = record["augment"] and asdict(record["augment"])
    record["probe_data"] = record["probe_data"] and str(record["probe_data"])
    return record


def _probe(probe: Probe, learner: Method, data: Path, spec: PixelSpec) -> dict[str, float]:
    """Scores of the backbone as it would be exported; the other processes wait at their next step."""
    network = copy.deepcopy(plain_batch_norm(learner.exported_backbone())).eval()
    set_statistics(network, gather_statistics(network).mean(0))
    if rank() > 0:
        return {}
    return {
        f"probe_{name}": value for name, value in probe(network, data, spec).items() if isinstance(value, int | float)
    }
