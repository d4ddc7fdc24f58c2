"""Names of categories, changed as the user says."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

from densepath.core.errors import UserError, first_few, suggest
from densepath.core.spelling import groups_of_spellings


class Renaming:
    """Renames, merges and drops categories.

    Args:
        rules: texts OLD=NEW; several OLD with one NEW are merged, and without NEW the objects are left out.

    Raises:
        UserError: a rule is not of this form, or names a category twice.
    """

    def __init__(self, rules: Sequence[str]) -> None:
        self._new: dict[str, str] = {}
        for rule in rules:
            old, equals, new = (part.strip() for part in rule.rpartition("="))
            if not equals or not old:
                raise UserError(f"--categories {rule!r} is not OLD=NEW; write for example Tumor=tumor, or Fold=")
            if self._new.setdefault(old, new) != new:
                raise UserError(f"--categories gives {old!r} two names; keep one of them")

    def check(self, names: Iterable[str]) -> None:
        """Check that the rules name categories that exist.

        Raises:
            UserError: one does not.
        """
        known = list(dict.fromkeys(names))
        for old in self._new:
            if old not in known:
                raise UserError(f"--categories names {old!r}, which no object has; {suggest(old, known)}")

    def __contains__(self, name: object) -> bool:
        """Whether a rule names a category."""
        return name in self._new

    def __call__(self, name: str) -> str | None:
        """The new name of a category; None if its objects are left out."""
        return self._new.get(name, name) or None


def odd_categories(names: Iterable[str]) -> list[str]:
    """A warning of categories that may be the same, with the option that merges them, if there are any."""
    groups = groups_of_spellings(names)
    rules = [shlex.quote(f"{other}={group[-1]}") for group in groups for other in group[:-1]]
    what = "categories that differ in capitals, spaces or zeros only, and count as different ones"
    alike = first_few([name for group in groups for name in group], 6)
    return [f"warning: {what}: {alike}; merge them with --categories {' '.join(rules)}"] if groups else []
