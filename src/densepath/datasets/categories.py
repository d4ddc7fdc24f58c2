"""Names of categories, changed as the user says."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence

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
        """Whether a rule gives a category a new name."""
        return bool(self._new.get(str(name)))

    def __call__(self, name: str) -> str | None:
        """The new name of a category; None if its objects are left out."""
        return self._new.get(name, name) or None


def odd_categories(counts: Mapping[str, int], command: str = "") -> list[str]:
    """A warning of categories that may be the same, with the option that merges them, if there are any.

    Args:
        counts: the number of objects of each category; the one with the most gives its name to those like it.
        command: the command that has the option, and a blank; empty for the one that runs.
    """
    groups = groups_of_spellings(counts)
    rules: list[str] = []
    for group in groups:
        # A rule ends in its new name, which has no "=".
        if allowed := [name for name in group if "=" not in name]:
            most = max(reversed(allowed), key=lambda name: counts[name])
            rules += [shlex.quote(f"{other}={most}") for other in group if other != most]
    what = "categories that differ in capitals, spaces or zeros only, and count as different ones"
    alike = first_few([name for group in groups for name in group], 6)
    advice = f"merge them with {command}--categories {' '.join(rules)}" if rules else "give them one name"
    return [f"warning: {what}: {alike}; {advice}"] if groups else []
