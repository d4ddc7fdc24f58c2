"""Reading of YAML that users write: UTF-8, each name once."""

from __future__ import annotations

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
    if loader.twice:
        raise UserError(f"{what} has {loader.twice[0]}; keep one")
    return content


class _Loader(yaml.SafeLoader):
    """yaml.SafeLoader that notes the names that a mapping has twice."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.twice: list[str] = []

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            name, line = (key.tag, str(key.value)), key.start_mark.line + 1
            if name in lines:
                self.twice.append(f"{key.value} in line {lines[name]} and again in line {line}")
            lines[name] = line
        return node
