"""``densepath segment``: train networks that segment images or volumes, and test them by patient."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from densepath.core.closing import command, say_end
from densepath.core.errors import UserError
from densepath.core.files import atomic_write
from densepath.core.result import Result
from densepath.core.stopwatch import Stopwatch
from densepath.core.streams import say
from densepath.runs.folder import open_run, read_config
from densepath.sources.other_bits import has_own_window
from densepath.sources.pixel_source import PixelSource, PixelSpec
from densepath.training.resolve import resolve
from densepath.transfer.best_epoch import ranked
from densepath.transfer.classify.cohort import still_there
from densepath.transfer.classify.results import METRICS, SCORES
from densepath.transfer.classify.splits import Split, Study, check_regions, make_study
from densepath.transfer.segment.cohort import Cases, read_cases
from densepath.transfer.segment.config import FREE, SegmentConfig
from densepath.transfer.segment.legend import IGNORE, Legend
from densepath.transfer.segment.results import CASES, SHOWN, Outcome, describe, score, write_results
from densepath.transfer.segment.segmenter import SAME_SPACING, SEGMENTER_FILE, SegmenterNotes
from densepath.transfer.segment.training import PICTURES, Answers, answer, fit
from densepath.transfer.trainings import (
    MADE,
    Trainings,
    backbone_of_run,
    check_same,
    hardware_of_run,
    keep_splits,
    pixels_of_run,
    sides_of,
    sizes_of,
    warn_of_copies,
    warn_of_unknown_patients,
)
from densepath.version import __version__
from densepath.views.augment import idle_options

_SIDES = {2: 256, 3: 64}  # of patches, by dimensions
_STEP = 32  # pixels: images are padded to whole steps of the deepest map of most networks


def segment(config: SegmentConfig | str | Path | None = None, **options: Any) -> Result:
    """Train segmenters, and test them: see :func:`densepath.segment`."""
    return run(resolve(SegmentConfig, config, options, recipes="segment"))


def run(config: SegmentConfig) -> Result:
    """Train and test with a configuration. Errors as for :func:`densepath.segment`."""
    watch, out = Stopwatch(), Path(config.out)
    old = read_config(out) if config.resume else None
    if old is not None and not old.keys() >= {"head", "precision", "pixels"}:
        raise UserError(f"{out} holds another kind of run; name another folder")
    hardware = hardware_of_run(old, config.devices, config.precision)
    cases, test = read_cases(config)
    study = make_study(cases.pool, None if test is None else test.pool)
    warn_of_unknown_patients(study)
    spec = _pixels(config, cases.pool.images, None if old is None else old["pixels"])
    for part in [cases] if test is None else [cases, test]:
        part.pool.images.spec = spec
    notes = _notes(config, cases, spec)
    trainings = Trainings.of(config, study, hardware)
    for _, split, name in trainings.each:
        check_regions(study, split, name)
    size = notes.view_size
    record = replace(
        config,
        precision=hardware.precision,
        backbone=notes.backbone,
        view_size=size[0] if len(set(size)) == 1 else size,
    ).record()
    record["pixels"] = spec.record()
    first = hardware.rank == 0
    kept: dict[str, Any] = {"free": FREE, "note": f"densepath {__version__}", "made": MADE}
    kept["defaults"] = SegmentConfig(data="", out="").record()
    with open_run(out, record, resume=config.resume, **kept) if first else nullcontext():
        if first:
            _say_start(study, cases, notes, trainings.splits[config.seed], config)
            warn_of_copies(study)
            digests = [*cases.digests, *(() if test is None else test.digests)]
            check_same(out, study, digests, _former_class(config, notes.legend))
            keep_splits(out, study, trainings.splits)
            trainings.record_session(out, study, hardware)
        opened = cases.opened(config, hardware.device)
        tested = opened if test is None else test.opened(config, hardware.device)
        answers: list[Answers] = []
        tests: list[Cases] = []
        for seed, split, name in trainings.each:
            folder = out / name if name else out
            if name:
                say(f"densepath: {name}: {sizes_of(split)}")
            left = [still_there(cases.pool, opened.pool, part) for part in (split.train, split.validation)]
            parts = opened.take(left[0]), opened.take(left[1])
            fit(config, notes, parts, folder, seed, hardware)
            if not first:
                return Result(out)
            tests.append(tested.take(still_there(study.test, tested.pool, split.test)))
            answers.append(answer(folder, tests[-1], hardware, config.pictures))
        return _finish(config, tests, answers, trainings.names, watch)


def _pixels(config: SegmentConfig, images: PixelSource, recorded: Any) -> PixelSpec:
    """The specification of the pixels; volumes keep the window of their own store."""
    spec = pixels_of_run(config.weights, images, recorded)
    return spec.override(window=images.spec.window) if recorded is None and spec.ndim == 3 else spec


def _notes(config: SegmentConfig, cases: Cases, spec: PixelSpec) -> SegmenterNotes:
    """What is built."""
    images = cases.pool.images
    notes = SegmenterNotes(
        backbone_of_run(config, spec.ndim),
        config.head,
        config.norm,
        cases.truth.legend,
        _patch_size(config, cases.longest),
        config.overlap,
        spec.record(),
        _spacing(images),
        has_own_window(images),
    )
    with torch.random.fork_rng(devices=[]):
        notes.build()  # reports what does not fit, before the folder exists
    return notes


def _former_class(config: SegmentConfig, legend: Legend) -> str:
    """A reason for other labels than those of a run: values named ignore were a class in earlier versions."""
    named = sorted({*legend.ignored}.difference(config.ignore))
    values = ", ".join(map(str, named))
    return f", or an earlier version began it, in which {values} ({IGNORE}) was a class" if named else ""


def _patch_size(config: SegmentConfig, longest: tuple[int, ...]) -> tuple[int, ...]:
    """The sides of patches; by default no longer than what the longest images take, in whole steps of a network."""
    ndim = len(longest)
    enough = [-(-side // _STEP) * _STEP for side in longest]
    if config.view_size is None:
        return tuple(min(_SIDES[ndim], side) for side in enough)
    size = sides_of(config.view_size, ndim)
    if any(side > 2 * most for side, most in zip(size, enough, strict=True)):
        raise UserError(
            f"patches of {_by(size)} are more than twice as long as the longest images, {_by(longest)}; use "
            f"--view_size {' '.join(map(str, enough))}"
        )
    return size


def _by(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def _spacing(images: PixelSource) -> tuple[float, ...] | None:
    """The mm between the voxels of volumes; None if they differ."""
    if images.spec.ndim != 3:
        return None
    known = images.spacing(torch.arange(len(images)))
    if known is None or bool((known.amax(0) > SAME_SPACING * known.amin(0)).any()):
        return None
    return tuple(round(side, 6) for side in known.double().mean(0).tolist())


def _say_start(
    study: Study, cases: Cases, notes: SegmenterNotes, splits: Sequence[Split], config: SegmentConfig
) -> None:
    legend = notes.legend
    shown = [f"{value} {name}" for value, name in zip(legend.values, legend.names, strict=True)]
    how = f"a {config.head} on the {'frozen ' * config.freeze}{notes.backbone}"
    say(f"densepath: {how}, patches of {_by(notes.view_size)}; classes: {', '.join(shown)}")
    pools = {"all": study.train} if study.test is study.train else {"training": study.train, "test": study.test}
    for name, pool in pools.items():
        say(f"densepath: {name} images: {pool.describe()}")
    if notes.spec.ndim == 3 and notes.spacing is None:
        say(
            "densepath: warning: volumes differ in the distance of their voxels, and patches are in voxels; convert "
            "them with --spacing to train at one distance"
        )
    idle = config.optimizer.without_effect() + idle_options(config.augment)
    for line in (*([sizes_of(splits[0])] if len(splits) == 1 else []), *idle):
        say(f"densepath: {line}")


def _finish(
    config: SegmentConfig, tests: list[Cases], answers: list[Answers], names: list[str], watch: Stopwatch
) -> Result:
    out, legend = Path(config.out), answers[0].notes.legend
    run_names = [name or "run" for name in names]
    tested = Outcome(
        [case.pool.names[p] for case, each in zip(tests, answers, strict=True) for p in each.positions],
        [case.pool.owners[p] for case, each in zip(tests, answers, strict=True) for p in each.positions],
        np.concatenate([each.columns for each in answers]),
        legend.scored,
        np.repeat(np.arange(len(answers)), [len(each.positions) for each in answers]),
        run_names,
        "mm" if answers[0].notes.spec.ndim == 3 else "px",
    )
    scores = score(tested, config.seed)
    best = max(range(len(answers)), key=lambda k: ranked((answers[k].notes.score, -answers[k].notes.loss)))  # no test
    if names[best]:
        (out / SEGMENTER_FILE).parent.mkdir(exist_ok=True)
        with atomic_write(out / SEGMENTER_FILE) as part:
            shutil.copyfile(out / names[best] / SEGMENTER_FILE, part)
    record = {
        "densepath": __version__,
        "classes": dict(zip(legend.names, legend.values, strict=True)),
        "test_images": len(set(tested.names)),
        "patients": len(set(tested.owners)) if tests[0].pool.by_patient else None,
        "trainings": len(names),
        "epochs": {name: each.notes.epoch for name, each in zip(run_names, answers, strict=True)},
        "exported": names[best] or None,
    }
    failed = write_results(tested, scores, record, out)
    say(f"densepath: {describe(scores, failed, tested.unit, len(names) > 1)}")
    commands = (command("predict", out, "--data", "IMAGES", "--out", Path(f"{out}_predictions")),)
    pictures = out / (names[0] or ".") / PICTURES
    made = {"segmenter": out / SEGMENTER_FILE, "scores": out / METRICS, "cases": out / CASES}
    say_end(watch, "", made | ({"pictures": pictures} if pictures.is_dir() else {}), commands)
    files = {path.stem: path for path in sorted(pictures.rglob("*.png"))}
    files |= {"segmenter": out / SEGMENTER_FILE, "metrics": out / METRICS, "scores": out / SCORES, "cases": out / CASES}
    values: dict[str, Any] = {name: each.value for name, each in scores.all.items()}
    values |= {f"{name}_spread": scores.spread(name) for name in SHOWN if len(names) > 1}
    values |= {f"{what}_{name}": counts[what] for name, counts in failed.items() for what in ("missed", "false")}
    return Result(out, values, files, commands)
