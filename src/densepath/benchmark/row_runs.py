"""The runs of a row and a task: pre-training, features and what gives the scores, and what each depends on."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import MISSING
from pathlib import Path
from types import MappingProxyType
from typing import Any

import timm

from densepath.benchmark.config import TableConfig
from densepath.benchmark.entries import Row, Task
from densepath.benchmark.identity import Digests, ImageSet, code_digest, method_digest
from densepath.benchmark.labelled_sets import LabelledSet
from densepath.benchmark.shares import LEFT_IMAGES, digest_for_shares, write_left_images
from densepath.benchmark.steps import STEPS, Step
from densepath.benchmark.table_runs import Grid, Run
from densepath.core.errors import UserError
from densepath.core.keywords import RANDOM, is_on_disk
from densepath.core.plain import plain
from densepath.nets.backbones.transformers import is_transformer
from densepath.nets.weights.backbone_weights import require_weights, weights_file
from densepath.nets.weights.published import is_published
from densepath.training.config import DEFAULT_EPOCHS
from densepath.training.nested_options import merged, nested
from densepath.training.recipes import all_options
from densepath.transfer.detection.detectors import TRANSFORMER_DETECTORS

_NOT_READ = ("exclude", "cache_dir", "probe_data")  # options with paths whose files do not decide a result
_WEIGHTS = "weights"  # the option of initial weights


class RowRuns:
    """Makes the runs of a row and a task.

    Attributes:
        lacking: what the user has to give before there are any; "" for nothing.
        no_weights: why the row's initial weights cannot be found; "" if they are, or are not needed.
    """

    def __init__(
        self,
        table: TableConfig,
        row: Row,
        task: Task,
        data: LabelledSet,
        tiles: ImageSet | Mapping[str, ImageSet] | None,
        given: Mapping[str, str],
        digests: Digests,
    ) -> None:
        self.table, self.row, self.task, self.data, self.digests = table, row, task, data, digests
        self.tiles = tiles.get(task.tiles) if isinstance(tiles, Mapping) else tiles
        self.given = {name: given.get(f"{task.tiles}.{name}", given.get(name)) for name in row.needs}
        self.share = task.pretrain.get("fraction", 1.0) if STEPS[task.verb].has(LEFT_IMAGES) else 1.0
        self.lacking = self._lacking(isinstance(tiles, Mapping))
        self.options: dict[str, Any] | None = None
        if row.recipe is not None and not self.lacking:
            places = {place: _absolute(self.given[name], _names_weights(place)) for name, place in row.needs.items()}
            self.options = row.pretraining(places, task)
        weights = row.weights if self.options is None else self.options.get(_WEIGHTS, RANDOM)
        self.no_weights = "" if row.sam is not None or self.lacking else _missing_weights(row.name, str(weights))

    def _lacking(self, several: bool) -> str:
        missing = [name for name, value in self.given.items() if value is None]
        if missing:
            words = " ".join(f"{name}=..." for name in missing)
            what = f"no row {self.row.name!r}" + (f" on {self.task.tiles}" if several else "")
            return f"{what}: it needs {' and '.join(missing)} (--given {words})"
        if self.tiles is None and (self.row.recipe is not None or self.share < 1):
            name = f" {self.task.tiles}=FOLDER" if several else ""
            why = "it pre-trains" if self.row.recipe is not None else "it is trained on what pre-training leaves out"
            return f"no row {self.row.name!r}: {why}, so it needs --tiles{name}"
        return ""

    def add(self, seed: int, grid: Grid) -> Run:
        """Add the runs for a seed, each of which uses the one before it; the last one gives the scores."""
        parent: Run | None = None
        lists: dict[str, str] = {}
        before = seed if self.table.pretrain_seed is None else self.table.pretrain_seed
        if self.options is not None:
            parent = grid.add(self._pretraining(self.options, before))
        if self.share < 1 and self.tiles is not None:
            lists[LEFT_IMAGES] = str(write_left_images(self.tiles, self.share, before, self.digests.cache))
        step = STEPS["sam" if self.row.sam is not None else self.task.verb]
        if step.source == "features":
            options = {**self.task.embed, **self.row.steps.get("embed", {}), "backbone": self.row.backbone}
            random = self.row.weights == RANDOM
            parent = grid.add(self._transfer(STEPS["embed"], options, seed if random else 0, parent))
        options = dict(self.row.sam) if self.row.sam is not None else {**self.task.options}
        if self.row.sam is None:
            options |= self.row.steps.get(step.verb, {})
            options |= {"backbone": self.row.backbone} if step.source == "weights" else {}
        if step.verb == "detect":
            _check_detector(self.row, options)
        if self.data.orientation is not None:
            options["orientation"] = self.data.orientation
        seed = seed if step.draws else 0  # one run serves all seeds
        return grid.add(self._transfer(step, options, seed, parent, lists))

    def _pretraining(self, options: Mapping[str, Any], seed: int) -> Run:
        row, tiles = self.row, self.tiles
        assert tiles is not None
        if tiles.exclude:
            options = {**options, "exclude": [*options.get("exclude", ()), *tiles.exclude]}
        step, resolved = STEPS["pretrain"], copy.deepcopy(dict(options))
        method = str(options.get("method", step.default("method")))
        resolved["method_options"] = all_options(method, resolved.get("method_options"))
        for name, place in row.needs.items():
            resolved = merged(resolved, nested({place: self._digest_of(name, place)}))
        batch = options.get("batch_size", step.default("batch_size"))
        if options.get("max_steps") is not None:
            images = options["max_steps"] * batch
        else:
            share = options.get("fraction", 1.0) * (1 - options.get("val_share", 0.0))
            images = round((options.get("epochs") or DEFAULT_EPOCHS) * len(tiles.names) * share)
        shares = options.get("fraction", 1.0) < 1 or options.get("val_share", 0.0) > 0
        data = digest_for_shares(tiles) if shares else tiles.digest
        identity = _identity(step, resolved, seed, data, self.digests)
        return Run(
            verb="pretrain",
            label=f"pretrain-{Path(str(row.recipe)).stem}",
            seed=seed,
            data=_absolute(tiles.source),
            options=options,
            weights=None,
            parent=None,
            identity=identity | {"code": method_digest(method, identity["code"])},
            images=images,
            rate=row.rate or self.table.rates.get("pretrain"),
        )

    def _digest_of(self, name: str, place: str) -> str:
        """The digest of a value that the user gave for an option."""
        value = str(self.given[name])
        if _names_weights(place) and value == RANDOM:
            return value
        return self.digests.weights(value) if place == _WEIGHTS and is_on_disk(value) else self.digests.given(value)

    def _transfer(
        self,
        step: Step,
        options: Mapping[str, Any],
        seed: int,
        parent: Run | None,
        lists: Mapping[str, str] = MappingProxyType({}),
    ) -> Run:
        row, data = self.row, self.data
        weights = None if parent else str(row.weights)
        digest = self.digests.weights if row.sam is None else self.digests.given  # the whole folder of a model counts
        source = parent.digest if parent else digest(str(weights))
        origin = Path(str(row.recipe or row.weights)).stem
        digests = {name: self.digests.given(path) for name, path in lists.items()}
        own = row.rate if step.verb == "sam" else self.task.rate if step.verb == self.task.verb else None
        return Run(
            verb=step.verb,
            label=f"{step.verb.replace(' ', '_')}-{self.task.data}-{origin}",
            seed=seed,
            data=_absolute(data.folder),
            options=options,
            weights=_absolute(weights, row.sam is None) if weights else None,
            parent=parent,
            identity=_identity(step, options, seed, data.digest, self.digests) | {"weights": source} | digests,
            images=step.images({**options, "fraction": 1 - self.share} if lists else options, data),
            rate=own or self.table.rates.get(step.verb),
            inputs={**{name: path for name, path in data.inputs.items() if step.has(name)}, **lists},
        )


def _missing_weights(row: str, weights: str) -> str:
    """Why the initial weights of a row cannot be found, as is said before hours of other runs; "" if they can."""
    try:
        require_weights(weights)
        if is_on_disk(weights) and not is_published(weights):
            weights_file(weights)
    except UserError as error:
        return f"the row {row!r}: {error}"
    return ""


def _check_detector(row: Row, options: Mapping[str, Any]) -> None:
    """Check before hours of pre-training that a row's detector fits its backbone."""
    detector = options.get("detector", STEPS["detect"].default("detector"))
    if timm.is_model(row.backbone) and is_transformer(row.backbone) != (detector in TRANSFORMER_DETECTORS):
        raise UserError(
            f"the row {row.name!r}: the detector {detector} does not fit {row.backbone}; write detect: "
            "{detector: vitdet} in rows of vision transformers, and only there"
        )


