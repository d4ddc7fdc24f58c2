"""Values of run folders as texts and as JSON that a page can hold."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping
from typing import Any

MISSING = "–"
_LONGEST = 300  # characters of a value


def number(value: Any, digits: int = 4) -> str:
    """A number for people; anything else as text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return text(value)
    if isinstance(value, int) or (math.isfinite(value) and value == round(value) and abs(value) < 1e15):
        return f"{int(value):,}"
    if not math.isfinite(value):
        return MISSING
    short = f"{value:.{digits}g}"
    return f"{value:,.0f}" if "e" in short and abs(value) >= 1 else short


def decimals(value: float) -> str:
    """A score with one decimal."""
    return f"{value:.1f}" if math.isfinite(value) else MISSING


def pretty(name: str) -> str:
    """A name of a measurement for people."""
    words = name.replace("_", " ")
    words = re.sub(r"\b(ap|auc|f1|aji|pq|dq|sq)(\d*)\b", lambda match: match[0].upper(), words)
    return re.sub(r"\biou(\d*)\b", r"IoU\1", words)


def text(value: Any) -> str:
    """Any value as a short text."""
    if value is None:
        return "none"
    if isinstance(value, list | tuple):
        value = ", ".join(text(part) for part in value)
    elif isinstance(value, Mapping):
        value = ", ".join(f"{key}: {text(part)}" for key, part in value.items())
    elif isinstance(value, float):
        value = f"{value:g}"
    value = str(value)
    return value if len(value) <= _LONGEST else f"{value[: _LONGEST - 1]}…"


def plotly_text(value: Any) -> str:
    """A text for Plotly, which reads a part of HTML in its texts."""
    return html.escape(text(value), quote=False)


def finite(value: Any) -> Any:
    """The same with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return value


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested configuration with dotted names."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
