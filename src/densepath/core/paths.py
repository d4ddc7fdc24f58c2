"""Paths as public functions take them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from numbers import Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, overload

from densepath.core.errors import UserError
from densepath.core.keywords import RANDOM, literal

AnyPath = str | os.PathLike[str]  # also what a verb returns: densepath.core.result
_PATHS = {str, Path, os.PathLike[str], Sequence[AnyPath], NoneType}
_NOTHING = object()


@overload
def as_path(given: AnyPath) -> str | Path: ...
@overload
def as_path(given: AnyPath | None) -> str | Path | None: ...
def as_path(given: AnyPath | None) -> str | Path | None:
    """A text as it is, which may also be a name such as "random"; anything else that stands for a path as a path."""
    if given is None or isinstance(given, str):
        return given
    return literal(given) if os.fspath(given) == RANDOM else Path(given)


def as_texts(given: Sequence[AnyPath]) -> list[str]:
    """Several paths as texts."""
    return [str(as_path(path)) for path in given]


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """The types that a type allows: those of a union, or itself."""
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def check_path(name: str, annotation: Any, value: Any) -> None:
    """Check that a value is a path, or several, and none is empty, where a type has only these.

    Raises:
        UserError: it is not.
    """
    kinds = set(alternatives(annotation))
    several = Sequence[AnyPath] in kinds
    if not (several or {Path, os.PathLike[str]} & kinds) or kinds - _PATHS or (value is None and NoneType in kinds):
        return
    many = several and isinstance(value, Iterable) and not isinstance(value, str | os.PathLike | bytes)
    given = list(value) if many else [value]
    if "" in [each for each in given if isinstance(each, str)]:  # as a path it would be the current folder
        raise UserError(f"an empty path does not exist; give {name} a path")
    wrong = next((each for each in given if not isinstance(each, str | os.PathLike)), _NOTHING)
    if wrong is not _NOTHING:
        shown = repr(wrong) if isinstance(wrong, Real | bytes | NoneType) else f"a value of type {type(wrong).__name__}"
        remedy = (
            "; densepath.sources.packing.write_store writes images to a file" if getattr(wrong, "ndim", 0) > 2 else ""
        )
        raise UserError(f"{name} takes {'paths' if several else 'a path'}, not {shown}{remedy}")
