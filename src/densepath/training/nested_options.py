"""Options by name: in parts as in a recipe, flat with dotted names, and one set over another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from densepath.parser import Parser

METHOD = "method."  # prefix of the options of a method on the command line
METHOD_OPTIONS = "method_options"  # their part in a recipe
# Pairs of options with the same meaning: one that is given overrides the other one of a recipe.
_RIVALS = (("epochs", "max_steps"), ("max_steps", "epochs"))


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``under``, overridden by ``over``; parts are merged option by option."""
    result = dict(under)
    for one, other in _RIVALS:
        if over.get(one) is not None:
            result.pop(other, None)
    for name, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(name), Mapping)
        result[name] = merged(result[name], value) if both else value
    return result


def nested(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options by dotted names, nested as in a recipe: each part becomes a dictionary."""
    result: dict[str, Any] = {}
    for key, value in options.items():
        *parts, last = key.split(".")
        inner = result
        for part in parts:
            inner = inner.setdefault(METHOD_OPTIONS if part == METHOD.rstrip(".") else part, {})
        inner[last] = value
    return result


def flat(options: Mapping[str, Any], parser: Parser, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The options with their dotted names, except ``method`` itself."""
    for name, value in options.items():
        key = prefix + name
        if key == "method":
            continue
        is_part = key == METHOD_OPTIONS or any(option.startswith(f"{key}.") for option in parser.options)
        key = METHOD.rstrip(".") if key == METHOD_OPTIONS else key
        if is_part and isinstance(value, Mapping):
            yield from flat(value, parser, f"{key}.")
        elif not (is_part and value is None):
            yield key, value
