"""The record of what made a folder: its file config.yaml, and how that begins."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from densepath.core.errors import UserError
from densepath.core.plain import plain
from densepath.version import __version__

CONFIG = "config.yaml"
TRAIN_LOG = "train.log"  # beside the record in the folder of a run
RECORD_HEAD = "# densepath "  # how a record begins, and the configuration in a run folder
UNLIKE = "*"  # ends the name of a network that is another one than its name builds


def record_text(options: Mapping[str, Any]) -> str:
    """What a record holds."""
    return f"{RECORD_HEAD}{__version__}\n{yaml.safe_dump(plain(options), sort_keys=False)}"


def recorded(out: Path) -> dict[str, Any]:
    """The options in the record of a folder.

    Raises:
        UserError: the record is missing or damaged.
    """
    path = out / CONFIG
    try:
        old = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read; use another folder") from error
    if not isinstance(old, dict) or not all(isinstance(name, str) for name in old):
        raise UserError(f"{path} is not a record of densepath; use another folder")
    return old


def same_value(option: str, old: Any, new: Any) -> bool:
    """Whether the recorded value of an option, in plain types, is that of now.

    Up to version 0.1 the name of a network that differs from the one that it builds was recorded without its mark.
    """
    return bool(old == new or (option == "backbone" and new == f"{old}{UNLIKE}"))


def is_record(path: str | Path) -> bool:
    """Whether a file is a record, or the configuration in a run folder."""
    if not os.path.isfile(path):  # a pipe would wait for its writer
        return False
    try:
        with open(path, "rb") as file:
            return file.read(len(RECORD_HEAD)) == RECORD_HEAD.encode()
    except OSError:
        return False
