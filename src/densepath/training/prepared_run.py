"""A pre-training before its first step: hardware, images, method and views, and the record of its options."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from densepath.core.locks import refuse_held
from densepath.runs.checkpoints import CHECKPOINTS, has_checkpoint
from densepath.runs.folder import check_run, read_config
from densepath.runs.progress import say
from densepath.sources.fingerprint import fingerprint
from densepath.sources.image_files import ImageFiles
from densepath.sources.open import cache_images, check_size
from densepath.sources.per_image import PerImage
from densepath.sources.pixel_source import PixelSource
from densepath.training.agreement import refusing_together
from densepath.training.config import DEFAULT_EPOCHS, FREE, PretrainConfig
from densepath.training.hardware import Hardware, choose_hardware, divide_batch
from densepath.training.inputs import checksums_of, digests_of, make_inputs
from densepath.training.learner import Learner, RunViews, check_scale, make_learner, plan_run_views
from densepath.training.loggers import check_loggers
from densepath.training.run_images import RunImages, open_run_images
from densepath.training.validation import PartOf, check_held


@dataclass(frozen=True, eq=False)
class PreparedRun:
    """What a pre-training needs before its first step. Nothing has been written to its folder.

    Args:
        config: the configuration, with what was chosen for "auto" and for a length that is not given.
        hardware: what it computes on.
        batch: images in a batch of this process.
        fresh: whether it starts at its beginning, without a checkpoint.
        found: the images that it has, learns from and is validated on.
        images: those that it learns from, in memory if the configuration asks for it.
        learner: its method and backbone.
        views: the views of the method.
        extras: what the method needs besides pixels, of the images that it learns from.
        held_extras: the same of those that it is validated on.
        record: the options for ``config.yaml``.
        free: dotted names of those that may change when it is resumed.
        known: digests that must be the same when it is resumed.
        checksums: digests that must be the same in all processes.
        labelled: a line on what the method has prepared, such as label maps.
    """

    config: PretrainConfig
    hardware: Hardware
    batch: int
    fresh: bool
    found: RunImages
    images: PixelSource
    learner: Learner
    views: RunViews
    extras: Mapping[str, PerImage]
    held_extras: Mapping[str, PerImage]
    record: dict[str, Any]
    free: Collection[str]
    known: Mapping[str, int | str]
    checksums: Mapping[str, str]
    labelled: str | None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes to the run folder."""
        return self.hardware.rank == 0

    @property
    def files(self) -> ImageFiles | None:
        """The files that it learns from; None for stores and slides."""
        return self.found.used if isinstance(self.found.used, ImageFiles) else None


def prepare_run(config: PretrainConfig) -> PreparedRun:
    """Choose the hardware, find the images, build the method, and compute what it needs besides pixels.

    Raises:
        UserError: options that do not fit each other, the data or the run that is resumed.
    """
    out, old = Path(config.out), read_config(Path(config.out)) if config.resume else None
    if config.epochs is None and config.max_steps is None:
        config = replace(config, epochs=DEFAULT_EPOCHS)
    if old is not None and "pixels" not in old and config.accumulate > 1:
        say(
            f"densepath: the run in {out} was started by a version that updated momentum encoders and queues once per "
            f"batch; from now on they are updated once per optimizer step of {config.accumulate} batches"
        )
    precision = config.precision
    if old is not None and precision == "auto":
        precision = old.get("precision", precision)  # as on the hardware where the run was started
    hardware = choose_hardware(config.devices, precision, config.channels_last, config.deterministic, config.strategy)
    batch = divide_batch(config.batch_size, hardware.world_size, config.accumulate)
    together = batch * hardware.world_size
    with refusing_together(hardware):
        if hardware.rank == 0 and old is None:  # a complete run needs none
            check_loggers(config.loggers)
        found = open_run_images(config, old)
        spec, known = found.used.spec, fingerprint(found.used)
        fresh = old is None or not has_checkpoint(out / CHECKPOINTS)
        learner = make_learner(config, spec, fresh, together, hardware.world_size)
        method = learner.method
        views = plan_run_views(learner, config, spec, hardware)
        if fresh:  # a run of an earlier version may end as it began
            check_scale(views.declared, config.augment)
            if found.held is not None:
                check_held(method, found.held, together)
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
        if hardware.rank == 0:
            refuse_held(out)  # now, not after hours of labelling images
            check_run(out, record, resume=config.resume, free=free, defaults=config.defaults())

        images = cache_images(found.used, config.cache, hardware.device)
        check_size(images, views.smallest // 2)
        inputs = make_inputs(method, config, images if found.parts is None else found.whole)
        known |= digests_of(method, inputs)
        checksums = checksums_of(method, inputs) if hardware.world_size > 1 else {}
        labelled = method.prepare(images, inputs)
    extras, held = method.extras, {}
    if found.parts is not None:
        extras, held = ({name: PartOf(each, part) for name, each in extras.items()} for part in found.parts)
    return PreparedRun(
        config=config,
        hardware=hardware,
        batch=batch,
        fresh=fresh,
        found=found,
        images=images,
        learner=learner,
        views=views,
        extras=extras,
        held_extras=held,
        record=record,
        free=free,
        known=known,
        checksums=checksums,
        labelled=labelled,
    )
