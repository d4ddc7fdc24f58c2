"""One spelling for texts that look the same, or that spreadsheets change."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable

MISSING = ("", "nan", "na", "n/a", "#n/a", "null")  # what programs write for an empty field, in small letters
_WHOLE = re.compile(r"0*(\d+)(?:\.0+)?")


def is_missing(text: str) -> bool:
    """Whether a text stands for an empty field."""
    return text.strip().lower() in MISSING


def number_in(text: str) -> float:
    """The number in a field of a table. Python also reads 1_0 as 10, and the digits of other scripts.

    Raises:
        ValueError: it is not a number in digits from 0 to 9.
    """
    plain = text.strip()
    if "_" in plain or not plain.isascii():
        raise ValueError(f"could not convert string to float: {text!r}")
    return float(plain)


def decimal_in(text: str | None) -> float:
    """The finite number in a field, with a point or a comma for its fraction; NaN for any other text."""
    try:
        value = number_in((text or "").replace(",", "."))
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def composed(text: str) -> str:
    """A text with composed letters: macOS writes those with accents in names of files as two characters."""
    return unicodedata.normalize("NFC", text)


def several_spellings(names: Iterable[str]) -> list[str]:
    """Names that other ones differ from in capitals, spaces, the form of letters or the zeros of numbers (7, 007, 7.0).

    Returns:
        The names, sorted; none if each has one spelling.
    """
    return sorted(name for group in groups_of_spellings(names) for name in group)


def groups_of_spellings(names: Iterable[str]) -> list[list[str]]:
    """The spellings, sorted, of each name that has several, see :func:`several_spellings`."""
    groups: dict[str, set[str]] = {}
    for name in names:
        plain = " ".join(composed(name).casefold().split())
        whole = _WHOLE.fullmatch(plain)
        groups.setdefault(whole[1] if whole else plain, set()).add(name)
    return [sorted(group) for group in groups.values() if len(group) > 1]
