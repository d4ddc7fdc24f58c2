"""Which row of ``cells.csv`` is that of a slide or an image, whose file may have been moved."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from densepath.core.errors import UserError, first_few
from densepath.core.spelling import composed
from densepath.core.threads import in_threads

Row = dict[str, str]
_THREADS = 16


def matching(rows: Sequence[Row], wanted: Sequence[tuple[str, str]], fits: Callable[[int, Row], bool]) -> list[Row]:
    """The row of each slide or image; an empty one where there is none.

    The path may have changed: then the row is taken whose path has the same last parts, as many as are needed, if it
    fits.

    Args:
        rows: of ``cells.csv``.
        wanted: name, or "", and path of each slide or image.
        fits: whether a row can be that of the slide or image at a position, to which only the file's name leads.

    Raises:
        UserError: one row is that of several images.
    """
    by_path = {_parts(row["path"]): row for row in rows}
    by_end: dict[tuple[str, ...], list[tuple[str, ...]]] = defaultdict(list)  # by the file, and by it and its folder
    for parts in by_path:
        for count in {1, min(2, len(parts))}:
            by_end[parts[-count:]].append(parts)
    found: list[Row] = [by_path.get(_parts(os.path.abspath(path)), {}) for _, path in wanted]
    moved = [
        (position, row)
        for position, (name, path) in enumerate(wanted)
        if not found[position]
        for row in _candidates(name, path, by_path, by_end)
    ]
    agree = in_threads(lambda pair: fits(*pair), moved, _THREADS, "the files of images")
    close: dict[int, list[Row]] = defaultdict(list)
    for (position, row), agrees in zip(moved, agree, strict=True):
        close[position] += [row] * agrees
    for position, left in close.items():
        found[position] = left[0] if len(left) == 1 else {}
    pairs = {(row["slide"], os.path.abspath(path)) for row, (_, path) in zip(found, wanted, strict=True) if row}
    doubled = [name for name, times in Counter(name for name, _ in pairs).items() if times > 1]
    if doubled:
        raise UserError(
            f"several images match the cells of {first_few(doubled)}; run densepath cells on the same --data"
        )
    return found


def _candidates(
    name: str,
    path: str,
    by_path: dict[tuple[str, ...], Row],
    by_end: dict[tuple[str, ...], list[tuple[str, ...]]],
) -> list[Row]:
    """The row of the same name, or else those that share most last parts of the path."""
    absolute = _parts(os.path.abspath(path))
    close = by_end.get(absolute[-1:], [])
    if name and (named := [by_path[other] for other in close if by_path[other]["slide"] == name]):
        return named
    close = by_end.get(absolute[-2:], close)
    shared = [_shared(absolute, other) for other in close]
    most = max(shared, default=0)
    return [by_path[other] for other, count in zip(close, shared, strict=True) if count == most]


def _parts(path: str) -> tuple[str, ...]:
    return tuple(part for part in composed(path).split("/") if part not in ("", "."))


def _shared(path: tuple[str, ...], other: tuple[str, ...]) -> int:
    """How many last parts two paths share."""
    count = 0
    for one, two in zip(reversed(path), reversed(other), strict=False):
        if one != two:
            break
        count += 1
    return count
