"""The run that a file of weights belongs to, and what its configuration records of them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from densepath.core.records import CONFIG, is_record

_FOLDERS = ("exported", "checkpoints")


def run_of(file: str | Path) -> Path | None:
    """The folder of the run of densepath whose exported weights or checkpoint a file is; None for other files.

    A ``config.yaml`` or ``slides.csv`` of another program, or above a file that no run wrote, says nothing of a file. A
    link elsewhere is the file that it leads to.
    """
    folders = (Path(path).parent for path in (Path(file).absolute(), os.path.realpath(file)))
    return next((each.parent for each in folders if each.name in _FOLDERS and is_record(each.parent / CONFIG)), None)


def config_of(file: str | Path) -> Mapping[str, Any]:
    """The configuration of the run of a file; empty if it has none, or one that cannot be read."""
    run = run_of(file)
    try:
        config = yaml.safe_load((run / CONFIG).read_text()) if run else {}
    except (yaml.YAMLError, OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def has_group_norms(metadata: Mapping[str, str]) -> bool:
    """Whether the metadata of a file are those of a segmenter with group norms."""
    try:
        notes = json.loads(metadata.get("densepath_segmenter", "{}"))
    except (ValueError, RecursionError):
        return False
    return isinstance(notes, dict) and notes.get("norm") == "group"


def recorded_backbone(metadata: Mapping[str, str], file: str | Path) -> str | None:
    """The name of the backbone in the metadata of densepath's files, or in the configuration of their run."""
    if "backbone" in metadata:
        return metadata["backbone"]
    try:
        detector = json.loads(metadata.get("densepath_detector", "{}"))
    except (ValueError, RecursionError):
        return None
    found = (detector or config_of(file)).get("backbone") if isinstance(detector, dict) else None
    return found if isinstance(found, str) else None
