"""``densepath classify``: fine-tune a backbone, or train a linear layer on it, to tell images apart; and test that."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from densepath.core.closing import command, say_end
from densepath.core.digests import digest_of
from densepath.core.errors import UserError, first_few
from densepath.core.files import atomic_write
from densepath.core.result import Result
from densepath.core.spacing import evenly_spaced
from densepath.core.stopwatch import Stopwatch
from densepath.core.streams import say
from densepath.nets.backbones import build_backbone
from densepath.nets.weights.pixels import pixels_of_weights
from densepath.nets.weights.pretrained import backbone_of_weights, size_of_weights
from densepath.runs.closing import draw_safely
from densepath.runs.folder import open_run, read_config
from densepath.sources.image_files import ImageFiles
from densepath.sources.open import find_source
from densepath.sources.pixel_source import PixelSource, PixelSpec
from densepath.training.hardware import Hardware, choose_hardware, keep_freed_memory
from densepath.training.resolve import resolve
from densepath.transfer.classify.classifier import CLASSIFIER_FILE, ClassifierNotes
from densepath.transfer.classify.cohort import Pool, open_pool, read_pool, same_labels, still_there
from densepath.transfer.classify.config import FREE, ClassifyConfig
from densepath.transfer.classify.label_scores import SHOWN
from densepath.transfer.classify.pictures import PICTURES, draw_pictures
from densepath.transfer.classify.results import METRICS, PREDICTIONS, SCORES, collect_answers, score, write_results
from densepath.transfer.classify.splits import PARTS, Split, Study, divide, make_study
from densepath.transfer.classify.training import Answers, answer, fit
from densepath.transfer.embed.encoder import Encoder
from densepath.version import __version__

SPLITS = "splits.json"
_STUDY = "study.txt"  # the digest of what is learned from
_SIDE = 224  # pixels
_SAMPLED = 16  # images whose size and µm per pixel are read
_SAME_MPP = 1.03


def classify(config: ClassifyConfig | str | Path | None = None, **options: Any) -> Result:
    """Train classifiers of images, and test them: see :func:`densepath.classify`."""
    return run(resolve(ClassifyConfig, config, options, recipes="classify"))


def run(config: ClassifyConfig) -> Result:
    """Train and test with a configuration. Errors as for :func:`densepath.classify`."""
    watch, out = Stopwatch(), Path(config.out)
    old = read_config(out) if config.resume else None
    if old is not None and not old.keys() >= {"freeze", "precision", "pixels"}:
        raise UserError(f"{out} holds another kind of run; name another folder")
    precision = old["precision"] if old is not None and config.precision == "auto" else config.precision
    hardware = choose_hardware(config.devices, precision)
    keep_freed_memory(hardware)
    study = _read_study(config)
    pools = [study.train] if study.test is study.train else [study.train, study.test]
    spec = pixels_of_run(config.weights, study.train.images, None if old is None else old["pixels"])
    for pool in pools:
        pool.images.spec = spec
    notes = _notes(config, study, spec)
    seeds = [config.seed + number for number in range(config.seeds)]
    splits = {seed: divide(study, config.folds, config.validation, config.fraction, seed) for seed in seeds}
    trainings = [(seed, number) for seed in seeds for number in range(len(splits[seed]))]
    if hardware.world_size > 1 and len(trainings) > 1:
        raise UserError(
            f"{len(trainings)} trainings (folds and seeds) run one after the other on one device; leave --devices out, "
            "or give --seeds 1 --folds 0"
        )
    backbone, size = notes.backbone, notes.view_size
    record = replace(
        config, precision=hardware.precision, backbone=backbone, view_size=size[0] if len(set(size)) == 1 else size
    ).record()
    record["pixels"] = spec.record()
    first = hardware.rank == 0
    kept: dict[str, Any] = {"free": FREE, "note": f"densepath {__version__}"}
    kept["defaults"] = ClassifyConfig(data="", out="").record()
    with open_run(out, record, resume=config.resume, **kept) if first else nullcontext():
        if first:
            _say_start(study, notes, splits[seeds[0]], config)
            check_same(out, study)
            write_splits(out / SPLITS, study, splits)
        opened = _opened(study, config, hardware)
        names = [training_name(seed, number, len(seeds), len(splits[seed])) for seed, number in trainings]
        answers: list[Answers] = []
        tests: list[Pool] = []
        for (seed, number), name in zip(trainings, names, strict=True):
            split, folder = splits[seed][number], out / name if name else out
            if name:
                sizes = ", ".join(f"{len(getattr(split, part))} {part}" for part in PARTS)
                say(f"densepath: {name}: {sizes} images")
            left = [still_there(study.train, opened.train, part) for part in (split.train, split.validation)]
            parts = opened.train.take(left[0]), opened.train.take(left[1])
            fit(config, notes, parts, folder, seed, hardware)
            if not first:
                return Result(out)
            tests.append(opened.test.take(still_there(study.test, opened.test, split.test)))
            answers.append(answer(folder, tests[-1], hardware))
        return _finish(config, tests, answers, names, watch)


def _read_study(config: ClassifyConfig) -> Study:
    """The images with their labels and official parts."""
    pool = read_pool(config, find_source(config.data, exclude=config.exclude), config.data, config.labels)
    test = None
    if config.test_data is not None:
        labels = config.labels if config.test_labels is None else config.test_labels
        images = find_source(config.test_data, exclude=config.exclude)
        found = read_pool(config, images, config.test_data, labels, whole=False)
        test = same_labels(pool, found, 0.0 if config.separator else np.nan)
    study = make_study(pool, test)
    if not (study.train.by_patient and study.test.by_patient):
        say(
            "densepath: warning: the patients are unknown, so images of one may be in training and test, which makes "
            "scores too high; name them with --patient or --patient_regex"
        )
    return study


def _opened(study: Study, config: ClassifyConfig, hardware: Hardware) -> Study:
    """The study with images in memory where that is useful."""
    train = open_pool(study.train, config, hardware.device)
    test = train if study.test is study.train else open_pool(study.test, config, hardware.device)
    return replace(study, train=train, test=test)


def pixels_of_run(weights: str | Path, images: PixelSource, recorded: Mapping[str, Any] | None) -> PixelSpec:
    """The specification of the pixels: of the resumed run, or else of the weights, with the window of the images."""
    if recorded is not None:
        return PixelSpec.from_record(recorded)
    other = images.spec.ndim != 2 or images.spec.channels not in (1, 3)
    spec = pixels_of_weights(weights, images.spec if other else None)
    if weights == "random" and not other:
        spec = images.spec
    if not isinstance(images, ImageFiles) and images.spec.channels != spec.channels:  # only files are converted
        raise UserError(
            f"the images have {images.spec.channels} channels and the weights take {spec.channels}; give image files "
            "instead of a packed store, or other weights"
        )
    bits = {torch.uint8: 8, torch.uint16: 16}.get(images.dtype)
    if bits not in (None, 8 if spec.image_dtype is np.uint8 else 16):
        spec = spec.override(window=images.spec.window)
    return spec


def _notes(config: ClassifyConfig, study: Study, spec: PixelSpec) -> ClassifierNotes:
    """What is built."""
    name = config.backbone or backbone_of_weights(config.weights)
    with torch.random.fork_rng(devices=[]):
        encoder = Encoder(build_backbone(name, spec.channels), spec, None, config.pool)
    side: int | Sequence[int] = config.view_size or size_of_weights(config.weights) or encoder.input_size or _SIDE
    size = (side,) * spec.ndim if isinstance(side, int) else tuple(side)
    size = size * spec.ndim if len(size) == 1 else size
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
        image_size=int(median(study.train.images.sizes(torch.tensor(places)).amin(1).tolist())),
    )


def _mpp(images: PixelSource, places: Sequence[int]) -> float | None:
    """The µm per pixel of images; None if they are unknown, or differ."""
    if images.spec.ndim != 2:  # millimetres
        return None
    known = images.spacing(torch.tensor(places))
    if known is None or not bool(known.isfinite().all()) or float(known.max()) > _SAME_MPP * float(known.min()):
        return None
    return float(known.median())


def _say_start(study: Study, notes: ClassifierNotes, splits: Sequence[Split], config: ClassifyConfig) -> None:
    pools = {"training": study.train} if study.test is study.train else {"training": study.train, "test": study.test}
    how = "a linear layer on the frozen" if config.freeze else "fine-tuning the"
    sides = " x ".join(map(str, notes.view_size))
    say(f"densepath: {how} {notes.backbone}, images of {sides} px")
    for name, pool in pools.items():
        say(f"densepath: {name if len(pools) > 1 else 'all'} images: {pool.describe()}")
    if len(splits) == 1:
        sizes = ", ".join(f"{len(getattr(splits[0], part))} {part}" for part in PARTS)
        say(f"densepath: {sizes} images")


def check_same(out: Path, study: Study, digests: Sequence[str] = ()) -> None:
    """Refuse to continue a run with other images or labels, or files of labels with other digests."""
    facts: list[str | bytes] = [*digests]
    for pool in (study.train, study.test):
        facts += [*pool.names, *pool.owners, *pool.splits, *pool.targets.names, pool.targets.values.tobytes()]
    path, digest = out / _STUDY, digest_of(facts)
    if not path.is_file():
        with atomic_write(path) as part:
            part.write_text(f"{digest}\n")
    elif path.read_text().strip() != digest:
        raise UserError(f"the images or the labels of the run in {out} have changed; name another folder")


def write_splits(path: Path, study: Study, splits: dict[int, list[Split]]) -> None:
    import json

    def names(pool: Pool, positions: Any) -> list[str]:
        return [pool.names[p] for p in positions]

    record = {
        f"seed_{seed}": [
            {
                "train": names(study.train, split.train),
                "validation": names(study.train, split.validation),
                "test": names(study.test, split.test),
            }
            for split in own
        ]
        for seed, own in splits.items()
    }
    with atomic_write(path) as part:
        part.write_text(json.dumps(record, indent=1) + "\n")


def training_name(seed: int, fold: int, seeds: int, folds: int) -> str:
    """The folder of a training below that of the run; "" for the only one."""
    parts = [f"seed_{seed}"] * (seeds > 1) + [f"fold_{fold}"] * (folds > 1)
    return "/".join(parts)


def _finish(
    config: ClassifyConfig, tests: list[Pool], answers: list[Answers], names: list[str], watch: Stopwatch
) -> Result:
    out = Path(config.out)
    tested = collect_answers(tests, answers, [name or "run" for name in names])
    scores = score(tested, config.seed)
    best = max(range(len(answers)), key=lambda k: (answers[k].notes.score, -answers[k].notes.loss))  # never by the test
    if names[best]:
        (out / CLASSIFIER_FILE).parent.mkdir(exist_ok=True)
        shutil.copyfile(out / names[best] / CLASSIFIER_FILE, out / CLASSIFIER_FILE)
    targets = tested.targets
    notes = {
        "densepath": __version__,
        "labels": dict(zip(targets.names, targets.counts(), strict=True)),
        "several_labels": not targets.exclusive,
        "test_images": len(set(tested.names)),
        "patients": len(set(tested.owners)) if tests[0].by_patient else None,
        "trainings": len(names),
        "epochs": {name or "run": each.notes.epoch for name, each in zip(names, answers, strict=True)},
        "exported": names[best] or None,
    }
    write_results(tested, scores, notes, out)
    draw_safely(lambda: draw_pictures(tested, scores, out))
    if lacking := scores.undefined(tested.run_names):
        parts = [f"{name} of {', '.join(runs)}" for name, runs in lacking.items()]
        say(f"densepath: undefined, and left out of means and spreads: {first_few(parts)}")
    shown = []
    for name in SHOWN:
        spread = f", {scores.mean(name):.1f} ± {scores.spread(name):.1f} over trainings" if len(names) > 1 else ""
        shown.append(f"{name} {scores.all[name]}{spread}")
    say(f"densepath: {'; '.join(shown)}")
    commands = (command("predict", out, "--data", "IMAGES", "--out", f"{out}_predictions"),)
    made = {"classifier": out / CLASSIFIER_FILE, "scores": out / METRICS, "pictures": out / PICTURES}
    say_end(watch, "", made, commands)
    files = {path.stem: path for path in sorted((out / PICTURES).glob("*.png"), key=lambda p: p.stem != "roc")}
    files |= {"classifier": out / CLASSIFIER_FILE, "metrics": out / METRICS, "scores": out / SCORES}
    files |= {"predictions": out / PREDICTIONS}
    values = {name: each.value for name, each in scores.all.items()}
    values |= {f"{name}_spread": scores.spread(name) for name in SHOWN if len(names) > 1}
    return Result(out, values, files, commands)
