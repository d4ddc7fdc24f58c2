"""Names that an option may read as a keyword or as a path: what they mean, and how a path of such a name is written."""

from __future__ import annotations

import os
import shlex
from functools import cache
from pathlib import Path

from densepath.core.streams import say

RANDOM = "random"  # weights that are not trained
_WORDS = (RANDOM, "auto", "null")  # that options read as something other than a path
_BEGINNINGS = ("-", "hf-hub:", "hf_hub:")


def is_on_disk(weights: str | Path) -> bool:
    """Whether weights are a file or a folder, rather than "random", which is meant as a path by ./random.

    A file or a folder that is called like weights of timm is meant, not these; a line says so once.
    """
    name = str(weights)
    if not os.path.exists(name):
        return False
    if name == RANDOM:
        _say(f"{name} means random weights; for the {_kind(name)} of this name, write {literal(name)}")
        return False
    if os.path.basename(name) == name and is_of_timm(name):
        _say(f"{name} is taken as the {_kind(name)} of this name, not as timm's weights")
    return True


def literal(path: str | os.PathLike[str]) -> str:
    """A path as an option reads it: ./NAME where NAME would be a keyword, an option or another kind of name."""
    text = os.fspath(path)
    return f".{os.sep}{text}" if text in _WORDS or text.startswith(_BEGINNINGS) else text


def quoted(path: str | os.PathLike[str]) -> str:
    """A path as it is written in a command line, see :func:`literal`."""
    return shlex.quote(literal(path))


@cache  # once
def _say(what: str) -> None:
    say(f"densepath: {what}")


def is_of_timm(name: str) -> bool:
    """Whether timm has weights of this name."""
    from timm.models import is_model_pretrained  # timm takes seconds to import

    return is_model_pretrained(name)


def _kind(name: str) -> str:
    return "folder" if os.path.isdir(name) else "file"
