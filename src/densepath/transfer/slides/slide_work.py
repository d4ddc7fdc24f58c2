"""Work on many slides or images, by any number of processes: what is wrong with one does not end the run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from densepath.core.errors import UserError, counted, first_few, one_line
from densepath.core.files import atomic_write, writing
from densepath.core.remains import remove_remains
from densepath.core.shared_work import Shard, claimed, same_input
from densepath.core.streams import say
from densepath.core.system import with_lines
from densepath.sources.corrupt import CorruptImage
from densepath.sources.slides.failures import reason_of, report_problem
from densepath.sources.tiles.identity import identity_of, identity_of_slide, is_identity
from densepath.sources.tiles.identity import read_record as tile_record
from densepath.sources.tiles.tile_files import read_slide_rows
from densepath.transfer.predict_records import (
    Parts,
    is_same_image,
    read_record,
    record_of,
    recorded_names,
    refuse_others,
)
from densepath.transfer.slides.slide_list import ListedSlide

UNFINISHED = "unfinished"  # the problem of slides that are left to other processes


@dataclass(frozen=True, eq=False)
class SlideWork:
    """Slides, and a record in a file for each that is done: what is known of it, or the "problem" if it failed.

    Args:
        out: the folder of the results, which other processes may share.
        identities: by name, what changes if a slide is another one.
        files: those of a slide, by its name: what is left there of another slide, or of a failure, is removed.
        has_result: whether the main file of a slide exists, by its name: its features, label map or table. Without it,
            a slide is not done, whatever its record says; other files, such as pictures, may be missing.
        tables: the files of all slides, which are removed if a slide is left: they are written last.
        one: what a slide is called.
        is_whole: the folder has a table of all slides, which the results of others must not replace.
        paths: of slides by name, whose identities begin as those of :class:`ListedSlide`.
        default_mpp: µm per pixel for slides that have none, with which the identities end: one that was done before
            they were given did not need them.
        is_former: whether the record of a name that is not among these, and its files, are removed.
        parts: the names of the slides of an identity, where a record is of several.
        problems: by name, why :meth:`do` could not make the missing files of slides that have a result.
    """

    out: Path
    identities: Mapping[str, Any]
    files: Callable[[str], Iterable[Path]] = lambda name: ()
    has_result: Callable[[str], bool] = lambda name: True
    tables: Iterable[Path] = ()
    one: str = "slide"
    is_whole: bool = True
    paths: Mapping[str, str] = field(default_factory=dict)
    default_mpp: float | None = None
    is_former: Callable[[str], bool] = lambda name: False
    parts: Parts | None = None
    problems: dict[str, str] = field(default_factory=dict, init=False)

    @property
    def _work(self) -> str:
        """What a record is called: of several slides, a case."""
        return self.one if self.parts is None else "case"

    def facts(self, name: str) -> dict[str, Any] | None:
        """The record of a slide; None if it is not done."""
        source, facts = read_record(record_of(self.out, name))
        if facts is not None and "problem" not in facts and isinstance(source, list) and source[-1:] == [None]:
            source = [*source[:-1], self.default_mpp]
        return facts if self.is_same(name, source) else None

    def is_same(self, name: str, recorded: Any) -> bool:
        """Whether what was recorded of a slide is its identity."""
        identity = self.identities[name]
        if name in self.paths:
            return is_identity(recorded, identity, self.paths[name], 1)
        return is_same_image(recorded, identity)

    def succeeded(self, name: str) -> bool:
        """Whether a slide is done, and did not fail."""
        facts = self.facts(name)
        return facts is not None and "problem" not in facts

    def do(
        self,
        is_done: Callable[[str], bool],
        work: Callable[[str], dict[str, Any]],
        shard: Shard | None = None,
        also: str = "",
        watched: Callable[[Iterator[str], int, str], Iterator[str]] = with_lines,
        on_begin: Callable[[], None] = lambda: None,
    ) -> None:
        """Do the slides that are not done, each in one of the processes that share the folder.

        Args:
            is_done, shard: as for :func:`~densepath.core.shared_work.claimed`.
            work: does a slide, and returns what is known of it.
            also: the end of the first line.
            watched: yields the slides, and shows how many of them are done.
            on_begin: called when nothing refuses the work any more.

        Raises:
            UserError: as for :func:`attempt`, or another process does other slides, or the folder has results of other
                ones only.
        """
        remove_remains(self.out, shared=True)
        names = list(self.identities)
        if self.is_whole:
            known = names if self.parts is None else chain.from_iterable(map(self.parts, self.identities.values()))
            refuse_others(self.out, [*known, *self._former()], self.one, self.parts)
        left = [name for name in names if not is_done(name)]
        mine_left = len(left if shard is None else set(left).intersection(names[shard.number :: shard.count]))
        say(f"densepath: {counted(len(names), self._work)}, {len(names) - len(left)} done before{also}")
        with same_input(self.out, self.identities), closing(claimed(self.out, names, is_done, shard)) as mine:
            on_begin()
            self._remove_former()
            if left:
                _remove(*self.tables)
            for name in watched(mine, mine_left, f"{self._work}s"):
                if not self.succeeded(name):
                    _remove(record_of(self.out, name), *self.files(name))
                facts = attempt(name, self.out, work)
                if "problem" in facts and self.succeeded(name) and self.has_result(name):
                    self.problems[name] = facts["problem"]
                    continue  # what was made before stays, and the rest is tried again by the next start
                with atomic_write(record_of(self.out, name)) as part:
                    part.write_text(f"{json.dumps(self.identities[name])}\n{json.dumps(facts)}\n")

    def _former(self) -> list[str]:
        return [name for name in recorded_names(self.out) if name not in self.identities and self.is_former(name)]

    def _remove_former(self) -> None:
        """Remove the records and files of former slides, each while no other process works on a slide of its name."""
        removed = []
        with closing(claimed(self.out, self._former(), lambda name: not self.is_former(name))) as mine:
            for name in mine:
                _remove(*self.files(name), record_of(self.out, name))
                removed.append(one_line(name))
        if removed:
            former = counted(len(removed), f"former {self._work}")
            say(f"densepath: removed the results of {former} from {self.out}: {first_few(removed)}")

    def found(self) -> dict[str, dict[str, Any]]:
        """The records of the slides that any process has done, and that have a result or a problem."""
        known = {name: self.facts(name) for name in self.identities}
        return {
            n: facts for n, facts in known.items() if facts is not None and ("problem" in facts or self.has_result(n))
        }

    def missing(self) -> str:
        """A part of a line with the slides whose missing files this process could not make; "" if there are none."""
        if not self.problems:
            return ""
        reasons = first_few([f"{name}: {why}" for name, why in self.problems.items()])
        return f"; missing files of {counted(len(self.problems), self.one)} could not be made: {reasons}"

    def summary(self, found: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, int], str]:
        """The numbers of "slides", "damaged" ones, and those "left" to other processes, and a line of what is missing.

        Those of which only other files than the result are missing are not counted, but named in the line.

        Raises:
            UserError: no slide can be read.
        """
        count, left = len(self.identities), len(self.identities) - len(found)
        problems = [f"{name}: {facts['problem']}" for name, facts in found.items() if "problem" in facts]
        if len(problems) == count:
            raise UserError(f"none of {counted(count, self.one)} can be read ({problems[0]})")
        line = f"; {counted(len(problems), self.one)} passed over: {first_few(problems)}" if problems else ""
        line += self.missing()
        if left:
            line += f"; this process is done, {left} of {counted(count, self.one)} left to other processes"
        return {"slides": count, "damaged": len(problems), "left": left}, line


def without_tiles(tiles: Path, out: Path) -> Callable[[str], bool]:
    """Whether a record is of a slide that has no tiles (any more), and not of another slide of that name.

    A slide that a disk failed to give to ``densepath tile``, which will try it again, is not one.

    Args:
        tiles: the folder of ``densepath tile``.
        out: the folder of the results, whose records have the "path" of each slide that did not fail.

    Raises:
        UserError: the folder of the tiles is unfinished or damaged.
    """
    rows = [row for row in read_slide_rows(tiles) if not int(row["tiles"] or 0)]
    paths = {row["slide"]: row["path"] for row in rows if not (tile_record(tiles, row["slide"]) or {}).get("again")}

    def is_former(name: str) -> bool:
        if (path := paths.get(name)) is None:
            return False
        identity, facts = read_record(record_of(out, name))
        if identity is None or facts is None:
            return False
        same = "problem" in facts or facts.get("path") == path
        return same or identity[1:3] in (identity_of_slide(path), identity_of(path))

    return is_former


def last_problem(out: Path, name: str) -> str:
    """Why the work on a slide failed, by its record in the folder of the results; "" if it did not."""
    _, facts = read_record(record_of(out, name))
    return str((facts or {}).get("problem", ""))


def _remove(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def attempt(name: str, out: Path, work: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """Do the work on a slide.

    Args:
        name: of the slide.
        out: the folder where the work writes.
        work: the work.

    Returns:
        What it returns; if it failed, the reason as "problem".

    Raises:
        UserError: that of the work, or the disk is full: no other slide would succeed.
    """
    try:
        with writing(out):
            return work(name)
    except Exception as error:  # a fault of this program must not end a long run
        if isinstance(error, UserError) and not isinstance(error, CorruptImage):
            raise
        why = reason_of(error)
    report_problem(name, why)
    return {"problem": one_line(why)}


@contextmanager
def as_corrupt(slide: ListedSlide) -> Iterator[None]:
    """What is wrong with a slide or its options, while it is opened, as an error of this slide.

    Raises:
        CorruptImage: it cannot be read, its µm per pixel are unknown, or a library is not installed.
    """
    try:
        yield
    except CorruptImage:
        raise
    except UserError as error:
        raise CorruptImage(slide.path, str(error)) from error
