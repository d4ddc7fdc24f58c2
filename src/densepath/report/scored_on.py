"""What the scores of runs are of: only those of the same data, labels and targets can be compared."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from densepath.annotations.classes import FOLDERS
from densepath.report.paths import recorded_data
from densepath.report.runs import Run
from densepath.transfer.mil.split_files import is_column
from densepath.transfer.segment.config import BESIDE

_OF_DATA = ("probe_data", "test_data", "data", "features")
_OF_LABELS = ("test_labels", "labels", "table")
_PATHS = (*_OF_DATA, *_OF_LABELS, "slide_table", "slides", "train_images", "regions", "cells")
_PERHAPS_PATHS = ("splits", "teacher", "teacher_weights", "tokenizer", "decoder")  # or a column or another name
_DEFAULTS = {"task": "classification", "uncertain": "ignore", "background": 0, "official": True}
_OF_TARGETS = (  # options that decide what is predicted; without a default above: None or ()
    *("task", "target", "targets", "separator", "uncertain", "event"),
    *("classes", "objects", "background", "ignore", "regions"),
    "official",  # whether the official test images are tested, or all
)


def scored_alike(runs: Mapping[str, Run]) -> list[dict[str, Run]]:
    """Groups of runs whose scores can be compared: those of the same data, labels and targets."""
    groups: dict[str, dict[str, Run]] = {}
    for name, run in runs.items():
        groups.setdefault(json.dumps(scored_on(run), sort_keys=True), {})[name] = run
    return list(groups.values())


def scored_on(run: Run) -> dict[str, str]:
    """What the scores of a run are of: the data that it is tested on, their labels, and what is predicted.

    Paths are compared without links where they exist. Options that have their default, or that an earlier version did
    not record, are left out, and so are the data of a pre-training without a probe: its loss does not score them.
    Features of slides and images are not data: several extractors may have encoded the same ones, which a table names.
    Answers for each slide are scored on other cases than those for patients, and so are an official test, which a
    column of the table names, and folds of all. Files of splits may name the same cases as folds.
    """
    config, found = with_whole_paths(run.config, run.sessions), {}
    for what, names in {"data": _OF_DATA, "labels": _OF_LABELS}.items():
        if name := next((name for name in names if config.get(name)), None):
            found[what] = str(config[name])
    if (config.get("features") or "table" in config) and found.get("labels") not in (None, FOLDERS):
        found.pop("data", None)
    if "method" in config and not config.get("probe_data"):
        found.pop("data", None)
    if config.get("grouping") == "single":
        found["cases"] = "slides"
    if "table" in config and _is_column(run.config, run.sessions):
        found["splits"] = str(config["splits"])
    targets = {name: config.get(name, _DEFAULTS.get(name)) for name in _OF_TARGETS}
    targets = {name: None if value in ((), []) else value for name, value in targets.items()}
    return found | {name: exact(value) for name, value in targets.items() if value != _DEFAULTS.get(name)}


def with_whole_paths(config: Mapping[str, Any], sessions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The options of a run, in which paths of images, labels and cells are the same text if they lead to the same.

    They start where the run was started, if its sessions say so, and links are followed where they exist.
    """
    whole = dict(config)
    for name in (*_PATHS, *_PERHAPS_PATHS):
        if isinstance(config.get(name), str) and config[name] not in ("", FOLDERS, BESIDE):
            path = recorded_data(config, sessions, name)
            column = name == "splits" and _is_column(config, sessions)
            if name in _PATHS or (os.path.exists(path) and not column):
                whole[name] = _same_path(path)
    return whole


def _is_column(config: Mapping[str, Any], sessions: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the splits of a run are a column of its table, by the folder in which it was started."""
    return is_column(config.get("splits"), recorded_data(config, sessions, "splits"))


def _same_path(path: Path) -> str:
    return os.path.realpath(path) if os.path.exists(path) else os.path.normpath(path)


def exact(value: object) -> str:
    """A text that is the same for the same values."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return json.dumps(float(value) if number else value, default=str, sort_keys=True)  # type: ignore[arg-type]
