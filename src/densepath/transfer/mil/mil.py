"""``densepath mil``: answers for slides and patients from the features of their tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from densepath.core.closing import command, say_end
from densepath.core.digests import digest_of
from densepath.core.errors import UserError, counted
from densepath.core.failures import describe_failure
from densepath.core.files import atomic_write
from densepath.core.records import CONFIG
from densepath.core.result import Result
from densepath.core.spacing import evenly_spaced
from densepath.core.stopwatch import Stopwatch
from densepath.core.streams import say
from densepath.runs.closing import draw_safely
from densepath.runs.folder import open_run
from densepath.runs.sessions import record_session
from densepath.training.caller_state import state_of_the_caller
from densepath.training.hardware import Hardware, choose_hardware, keep_freed_memory
from densepath.transfer.embed.slide_features import SlideFeatures, read_slide_features
from densepath.transfer.mil.attention import ATTENTION, AttentionFiles
from densepath.transfer.mil.bag_task import BagSet, answer
from densepath.transfer.mil.bags import Bag, extractor_of, read_bags
from densepath.transfer.mil.cohort import Cohort, read_cohort
from densepath.transfer.mil.compare import write_comparison
from densepath.transfer.mil.config import FREE, MilConfig
from densepath.transfer.mil.extractor_record import FEATURES, ExtractorRecord
from densepath.transfer.mil.fold import Answers, Study, answer_fold
from densepath.transfer.mil.leaks import PretrainingSlides
from densepath.transfer.mil.model_file import MODEL_FILE, load_model
from densepath.transfer.mil.models import ALL, KNN, models_named
from densepath.transfer.mil.pictures import draw_pictures
from densepath.transfer.mil.results import PREDICTIONS, Outcome, collect, describe, scores_of, write_results
from densepath.transfer.mil.split_files import SPLITS, begun_before, read_splits, slides_in_order, write_splits
from densepath.transfer.mil.splits import VALIDATION, Split, make_splits, warn_of_validation
from densepath.transfer.probe.metrics import Score
from densepath.version import __version__

_LONG = 20_000  # tiles of a bag
_STUDY = "study.txt"  # the digest of what is learned from
_CLASSES_ONLY = ("clam", KNN)


@state_of_the_caller()
def mil(config: MilConfig | None = None, **options: Any) -> Result:
    """Train and test models of slides or patients on the features of their tiles, in folds by patient.

    In each fold, epoch and thresholds are chosen on validation cases that are held out of the training cases; the test
    cases are used once, by the model that was chosen.

    Args:
        config: the options.
        options: fields of :class:`MilConfig` that override those of ``config``.

    Returns:
        The run's folder with its scores: for a single model by metric, for ``model="all"`` by model and metric.

    Raises:
        UserError: the table, the features or an option are invalid, or a test would leak; or, with ``model="all"``,
            a model has failed, after the others were compared.
    """
    if not isinstance(config, MilConfig | None):
        raise UserError(
            "mil takes a MilConfig, or its options by name, such as data=, table= and out=; not a value of type "
            f"{type(config).__name__}"
        )
    config = MilConfig(**options) if config is None else replace(config, **options)
    watch, out = Stopwatch(), Path(config.out)
    names = [
        name for name in models_named(config.model) if config.task == "classification" or name not in _CLASSES_ONLY
    ]
    if not names:
        raise UserError(f"{config.model} answers classes only; use another --model for {config.task}")
    hardware = choose_hardware(config.devices, config.precision)
    if hardware.world_size > 1:
        raise UserError("densepath mil trains on one device; leave --devices out, and start several runs instead")
    cohort = read_cohort(
        config.data,
        config.table,
        config.columns(),
        slide_table=config.slide_table,
        classes=config.classes,
        grouping=config.grouping,
        task=config.task,
        resumed=(out / CONFIG).exists(),
    )
    record = replace(config, precision=hardware.precision).record()
    note, later = f"densepath {__version__}", {"allow_pretraining_slides": False}
    made = (SPLITS, _STUDY, FEATURES, "fold_*", *names)
    with open_run(out, record, resume=config.resume, free=FREE, defaults=later, note=note, made=made):
        say(f"densepath: {cohort.describe()}")
        AttentionFiles(out / ATTENTION, cohort.classes, config.slides)  # refuses a wrong folder before training
        cohort = slides_in_order(cohort, out / SPLITS)
        splits = _splits(config, cohort, out)
        warn_of_validation(cohort, splits)
        store = _Store(cohort, config.grouping == "averaged", mixed=begun_before(out / SPLITS))
        _check_same(out, store.digest)
        store.record.write(out)
        if not all((_folder(config, name) / PREDICTIONS).is_file() for name in names):
            record_session(out, None, hardware.device, hardware.world_size, {})
        store.pretraining.check(cohort, splits, config.allow_pretraining_slides)
        if "hipt" in names and store.longest > _LONG:
            say(f"densepath: hipt takes long: it compares all pairs of a bag's {counted(store.longest, 'tile')}")
        keep_freed_memory(hardware)
        models, failed = _run_each(config, names, cohort, splits, store, hardware)
        result = _finish(config, models, watch)
        if failed:
            name, why = next(iter(failed.items()))
            also = f", and so did {', '.join(list(failed)[1:])}" if len(failed) > 1 else ""
            raise UserError(
                f"{name} failed ({why}){also}; {out} has the other models; fix the cause and give "
                "the same command with --resume"
            )
        return result


class _Store:
    """The bags of all cases; sets of them are given out by the part of a fold that they are in.

    Attributes:
        dim: D.
        extractor, record: what made the features.
        longest: tiles of the largest bag.
        pretraining: the slides that the extractor was trained on.
        digest: of cases, targets and features.
    """

    def __init__(self, cohort: Cohort, averaged: bool, mixed: bool) -> None:
        self._cohort = cohort
        self.pretraining = PretrainingSlides()
        facts: list[str | bytes] = [*cohort.classes, cohort.target, *cohort.cases, cohort.targets.tobytes()]

        def see(slide: SlideFeatures) -> None:
            self.pretraining.add(slide.notes)
            features = np.ascontiguousarray(slide.features)
            facts.extend((extractor_of(slide), str(features.shape), f"{crc32(features.data):08x}"))

        if averaged:
            pairs: list[tuple[str, tuple[Path, ...]]] = [
                (name, (file,)) for case in range(len(cohort)) for name, file in self._slides(case)
            ]
            sizes = [len(files) for files in cohort.files]
        else:
            pairs = list(zip(cohort.cases, cohort.files, strict=True))
            sizes = [1] * len(cohort)
        bags = read_bags([name for name, _ in pairs], [files for _, files in pairs], see, mixed)
        self.longest = max(sum(bag.lengths) for bag in bags)
        self.digest = digest_of(facts)
        starts = np.cumsum([0, *sizes])
        self._of_case = [bags[start:end] for start, end in pairwise(starts)]
        self.dim = int(bags[0].tiles().shape[1])
        first = read_slide_features(cohort.files[0][0], features=False)
        self.extractor, self.record = extractor_of(first), ExtractorRecord.of(first)

    def _slides(self, case: int) -> list[tuple[str, Path]]:
        return list(zip(self._cohort.slides[case], self._cohort.files[case], strict=True))

    def take(self, cases: Sequence[int]) -> BagSet:
        """The bags of some cases."""
        bags: list[Bag] = [bag for case in cases for bag in self._of_case[case]]
        numbers = np.repeat(np.arange(len(cases)), [len(self._of_case[case]) for case in cases])
        return BagSet(bags, numbers, self._cohort.targets[list(cases)])


def _splits(config: MilConfig, cohort: Cohort, out: Path) -> list[Split]:
    """The splits of this run, which are written; a resumed run reuses its own."""
    path = out / SPLITS
    if path.is_file():
        # They name the validation cases of each fold, so that the share has no effect.
        return read_splits(path, cohort, VALIDATION, config.seed, resumed=True)
    if config.splits is None:
        splits = make_splits(cohort, config.folds, config.validation, config.seed)
    else:
        splits = read_splits(config.splits, cohort, config.validation, config.seed)
    notes = {
        "densepath": __version__,
        "target": cohort.target,
        "by_patient": cohort.by_patient,
        "seed": config.seed,
    }
    write_splits(path, cohort, splits, notes)
    return splits


def _check_same(out: Path, digest: str) -> None:
    """Refuse to continue a run with other targets or features: its models were trained on the former ones."""
    path = out / _STUDY
    if not path.is_file():
        with atomic_write(path) as part:
            part.write_text(f"{digest}\n")
    elif path.read_text(errors="replace").strip() != digest:
        raise UserError(f"the table or the features of the run in {out} have changed; name another folder")


def _run_each(
    config: MilConfig, names: Sequence[str], cohort: Cohort, splits: Sequence[Split], store: _Store, hardware: Hardware
) -> tuple[dict[str, tuple[Outcome, dict[str, Score]]], dict[str, str]]:
    """Each model as by :func:`_run`, and why others failed: one of several models does not stop the others."""
    models: dict[str, tuple[Outcome, dict[str, Score]]] = {}
    failed: dict[str, str] = {}
    for name in names:
        try:
            models[name] = _run(config, name, cohort, splits, store, hardware)
        except Exception as error:
            if name == names[-1] and not models:
                raise
            failed[name] = str(error) if isinstance(error, UserError) else describe_failure(error)
            say(f"densepath: {name} failed: {failed[name]}")
    return models, failed


def _run(
    config: MilConfig, name: str, cohort: Cohort, splits: Sequence[Split], store: _Store, hardware: Hardware
) -> tuple[Outcome, dict[str, Score]]:
    """Train and test a model in all folds, and write its files."""
    out = _folder(config, name)
    study = Study(config, name, cohort.classes, cohort.target, store.dim, store.extractor, hardware)
    answers: list[Answers] = []
    for number, split in enumerate(splits):
        train, validation, test = (store.take(part.tolist()) for part in split.parts())
        sizes = f"{len(train)} training, {len(validation)} validation, {counted(len(test), 'test bag')}"
        say(f"densepath: {name}, fold {number}: {sizes}")
        seed = int(np.random.SeedSequence([config.seed, number]).generate_state(1, np.uint64)[0] >> 1)
        answers.append(answer_fold(study, train, validation, test, out / f"fold_{number}", seed))
    tested = collect(cohort, splits, answers)
    scores = scores_of(tested, config.task, config.seed)
    notes = {
        "model": name,
        "task": config.task,
        "target": cohort.target,
        "classes": list(cohort.classes),
        **store.pretraining.tested,
    }
    write_results(tested, scores, notes, out, config.task)
    if cohort.classes:
        draw_safely(lambda: draw_pictures(tested, scores, out)["roc"])
    if name != KNN:
        _write_attention(config, cohort, splits, answers, store, hardware, out)
    say(f"densepath: {name}: {describe(scores)}")
    return tested, scores


def _write_attention(
    config: MilConfig,
    cohort: Cohort,
    splits: Sequence[Split],
    answers: Sequence[Answers],
    store: _Store,
    hardware: Hardware,
    out: Path,
) -> None:
    """Write the attention in some test slides, of the model that did not train on them, for the predicted class."""
    tested = [
        (number, int(case), int(chosen))
        for number, (split, own) in enumerate(zip(splits, answers, strict=True))
        for case, chosen in zip(split.test, own.predicted, strict=True)
    ]
    count = len(tested) if config.attention == "all" else min(config.attention, len(tested))
    names = [name for case in cohort.slides for name in case]
    files = AttentionFiles(out / ATTENTION, cohort.classes, config.slides, names)
    for place in evenly_spaced(count, len(tested)):
        number, case, predicted = tested[place]
        model = load_model(out / f"fold_{number}" / MODEL_FILE)[0].to(hardware.device)
        for bag in store.take([case]).bags:
            _, found = answer(model, bag, hardware.device, hardware.precision == "bf16-mixed")
            attention = found.reshape(-1, found.shape[-1]).double().cpu().numpy()
            start = 0
            for file in bag.files:
                slide = read_slide_features(file, features=False)
                end = start + bag.lengths[bag.files.index(file)]
                name = cohort.slides[case][cohort.files[case].index(file)]
                files.write(name, slide, attention[:, start:end], predicted)
                start = end


def _folder(config: MilConfig, name: str) -> Path:
    return Path(config.out) / name if config.model == ALL else Path(config.out)


def _finish(config: MilConfig, models: dict[str, tuple[Outcome, dict[str, Score]]], watch: Stopwatch) -> Result:
    out = Path(config.out)
    scores: dict[str, Any] = {}
    for name, (_, found) in models.items():
        scores |= {f"{name}_{metric}" if config.model == ALL else metric: each.value for metric, each in found.items()}
    made = {"predictions": out / PREDICTIONS, "splits": out / SPLITS, "pictures": out / "roc.png"}
    if len(models) > 1 and config.task == "classification":
        made["comparison"] = write_comparison({name: tested for name, (tested, _) in models.items()}, out, config.seed)
    commands = (command("predict", _folder(config, "MODEL"), "--data", "SLIDES", "--out", Path(f"{out}_answers")),)
    say_end(watch, "", made, commands)
    files = {path.stem: path for path in sorted(out.glob("*.png"))}
    return Result(out, scores, {**files, **{k: p for k, p in made.items() if p.is_file()}}, commands)
