"""The option ``--exclude`` of conversions: what it leaves out, and patterns that match nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from densepath.core.errors import UserError, first_few
from densepath.core.streams import say
from densepath.sources.listing import Passed


class Exclusion:
    """Patterns of ``--exclude``, for all parts of a source.

    Args:
        patterns: as for :func:`~densepath.sources.listing.list_images`.
        what: what is left out, in the plural.
    """

    def __init__(self, patterns: Sequence[str], what: str = "images") -> None:
        self._patterns, self._what, self._count = list(patterns), what, 0
        self._passed = Passed(unused=list(patterns))

    def __call__(self, name: str) -> bool:
        """Whether a pattern matches a name, or a path below the folder of the images."""
        found = self._passed.leaves_out(name, self._patterns)
        self._count, self._passed.excluded = self._count + 1, self._passed.excluded + found
        return found

    def report(self, source: str | Path) -> None:
        """Print how many were left out, after all names.

        Raises:
            UserError: all of them.
        """
        excluded, unused = self._passed.excluded, self._passed.unused
        if 0 < self._count == excluded:
            raise UserError(f"--exclude leaves out all {self._what} of {source}; narrow it")
        if excluded:
            say(f"densepath: {excluded} of {self._count} {self._what} are left out by --exclude")
        if unused:
            say(f"densepath: warning: {source} has no {self._what} that --exclude {first_few(unused)} matches")
