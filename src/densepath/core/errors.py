"""The one exception that the command line turns into a line for its user."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class UserError(Exception):
    """Something that the user can mend: one line that says what is wrong and what to do."""

    def __str__(self) -> str:
        return one_line(super().__str__())


def one_line(text: str) -> str:
    """A text whose control characters, which names in files may hold, are spelled out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def suggest(name: str, known: Iterable[str]) -> str:
    """A question that names the most alike of the known names, or all of them where none is."""
    names = list(known)
    close = get_close_matches(name, names, n=3)
    return f"did you mean {' or '.join(close)}?" if close else f"there are: {', '.join(names)}"


def first_few(names: Sequence[str], count: int = 3, separator: str = ", ") -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return separator.join(names[:count]) + more
