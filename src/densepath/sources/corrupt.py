"""Corrupt images: each is named once, and too many end the work."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from densepath.core.errors import UserError, one_line

LARGEST_SHARE = 0.01
SHOWN = 20

log = logging.getLogger(__name__)


class CorruptImage(Exception):
    """A file that should hold an image and cannot be read.

    Args:
        path: the file.
        why: what is wrong with it, in a few words.
    """

    def __init__(self, path: str, why: str) -> None:
        super().__init__(path, why)
        self.path = path
        self.why = why

    def __str__(self) -> str:
        return one_line(f"{self.path}: {self.why}")


def allowed(images: int) -> int:
    """How many of a source's images may be corrupt."""
    return int(images * LARGEST_SHARE)


class CorruptLog:
    """Which images of a source turned out to be corrupt.

    Args:
        images: how many images the source holds.
        known: corrupt images that were named before, by position: file name and reason.
        quiet: name none on the log, because another process finds and names the same.
    """

    def __init__(self, images: int, known: Mapping[int, str] | None = None, quiet: bool = False) -> None:
        self.images = images
        self.quiet = quiet
        self.found: dict[int, str] = dict(known or {})

    def add(self, position: int, what: str) -> bool:
        """Take note of an image and name it on the log, unless it is known already.

        Args:
            position: where the image stands in its source.
            what: its file name and what is wrong with it.

        Returns:
            Whether it was new.
        """
        if position in self.found:
            return False
        self.found[position] = what
        if not self.quiet:
            log.warning("damaged image: %s", what)
        return True

    @property
    def excessive(self) -> bool:
        """Whether more images are corrupt than the allowed share."""
        return len(self.found) > allowed(self.images)

    def check(self) -> None:
        """Raise :class:`UserError`, with a list of files, if too many images are corrupt."""
        if self.excessive:
            names = [self.found[position] for position in sorted(self.found)]
            more = f"; and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            raise UserError(
                f"{len(names)} of {self.images} images were found damaged, more than {LARGEST_SHARE:.0%}; "
                f"replace them or take them out: {'; '.join(names[:SHOWN])}{more}"
            )
