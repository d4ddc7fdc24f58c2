"""Files of a folder that belong to slides by their names."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath

from densepath.core.errors import UserError, counted, first_few, one_line
from densepath.sources.listing import walk
from densepath.sources.slides.find import SUFFIXES


class NamedFiles:
    """The files of a folder and its subfolders, by the names of their slides.

    Args:
        folder: the folder.
        endings: of the files; the first that fits is not part of the name, and neither is a slide's own suffix.
        option: the option that names the folder, for messages.
        what: the files, for messages.
        slides: the names of all slides. A file need not be in the folder of its slide, unless several slides differ
            only in that.

    Raises:
        UserError: the folder has none.
    """

    def __init__(
        self, folder: str | Path, endings: Sequence[str], option: str, what: str, slides: Sequence[str]
    ) -> None:
        self._folder, self._what, self._endings = str(folder), what, endings
        self._slides, self._alike = frozenset(slides), Counter(PurePath(name).name for name in slides)
        if not os.path.isdir(folder):
            raise UserError(f"{option} is {folder}, which is not a folder; give one with {what}")
        self._paths: dict[str, list[str]] = {}
        for path in walk(folder, endings):
            for name in {*self._below(path), *(PurePath(name).name for name in self._below(path))}:
                self._paths.setdefault(name, []).append(path)
        if not self._paths:
            raise UserError(f"{option} is {folder}, which has no {what} ({', '.join(endings)}); check the path")

    def of(self, name: str) -> str | None:
        """The file of a slide; None if there is none.

        Raises:
            UserError: there are two, or it may be of another slide.
        """
        own = PurePath(name).name
        found = [path for path in self._paths.get(name, []) if name in self._below(path)]
        if not found:
            found = [path for path in self._paths.get(own, []) if self._slides.isdisjoint(self._below(path))]
            if found and self._alike[own] > 1:
                several, found = found, [path for path in found if own != name and self._ends(path, name)]
                if not found:
                    place = os.path.join(self._folder, f"{name}{self._endings[0]}")
                    which = f"{first_few(several)} may be of any of {self._alike[own]} slides {own}"
                    raise UserError(f"{which}; put this one's at {place}")
        if len(found) > 1:
            raise UserError(
                f"{self._folder} has {counted(len(found), 'file')} of this slide: {first_few(found)}; keep one"
            )
        return found[0] if found else None

    def describe_unmatched(self) -> str:
        """A line about files that belong to none of the slides; empty if there are none."""
        known = {spelling for name in self._slides for spelling in (name, PurePath(name).name)}
        used = {path for name, paths in self._paths.items() if name in known for path in paths}
        others = sorted({path for paths in self._paths.values() for path in paths} - used)
        if not others:
            return ""
        shown = first_few([one_line(os.path.relpath(path, self._folder)) for path in others])
        count = counted(len(others), self._what.replace("files", "file", 1), self._what)
        return f"{self._folder} has {count} of no slide: {shown}"

    def _ends(self, path: str, name: str) -> bool:
        return any(each.endswith(os.sep + name) for each in self._below(path))

    def _below(self, path: str) -> set[str]:
        """The path of a file below the folder, without its ending, and without that of a slide before it."""
        relative = os.path.relpath(path, self._folder)
        ending = next(ending for ending in self._endings if relative.lower().endswith(ending))
        stem = relative[: len(relative) - len(ending)]
        suffix = PurePath(stem).suffix
        return {stem, stem.removesuffix(suffix)} if suffix.lower() in SUFFIXES else {stem}
