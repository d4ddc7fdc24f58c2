"""Objects that cannot be used: a few are left out and named, many are refused."""

from __future__ import annotations

from densepath.core.errors import UserError, first_few
from densepath.core.streams import say
from densepath.core.system import first_on_node

MOST = 0.01  # share of the objects of a file; COCO's train2017 has a few among 860,001


class LeftOut:
    """What is wrong with objects of a file, by kind.

    Args:
        what: the objects, for messages.
        least: the number that is left out in any case; by default a single one among fewer than 100 is refused.

    Attributes:
        positions: the positions of the objects that were added.
    """

    def __init__(self, what: str, least: int = 0) -> None:
        self.positions: set[int] = set()
        self._what, self._least = what, least
        self._names: dict[str, list[str]] = {}

    def add(self, position: int, fault: str, name: str) -> None:
        """Add an object.

        Args:
            position: its position in the file.
            fault: what is wrong, as a phrase for several objects.
            name: what the user knows it by.
        """
        self.positions.add(position)
        self._names.setdefault(fault, []).append(name)

    def settle(self, source: str, of: int, remedy: str, kept: bool = False) -> None:
        """Report the objects in a line, or refuse them.

        Args:
            source: the file.
            of: the number of its objects.
            remedy: what the user can do.
            kept: whether only a part of each object is left out.

        Raises:
            UserError: they are more than 1% of all.
        """
        if not self._names:
            return
        found = "; ".join(f"{fault}: {first_few(names)}" for fault, names in self._names.items())
        if len(self.positions) > max(self._least, MOST * of):
            raise UserError(f"{source}: {found}; {remedy}")
        if first_on_node():
            count = f"{len(self.positions)} of {of:,} {self._what}"
            say(f"densepath: {source}: {'parts of ' * kept}{count} are left out: {found}")
