"""Work on one slide of many: what is wrong with it costs a line, and does not end the run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from densepath.core.errors import UserError, counted, one_line
from densepath.core.failures import describe_failure
from densepath.core.files import writing
from densepath.sources.corrupt import CorruptImage
from densepath.transfer.slides.slide_list import ListedSlide

_log = logging.getLogger(__name__)


def attempt(name: str, out: Path, work: Callable[[], None]) -> str | None:
    """Do the work on a slide.

    Args:
        name: of the slide.
        out: the folder where the work writes.
        work: the work.

    Returns:
        Why it failed; None if it did not.

    Raises:
        UserError: that of the work, or the disk is full: no other slide would succeed.
    """
    try:
        with writing(out):
            work()
    except UserError:
        raise
    except CorruptImage as error:
        why = error.why
    except Exception as error:  # a fault of this program must not end a long run
        why = describe_failure(error)
    else:
        return None
    why = one_line(why)
    _log.warning("slide passed over: %s: %s", name, why)
    return why


@contextmanager
def as_corrupt(slide: ListedSlide) -> Iterator[None]:
    """What is wrong with a slide or its options, while it is opened, as an error of this slide.

    Raises:
        CorruptImage: it cannot be read, its µm per pixel are unknown, or a library is not installed.
    """
    try:
        yield
    except UserError as error:
        raise CorruptImage(slide.path, str(error)) from error


def left_to_others(left: int, slides: int) -> str:
    """The end of a line about this process; empty if no slide is left."""
    return f"; this process is done, {left} of {counted(slides, 'slide')} left to other processes" if left else ""
