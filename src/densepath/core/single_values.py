"""Arguments of public functions: they are taken, and refused, as the command line does.

A single value where a list is meant is a list of one. Otherwise Python would take the letters of a text for the list,
or the names of the scores of a result. Choices, switches and numbers are checked: Python takes any text for "yes".
Numbers of NumPy become Python's, as records of what was given could not be written otherwise.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import fields
from numbers import Real
from pathlib import Path
from types import NoneType
from typing import Any, Literal, ParamSpec, SupportsFloat, TypeVar, get_args, get_origin, get_type_hints

import numpy as np

from densepath.core.errors import UserError
from densepath.core.paths import AnyPath, alternatives, check_path

P = ParamSpec("P")
R = TypeVar("R")
_TEXTS, _NUMBERS = (str, Path), (int, float)


def take_single_values(function: Callable[P, R]) -> Callable[P, R]:
    """A function that takes a single value wherever its signature has a sequence, and paths where that is of texts, and
    numbers of NumPy.

    Raises:
        UserError: a single value has another type than the sequence, a choice, a switch, a number or a path is not
            valid, or None is given where the type has no None.
    """
    signature, hints = inspect.signature(function), functools.cache(lambda: get_type_hints(function))

    @functools.wraps(function)
    def with_lists(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # which names what is missing or unknown
        for name, value in bound.arguments.items():
            hint = hints().get(name)
            bound.arguments[name] = taken = _checked(name, hint, _listed(name, hint, value))
            check_path(name, hint, taken)
            _refuse_none(name, hint, taken)
        return function(*bound.args, **bound.kwargs)

    return with_lists


def list_single_fields(options: Any) -> None:
    """The same for the fields of a frozen dataclass, in its ``__post_init__``; it checks only paths and None."""
    hints = get_type_hints(type(options))
    for field in fields(options):
        value = getattr(options, field.name)
        taken = _listed(field.name, hints[field.name], value)
        check_path(field.name, hints[field.name], taken)
        _refuse_none(field.name, hints[field.name], taken)
        object.__setattr__(options, field.name, taken)


def refuse_none(options: Any) -> None:
    """Check that no field of a dataclass is None whose type has no None.

    Raises:
        UserError: one is.
    """
    hints = get_type_hints(type(options))
    for field in fields(options):
        _refuse_none(field.name, hints[field.name], getattr(options, field.name))


def _refuse_none(name: str, annotation: Any, value: Any) -> None:
    if value is None and not {NoneType, Any, None}.intersection(alternatives(annotation)):
        raise UserError(f"{name} is None; give a value, or leave it out if it has a default")


def _listed(name: str, annotation: Any, value: Any) -> Any:
    """A value for a type: where only a sequence is meant, a single value in a tuple."""
    value = _without_numpy(value)
    kinds = alternatives(annotation)
    item = next((get_args(a)[0] for a in kinds if _is_list(a)), None)
    if item is None:
        return value
    value = tuple(value) if isinstance(value, Iterator) else value
    of_texts = item is str or item == AnyPath or get_origin(item) is Literal
    if isinstance(value, list | tuple):
        paths = of_texts and any(isinstance(each, os.PathLike) for each in value)
        return tuple(os.fspath(each) if isinstance(each, os.PathLike) else each for each in value) if paths else value
    is_text, is_number = isinstance(value, str | os.PathLike), isinstance(value, Real)
    single = _TEXTS if is_text else _NUMBERS
    if not (is_text or is_number) or any(a in single or get_origin(a) is Literal for a in kinds):
        return value
    if is_text != of_texts:
        kind = "paths" if item == AnyPath else "texts" if of_texts else "numbers"
        raise UserError(f"{name} takes {kind}, not {value!r}")
    return (os.fspath(value) if isinstance(value, os.PathLike) else value,)


def check_choice(name: str, value: Any, kind: Any) -> None:
    """Check that a value is one of those of a literal type.

    Raises:
        UserError: it is not.
    """
    known = get_args(kind)
    if not any(value is each or (isinstance(value, type(each)) and value == each) for each in known):
        *others, last = map(str, known)
        raise UserError(f"{name} is {value!r}; give {' or '.join(filter(None, (', '.join(others), last)))}")


def _checked(name: str, annotation: Any, value: Any) -> Any:
    """A value for a choice, a switch or a number; of those for other types only numbers are checked not to be bool."""
    kinds = [kind for kind in alternatives(annotation) if kind is not NoneType]
    if _has_bool_as_number(kinds, value):
        raise UserError(f"{name} is {value!r}; give a number instead of True or False")
    if value is None or len(kinds) != 1:
        return value
    (kind,) = kinds
    if get_origin(kind) is Literal:
        check_choice(name, value, kind)
    elif kind is bool:
        if not isinstance(value, Hashable) or value not in (True, False):
            raise UserError(f"{name} is {value!r}; give True or False")
        return bool(value)
    elif kind is float:
        if not isinstance(value, SupportsFloat):
            raise UserError(f"{name} is {value!r}; give a number")
    elif kind is int:
        number: Any = value
        if not isinstance(value, Real) or number % 1:
            raise UserError(f"{name} is {value!r}; give a whole number")
        return int(number)
    return value


def _has_bool_as_number(kinds: Iterable[Any], value: Any) -> bool:
    """Whether a value, or one in a list, is True or False where the types have numbers: Python takes them for 1 and 0.

    Types that have ``bool``, too, mean them.
    """
    if isinstance(value, list | tuple):
        items = [kind for each in kinds for item in get_args(each) for kind in alternatives(item)]
        return any(_has_bool_as_number(items, each) for each in value)
    return isinstance(value, bool) and bool not in kinds and any(kind in _NUMBERS for kind in kinds)


def _without_numpy(value: Any) -> Any:
    """A number of NumPy, or a list of them, as Python's."""
    if isinstance(value, list | tuple) and any(isinstance(each, np.generic) for each in value):
        return [_without_numpy(each) for each in value]
    return value.item() if isinstance(value, np.generic) else value


def _is_list(annotation: Any) -> bool:
    """Whether a type is that of any number of values."""
    return get_origin(annotation) is Sequence or (get_origin(annotation) is tuple and Ellipsis in get_args(annotation))
