"""A few of many positions."""

from __future__ import annotations


def evenly_spaced(count: int, of: int) -> list[int]:
    """At most ``count`` of the positions 0 to ``of`` - 1: the first, the last, and others evenly between them."""
    count = min(count, of)
    return [k * (of - 1) // max(count - 1, 1) for k in range(count)]
