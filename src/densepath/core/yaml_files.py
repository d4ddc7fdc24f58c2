"""Reading of YAML that users write: UTF-8, each name once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from densepath.core.errors import UserError, unwrapped


def read_text(path: Path, what: str) -> str:
    """The text of a user's file.

    Args:
        path: the file.
        what: the file in messages: "the recipe mine.yaml".

    Raises:
        UserError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{what} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{what} cannot be read ({type(error).__name__}); check its path") from None


def load_yaml(text: str, what: str) -> Any:
    """The content of a YAML text, in plain types.

    Args:
        text: the text.
        what: the text in messages.

    Raises:
        UserError: it is not valid YAML, or a mapping has a name twice, of which YAML would keep the last.
    """
    try:
        loader = _Loader(text)
        content = loader.get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{what} is not valid YAML ({unwrapped(str(error))}); correct it") from None
    if loader.old:
        raise UserError(f"{what} has {loader.old[0]}; write the number that is meant, or a text in quotes")
    if _holds_itself(content):
        raise UserError(f"{what} has an alias of what it is a part of; write out what is meant")
    if loader.twice:
        raise UserError(f"{what} has {loader.twice[0]}; keep one")
    return content


def is_old_number(text: str) -> bool:
    """Whether YAML 1.1 reads a text as an octal or a sexagesimal number: 010 as 8, 1:30 as 90."""
    return re.fullmatch(r"[-+]?(0[0-9_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)", text) is not None


def _holds_itself(content: Any) -> bool:
    """Whether a list or a mapping is a part of itself."""
    above: set[int] = set()
    done: set[int] = set()

    def look(value: Any) -> bool:
        if id(value) in above or not isinstance(value, dict | list) or id(value) in done:
            return id(value) in above
        above.add(id(value))
        found = any(map(look, value.values() if isinstance(value, dict) else value))
        above.discard(id(value))
        done.add(id(value))
        return found

    return look(content)


class _Loader(yaml.SafeLoader):
    """yaml.SafeLoader that notes the names that a mapping has twice, and numbers that look like others."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.twice: list[str] = []
        self.old: list[str] = []

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            name, line = (key.tag, str(key.value)), key.start_mark.line + 1
            if name in lines:
                self.twice.append(f"{key.value} in line {lines[name]} and again in line {line}")
            lines[name] = line
        return node

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """A number; those that :func:`is_old_number` finds are noted."""
        is_float = node.tag.endswith("float")
        number: int | float = self.construct_yaml_float(node) if is_float else self.construct_yaml_int(node)
        if is_old_number(node.value):
            line = node.start_mark.line + 1
            self.old.append(f"{node.value} in line {line}, which YAML reads as {number}")
        return number


for _tag in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _Loader.construct_number)
