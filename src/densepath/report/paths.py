"""Which files a page may read: those in a run folder, and images in its data; no link leads out of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from densepath.core.errors import UserError


def inside(path: Path, *folders: Path) -> bool:
    """Whether a path is in one of the folders, or is one, once all links are followed."""
    try:
        real = path.resolve()
        return any(real.is_relative_to(folder.resolve()) for folder in folders)
    except (OSError, RuntimeError, ValueError):  # loops of links, impossible names
        return False


def own_file(folder: Path, name: str | Path) -> Path:
    """A file of a run folder, which need not exist.

    Raises:
        UserError: it is outside of the folder, or a link leads there.
    """
    if not inside(folder / name, folder):
        raise UserError(f"{folder / name} leads out of its folder and is not read; copy the file into the folder")
    return folder / name


def recorded_data(config: Mapping[str, Any], sessions: Sequence[Mapping[str, Any]], name: str = "data") -> Path:
    """The images of a run: a relative path starts where the run was started, or else in the current folder."""
    path = Path(str(config.get(name) or ""))
    started = [entry["folder"] for entry in sessions if isinstance(entry.get("folder"), str)]
    return Path(started[0]) / path if started and not path.is_absolute() else path


def where(config: Mapping[str, Any], sessions: Sequence[Mapping[str, Any]]) -> str:
    """What to say of images that are not found: an empty text, or that nobody knows where their path starts."""
    path = Path(str(config.get("data") or ""))
    if path.is_absolute() or any(isinstance(entry.get("folder"), str) for entry in sessions):
        return ""
    return (
        f" Their path, {path}, is relative, and the folder in which the run was started is not recorded: "
        "write the report in that folder."
    )
