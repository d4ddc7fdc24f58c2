"""Corrupt images: each is reported once, and too many raise an error."""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from densepath.core.errors import UserError, counted, errors_as, one_line, refuse, unwrapped
from densepath.core.waiting import Stuck

LARGEST_SHARE = {2: 0.01, 3: 0.1}  # by dimensions: volumes are few, so one of them may always be corrupt
SHOWN = 20
_OF_CONTENT = (None, errno.EINVAL)  # numbers of errors that files cause: a place before their beginning, for instance

log = logging.getLogger(__name__)


class CorruptImage(UserError):
    """An image file that cannot be read.

    Args:
        path: the file.
        why: the reason, in a few words.
    """

    remedy = "; replace the file, or take it out"

    def __init__(self, path: str, why: str) -> None:
        super().__init__(path, why)
        self.path = path
        self.why = why

    def __str__(self) -> str:
        return one_line(f"{self.path}: {self.why}")


def decoding(path: str | Path, failure: str = "cannot be decoded") -> AbstractContextManager[None]:
    """Raise CorruptImage with ``failure`` for what a library raises, see :func:`~densepath.core.errors.errors_as`."""

    def refusal(error: Exception) -> CorruptImage:
        if isinstance(error, FileNotFoundError):
            return CorruptImage(str(path), "the file is missing")
        return CorruptImage(str(path), f"{failure} ({unwrapped(str(error))[:200]})")

    return errors_as(refusal)


def can_pass(error: BaseException | None) -> bool:
    """Whether a later attempt may succeed: the system did not give the file, as a disk or a network has failed, or a
    package was missing. Otherwise the content of the file is damaged."""
    while error is not None:
        if isinstance(error, Stuck | ImportError) or (isinstance(error, OSError) and error.errno not in _OF_CONTENT):
            return True
        error = error.__cause__
    return False


def lasting(error: CorruptImage) -> CorruptImage:
    """The error of a part of an image, if that is damaged: the rest can be used without it.

    Raises:
        CorruptImage: the error, if a later attempt may succeed: results without that part would look complete.
    """
    if can_pass(error):
        raise error
    return error


def refuse_passing(failed: Sequence[str]) -> None:
    """Refuse results of images without those that a later attempt may read: they would look complete.

    Args:
        failed: file name and reason of each image for which :func:`can_pass` holds.

    Raises:
        UserError: there are some.
    """
    remedy = (
        "start the same command again (trainings with --resume); restore files that stay unreadable, or leave them out "
        "(--exclude)"
    )
    refuse(failed, f"{counted(len(failed), 'image')} cannot be read now", remedy)


def allowed(images: int, ndim: int = 2) -> int:
    """How many of a source's images, of some dimensions, may be corrupt."""
    return max(ndim - 2, int(images * LARGEST_SHARE[ndim]))


class CorruptLog:
    """The images of a source that were found corrupt.

    Args:
        images: how many images the source holds.
        known: corrupt images that were reported before, by position: file name and reason.
        quiet: log nothing, because another process reports the same images.
        ndim: dimensions of the images.

    Attributes:
        found: the corrupt images, like ``known``.
        passing: the positions of those that may be readable later.
    """

    def __init__(self, images: int, known: Mapping[int, str] | None = None, quiet: bool = False, ndim: int = 2) -> None:
        self.images = images
        self.quiet = quiet
        self.ndim = ndim
        self.found: dict[int, str] = dict(known or {})
        self.passing: set[int] = set()

    def add(self, position: int, what: str, passing: bool = False) -> bool:
        """Record an image and log it, unless it is known already.

        Args:
            position: the image's position in its source.
            what: file name and reason.
            passing: whether it may be readable later, see :func:`can_pass`.

        Returns:
            Whether it was new.
        """
        if position in self.found:
            return False
        self.found[position] = what
        if passing:
            self.passing.add(position)
        if not self.quiet:
            log.warning("%s: %s", "an image that cannot be read now" if passing else "damaged image", what)
        return True

    @property
    def excessive(self) -> bool:
        """Whether more images are corrupt than the allowed share."""
        return len(self.found) > allowed(self.images, self.ndim)

    def check(self) -> None:
        """Raise :class:`UserError`, with a list of files, if too many images are corrupt."""
        if self.excessive:
            names = [self.found[position] for position in sorted(self.found)]
            more = f"; and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            raise UserError(
                f"{len(names)} of {self.images} images were found damaged, more than {LARGEST_SHARE[self.ndim]:.0%}; "
                f"restore or replace them, or take them out and start a new run: {'; '.join(names[:SHOWN])}{more}"
            )
