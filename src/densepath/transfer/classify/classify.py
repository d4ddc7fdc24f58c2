"""``densepath classify``: fine-tune a backbone, or train a linear layer on it, to tell images apart; and test that."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from densepath.core.closing import command, say_end
from densepath.core.errors import UserError, counted
from densepath.core.files import atomic_write
from densepath.core.result import Result
from densepath.core.spacing import evenly_spaced
from densepath.core.stopwatch import Stopwatch
from densepath.core.streams import say
from densepath.nets.backbones import build_backbone
from densepath.nets.weights.pretrained import size_of_weights
from densepath.runs.folder import open_run, read_config
from densepath.sources.corrupt import CorruptImage
from densepath.sources.open import find_source
from densepath.sources.other_bits import check_window, has_own_window
from densepath.sources.pixel_source import PixelSource, PixelSpec
from densepath.sources.slides.resolution import same_mpp
from densepath.training.hardware import Hardware
from densepath.training.resolve import resolve
from densepath.transfer.best_epoch import ranked
from densepath.transfer.classify.classifier import CLASSIFIER_FILE, ClassifierNotes
from densepath.transfer.classify.closing import close_outcome
from densepath.transfer.classify.cohort import Pool, open_pool, read_pool, same_labels, still_there
from densepath.transfer.classify.config import FREE, ClassifyConfig
from densepath.transfer.classify.pictures import PICTURES
from densepath.transfer.classify.results import METRICS, collect_answers
from densepath.transfer.classify.splits import Split, Study, check_labels, make_study, only_listed, warn_of_undefined
from densepath.transfer.classify.training import Answers, answer, fit
from densepath.transfer.embed.encoder import Encoder
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

_SIDES = {2: 224, 3: 64}  # of images, by dimensions
_SAMPLED = 16  # images whose size and µm per pixel are read


def classify(config: ClassifyConfig | str | Path | None = None, **options: Any) -> Result:
    """Train classifiers of images, and test them: see :func:`densepath.classify`."""
    return run(resolve(ClassifyConfig, config, options, recipes="classify"))


def run(config: ClassifyConfig) -> Result:
    """Train and test with a configuration. Errors as for :func:`densepath.classify`."""
    watch, out = Stopwatch(), Path(config.out)
    old = read_config(out) if config.resume else None
    if old is not None and not old.keys() >= {"freeze", "precision", "pixels"}:
        raise UserError(f"{out} holds another kind of run; name another folder")
    hardware = hardware_of_run(old, config.devices, config.precision)
    study = _read_study(config)
    pools = [study.train] if study.test is study.train else [study.train, study.test]
    spec = pixels_of_run(config.weights, study.train.images, None if old is None else old["pixels"])
    for pool in pools:
        pool.images.spec = spec
    notes = _notes(config, study, spec)
    trainings = Trainings.of(config, study, hardware)
    for _, split, name in trainings.each:
        check_labels(study, split, name)
    backbone, size = notes.backbone, notes.view_size
    record = replace(
        config, precision=hardware.precision, backbone=backbone, view_size=size[0] if len(set(size)) == 1 else size
    ).record()
    record["pixels"] = spec.record()
    first = hardware.rank == 0
    kept: dict[str, Any] = {"free": FREE, "note": f"densepath {__version__}", "made": MADE}
    kept["defaults"] = ClassifyConfig(data="", out="").record()
    with open_run(out, record, resume=config.resume, **kept) if first else nullcontext():
        if first:
            _say_start(study, notes, trainings.splits[config.seed], config)
            warn_of_copies(study)
            for _, split, name in trainings.each:
                warn_of_undefined(study, split, name)
            check_same(out, study)
            keep_splits(out, study, trainings.splits)
            trainings.record_session(out, study, hardware)
        opened = _opened(study, config, hardware)
        answers: list[Answers] = []
        tests: list[Pool] = []
        for seed, split, name in trainings.each:
            folder = out / name if name else out
            if name:
                say(f"densepath: {name}: {sizes_of(split)}")
            left = [still_there(study.train, opened.train, part) for part in (split.train, split.validation)]
            parts = opened.train.take(left[0]), opened.train.take(left[1])
            fit(config, notes, parts, folder, seed, hardware)
            if not first:
                return Result(out)
            tests.append(opened.test.take(still_there(study.test, opened.test, split.test)))
            answers.append(answer(folder, tests[-1], hardware))
        return _finish(config, tests, answers, trainings.names, watch)


def _read_study(config: ClassifyConfig) -> Study:
    """The images with their labels and official parts."""
    pool = read_pool(config, find_source(config.data, exclude=config.exclude), config.data, config.labels)
    test = None
    if config.test_data is not None:
        labels = config.labels if config.test_labels is None else config.test_labels
        images = find_source(config.test_data, exclude=config.exclude)
        check_window(pool.images.spec, has_own_window(pool.images), images, config.test_data)
        found = read_pool(config, images, config.test_data, labels, whole=False)
        test = same_labels(pool.targets.names, found, 0.0 if config.separator else np.nan)
    study = make_study(pool, test)
    if config.train_images is not None:
        study = only_listed(study, config.train_images)
    warn_of_unknown_patients(study)
    return study


def _opened(study: Study, config: ClassifyConfig, hardware: Hardware) -> Study:
    """The study with images in memory where that is useful."""
    train = open_pool(study.train, config, hardware.device)
    test = train if study.test is study.train else open_pool(study.test, config, hardware.device)
    return replace(study, train=train, test=test)


def _notes(config: ClassifyConfig, study: Study, spec: PixelSpec) -> ClassifierNotes:
    """What is built."""
    name = backbone_of_run(config, spec.ndim)
    with torch.random.fork_rng(devices=[]):
        encoder = Encoder(build_backbone(name, spec.channels), spec, None, config.pool)
    known = config.view_size or size_of_weights(config.weights) or encoder.input_size
    size = sides_of(known or _SIDES[spec.ndim], spec.ndim)
    encoder.backbone.check_size(*size)
    places = [position for position in evenly_spaced(_SAMPLED, len(study.train))]
    return ClassifierNotes(
        name,
        encoder.pool,
        study.train.targets.names,
        study.train.targets.exclusive,
        size,
        spec.record(),
        mpp=_mpp(study.train.images, places),
        image_size=_short_side(study.train.images, places),
        own_window=has_own_window(study.train.images),
    )


def _short_side(images: PixelSource, places: Sequence[int]) -> int:
    """The median short side of images in pixels, of those that can be read."""
    sides, damaged = [], []
    for position in places:
        try:
            sides.append(int(images.sizes(torch.tensor([position])).amin()))
        except CorruptImage as error:
            damaged.append(str(error))
    if not sides:
        raise UserError(f"none of {counted(len(damaged), 'image')} can be read; check the files ({damaged[0]})")
    return int(median(sides))


def _mpp(images: PixelSource, places: Sequence[int]) -> float | None:
    """The µm per pixel of images; None if they are unknown, or differ."""
    if images.spec.ndim != 2:  # millimetres
        return None
    known = images.spacing(torch.tensor(places))
    if known is None or not bool(known.isfinite().all()) or not same_mpp(float(known.max()), float(known.min())):
        return None
    return float(known.median())


def _say_start(study: Study, notes: ClassifierNotes, splits: Sequence[Split], config: ClassifyConfig) -> None:
    pools = {"training": study.train} if study.test is study.train else {"training": study.train, "test": study.test}
    how = "a linear layer on the frozen" if config.freeze else "fine-tuning the"
    sides = " x ".join(map(str, notes.view_size))
    say(f"densepath: {how} {notes.backbone}, images of {sides} px")
    for name, pool in pools.items():
        say(f"densepath: {name if len(pools) > 1 else 'all'} images: {pool.describe()}")
    idle = config.optimizer.without_effect() + idle_options(config.augment)
    for line in (*([sizes_of(splits[0])] if len(splits) == 1 else []), *idle):
        say(f"densepath: {line}")


def _finish(
    config: ClassifyConfig, tests: list[Pool], answers: list[Answers], names: list[str], watch: Stopwatch
) -> Result:
    out = Path(config.out)
    tested = collect_answers(tests, answers, [name or "run" for name in names])
    best = max(range(len(answers)), key=lambda k: ranked((answers[k].notes.score, -answers[k].notes.loss)))  # no test
    if names[best]:
        (out / CLASSIFIER_FILE).parent.mkdir(exist_ok=True)
        with atomic_write(out / CLASSIFIER_FILE) as part:
            shutil.copyfile(out / names[best] / CLASSIFIER_FILE, part)
    notes = {
        "trainings": len(names),
        "epochs": {name or "run": each.notes.epoch for name, each in zip(names, answers, strict=True)},
        "exported": names[best] or None,
    }
    values, files = close_outcome(tested, notes, bool(tests[0].by_patient), config.seed, out)
    commands = (command("predict", out, "--data", "IMAGES", "--out", Path(f"{out}_predictions")),)
    made = {"classifier": out / CLASSIFIER_FILE, "scores": out / METRICS, "pictures": out / PICTURES}
    say_end(watch, "", made, commands)
    files["classifier"] = out / CLASSIFIER_FILE
    return Result(out, values, files, commands)
