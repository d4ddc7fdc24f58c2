"""Paths as public functions take them, and where a name may be a path or a keyword."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import overload

from densepath.core.streams import say

AnyPath = str | os.PathLike[str]  # also what a verb returns: densepath.core.result
RANDOM = "random"  # weights that are not trained
_WORDS = (RANDOM, "auto", "null")  # that options read as something other than a path
_BEGINNINGS = ("-", "hf-hub:", "hf_hub:")


@overload
def as_path(given: AnyPath) -> str | Path: ...
@overload
def as_path(given: AnyPath | None) -> str | Path | None: ...
def as_path(given: AnyPath | None) -> str | Path | None:
    """A text as it is, which may also be a name such as "random"; anything else that stands for a path as a path."""
    if given is None or isinstance(given, str):
        return given
    return literal(given, weights=True) if is_keyword(os.fspath(given)) else Path(given)


def as_texts(given: Sequence[AnyPath]) -> list[str]:
    """Several paths as texts."""
    return [str(as_path(path)) for path in given]


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


def literal(path: AnyPath, weights: bool = False) -> str:
    """A path as an option reads it: ./NAME where NAME would be a keyword, an option or another kind of name.

    Args:
        path: the path.
        weights: whether the option takes weights, which may be names of timm.
    """
    text = os.fspath(path)
    other = text in _WORDS or text.startswith(_BEGINNINGS) or (weights and is_keyword(text))
    return f".{os.sep}{text}" if other else text


def quoted(path: AnyPath, weights: bool = False) -> str:
    """A path as it is written in a command line; arguments as for :func:`literal`."""
    return shlex.quote(literal(path, weights))


@cache  # once
def _explain(name: str) -> None:
    what = "random weights" if name == RANDOM else "timm's weights"
    say(f"densepath: {name} means {what}; for the {_kind(name)} of this name, write {literal(name, weights=True)}")


def _kind(name: str) -> str:
    return "folder" if os.path.isdir(name) else "file"
