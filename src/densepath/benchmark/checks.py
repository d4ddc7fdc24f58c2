"""Check values read from YAML; a :class:`UserError` names the invalid one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from densepath.core.errors import UserError, suggest


def mapping(value: Any, known: Collection[str], what: str, needed: Collection[str] = ()) -> dict[str, Any]:
    """A mapping that has only known keys, and all the needed ones."""
    if not isinstance(value, Mapping):
        raise UserError(f"{what} must be lines such as 'name: value', not {value!r}")
    for name in value:
        if name not in known:
            raise UserError(f"{what} has no {name!r}; {suggest(str(name), known)}")
    if missing := [name for name in needed if value.get(name) is None]:
        raise UserError(f"{what} lacks {' and '.join(missing)}; add it")
    return dict(value)


def listed(value: Any, what: str) -> list[Any]:
    """A list that is not empty."""
    if not isinstance(value, list | tuple) or not value:
        raise UserError(f"{what} must be a list with at least one entry, not {value!r}")
    return list(value)


def positive(value: Any, what: str) -> float:
    """A positive rate, in images per second."""
    if not is_number(value) or not value > 0:
        raise UserError(f"{what} is {value!r}; give images per second")
    return float(value)


def is_number(value: Any) -> bool:
    """Whether a value is a number; true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def checked_seeds(seeds: Any) -> tuple[int, ...]:
    """Check a list of seeds.

    Raises:
        UserError: they are not whole numbers from 0, or a seed occurs twice.
    """
    numbers = listed(seeds, "seeds")
    whole = all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in numbers)
    if not whole or len(set(numbers)) < len(numbers):
        raise UserError(f"seeds are {numbers}; give distinct whole numbers from 0")
    return tuple(numbers)
