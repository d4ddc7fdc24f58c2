"""Pre-training: from a folder of images to a backbone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from densepath.annotations.coco import open_split
from densepath.annotations.splits import check_objects
from densepath.core.closing import say_end
from densepath.core.distributed import rank
from densepath.core.errors import UserError
from densepath.core.files import atomic_write
from densepath.core.result import Result
from densepath.core.stopwatch import Stopwatch
from densepath.methods import Method
from densepath.methods.option_effects import without_effect
from densepath.nets.weights import pixel_notes
from densepath.nets.weights.trained_on import SLIDES
from densepath.runs.closing import describe_training, draw_safely, files_of_run, newest_measurements
from densepath.runs.folder import EXPORTED, VIEWS, open_run
from densepath.runs.sessions import planned_steps
from densepath.sources.batch import ImageBatch
from densepath.sources.loader import ImageBatches
from densepath.sources.pixel_source import PixelSource, PixelSpec
from densepath.sources.summary import summarize
from densepath.training.agreement import refusing_together
from densepath.training.compiled import compile_networks, compiling, uncompiled
from densepath.training.config import PretrainConfig
from densepath.training.division import HELD, LEFT, USED, write_lists
from densepath.training.export import export_backbone, export_parts
from densepath.training.feature_pass import FeaturePass
from densepath.training.hardware import choose_workers
from densepath.training.intervals import Intervals
from densepath.training.kept_epochs import KeptEpochs, exported_now, kept_epochs
from densepath.training.learned_images import DrawLearned, LearnedImages
from densepath.training.loop import DrawStep, Evaluate, Keep, train
from densepath.training.model_card import recorded_scores
from densepath.training.next_steps import after_pretraining
from densepath.training.prepared_run import PreparedRun, prepare_run
from densepath.training.pretrain_task import PretrainTask
from densepath.training.random_state import untouched_generators
from densepath.training.recipes import own_augment
from densepath.training.reconstruction_images import Draw, ReconstructionImages, first_images
from densepath.training.resolve import resolve
from densepath.training.run_images import record_slides, with_tiles
from densepath.training.start_lines import color_note, held_note, report_start
from densepath.training.validation import Patience, Validation
from densepath.version import __version__
from densepath.views.augment import idle_options
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
    probe = _ready_probe(probe, config)
    made = prepare_run(config)
    config, learner, out = made.config, made.learner, Path(made.config.out)
    batches, steps = _batches(made)
    steps_per_epoch = batches.steps_per_epoch / config.accumulate
    learner.method.check_length(max(steps - 1, 0) * config.accumulate / batches.steps_per_epoch)
    views = made.views.maker(_early_views(config, steps, batches))
    batches.draw = views.draw
    feature_pass = FeaturePass(batches, config.view_size, made.hardware.memory_format, learner.method.feature_view)
    patience = None if made.found.held is None else Patience(config.patience)
    task = PretrainTask(learner.method, views, config.optimizer, steps, steps_per_epoch, feature_pass, patience)
    evaluate = _evaluation(made, task, probe)
    pictures = _pictures(made, draw, draw_learned)
    facts: dict[str, int | str] = {"images": len(made.images), "steps": steps, "processes": made.hardware.world_size}
    facts |= made.known
    with ExitStack() as opened:
        if made.first:
            with refusing_together(made.hardware):
                opened.enter_context(_open_folder(made))
            slides = _begin(made, steps, steps_per_epoch, draw_views)
        if config.compile:
            compile_networks(task)
            opened.enter_context(compiling())
            evaluate, pictures = evaluate and uncompiled(evaluate), pictures and uncompiled(pictures)
        done = train(
            task,
            batches,
            out,
            hardware=made.hardware,
            intervals=_intervals(config, steps_per_epoch, validates=made.found.held is not None),
            config=made.record,
            facts=facts,
            checksums=made.checksums,
            free=made.free,
            accumulate=config.accumulate,
            seed=config.seed,
            resume=config.resume,
            equal_shapes=not config.early_view_sizes,
            loggers=config.loggers,
            evaluate=evaluate,
            keep=_keep(made, steps_per_epoch),
            draw=pictures,
            name=out.name,
        )
        if not made.first:
            return Result(out)
        card = {"facts": facts, "scores": recorded_scores(out)}
        export_backbone(out / EXPORTED, learner.method.exported_backbone(), "timm", made.record, done, card, slides)
        export_parts(out / EXPORTED.parent, learner.method.exported_parts(), made.record, done, slides)
        if draw_curves is not None:
            draw_safely(partial(draw_curves, out))
        measured = newest_measurements(out)
        commands = after_pretraining(with_tiles(config), learner.method, made.images, learner.named)
        say_end(watch, describe_training(measured), {"weights": out / EXPORTED}, commands)
    return Result(out, measured, files_of_run(out, weights=out / EXPORTED, **kept_epochs(out)), commands)


def _batches(made: PreparedRun) -> tuple[ImageBatches, int]:
    """The batches of this process, as many as whole optimizer steps need, and the steps of the run."""
    config, hardware = made.config, made.hardware
    batches = ImageBatches(
        made.images,
        batch_size=made.batch,
        seed=config.seed,
        max_steps=None if config.max_steps is None else config.max_steps * config.accumulate,
        epochs=config.epochs,
        rank=hardware.rank,
        world_size=hardware.world_size,
        workers=choose_workers(hardware) if config.workers is None else config.workers,
        device=hardware.device,
        extras=made.extras,
        shuffle=config.shuffle,
    )
    steps = batches.total_steps // config.accumulate
    if config.max_steps is None:
        steps = planned_steps(Path(config.out), steps)
    if steps:  # batches that are not enough for a step would make the run longer than its schedule
        batches.total_steps = steps * config.accumulate
    return batches, steps


def _early_views(config: PretrainConfig, steps: int, batches: ImageBatches) -> list[tuple[float, int | Sequence[int]]]:
    """The sizes of early views, and the epochs of the batches at which each ends, after a whole step."""
    per_epoch, sizes = batches.steps_per_epoch, config.early_view_sizes
    return [(round(share * steps) * config.accumulate / per_epoch, size) for share, size in sizes]


def _intervals(config: PretrainConfig, steps_per_epoch: float, validates: bool) -> Intervals:
    """The intervals of a run in optimizer steps; one that validates does so after each epoch."""
    epochs = (1.0 if validates else config.probe_every, config.keep_every, config.picture_every)
    every = (config.log_every, config.save_every_steps, config.save_every_minutes)
    return Intervals(*every, *(each * steps_per_epoch for each in epochs))


def _evaluation(made: PreparedRun, task: PretrainTask, probe: Probe | None) -> Evaluate | None:
    """What is measured beside the training: the loss of held-out images, or the scores of the probe."""
    method, spec, held = made.learner.method, made.images.spec, made.found.held
    if held is not None and task.patience is not None:
        metadata = {"method": str(made.record["method"]), **pixel_notes(spec)}
        out, together = Path(made.config.out), made.learner.batch
        views = made.views.maker()
        validation = Validation(method, views, held, together, task.patience, out, metadata, made.held_extras)
        return partial(task.validate, validation)
    if probe is not None and made.config.probe_data is not None:
        return partial(_probe, probe, method, Path(made.config.probe_data), spec)
    return None


def _pictures(made: PreparedRun, draw: Draw | None, draw_learned: DrawLearned | None) -> DrawStep | None:
    """What draws the pictures of a step."""
    method, out, drawers = made.learner.method, Path(made.config.out), list[DrawStep]()
    if draw is not None and method.predicts_pixels():
        drawers.append(ReconstructionImages(method, made.images, made.views.maker(), draw, out))
    if draw_learned is not None:
        drawers.append(LearnedImages(method, made.images, draw_learned, out, made.config.seed))
    return (lambda step: [path for draw_step in drawers for path in draw_step(step)]) if drawers else None


def _keep(made: PreparedRun, steps_per_epoch: float) -> Keep | None:
    """What keeps the backbones of epochs."""
    every = made.config.keep_every
    if not every * steps_per_epoch:
        return None
    return KeptEpochs(made.learner.method, Path(made.config.out), made.record, every, every * steps_per_epoch)


def _open_folder(made: PreparedRun) -> AbstractContextManager[Path]:
    """Create or open the run folder; it is locked until the context ends."""
    config, kept = made.config, {"note": f"densepath {__version__}", "made": _MADE}
    options: dict[str, Any] = {"resume": config.resume, "free": made.free, "defaults": config.defaults(), **kept}
    return open_run(Path(config.out), made.record, **options)


def _begin(
    made: PreparedRun, steps: int, steps_per_epoch: float, draw_views: DrawViews | None
) -> tuple[str, ...] | None:
    """Write what a run records before its first step, and print what it begins with. Returns the run's slides."""
    config, learner, found, out = made.config, made.learner, made.found, Path(made.config.out)
    lists = {USED: made.images if made.files is None else made.files, HELD: found.held, LEFT: found.left}
    if found.held or found.left:
        write_lists(out, {name: listed for name, listed in lists.items() if listed is not None}, not made.fresh)
    if learner.tensors:
        with atomic_write(out / LOADED) as part:
            lines = "".join(f"{line}\n" for line in learner.tensors)
            part.write_text(lines, encoding="utf-8", errors="surrogateescape")
    slides = record_slides(out, made.images, config.weights if made.fresh else "random")
    read = summarize(made.images, made.files) if made.fresh else []
    held = held_note(made.images, found.held, out) if made.fresh else None
    idle = without_effect(type(learner.method), learner.options)
    idle += [] if config.augment is None else idle_options(config.augment, own_augment(config.method))
    notes = (*read, held, learner.loaded, color_note(made.views.without), made.labelled, *idle)
    report_start(notes, config.optimizer, steps, steps_per_epoch)
    if draw_views is not None and not (out / VIEWS).exists():
        draw_safely(partial(_draw_views, draw_views, made.images, made.views.maker(), out / VIEWS))
    return slides


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
