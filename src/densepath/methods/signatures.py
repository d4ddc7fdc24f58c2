"""Hyper-parameters of methods: those inherited from another one, without listing them again, and checks of all."""

from __future__ import annotations

import functools
import inspect
import math
from inspect import Parameter
from numbers import Real
from typing import Any, get_args, get_type_hints

from densepath.core.errors import UserError


def complete_signature(cls: type) -> None:
    """Let ``inspect.signature(cls)`` show the parameters that a constructor passes to that of its base class.

    With ``**options: Unpack[Options]`` these are the keys of the typed dictionary ``Options``; with any other
    ``**options`` all of the base class that the constructor does not name itself. Their defaults are those of
    the base class, and their descriptions are in its docstring.

    Args:
        cls: a class; its base class is the next one with a constructor in the order of method resolution.

    Raises:
        TypeError: the base class lacks a key of the typed dictionary.
    """
    constructor = vars(cls).get("__init__")
    if constructor is None:
        return
    own = inspect.signature(constructor).parameters
    rest = next((p.name for p in own.values() if p.kind is Parameter.VAR_KEYWORD), None)
    parameters = [p for p in list(own.values())[1:] if p.name != rest]
    if rest is not None:
        base = next(c for c in cls.__mro__[1:] if "__init__" in vars(c))
        offered = dict(inspect.signature(base).parameters)
        unpacked = get_args(_hints(constructor).get(rest))
        wanted = list(unpacked[0].__annotations__) if unpacked else [name for name in offered if name not in own]
        if missing := [name for name in wanted if name not in offered]:
            raise TypeError(f"{cls.__name__} passes {', '.join(missing)} to {base.__name__}, which does not take it")
        parameters += [p.replace(kind=Parameter.KEYWORD_ONLY) for p in offered.values() if p.name in wanted]
    # Also if nothing is inherited: otherwise the class would show the __signature__ of its base class.
    cls.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]


def check_numbers(cls: type) -> None:
    """Let the constructor of a class refuse NaN and infinity, and weights of losses (``*_weight``) below 0.

    Nothing can be trained with these. Looked at are numbers, and those in lists and tuples; arrays and tensors are not.
    Numbers of the parameter's default are taken, whatever they are; but what a constructor passes on to that of its
    base class, also a default of its own, is checked there, with the default of the base class.

    Args:
        cls: a class, after :func:`complete_signature`.
    """
    constructor = vars(cls).get("__init__")
    if constructor is None:
        return
    signature = inspect.signature(cls)

    @functools.wraps(constructor)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            given = signature.bind_partial(*args, **kwargs).arguments
        except TypeError:  # the constructor says what is wrong
            given = {}
        for name, value in given.items():
            _check_number(name, value, signature.parameters[name].default)
        constructor(self, *args, **kwargs)

    cls.__init__ = checked  # type: ignore[misc]


def _check_number(name: str, value: Any, default: Any) -> None:
    """Raise UserError for a hyper-parameter as :func:`check_numbers` says, or a sequence that has such a number."""
    for number in _numbers(value):
        if not -math.inf < number < math.inf:  # also of integers that are too large for a float
            wanted = "a finite number"
        elif name.endswith("_weight") and number < 0:
            wanted = "0 or more"
        else:
            continue
        if not any(number == usual or str(number) == str(usual) == "nan" for usual in _numbers(default)):
            raise UserError(f"{name} is {value}; give {wanted}")


def _numbers(value: Any) -> list[Any]:
    """The numbers in a list or tuple, or a number itself."""
    return [each for each in (value if isinstance(value, list | tuple) else (value,)) if isinstance(each, Real)]


def _hints(constructor: Any) -> dict[str, Any]:
    """The types of a constructor's parameters; none if a name in them exists for type checkers only."""
    try:
        return get_type_hints(constructor)
    except NameError:
        return {}
