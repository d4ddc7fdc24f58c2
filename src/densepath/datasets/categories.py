"""Names of categories, changed as the user says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from densepath.core.errors import UserError, suggest


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

    def __call__(self, name: str) -> str | None:
        """The new name of a category; None if its objects are left out."""
        return self._new.get(name, name) or None
