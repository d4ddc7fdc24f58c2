"""The files of slides' features: their names, and what they say of themselves."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from densepath.core.keywords import is_on_disk
from densepath.sources.tiles.tile_files import h5py_module
from densepath.transfer.embed.slide_features import NOTES


def features_name(weights: str | Path, backbone: str) -> str:
    """The name of features: of the run, the file or the model that made them."""
    path, there = Path(weights), is_on_disk(weights)
    name = f"random_{backbone}" if str(weights) == "random" else str(weights).removeprefix("hf-hub:")
    if there and path.is_file():
        exported = path.parent.name in ("exported", "checkpoints") and path.parent.parent.name
        name = exported or path.stem
    elif there and path.is_dir():
        name = path.resolve().name
    return re.sub(r"[^\w.-]+", "_", name).strip("._") or "weights"


def features_path(out: Path, features: str, slide: str) -> Path:
    """The file of a slide's features in the folder of ``densepath embed``."""
    return out / f"features_{features}" / f"{slide}.h5"


def notes_of(path: Path) -> dict[str, Any]:
    """What a file of features says of itself; empty if there is none."""
    try:
        with h5py_module().File(path) as file:
            notes: dict[str, Any] = json.loads(file.attrs[NOTES])
            return notes
    except (OSError, KeyError, ValueError):
        return {}
