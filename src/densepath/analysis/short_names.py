"""Short, unique names of sources."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import PurePath

from densepath.core.errors import UserError

_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".pkl")


def short_names(sources: Sequence[str], what: str) -> list[str]:
    """The shortest unique ending of each path, without the suffix of a weight file, and without ``..`` and ``.``.

    Args:
        sources: paths, or names such as ``random``.
        what: name of the option, for the error message.

    Raises:
        UserError: a source is given twice.
    """
    given = [PurePath(source) for source in sources]
    paths = [PurePath(os.path.abspath(path)) if ".." in path.parts or not path.parts else path for path in given]
    if twice := [str(path) for path in paths if paths.count(path) > 1]:
        raise UserError(f"{what} has {twice[0]} twice; name each source once")
    short = [path.with_suffix("") if path.suffix in _SUFFIXES else path for path in paths]
    if len(set(short)) < len(short):
        short = paths
    return [_shortest(path, short) for path in short]


def _shortest(path: PurePath, others: Sequence[PurePath]) -> str:
    for count in range(1, len(path.parts)):
        ending = path.parts[-count:]
        if sum(other.parts[-count:] == ending for other in others) == 1:
            return "/".join(ending)
    return str(path)
