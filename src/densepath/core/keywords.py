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


def is_keyword(name: str) -> bool:
    """Whether weights of this name are "random" or those of timm, even if a file or folder is called so, too."""
    if name == RANDOM:
        return True
    if not name or os.path.basename(name) != name or name in (os.curdir, os.pardir):
        return False
    from timm.models import is_model_pretrained  # timm takes seconds to import

    return is_model_pretrained(name)


def is_on_disk(weights: str | Path) -> bool:
    """Whether weights are a file or a folder: one that is called like a keyword is meant by ./NAME."""
    there = os.path.exists(weights)
    if there and is_keyword(name := str(weights)):
        _explain(name)
        return False
    return there


def literal(path: str | os.PathLike[str], weights: bool = False) -> str:
    """A path as an option reads it: ./NAME where NAME would be a keyword, an option or another kind of name.

    Args:
        path: the path.
        weights: whether the option takes weights, which may be names of timm.
    """
    text = os.fspath(path)
    other = text in _WORDS or text.startswith(_BEGINNINGS) or (weights and is_keyword(text))
    return f".{os.sep}{text}" if other else text


def quoted(path: str | os.PathLike[str], weights: bool = False) -> str:
    """A path as it is written in a command line; arguments as for :func:`literal`."""
    return shlex.quote(literal(path, weights))


@cache  # once
def _explain(name: str) -> None:
    what = "random weights" if name == RANDOM else "timm's weights"
    say(f"densepath: {name} means {what}; for the {_kind(name)} of this name, write {literal(name, weights=True)}")


def _kind(name: str) -> str:
    return "folder" if os.path.isdir(name) else "file"
