"""Work on each slide of a folder of results: whatever is wrong with a slide becomes a line of the table."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from densepath.core.errors import UserError, counted, first_few, one_line, that_or_these
from densepath.core.records import recorded
from densepath.core.shared_work import Shard, same_input
from densepath.core.streams import say
from densepath.core.worker_processes import share_work
from densepath.sources.corrupt import CorruptImage, can_pass
from densepath.sources.slides.failures import reason_of, report_problem
from densepath.sources.tiles.identity import identity_of, identity_of_slide, is_identity, read_record, record_path
from densepath.sources.tiles.records import identities, recorded_slides, write_record
from densepath.sources.tiles.tile_files import is_tile_folder

Found = TypeVar("Found")


@dataclass(frozen=True, eq=False)
class PerSlide(ABC, Generic[Found]):
    """What is done with each slide or image, and whether it is done.

    Args:
        out: the folder of the results.
        paths: the slides by name.

    Attributes:
        empty: the row of a slide without a result, besides its name, path and problem.
    """

    empty: ClassVar[Mapping[str, Any]] = {}
    out: Path
    paths: dict[str, str]
    _identities: dict[str, list[Any]] = field(default_factory=dict, init=False)

    @abstractmethod
    def find(self, name: str, row: dict[str, Any]) -> Found:
        """Make the result of a slide, and note in its row what is known.

        Raises:
            CorruptImage: it cannot be read.
            UserError: whatever else is wrong with it, or with what was given for it.
        """

    @abstractmethod
    def write(self, name: str, row: dict[str, Any], found: Found) -> None:
        """Write the files of a slide, and then note the result in its row.

        Raises:
            UserError: the disk is full. It ends all work.
        """

    @abstractmethod
    def files(self, name: str) -> Sequence[Path]:
        """The files of a slide, which are removed before they are made again."""

    def made(self, name: str) -> Sequence[Path]:
        """The files of a slide that nobody corrects by hand, which are removed if the slide is.

        The first is its result: without it, or if it has changed, the slide is not done.
        """
        return self.files(name)

    def given(self, name: str) -> list[Any]:
        """What changes if what was given for a slide is something else."""
        return []

    def identity(self, name: str) -> list[Any]:
        """What changes if the slide, or what was given for it, is another one: two numbers of its files come first."""
        if name not in self._identities:
            self._identities[name] = [*identity_of_slide(self.paths[name]), *self.given(name)]
        return self._identities[name]

    def record(self, name: str) -> dict[str, Any] | None:
        """The row of a slide that is done, with its current path; None if it is not done."""
        record = read_record(self.out, name)
        if record is None or not self.is_same(name, record["identity"]):
            return None
        if record.get("result") not in (None, identity_of(self.made(name)[0])):
            return None
        return record | {"path": os.path.abspath(self.paths[name])}

    def is_same(self, name: str, recorded: Any) -> bool:
        """Whether what was recorded of a slide is its identity."""
        return is_identity(recorded, self.identity(name), self.paths[name])

    def is_done(self, name: str) -> bool:
        """Whether a slide is done, with a result or with a problem."""
        return self.record(name) is not None

    def do(self, name: str) -> None:
        """Make the result of a slide, and write it; the record comes last.

        Raises:
            UserError: a file cannot be written.
        """
        row = self._row(name)
        try:
            for path in self.files(name):  # of another slide, or damaged
                path.unlink(missing_ok=True)
            found = self._found(name, row)
            if found is not None:
                self.write(name, row, found)
        except Exception as error:  # a fault of this program must not end a long run
            if isinstance(error, UserError) and not isinstance(error, CorruptImage):
                raise
            row |= {"problem": reason_of(error), "again": True}
        self._finish(name, row)

    def give_up(self, name: str, why: str) -> None:
        """Record that a slide has no result."""
        self._finish(name, self._row(name) | {"problem": why, "again": True})

    def forget_failures(self, table: str) -> None:
        """Let slides be tried again that failed for other reasons than their files: too little memory, for instance.

        Args:
            table: the file of all slides. It is removed before: a reader takes a slide of it without tiles and record
                for one that has none, whatever it was.
        """
        failed = [name for name in self.paths if (read_record(self.out, name) or {}).get("again")]
        if failed:
            (self.out / table).unlink(missing_ok=True)
        for name in failed:
            record_path(self.out, name).unlink(missing_ok=True)

    def check_slides(self, data: str | Path) -> None:
        """Report slides that have results, but are not those of the data any more.

        Args:
            data: where the slides are now.

        Raises:
            UserError: none of the slides that have results is one of the data.
        """
        before = recorded(self.out).get("data")
        old = {} if before == str(data) else identities(self.out)
        gone = [one_line(name) for name in old if name not in self.paths]
        changed = [one_line(name) for name in old if name in self.paths and not self._is_same_file(name, old[name])]
        if old and len(gone) + len(changed) == len(old):
            raise UserError(f"{self.out} holds results of other slides ({before}); use another folder for {data}")
        if gone:
            say(f"densepath: {self.out} keeps files of {counted(len(gone), 'slide')} not in {data}: {first_few(gone)}")
        if changed:
            say(f"densepath: done again: {counted(len(changed), 'slide')} changed since: {first_few(changed)}")

    def _remove_lost(self, data: str | Path) -> None:
        """Remove the results of slides that are not among the data because their files were removed.

        Nothing is removed if the data are in another place than at the first command: slides may be on their way. Nor
        is it where a file's folder is empty or missing: its disk may not be mounted.
        """
        if recorded(self.out).get("data") != str(data):
            return
        absent = {name: path for name in recorded_slides(self.out) if (path := self._former_path(name))}
        missing = [name for name, path in absent.items() if self._is_lost(name, path, data)]
        away = [name for name in missing if not _has_content(os.path.dirname(absent[name]))]
        lost = [name for name in missing if name not in away]
        for name in lost:
            for file in (*self.made(name), record_path(self.out, name)):
                file.unlink(missing_ok=True)
        if lost:
            names = first_few(list(map(one_line, lost)))
            say(f"densepath: removed the results of {counted(len(lost), 'slide')} whose files were removed: {names}")
        if away:
            what = f"the results of {counted(len(away), 'slide')} whose folders are empty or missing"
            names = first_few(list(map(one_line, away)))
            say(
                f"densepath: {self.out} keeps {what} (a disk that is not mounted?): {names}; if they were removed on "
                f"purpose, remove the files of {that_or_these(away)} {'name' if len(away) == 1 else 'names'} there"
            )

    def _former_path(self, name: str) -> str:
        """Where a slide was that is not among the data any more, if it is not there now; otherwise empty."""
        record = read_record(self.out, name) if name not in self.paths else None
        path = str((record or {}).get("path", ""))
        return "" if os.path.lexists(path) else path

    def _is_lost(self, name: str, path: str, data: str | Path) -> bool:
        """Whether a file was removed from the folder of the data, or a slide from the folder of its tiles."""
        if is_tile_folder(data):
            return read_record(Path(data), name) is None
        return os.path.isdir(data) and Path(os.path.abspath(data)) in Path(path).parents

    def _is_same_file(self, name: str, recorded: Sequence[Any]) -> bool:
        """Whether a recorded identity is of a slide's files, whatever was given for it."""
        return is_identity(recorded[:2], self.identity(name)[:2], self.paths[name])

    def together(self, free: Any = None) -> AbstractContextManager[None]:
        """Fill the folder together with the processes that have the same slides, and refuse others while it is filled.

        Args:
            free: options that may change between two commands, but not between two at a time.
        """
        return same_input(self.out, [free, [[name, self.identity(name)] for name in sorted(self.paths)]])

    def work(
        self,
        data: str | Path,
        table: str,
        *,
        items: str,
        what: str,
        workers: Callable[[], int],
        shard: Shard | None,
        also: str = "",
        lines: Iterable[str] = (),
        on_begin: Callable[[], None] = lambda: None,
    ) -> None:
        """Do all slides that are not done, together with other commands that fill the folder.

        Args:
            data: where the slides are.
            table: the file of all slides, which is removed if a slide is left: it is written last.
            items: what they are: "slides" or "images".
            what: for the progress: "tiling".
            workers: gives the number of processes, if a slide is left; 0 for none besides this one.
            shard: the share of this process.
            also: the end of the first line.
            lines: more lines that are printed before the work; empty ones are left out.
            on_begin: called when nothing refuses the work any more.

        Raises:
            UserError: the folder holds results of other slides, or a file cannot be written.
        """
        self.check_slides(data)
        on_begin()
        self._remove_lost(data)
        self.forget_failures(table)
        names = list(self.paths)
        left = sum(not self.is_done(name) for name in names)
        mine = f", shard {shard}" if shard else ""
        say(f"densepath: {counted(len(names), items.removesuffix('s'))}, {len(names) - left} done before{mine}{also}")
        for line in filter(None, lines):
            say(f"densepath: {line}")
        if not left:
            return
        (self.out / table).unlink(missing_ok=True)
        try:
            share_work(
                self.out, names, self.is_done, self.do, workers=workers(), what=what, give_up=self.give_up, shard=shard
            )
        except (KeyboardInterrupt, SystemExit):
            say("densepath: stopped; the same command continues")
            raise

    def left_to_others(self, rows: Sequence[Mapping[str, Any]], items: str, shard: Shard | None, what: str) -> bool:
        """Whether other processes have slides left, which is then said.

        Args:
            rows: of the slides that are done.
            items: what they are: "slides" or "images".
            shard: the share of this process.
            what: is written by the process that ends last: "the tables".
        """
        if missing := len(self.paths) - len(rows):
            who = f"the {items} of shard {shard} are" if shard else "this process is"
            say(f"densepath: {who} done; other processes have {missing} left, and the last one writes {what}")
        return bool(missing)

    def _found(self, name: str, row: dict[str, Any]) -> Found | None:
        try:
            return self.find(name, row)
        except UserError as error:
            row |= {"problem": reason_of(error), "again": can_pass(error)}
            return None

    def _row(self, name: str) -> dict[str, Any]:
        return {"slide": name, "path": os.path.abspath(self.paths[name]), **self.empty, "problem": ""}

    def _finish(self, name: str, row: dict[str, Any]) -> None:
        row["problem"] = one_line(row["problem"])
        if row["problem"]:
            report_problem(name, row["problem"])
        result = self.made(name)[0]
        row["result"] = identity_of(result) if os.path.exists(result) else None
        write_record(self.out, row, self.identity(name))


def _has_content(folder: str) -> bool:
    """Whether a folder exists and has files or folders that are not hidden."""
    try:
        with os.scandir(folder) as entries:
            return any(not entry.name.startswith(".") for entry in entries)
    except OSError:
        return False
