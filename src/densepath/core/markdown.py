"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable

from densepath.core.errors import unwrapped


def table_row(texts: Iterable[str]) -> str:
    """A row of a table, one line whatever the texts contain."""
    return "| " + " | ".join(unwrapped(text).replace("|", "\\|") for text in texts) + " |"
