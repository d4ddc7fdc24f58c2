"""Short names of sources, by which each is told from the others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from densepath.core.errors import UserError

_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".pkl")


def titles_of(sources: Sequence[str], what: str) -> list[str]:
    """The end of each path, of as many parts as it takes to tell it from the others, without a suffix of weights.

    Args:
        sources: paths, or names such as ``random``.
        what: they are, for the error.

    Raises:
        UserError: a source comes twice.
    """
    paths = [PurePath(source) for source in sources]
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
