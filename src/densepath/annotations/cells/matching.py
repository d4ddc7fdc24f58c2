"""Which row of ``cells.csv`` is that of a slide or an image, whose file may have been moved."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

from densepath.core.errors import UserError, first_few
from densepath.core.path_ends import Parts, PathEnds
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
    by_slide: dict[tuple[str, Parts], list[Row]] = defaultdict(list)  # by the slide's name, and the file
    for parts, row in by_path.items():
        by_slide[row["slide"], parts[-1:]].append(row)
    by_end = PathEnds(by_path.items())
    found: list[Row] = [by_path.get(_parts(os.path.abspath(path)), {}) for _, path in wanted]
    moved = [
        (position, row)
        for position, (name, path) in enumerate(wanted)
        if not found[position]
        for row in _candidates(name, _parts(os.path.abspath(path)), by_slide, by_end)
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
    name: str, parts: Parts, by_slide: Mapping[tuple[str, Parts], list[Row]], by_end: PathEnds[Row]
) -> list[Row]:
    """The row of the same name, or else those that share most last parts of the path."""
    named = by_slide.get((name, parts[-1:])) if name else None
    return named or by_end.closest(parts)


def _parts(path: str) -> Parts:
    return tuple(part for part in composed(path).split("/") if part not in ("", "."))
