"""``densepath predict`` with a run of ``densepath mil``: answers for new slides and patients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from densepath.core.closing import say_end
from densepath.core.errors import UserError, counted, first_few
from densepath.core.locks import shared_work
from densepath.core.result import Result
from densepath.core.shared_work import LOCKS
from densepath.core.spacing import evenly_spaced
from densepath.core.stopwatch import Stopwatch
from densepath.core.streams import say
from densepath.core.work_folder import work_folder
from densepath.runs.folder import read_config
from densepath.sources.corrupt import CorruptImage
from densepath.sources.run_folders import refuse_among_images
from densepath.sources.slides.failures import report_problem
from densepath.sources.slides.resolution import MppTable
from densepath.sources.tiles.identity import identity_of
from densepath.sources.tiles.tile_files import is_tile_folder
from densepath.transfer.embed.slide_features import SlideFeatures, read_slide_features
from densepath.transfer.mil.answer_tables import write_answer_tables
from densepath.transfer.mil.attention import ATTENTION, AttentionFiles, slide_path
from densepath.transfer.mil.bags import Bag, check_place, extractor_of, half
from densepath.transfer.mil.ensemble import Answer, Ensemble
from densepath.transfer.mil.extractor_record import ExtractorRecord
from densepath.transfer.mil.new_slides import NewSlide, SlideOptions, completed, embed_new_slides, slides_in_files
from densepath.transfer.mil.results import PREDICTIONS
from densepath.transfer.mil.score_answers import SLIDES, AnswerKind
from densepath.transfer.predict_records import check_images, record_of, source_of
from densepath.transfer.slides.precision import begun_precision
from densepath.transfer.slides.slide_list import GIVEN_LATER, names_of_slides, refuse_options
from densepath.transfer.slides.slide_work import UNFINISHED, SlideWork

LOG = "predict.log"
# They may change: what they decide is checked in the folders of the tiles and of the features.
_FREE = ("data", "run", "slides", "pictures", "weights", "mpp", "window", "precision")


@dataclass(frozen=True, eq=False)
class _Work:
    """How cases are answered, and where the files go."""

    models: Ensemble
    grouping: str
    extractor: str
    record: ExtractorRecord
    attention: AttentionFiles
    drawn: frozenset[str]
    out: Path


def predict_answers(
    run: Path,
    data: str | Path,
    out: Path,
    options: SlideOptions,
    slides: str | Path | None = None,
    pictures: int | Literal["all"] = 8,
) -> Result:
    """Answer for new slides and patients with the models of all folds of a run.

    Args:
        run: the folder of a run of ``densepath mil``.
        data: slides, the folder of ``densepath tile``, or a folder of files of features.
        out: the folder of the answers.
        options: how slides become features.
        slides: for files of features, the folder of their slides.
        pictures: number of slides with a heat map of their attention, or "all".

    Returns:
        ``out``, with the numbers of "slides", "damaged" ones, "patients", and slides "left" to other processes.

    Raises:
        UserError: the run keeps no models, the features do not fit, or no slide can be read.
    """
    watch = Stopwatch()
    models = Ensemble(run, options.hardware)
    found = slides_in_files(data)
    extractor, trained = None, ExtractorRecord.read(run)
    if found is None:
        refuse_options("files of features", {"slides": slides})
        extractor = completed(trained, data, options)
    else:
        idle: dict[str, Any] = {"weights": options.weights, "mpp": options.mpp, "window": options.tile}
        idle |= {"mpp_table": options.mpp_table, "default_mpp": options.default_mpp, "shard": options.shard}
        refuse_options("slides, not files of features", {**idle, "exclude": options.exclude or None})
    if not is_tile_folder(data):
        refuse_among_images(out, data)
    config = read_config(run) or read_config(run.parent) or {}
    record = {
        "run": str(run),
        "data": str(data),
        "models": models.digest,
        "weights": options.weights,
        "mpp": options.mpp,
        "window": options.tile,
        "mpp_table": None if options.mpp_table is None else str(options.mpp_table),
        "default_mpp": options.default_mpp,
        "exclude": list(options.exclude),
        "slides": None if slides is None else str(slides),
        "pictures": pictures,
        "precision": options.hardware.precision,
    }
    MppTable(options.mpp_table, options.default_mpp)  # an invalid one is refused before it is recorded
    with work_folder(out, record, log=LOG, free=_FREE, later=GIVEN_LATER) as write_added:
        begun = begun_precision(out, options.precision, options.hardware.precision)
        models.hardware = replace(options.hardware, precision=begun)
        AnswerKind(models.notes.task, models.notes.target, models.notes.classes).write(out)
        options = replace(options, hardware=models.hardware)
        say(f"densepath: {models.notes.model} of {run}, {counted(len(models), 'fold')}, for {models.notes.target}")
        if extractor is not None:
            check_images(out, partial(names_of_slides, data, options.exclude), "slide", _slides_of)
            found = embed_new_slides(data, out, extractor, options)
        if not found:
            say("densepath: the answers come with the last process")
            return Result(out, {"left": 1}, {})
        number = len(found) if pictures == "all" else min(pictures, len(found))
        drawn = frozenset(found[place].name for place in evenly_spaced(number, len(found)))
        files = AttentionFiles(out / ATTENTION, models.notes.classes, slides, [slide.name for slide in found])
        grouping = str(config.get("grouping", "joined"))
        unknown = [slide.name for slide in found if slide.file is not None and not slide.is_known]
        if grouping != "single" and len(found) > 1 and unknown:
            say(
                f"densepath: the {'patient' if len(unknown) == 1 else 'patients'} of {counted(len(unknown), 'slide')} "
                f"{'is' if len(unknown) == 1 else 'are'} unknown ({first_few(unknown)}), so each is a case of its own; "
                "name patients in a manifest.csv next to the slides"
            )
        # Features that this command made are checked before; of weights that the user names nothing is known.
        expected = "" if options.weights else models.notes.extractor
        counts = _answer_all(_Work(models, grouping, expected, trained, files, drawn, out), found, write_added)
        made = {"answers": out / PREDICTIONS, "slides": out / SLIDES, "attention": out / ATTENTION}
        say_end(watch, "", made)
    return Result(out, counts, {"table": out / PREDICTIONS, "slides": out / SLIDES})


def _answer_all(work: _Work, slides: Sequence[NewSlide], on_begin: Callable[[], None]) -> dict[str, Any]:
    """Answer for all cases that are not done, and write the tables of all."""
    cases: dict[str, list[NewSlide]] = {}
    for slide in slides:
        cases.setdefault(slide.name if work.grouping == "single" else slide.patient, []).append(slide)
    # The names of patients come from a table: a case is known by its first slide. Slides are in the order of training.
    in_order = (sorted(own, key=lambda slide: slide.name) for own in cases.values())
    cases = {own[0].name: own for own in in_order}
    names = {slide.name for slide in slides}

    def is_former(name: str) -> bool:
        """Whether the slides of a case have become those of others."""
        identity = source_of(record_of(work.out, name))
        return identity is not None and names.issuperset(_slides_of(identity))

    shared = SlideWork(
        work.out,
        {name: _identity(own, work) for name, own in cases.items()},
        lambda name: [path for slide in cases.get(name, ()) for path in work.attention.files(slide.name)],
        tables=(work.out / PREDICTIONS, work.out / SLIDES),
        is_former=is_former,
        parts=_slides_of,
    )

    def is_done(name: str) -> bool:
        facts = _answered(shared.facts(name), cases[name])
        return not facts["problems"] and _shown(work, facts)

    shared.do(is_done, lambda name: _answer_case(work, cases[name]), on_begin=on_begin)
    with shared_work(work.out / LOCKS / "tables", "tables"):
        facts = {name: _answered(shared.facts(name), own) for name, own in cases.items()}
        return write_answer_tables(work.out, work.models, work.grouping == "single", cases, facts)


def _answered(facts: dict[str, Any] | None, slides: Sequence[NewSlide]) -> dict[str, Any]:
    """What is known of a case, also if it failed."""
    if facts is None or "problem" in facts:
        why = (facts or {"problem": UNFINISHED})["problem"]
        return {"slides": {}, "problems": dict.fromkeys((slide.name for slide in slides), why), "values": None}
    return facts


def _shown(work: _Work, facts: Mapping[str, Any]) -> bool:
    """Whether the slides of a case that are to be drawn are drawn, as far as they can be found."""
    slides, pictures = facts["slides"], facts.get("pictures", {})
    drawn = work.drawn.intersection(slides)
    return all(work.attention.shows(name, slides[name].get("path"), pictures.get(name)) for name in drawn)


def _answer_case(work: _Work, slides: Sequence[NewSlide]) -> dict[str, Any]:
    """Answer for the slides of a case, each and together, write their attention, and return what is known of it."""
    bags: dict[str, tuple[SlideFeatures, Bag]] = {}
    problems: dict[str, str] = {}
    for slide in slides:
        try:
            bags[slide.name] = _read(slide, work)
        except CorruptImage as error:
            problems[slide.name] = error.why
            report_problem(slide.name, error.why)
    if not bags:
        return {"slides": {}, "problems": problems, "values": None}
    answers = {own: work.models.answer(bag) for own, (_, bag) in bags.items()}
    together = Answer(np.mean([answer.values for answer in answers.values()], axis=0), np.zeros((1, 0)))
    if work.grouping == "joined" and len(bags) > 1:
        joined = torch.cat([bag.tiles() for _, bag in bags.values()])
        together = work.models.answer(Bag(slides[0].patient, (), (len(joined),), joined))
        ends = np.cumsum([len(bag.tiles()) for _, bag in bags.values()])[:-1]
        parts = np.split(together.attention, ends, axis=1)
        answers = {own: Answer(answers[own].values, attention) for own, attention in zip(bags, parts, strict=True)}
    shown = work.models.predicted(together.values)
    found, pictures = {}, {}
    for own, (tiles, bag) in bags.items():
        answer = answers[own]
        pictures[own] = work.attention.write(own, tiles, answer.attention, shown, own in work.drawn)
        found[own] = {"tiles": len(bag.tiles()), "values": answer.values.tolist(), "path": slide_path(tiles)}
    return {
        "slides": found,
        "problems": problems,
        "pictures": {own: identity for own, identity in pictures.items() if identity is not None},
        "values": together.values.tolist(),
    }


def _read(slide: NewSlide, work: _Work) -> tuple[SlideFeatures, Bag]:
    """The features of a slide.

    Raises:
        CorruptImage: there are none.
        UserError: they are those of another extractor, or of other tiles.
    """
    if slide.file is None:
        raise CorruptImage(slide.name, slide.problem)
    try:
        features = read_slide_features(slide.file)
        check_place(slide.file, features)
        tiles = half(features, slide.file)
    except UserError as error:
        raise CorruptImage(str(slide.file), str(error)) from error
    if not len(features):
        raise CorruptImage(str(slide.file), "it has no tiles")
    made = extractor_of(features)
    if work.extractor and made and made != work.extractor:
        raise UserError(
            f"{slide.file} has features of {made}, the run was trained on those of {work.extractor}; use the same "
            "extractor"
        )
    if other_tiles := work.record.unlike(ExtractorRecord.of(features)):
        raise UserError(f"{slide.file} has features of tiles with {other_tiles} in the training; tile the slides again")
    return features, Bag(slide.name, (slide.file,), (len(tiles),), torch.from_numpy(tiles))


def _identity(slides: Sequence[NewSlide], work: _Work) -> list[Any]:
    """What changes if the features of a case do, the models, or the names of its files."""
    files = [slide.file for slide in slides if slide.file is not None]
    unusual = [name for slide in slides for name in work.attention.unusual(slide.name)]
    return [work.models.digest, [slide.name for slide in slides], identity_of(*files), *unusual]


def _slides_of(identity: Sequence[Any]) -> list[str]:
    """The slides of a case, by :func:`_identity`."""
    return list(identity[1])
