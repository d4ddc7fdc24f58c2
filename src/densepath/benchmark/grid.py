"""The runs of a table: which there are, what each depends on, and what may be shared."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import timm

from densepath.benchmark.config import Row, TableConfig, Task
from densepath.benchmark.identity import (
    SHOWN_DIGITS,
    ImageSet,
    LabelledSet,
    code_digest,
    digest_of_given,
    digest_of_weights,
)
from densepath.benchmark.verb_options import VERBS, Verb, put
from densepath.core.digests import digest_of
from densepath.core.errors import UserError
from densepath.nets.transformers import is_transformer
from densepath.training.pretrain import DEFAULT_EPOCHS
from densepath.training.recipes import all_options
from densepath.transfer.detection.detectors import TRANSFORMER_DETECTORS
from densepath.transfer.detection.solver import make_solver


@dataclass(frozen=True, eq=False)
class Cell:
    """One run.

    Args:
        verb: what it does.
        label: what it is called, for people; cells of one label differ in their digests.
        seed: of the run.
        data: the path of its images.
        options: of the verb, but for those that the grid decides.
        weights: what it starts from: "random", a file, a run folder, a timm name. None where a cell makes them:
        parent: that cell.
        identity: all that its result depends on.
        images: how many go through the network, as often as they do.
        rate: assumed images per second; None where nothing is assumed.
    """

    verb: Verb
    label: str
    seed: int
    data: str
    options: Mapping[str, Any]
    weights: str | None
    parent: Cell | None
    identity: Mapping[str, Any]
    images: int
    rate: float | None

    @cached_property
    def digest(self) -> str:
        """Of everything that the result depends on."""
        return digest_of([json.dumps(self.identity, sort_keys=True, default=str)])

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.label}-seed{self.seed}-{self.digest[:SHOWN_DIGITS]}"


@dataclass
class Grid:
    """The runs of a table.

    Args:
        cells: by name, each after what it depends on; those of the first seed come first.
        places: (row, task, seed) -> the cell that is measured there.
        budgets: row -> images that its pre-training goes through; none where there is none.
        skipped: lines about rows and tasks that are left out.
    """

    cells: dict[str, Cell] = field(default_factory=dict)
    places: dict[tuple[str, str, int], Cell] = field(default_factory=dict)
    budgets: dict[str, int] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    def add(self, cell: Cell) -> Cell:
        """Add a cell, or find the same one."""
        return self.cells.setdefault(cell.name, cell)


def make_grid(
    table: TableConfig,
    labelled: Mapping[str, LabelledSet],
    tiles: ImageSet | None,
    given: Mapping[str, str],
    cache: Path,
) -> Grid:
    """Lay out all runs of a table.

    Args:
        table: what is asked for.
        labelled: the labelled sets, by the table's names; tasks on others are left out.
        tiles: the images for pre-training; rows that pre-train are left out without them.
        given: values of what rows need; rows that need something else are left out.
        cache: the folder in which digests of files are kept.

    Raises:
        UserError: an option of a row makes no sense, or nothing is left.
    """
    grid = Grid()
    tasks = [task for task in table.tasks if task.data in labelled]
    for data in dict.fromkeys(task.data for task in table.tasks if task.data not in labelled):
        grid.skipped.append(f"no {data}: give it by --data {data}=FOLDER")
    rows = []
    for row in table.rows:
        missing = [name for name in row.needs if name not in given]
        if missing:
            words = " ".join(f"{name}=..." for name in missing)
            grid.skipped.append(f"no row {row.name!r}: it needs {' and '.join(missing)} (--given {words})")
        elif row.recipe is not None and tiles is None:
            grid.skipped.append(f"no row {row.name!r}: it pre-trains, so it needs --tiles")
        else:
            places = {place: _absolute(given[name]) for name, place in row.needs.items()}
            rows.append((row, row.pretraining(places) if row.recipe else None))
    if not tasks or not rows:
        raise UserError(f"there is nothing to run in {table.name}; {'; '.join(grid.skipped)}")
    for seed in table.seeds:
        for row, options in rows:
            parent = None
            if options is not None and tiles is not None:
                pretrain_seed = seed if table.pretrain_seed is None else table.pretrain_seed
                parent = grid.add(_pretraining(row, options, pretrain_seed, tiles, given, table, cache))
                grid.budgets[row.name] = parent.images
            for task in tasks:
                cell = _transfer(row, task, parent, seed, labelled[task.data], table, cache)
                grid.places[row.name, task.name, seed] = grid.add(cell)
    return grid


def _pretraining(
    row: Row,
    options: Mapping[str, Any],
    seed: int,
    tiles: ImageSet,
    given: Mapping[str, str],
    table: TableConfig,
    cache: Path,
) -> Cell:
    told = copy.deepcopy(dict(options))
    told["method_options"] = all_options(_method(told), told.get("method_options"))
    for name, place in row.needs.items():
        put(told, place, digest_of_given(given[name], cache))
    batch = options.get("batch_size", _default("pretrain", "batch_size"))
    if options.get("max_steps") is not None:
        images = options["max_steps"] * batch
    else:
        images = round((options.get("epochs") or DEFAULT_EPOCHS) * len(tiles.names))
    return Cell(
        verb="pretrain",
        label=f"pretrain-{Path(str(row.recipe)).stem}",
        seed=seed,
        data=_absolute(tiles.source),
        options=options,
        weights=None,
        parent=None,
        identity=_identity("pretrain", told, seed, tiles.digest),
        images=images,
        rate=row.rate or table.rates.get("pretrain"),
    )


def _transfer(
    row: Row, task: Task, parent: Cell | None, seed: int, data: LabelledSet, table: TableConfig, cache: Path
) -> Cell:
    weights = None if parent else str(row.weights)
    digest_of_source = digest_of_weights if row.sam is None else digest_of_given  # a model's folder counts as a whole
    source = parent.digest if parent else digest_of_source(str(weights), cache)
    verb: Verb = task.verb
    options = {**task.options, "backbone": row.backbone}
    if row.sam is not None:
        verb, options, seed = "sam", dict(row.sam), 0  # it draws nothing, so that one run serves all seeds
    elif verb == "detect":
        options |= row.detect
        _check_detector(row, options)
    origin = Path(str(row.recipe or weights)).stem
    return Cell(
        verb=verb,
        label=f"{verb}-{task.data}-{origin}",
        seed=seed,
        data=_absolute(data.folder),
        options=options,
        weights=_absolute(weights) if weights else None,
        parent=parent,
        identity=_identity(verb, options, seed, data.digest) | {"weights": source},
        images=_images(verb, options, data),
        rate=(row.rate if verb == "sam" else task.rate) or table.rates.get(verb),
    )


def _check_detector(row: Row, options: Mapping[str, Any]) -> None:
    """Check, before hours of pre-training, that a row's detector suits its backbone.

    Raises:
        UserError: it does not.
    """
    detector = options.get("detector", _default("detect", "detector"))
    if timm.is_model(row.backbone) and is_transformer(row.backbone) != (detector in TRANSFORMER_DETECTORS):
        raise UserError(
            f"the row {row.name!r}: the detector {detector} does not suit {row.backbone}; write detect: "
            "{detector: vitdet} in the row of a vision transformer, and in no other"
        )


def _identity(verb: str, options: Mapping[str, Any], seed: int, data: str) -> dict[str, Any]:
    """What a result depends on. An option that is told to be what it is by default makes no other run."""
    changed = {name: value for name, value in _plain(options).items() if value != _plain(_default(verb, name))}
    return {"verb": verb, "options": changed, "seed": seed, "data": data, "code": code_digest(verb)}


def _images(verb: Verb, options: Mapping[str, Any], data: LabelledSet) -> int:
    if verb != "detect":
        return len(data.test.names) + (len(data.train.names) if verb == "probe" else 0)
    defaults = {name: parameter.default for name, parameter in inspect.signature(VERBS["detect"]).parameters.items()}
    options = defaults | dict(options)
    known = inspect.signature(make_solver).parameters
    steps = make_solver(**{name: value for name, value in options.items() if name in known}).steps
    has_batch_norms = options["detector"] not in TRANSFORMER_DETECTORS
    settling = min(options["precise_bn_batches"], steps) if has_batch_norms else 0
    return (steps + settling) * options["batch_size"] + len(data.test.names)


def _method(options: Mapping[str, Any]) -> str:
    return str(options.get("method", _default("pretrain", "method")))


def _default(verb: str, option: str) -> Any:
    return inspect.signature(VERBS[verb]).parameters[option].default


def _absolute(value: Any) -> str:
    """A path that holds in every folder; what is none stays as it is."""
    text = str(value)
    is_path = Path(text).exists() or any(sign in text for sign in "*?[")
    return str(Path(text).absolute()) if is_path else text


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, Sequence) and not isinstance(value, str) else value
