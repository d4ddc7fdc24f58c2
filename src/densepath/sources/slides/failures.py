"""What is wrong with a slide, in one line: it does not end the work on the others."""

from __future__ import annotations

from densepath.core.errors import UserError, one_line
from densepath.core.failures import describe_failure
from densepath.core.streams import say
from densepath.sources.corrupt import CorruptImage


def reason_of(error: Exception) -> str:
    """Why the work on a slide failed, without the slide's path. The traceback of a fault of this program is logged."""
    if isinstance(error, CorruptImage):
        return error.why
    return str(error) if isinstance(error, UserError) else describe_failure(error)


def report_problem(slide: str, why: str) -> None:
    """Print what is wrong with a slide of some name."""
    say(f"densepath: {one_line(slide)}: {one_line(why)}")