def _identity(step: Step, options: Mapping[str, Any], seed: int, data: str, digests: Digests) -> dict[str, Any]:
    """What a result depends on. An option that is set to its default does not make a different run, nor one of a part.

    Of files that options name by an absolute path, and of folders that path options name, the content counts, of
    weights that of a row's weights: a run starts in its own folder, and finds no others.
    """
    changed = _changed(plain(options), {name: plain(step.default(name)) for name in options})
    known = {
        name: value if name in _NOT_READ else _with_digests(value, step.takes_path(name), digests, name == _WEIGHTS)
        for name, value in changed.items()
    }
    return {"verb": step.verb, "options": known, "seed": seed, "data": data, "code": code_digest(step.code)}


def _changed(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Plain options that differ from their defaults; of a part such as ``optimizer`` only those of its options."""
    changed = {}
    for name, value in values.items():
        default = defaults.get(name, MISSING)
        if isinstance(value, dict) and isinstance(default, dict):
            value, default = _changed(value, default), {}
        if value != default:
            changed[name] = value
    return changed


def _with_digests(value: Any, folders: bool, digests: Digests, weights: bool = False) -> Any:
    """A plain value with digests of the content in place of absolute paths: of files, and perhaps of folders.

    Raises:
        UserError: a file cannot be read, or a folder of ``weights`` holds none.
    """
    if isinstance(value, dict):
        return {name: _with_digests(entry, folders, digests) for name, entry in value.items()}
    if isinstance(value, list):
        return [_with_digests(entry, folders, digests) for entry in value]
    if not isinstance(value, str) or not os.path.isabs(value):
        return value
    if not (os.path.isfile(value) or (folders and os.path.isdir(value))):
        return value
    return digests.weights(value) if weights else digests.given(value)


def _names_weights(option: str) -> bool:
    """Whether an option takes weights by their name, too."""
    return option.rpartition(".")[2] in ("weights", "teacher", "teacher_weights")


def _absolute(value: Any, weights: bool = False) -> str:
    """A path as an absolute path; any other value as it is. ``weights``: whether it may be a name of weights."""
    text = str(value)
    is_path = (is_on_disk(text) if weights else Path(text).exists()) or any(sign in text for sign in "*?[")
    return str(Path(text).absolute()) if is_path else text
