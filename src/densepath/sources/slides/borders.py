"""The empty border of slides of MRXS, SCN and some others, which OpenSlide counts and QuPath leaves out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from densepath.core.errors import counted, first_few, one_line
from densepath.core.streams import say


def report_borders(corners: Mapping[str, Sequence[int]]) -> None:
    """Print one line about all slides with an empty border: outlines do not fit in QuPath without a shift.

    Args:
        corners: x and y of the scanned area in pixels of level 0, by the slide's name.
    """
    shown = [f"{one_line(name)} begins at x {x}, y {y} of level 0" for name, (x, y) in corners.items() if x or y]
    if shown:
        say(
            f"densepath: QuPath (without --no-crop) leaves out the empty border of {counted(len(shown), 'slide')} "
            f"({first_few(shown)}): add these to the coordinates of outlines from QuPath, and subtract them from those "
            "for it"
        )
