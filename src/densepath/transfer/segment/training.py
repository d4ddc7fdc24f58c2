"""One training of a segmenter: chosen without its test images, which it then segments once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from densepath.core.digests import digest_of
from densepath.core.distributed import rank, total, world_size
from densepath.core.errors import UserError, counted
from densepath.core.output_names import output_names
from densepath.core.spacing import evenly_spaced
from densepath.core.streams import say
from densepath.core.system import with_progress
from densepath.nets.norms import plain_batch_norm, synchronize_batch_norm, to_group_norm
from densepath.nets.weights import load_weights
from densepath.runs.checkpoints import CHECKPOINTS, has_checkpoint, is_trained
from densepath.runs.closing import draw_safely
from densepath.sources.corrupt import CorruptImage, can_pass, refuse_passing
from densepath.training.hardware import Hardware
from densepath.transfer.classify.training import (
    Stored,
    keep_answers,
    kept_answers,
    refuse_in_all,
    say_left_out_of_test,
)
from densepath.transfer.one_training import batches_of_training, train_best
from densepath.transfer.probe.metrics import Integers
from densepath.transfer.segment.case_scores import dice, score_case
from densepath.transfer.segment.cohort import Cases
from densepath.transfer.segment.config import FREE, SegmentConfig
from densepath.transfer.segment.legend import ClassMap
from densepath.transfer.segment.loss import ImageSums
from densepath.transfer.segment.network import SegmentationNet
from densepath.transfer.segment.overlays import draw_case
from densepath.transfer.segment.patches import TRUTH, PatchMaker
from densepath.transfer.segment.segmenter import SEGMENTER_FILE, SegmenterNotes, read_segmenter, save_segmenter
from densepath.transfer.segment.starting_weights import are_group_normed, load_decoder_weights
from densepath.transfer.segment.task import SegmentTask

PICTURES = "pictures"
_CASES = "answers.json"


@dataclass(frozen=True, eq=False)
class Answers:
    """The scores of the test images of a training.

    Args:
        positions: (M,) of the test images that could be read.
        columns: (M, R, 4) of :func:`~densepath.transfer.segment.case_scores.score_case`.
        notes: of the segmenter.
    """

    positions: Integers
    columns: npt.NDArray[np.float64]
    notes: SegmenterNotes


def fit(
    config: SegmentConfig,
    notes: SegmenterNotes,
    parts: tuple[Cases, Cases],
    out: Path,
    seed: int,
    hardware: Hardware,
) -> None:
    """Train a segmenter, or resume its training, and write it as it was in the epoch that the validation images chose.

    Args:
        config: the options.
        notes: the segmenter to build.
        parts: training and validation images.
        out: the folder of the training.
        seed: seed of weights, orders and views.
        hardware: where to compute.
    """
    if is_trained(out, SEGMENTER_FILE):
        return
    cases, validation = parts
    first = rank() == 0 and hardware.rank == 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = replace(notes, norm="batch").build()
        if not (config.resume and has_checkpoint(out / CHECKPOINTS)):
            if notes.norm == "group" and are_group_normed(config.weights):
                to_group_norm(model.backbone)
            lines = [load_weights(model.backbone, config.weights), load_decoder_weights(model, config)]
            for line in filter(None, lines) if first else ():
                say(f"densepath: {line}")
    if notes.norm == "group":
        to_group_norm(model)
    elif hardware.world_size > 1:
        synchronize_batch_norm(model)
    patches = PatchMaker(
        config.augment, notes.view_size, seed, notes.spec, cases.truth, config.oversample, hardware.memory_format
    )
    batches = batches_of_training(config, cases.pool.images, hardware, seed, patches.draw, {TRUTH: cases.truth})
    task = SegmentTask(
        model,
        patches,
        config.optimizer,
        batches.total_steps,
        batches.steps_per_epoch,
        loss=config.loss,
        freeze=config.freeze,
        validate=_Validation(model, notes, validation, config, hardware),
        every=config.validate_every,
        choose=config.choose,
        patience=config.patience,
    )
    annotations = digest_of([*notes.legend.names, *map(str, notes.legend.values), *validation.pool.names])
    kept = train_best(
        task, batches, out, config, FREE, hardware, seed, annotations=annotations, every=config.validate_every
    )
    if hardware.rank == 0:
        notes = replace(notes, **kept)
        save_segmenter(out / SEGMENTER_FILE, plain_batch_norm(model), notes)
        shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)


def answer(out: Path, test: Cases, hardware: Hardware, pictures: int) -> Answers:
    """Segment the test images with the segmenter in a folder and score that, unless that was done before.

    Of these only those are segmented again whose picture is asked for, and is not there.
    """
    path = out / _CASES
    model, notes = read_segmenter(out / SEGMENTER_FILE)
    scores, left = kept_answers(path, test.pool)
    names = output_names([Path(name) for name in test.pool.names])
    chosen = set(evenly_spaced(pictures, len(test))) if pictures else set()
    left = sorted({*left, *(k for k in chosen if not (out / PICTURES / f"{names[k]}.png").is_file())})
    if left:
        hardware.lay_out(model)
        model.to(hardware.device)
    sliding = notes.sliding(model, hardware)
    damaged, failed = list[str](), list[str]()
    for k in with_progress(left, len(left), "testing"):
        try:
            pixels, truth = read_case(test, k)
        except CorruptImage as error:
            (failed if can_pass(error) else damaged).append(str(error))
            continue
        found = sliding.classes(pixels)
        known = test.pool.images.spacing(torch.tensor([k])) if pixels.ndim == 4 else None
        spacing = [1.0] * (pixels.ndim - 1) if known is None else known[0].tolist()
        steps = test.truth.maps.steps(k)
        row = score_case(found, truth, notes.legend, spacing if steps is None else steps)
        scores.setdefault(k, row.tolist())
        if k in chosen:
            drawn = names[k], pixels, sliding.spec, found, truth, notes.legend, dice(row), spacing
            draw_safely(partial(draw_case, out / PICTURES, *drawn))
    keep_answers(path, test.pool, scores)
    refuse_passing(failed)
    say_left_out_of_test(damaged, len(test), len(scores))
    positions = sorted(scores)
    columns = np.array([scores[k] for k in positions], np.float64).reshape(len(positions), len(notes.legend.regions), 4)
    return Answers(np.array(positions, np.int64), columns, notes)


def read_case(cases: Cases, position: int) -> tuple[npt.NDArray[Any], ClassMap]:
    """Stored pixels (*size, C) and classes (*size) of an image. Raises CorruptImage."""
    pixels = Stored(cases.pool.images).read(position)
    if isinstance(pixels, CorruptImage):
        raise pixels
    return pixels, cases.truth.read(position)


class _Validation:
    """Mean Dice and loss of whole validation images; each process scores every n-th of them."""

    def __init__(
        self, model: SegmentationNet, notes: SegmenterNotes, cases: Cases, config: SegmentConfig, hardware: Hardware
    ) -> None:
        self._model, self._notes, self._cases, self._loss, self._hardware = model, notes, cases, config.loss, hardware
        self._damaged: set[str] = set()
        self._failed: list[str] = []

    def __call__(self) -> tuple[float, float]:
        """The mean over the scored regions of their mean Dice over the images that have them, and the mean loss.

        Raises:
            UserError: no image can be read, or one of them cannot be read now, but perhaps later.
        """
        regions = len(self._notes.legend.regions)
        found = torch.zeros(len(self._cases), 2 + 2 * regions, dtype=torch.float64, device=self._hardware.device)
        sliding = self._notes.sliding(self._model.eval(), self._hardware)
        for k, pixels, truth in self._read():
            classes, sums = np.empty(truth.shape, np.uint8), None
            for start, logits in sliding.slabs(pixels):
                rows = slice(start, start + logits.shape[1])
                classes[rows] = logits.argmax(0).to(torch.uint8).cpu().numpy()
                true = torch.from_numpy((truth[rows] + np.uint8(1)).astype(np.int64) - 1)  # IGNORED becomes -1
                part = ImageSums.of(logits[None], true.to(logits.device)[None])
                sums = part if sums is None else sums + part
            assert sums is not None
            shares = dice(score_case(classes, truth, self._notes.legend, None))
            found[k, 0], found[k, 1] = 1, sums.loss(self._loss)[0]
            found[k, 2 : 2 + regions] = torch.from_numpy(np.nan_to_num(shares))
            found[k, 2 + regions :] = torch.from_numpy(np.isfinite(shares))
        torch.clear_autocast_cache()  # or the step would use copies of the weights that were cached without gradient
        refuse_in_all(self._failed, self._hardware.device)
        found = total(found).cpu()
        if not found[:, 0].any():
            raise UserError(
                f"none of {counted(len(found), 'validation image')} can be read; check {self._cases.pool.names[0]}"
            )
        sums_, known = found[:, 2 : 2 + regions].sum(0), found[:, 2 + regions :].sum(0)
        means = sums_[known > 0] / known[known > 0]
        return float(means.mean()) if len(means) else 0.0, float(found[:, 1].sum() / found[:, 0].sum())

    def _read(self) -> Iterator[tuple[int, npt.NDArray[Any], ClassMap]]:
        for k in range(len(self._cases))[rank() :: world_size()]:
            try:
                yield k, *read_case(self._cases, k)
            except CorruptImage as error:
                if can_pass(error):
                    self._failed.append(str(error))
                    continue
                if str(error) not in self._damaged:
                    say(f"densepath: a damaged validation image is left out: {error}")
                self._damaged.add(str(error))
