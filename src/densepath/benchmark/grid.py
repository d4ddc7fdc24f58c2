"""The grid of a table's runs: what each run depends on, and which runs are shared."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Mapping
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
from densepath.core.plain import plain
from densepath.nets.backbones.transformers import is_transformer
from densepath.options import default_of
from densepath.training.config import DEFAULT_EPOCHS
from densepath.training.recipes import all_options
from densepath.transfer.detection.detectors import TRANSFORMER_DETECTORS
from densepath.transfer.detection.solver import make_solver


@dataclass(frozen=True, eq=False)
class Run:
    """One run.

    Args:
        verb: "pretrain", "probe", "detect" or "sam".
        label: readable name; runs with the same label differ in their digests.
        seed: seed of the run.
        data: path of its images.
        options: options of the verb, without those that the grid sets.
        weights: the initial weights: "random", a file, a run folder or a timm name; None if they come from ``parent``.
        parent: the pre-training run whose weights it uses, if any.
        identity: everything that its result depends on.
        images: number of images that go through the network, repeats included.
        rate: assumed images per second; None if there is no assumption.
    """

    verb: Verb
    label: str
    seed: int
    data: str
    options: Mapping[str, Any]
    weights: str | None
    parent: Run | None
    identity: Mapping[str, Any]
    images: int
    rate: float | None

    @cached_property
    def digest(self) -> str:
        """Digest of everything that the result depends on."""
        return digest_of([json.dumps(self.identity, sort_keys=True, default=str)])

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.label}-seed{self.seed}-{self.digest[:SHOWN_DIGITS]}"


@dataclass
class Grid:
    """The runs of a table.

    Args:
        runs: name -> run, each after the run it depends on; those of the first seed come first.
        places: (row, task, seed) -> the run that gives the scores there.
        budgets: row -> number of images in its pre-training; rows without pre-training are not in it.
        skipped: lines about rows and tasks that are left out.
    """

    runs: dict[str, Run] = field(default_factory=dict)
    places: dict[tuple[str, str, int], Run] = field(default_factory=dict)
    budgets: dict[str, int] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    def add(self, run: Run) -> Run:
        """Add a run, or return the equal one that is already there."""
        return self.runs.setdefault(run.name, run)


def make_grid(
    table: TableConfig,
    labelled: Mapping[str, LabelledSet],
    tiles: ImageSet | None,
    given: Mapping[str, str],
    cache: Path,
) -> Grid:
    """Make the grid of all runs of a table.

    Args:
        table: the configuration.
        labelled: name -> labelled set; tasks on other sets are left out.
        tiles: the images for pre-training; without them rows that pre-train are left out.
        given: the user's values for the needs of rows; rows with other needs are left out.
        cache: the folder in which digests of files are kept.

    Raises:
        UserError: an option of a row is invalid, or there is nothing to run.
    """
    grid = Grid()
    tasks = [task for task in table.tasks if task.data in labelled]
    for data in dict.fromkeys(task.data for task in table.tasks if task.data not in labelled):
        grid.skipped.append(f"no {data}: give it with --data {data}=FOLDER")
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
                run = _transfer(row, task, parent, seed, labelled[task.data], table, cache)
                grid.places[row.name, task.name, seed] = grid.add(run)
    return grid


def _pretraining(
    row: Row,
    options: Mapping[str, Any],
    seed: int,
    tiles: ImageSet,
    given: Mapping[str, str],
    table: TableConfig,
    cache: Path,
) -> Run:
    if tiles.exclude:
        options = {**options, "exclude": [*options.get("exclude", ()), *tiles.exclude]}
    resolved = copy.deepcopy(dict(options))
    resolved["method_options"] = all_options(_method(resolved), resolved.get("method_options"))
    for name, place in row.needs.items():
        put(resolved, place, digest_of_given(given[name], cache))
    batch = options.get("batch_size", _default("pretrain", "batch_size"))
    if options.get("max_steps") is not None:
        images = options["max_steps"] * batch
    else:
        images = round((options.get("epochs") or DEFAULT_EPOCHS) * len(tiles.names))
    return Run(
        verb="pretrain",
        label=f"pretrain-{Path(str(row.recipe)).stem}",
        seed=seed,
        data=_absolute(tiles.source),
        options=options,
        weights=None,
        parent=None,
        identity=_identity("pretrain", resolved, seed, tiles.digest),
        images=images,
        rate=row.rate or table.rates.get("pretrain"),
    )


def _transfer(
    row: Row, task: Task, parent: Run | None, seed: int, data: LabelledSet, table: TableConfig, cache: Path
) -> Run:
    weights = None if parent else str(row.weights)
    digest_of_source = digest_of_weights if row.sam is None else digest_of_given  # the whole folder of a model counts
    source = parent.digest if parent else digest_of_source(str(weights), cache)
    verb: Verb = task.verb
    options = {**task.options, "backbone": row.backbone}
    if row.sam is not None:
        verb, options, seed = "sam", dict(row.sam), 0  # it draws no random numbers: one run serves all seeds
    elif verb == "detect":
        options |= row.detect
        _check_detector(row, options)
    if data.orientation is not None:
        options["orientation"] = data.orientation
    origin = Path(str(row.recipe or weights)).stem
    return Run(
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
    """Check before hours of pre-training that a row's detector fits its backbone."""
    detector = options.get("detector", _default("detect", "detector"))
    if timm.is_model(row.backbone) and is_transformer(row.backbone) != (detector in TRANSFORMER_DETECTORS):
        raise UserError(
            f"the row {row.name!r}: the detector {detector} does not fit {row.backbone}; write detect: "
            "{detector: vitdet} in rows of vision transformers, and only there"
        )


def _identity(verb: str, options: Mapping[str, Any], seed: int, data: str) -> dict[str, Any]:
    """What a result depends on. An option that is set to its default does not make a different run."""
    changed = {name: value for name, value in plain(options).items() if value != plain(_default(verb, name))}
    return {"verb": verb, "options": changed, "seed": seed, "data": data, "code": code_digest(verb)}


def _images(verb: Verb, options: Mapping[str, Any], data: LabelledSet) -> int:
    if verb != "detect":
        return len(data.test.names) + (len(data.train.names) if verb == "probe" else 0)
    defaults = {name: _default("detect", name) for name in inspect.signature(VERBS["detect"]).parameters}
    options = defaults | dict(options)
    known = inspect.signature(make_solver).parameters
    steps = make_solver(**{name: value for name, value in options.items() if name in known}).steps
    has_batch_norms = options["detector"] not in TRANSFORMER_DETECTORS
    settling = min(options["precise_bn_batches"], steps) if has_batch_norms else 0
    return (steps + settling) * options["batch_size"] + len(data.test.names)


def _method(options: Mapping[str, Any]) -> str:
    return str(options.get("method", _default("pretrain", "method")))


def _default(verb: str, option: str) -> Any:
    return default_of(VERBS[verb], option)


def _absolute(value: Any) -> str:
    """A path as an absolute path; any other value as it is."""
    text = str(value)
    is_path = Path(text).exists() or any(sign in text for sign in "*?[")
    return str(Path(text).absolute()) if is_path else text
