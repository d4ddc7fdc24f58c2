"""Paths as public functions take them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import overload

AnyPath = str | os.PathLike[str]  # also what a verb returns: densepath.core.result


@overload
def as_path(given: AnyPath) -> str | Path: ...
@overload
def as_path(given: AnyPath | None) -> str | Path | None: ...
def as_path(given: AnyPath | None) -> str | Path | None:
    """A text as it is, which may also be a name such as "random"; anything else that stands for a path as a path."""
    return given if given is None or isinstance(given, str) else Path(given)


def as_texts(given: Sequence[AnyPath]) -> list[str]:
    """Several paths as texts."""
    return [os.fspath(path) for path in given]
