"""Options of methods that have an effect only with some values of others."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

_OFF: tuple[Any, ...] = (None, False, 0, "none", ())


def is_on(value: Any) -> bool:
    """Whether a value turns something on: any but None, False, 0, "none" and an empty list."""
    return not one_of(*_OFF)(value)


def one_of(*values: Any) -> Callable[[Any], bool]:
    """Whether a value is one of these."""
    return lambda value: any(_equal(value, each) for each in values)


def _equal(one: Any, other: Any) -> bool:
    """Whether two values are equal: a list is equal to a tuple of equal entries, and arrays are compared as a whole."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return np.array_equal(one, other)


def is_above(number: float) -> Callable[[Any], bool]:
    """Whether a value is larger than a number."""
    return lambda value: value > number


def is_below(number: float) -> Callable[[Any], bool]:
    """Whether a value is smaller than a number."""
    return lambda value: value < number


@dataclass(frozen=True)
class With:
    """What an option needs to have an effect.

    Args:
        option: another option of the method.
        when: whether a value of this other option lets it have one.
        equal: an option that the value is compared with: where they are equal, nobody expects another effect.
    """

    option: str
    when: Callable[[Any], bool] = is_on
    equal: str = ""


Needed = Mapping[str, tuple[With, ...]]  # option -> all that it needs


def without_effect(method: type, options: Mapping[str, Any]) -> list[str]:
    """A line for each option that differs from its default, but changes nothing together with the others.

    Args:
        method: a method; what its options need is in ``needed_options`` of its class and those that it extends.
        options: all its options.
    """
    needed: dict[str, tuple[With, ...]] = {}
    for cls in reversed(method.__mro__):
        needed |= vars(cls).get("needed_options", {})
    parameters = inspect.signature(method).parameters
    given = [name for name in needed if name in options and not _equal(options[name], parameters[name].default)]
    reasons = {name: _reason(name, needed, options) for name in given}
    return [f"method.{name}: no effect {why}" for name, why in reasons.items() if why]


def _reason(name: str, needed: Needed, options: Mapping[str, Any], asked: frozenset[str] = frozenset()) -> str:
    """Why an option has no effect: another one has a value without it, or has no effect itself; empty if it has one.

    Two options may need each other: those that are ``asked`` for already are not looked at again.
    """
    for each in needed.get(name, ()):
        if each.option not in options.keys() - asked:  # or that a method has fixed which extends another one
            continue
        value = options[each.option]
        if not each.when(value) and not _equal(options[name], options.get(each.equal)):
            empty = value is None or value is False or _equal(value, ())
            return f"without {each.option}" if empty else f"with {each.option} {value}"
        if why := _reason(each.option, needed, options, asked | {name}):
            return why
    return ""
