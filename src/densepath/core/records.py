"""The record of what made a folder: its file config.yaml, and how that begins."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from densepath.core.plain import plain
from densepath.version import __version__

CONFIG = "config.yaml"
RECORD_HEAD = "# densepath "  # how a record begins, and the configuration in a run folder


def record_text(options: Mapping[str, Any]) -> str:
    """What a record holds."""
    return f"{RECORD_HEAD}{__version__}\n{yaml.safe_dump(plain(options), sort_keys=False)}"


def is_record(path: str | Path) -> bool:
    """Whether a file is a record, or the configuration in a run folder."""
    if not os.path.isfile(path):  # a pipe would wait for its writer
        return False
    try:
        with open(path, "rb") as file:
            return file.read(len(RECORD_HEAD)) == RECORD_HEAD.encode()
    except OSError:
        return False
