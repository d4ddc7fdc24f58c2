"""Pre-training: from a folder of images to a backbone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from densepath.annotations.coco import open_split
from densepath.annotations.splits import check_objects
from densepath.core.closing import say_end
from densepath.core.distributed import rank
from densepath.core.errors import UserError
from densepath.core.files import atomic_write
from densepath.core.locks import refuse_held
from densepath.core.result import Result
from densepath.core.stopwatch import Stopwatch
from densepath.methods import Method
from densepath.nets.weights import pixel_notes
from densepath.nets.weights.trained_on import SLIDES
from densepath.runs.checkpoints import CHECKPOINTS, has_checkpoint
from densepath.runs.closing import describe_training, draw_safely, files_of_run, newest_measurements
from densepath.runs.folder import EXPORTED, VIEWS, check_run, open_run, read_config
from densepath.runs.progress import say
from densepath.runs.sessions import planned_steps
from densepath.sources.batch import ImageBatch
from densepath.sources.fingerprint import fingerprint
from densepath.sources.image_files import ImageFiles
from densepath.sources.loader import ImageBatches
from densepath.sources.open import cache_images, check_size
from densepath.sources.pixel_source import PixelSource, PixelSpec
from densepath.sources.summary import summarize
from densepath.training.agreement import refusing_together
from densepath.training.config import DEFAULT_EPOCHS, FREE, PretrainConfig
from densepath.training.division import HELD, LEFT, USED, write_lists
from densepath.training.export import export_backbone, export_parts
from densepath.training.feature_pass import FeaturePass
from densepath.training.hardware import choose_hardware, choose_workers, divide_batch
from densepath.training.inputs import checksums_of, digests_of, make_inputs
from densepath.training.intervals import Intervals
from densepath.training.kept_epochs import KeptEpochs, exported_now, kept_epochs
from densepath.training.learned_images import DrawLearned, LearnedImages
from densepath.training.learner import check_scale, make_learner, plan_run_views
from densepath.training.loop import DrawStep, train
from densepath.training.model_card import recorded_scores
from densepath.training.next_steps import after_pretraining
from densepath.training.pretrain_task import PretrainTask
from densepath.training.random_state import untouched_generators
from densepath.training.reconstruction_images import Draw, ReconstructionImages, first_images
from densepath.training.resolve import resolve
from densepath.training.run_images import open_run_images, record_slides, with_tiles
from densepath.training.start_lines import color_note, held_note, report_start
from densepath.training.validation import PartOf, Patience, Validation, check_held
from densepath.version import __version__
from densepath.views.maker import ViewMaker
from densepath.views.view import Batch

Probe = Callable[..., Mapping[str, float]]  # of a backbone, the folder and the specification of pixels
DrawViews = Callable[[ImageBatch, Batch, Path, PixelSpec], Path]
DrawCurves = Callable[[Path], Path]
_VIEWED = 4  # images
LOADED = "weights.txt"  # in a run folder: where each tensor of the initial weights came from
_MADE = (USED, HELD, LEFT, LOADED, SLIDES)


def pretrain(
    config: PretrainConfig | str | Path | None = None,
    *,
    probe: Probe | None = None,
    draw: Draw | None = None,
    **options: Any,
) -> Path:
    """Learn features from unlabelled images: see :func:`densepath.pretrain`.

    Args:
        config: a configuration, a recipe by its name, or the path of a YAML file.
        probe, draw: as for :func:`run`.
        options: fields of :class:`PretrainConfig` that override those of ``config``.

    Returns:
        The run folder.

    Raises:
        UserError: options that are not consistent with each other or the data, or a folder that holds another run.
        Interrupted: Ctrl-C or SIGTERM; the state has been saved.
    """
    configured = resolve(PretrainConfig, config, options)
    run(configured, probe, draw)
    return Path(configured.out)


def run(
    config: PretrainConfig,
    probe: Probe | None = None,
    draw: Draw | None = None,
    draw_views: DrawViews | None = None,
    draw_curves: DrawCurves | None = None,
    draw_learned: DrawLearned | None = None,
) -> Result:
    """Run pre-training with a configuration. Errors as for :func:`pretrain`.

    Args:
        config: the configuration.
        probe: scores a backbone on ``probe_data``; its last argument is the specification of the pixels.
        draw: draws the predictions of a method that predicts pixels; None for no pictures.
        draw_views: draws the views of the first images when the run starts; None for no picture.
        draw_curves: draws the measurements in a run folder at the end; None for no picture.
        draw_learned: draws what the backbone finds in a few images; None for no pictures.
    """
    watch = Stopwatch()
    out, resume, accumulate = Path(config.out), config.resume, config.accumulate
    probe = _ready_probe(probe, config)
    if config.epochs is None and config.max_steps is None:
        config = replace(config, epochs=DEFAULT_EPOCHS)
    old = read_config(out) if resume else None
    if old is not None and "pixels" not in old and accumulate > 1:
        say(
            f"densepath: the run in {out} was started by a version that updated momentum encoders and queues once per "
            f"batch; from now on they are updated once per optimizer step of {accumulate} batches"
        )
    precision = config.precision
    if old is not None and precision == "auto":
        precision = old.get("precision", precision)  # as on the hardware where the run was started
    hardware = choose_hardware(config.devices, precision, config.channels_last, config.deterministic, config.strategy)
    batch = divide_batch(config.batch_size, hardware.world_size, accumulate)

    with refusing_together(hardware):
        found = open_run_images(config, old)
        images, spec = found.used, found.used.spec
        known = fingerprint(images)
        fresh = old is None or not has_checkpoint(out / CHECKPOINTS)
        learner = make_learner(config, spec, fresh, batch * hardware.world_size, hardware.world_size)
        method = learner.method
        views = plan_run_views(learner, config, spec, hardware)
        if fresh:  # a run of an earlier version may end as it began
            check_scale(views.declared, config.augment)
            if found.held is not None:
                check_held(method, found.held, batch * hardware.world_size)
        config = replace(
            config,
            precision=hardware.precision,
            method_options=learner.options,
            batch_norm=learner.batch_norm,
            backbone=config.backbone if isinstance(config.backbone, str) else learner.network.name,
        )
        record = config.record() | {"pixels": spec.record()}
        # Runs of earlier versions do not record their pixels, which were 8-bit RGB.
        free = FREE if old is None or "pixels" in old else (*FREE, "pixels")
        defaults, note = config.defaults(), f"densepath {__version__}"
        first = hardware.rank == 0
        if first:
            refuse_held(out)  # now, not after hours of labelling images
            check_run(out, record, resume=resume, free=free, defaults=defaults)

        files = images if isinstance(images, ImageFiles) else None
        images = cache_images(images, config.cache, hardware.device)
        check_size(images, views.smallest // 2)
        inputs = make_inputs(method, config, images if found.parts is None else found.whole)
        known |= digests_of(method, inputs)
        checksums = checksums_of(method, inputs) if hardware.world_size > 1 else {}
        prepared = method.prepare(images, inputs)
    extras, of_held = method.extras, {}
    if found.parts is not None:
        extras, of_held = ({name: PartOf(each, part) for name, each in extras.items()} for part in found.parts)
    batches = ImageBatches(
        images,
        batch_size=batch,
        seed=config.seed,
        max_steps=None if config.max_steps is None else config.max_steps * accumulate,
        epochs=config.epochs,
        rank=hardware.rank,
        world_size=hardware.world_size,
        workers=choose_workers(hardware) if config.workers is None else config.workers,
        device=hardware.device,
        extras=extras,
        shuffle=config.shuffle,
    )
    steps, steps_per_epoch = batches.total_steps // accumulate, batches.steps_per_epoch / accumulate
    if (planned := planned_steps(out, steps)) > steps and config.max_steps is None:
        steps = planned
    if steps:  # batches that are not enough for a step would make the run longer than its schedule
        batches.total_steps = steps * accumulate
    method.check_length(steps / steps_per_epoch)
    # The first batch of a step, in epochs as the batches have it.
    early = [(round(share * steps) * accumulate / batches.steps_per_epoch, at) for share, at in config.early_view_sizes]
    growing = views.maker(early)
    batches.draw = growing.draw
    feature_pass = FeaturePass(batches, config.view_size, hardware.memory_format, method.feature_view)
    patience = None if found.held is None else Patience(config.patience)
    task = PretrainTask(method, growing, config.optimizer, steps, steps_per_epoch, feature_pass, patience)
    evaluate: Callable[[], Mapping[str, float]] | None = None
    if found.held is not None and patience is not None:
        together = batch * hardware.world_size
        metadata = {"method": str(record["method"]), **pixel_notes(spec)}
        validation = Validation(method, views.maker(), found.held, together, patience, out, metadata, of_held)
        evaluate = partial(task.validate, validation)
    elif probe is not None and config.probe_data is not None:
        evaluate = partial(_probe, probe, method, Path(config.probe_data), spec)
    probe_steps, draw_steps, keep_steps = (
        every * steps_per_epoch
        for every in (config.probe_every if found.held is None else 1.0, config.picture_every, config.keep_every)
    )
    drawers: list[DrawStep] = []
    if draw is not None and method.predicts_pixels():
        drawers.append(ReconstructionImages(method, images, views.maker(), draw, out))
    if draw_learned is not None:
        drawers.append(LearnedImages(method, images, draw_learned, out, config.seed))
    facts: dict[str, int | str] = {"images": len(images), "steps": steps, "processes": hardware.world_size, **known}
    with ExitStack() as opened:
        if first:
            with refusing_together(hardware):
                kept: dict[str, Any] = {"free": free, "defaults": defaults, "note": note, "made": _MADE}
                opened.enter_context(open_run(out, record, resume=resume, **kept))
            lists = {USED: images if files is None else files, HELD: found.held, LEFT: found.left}
            if found.held or found.left:
                write_lists(out, {name: listed for name, listed in lists.items() if listed is not None}, not fresh)
            if learner.tensors:
                with atomic_write(out / LOADED) as part:
                    lines = "".join(f"{line}\n" for line in learner.tensors)
                    part.write_text(lines, encoding="utf-8", errors="surrogateescape")
            slides = record_slides(out, images, config.weights if fresh else "random")
            read = summarize(images, files) if fresh else []
            held = held_note(images, found.held, out) if fresh else None
            notes = (*read, held, learner.loaded, color_note(views.without), prepared)
            report_start(notes, config.optimizer, steps, steps_per_epoch)
            if draw_views is not None and not (out / VIEWS).exists():
                draw_safely(partial(_draw_views, draw_views, images, views.maker(), out / VIEWS))
        done = train(
            task,
            batches,
            out,
            hardware=hardware,
            intervals=Intervals(
                *(config.log_every, config.save_every_steps, config.save_every_minutes),
                *(probe_steps, keep_steps, draw_steps),
            ),
            config=record,
            facts=facts,
            checksums=checksums,
            free=free,
            accumulate=accumulate,
            seed=config.seed,
            resume=resume,
            equal_shapes=not early,
            loggers=config.loggers,
            evaluate=evaluate,
            keep=KeptEpochs(method, out, record, config.keep_every, keep_steps) if keep_steps else None,
            draw=(lambda step: [path for draw_step in drawers for path in draw_step(step)]) if drawers else None,
            name=out.name,
        )
        if not first:
            return Result(out)
        card = {"facts": facts, "scores": recorded_scores(out)}
        export_backbone(out / EXPORTED, method.exported_backbone(), "timm", record, done, card, slides)
        export_parts(out / EXPORTED.parent, method.exported_parts(), record, done, slides)
        if draw_curves is not None:
            draw_safely(partial(draw_curves, out))
        measured = newest_measurements(out)
        commands = after_pretraining(with_tiles(config), method, images, learner.named)
        say_end(watch, describe_training(measured), {"weights": out / EXPORTED}, commands)
    return Result(out, measured, files_of_run(out, weights=out / EXPORTED, **kept_epochs(out)), commands)


def _ready_probe(probe: Probe | None, config: PretrainConfig) -> Probe | None:
    """The probe with its options. Labelled images are checked now, not after the first epochs."""
    if config.probe_data is None:
        return probe
    if probe is None:
        raise UserError("probe_data is given without a probe; pass the function that scores a backbone on it")
    for split in ("train", "test"):
        check_objects(open_split(Path(config.probe_data), split, orientation=config.probe_orientation))
    return probe if config.probe_orientation is None else partial(probe, orientation=config.probe_orientation)


def _draw_views(draw: DrawViews, images: PixelSource, views: ViewMaker, path: Path) -> Path:
    with untouched_generators():  # a loader draws a seed
        batch = first_images(images, _VIEWED if images.spec.ndim == 2 else 1, views.seed)  # whole volumes are large
        return draw(batch, views(batch), path, images.spec)


def _probe(probe: Probe, method: Method, data: Path, spec: PixelSpec) -> dict[str, float]:
    """Scores of the backbone as it would be exported; the other processes wait in their next step."""
    network = exported_now(method)
    if rank() > 0:
        return {}
    # Whole numbers are counts, e.g. of images, which do not change.
    return {f"probe_{name}": value for name, value in probe(network, data, spec).items() if isinstance(value, float)}
