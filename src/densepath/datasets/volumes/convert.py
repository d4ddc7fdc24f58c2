"""The conversion of cases to a store of volumes: in threads, each volume a file of its own, resumable."""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from densepath.annotations.patients import patient_in_name
from densepath.core.digests import digest_of
from densepath.core.errors import UserError, counted, first_few, one_line, shortage
from densepath.core.files import atomic_write
from densepath.core.remains import remove_remains
from densepath.core.streams import say, write_line
from densepath.core.system import available_memory, usable_cores, with_progress
from densepath.core.threads import in_threads
from densepath.core.work_folder import work_folder
from densepath.datasets.exclusion import Exclusion
from densepath.datasets.volumes.conversion import Case, Contents, Conversion, check_names, with_test
from densepath.datasets.volumes.suspects import AIR, warnings_of
from densepath.sources.corrupt import CorruptImage
from densepath.sources.volumes.open_store import FORMAT, INDEX, VERSION, WINDOW_SAMPLE, shared_window
from densepath.sources.volumes.prepare import prepare
from densepath.sources.volumes.read import files_of
from densepath.sources.volumes.remeasure import is_measured, remeasure
from densepath.sources.volumes.store import VOLUMES
from densepath.sources.volumes.volume import TooLarge
from densepath.sources.volumes.volume_file import SUFFIX, read_header, write_volume

_THREADS = 4  # volumes in memory at a time
_WIDER = 16  # bytes in memory for a byte of a file, which may be compressed
_SHOWN = 20
_FORMER = "volumes.former.json"  # what volumes.json held before a volume changed, until all are done

Header = dict[str, Any]


def convert(cases: Sequence[Case], contents: Contents, how: Conversion) -> Path:
    """Convert cases to a store. A volume that cannot be read is named, left out, and tried again by the next start.

    Args:
        cases: the volumes.
        contents: what is known of all of them.
        how: the options.

    Returns:
        The folder of the store.

    Raises:
        UserError: two volumes have one name, none can be read, memory is short, or the folder holds something else.
    """
    dest = Path(how.dest)
    excluded = Exclusion(how.exclude, "volumes")
    kept = [case for case in cases if not excluded(case.name)]
    excluded.report(how.source)
    if how.patient_regex is not None:
        kept = [replace(case, patient=patient_in_name(case.name, how.patient_regex)) for case in kept]
    if how.test_share is not None:
        kept = with_test(kept, how.test_share)
    kept.sort(key=lambda case: case.name)
    check_names(kept, how.source)
    _check_channels({case.name: count for case in kept if case.count is not None and (count := case.count())})
    # No paths: they may name patients
    others = {k: v for k, v in asdict(how).items() if k not in ("source", "dest", "exclude", "key")}
    _check_source(dest, {case.name for case in cases}, how)
    record = {"command": f"data {contents.layout}", **others}
    with work_folder(dest, record, log="convert.log", free=("patient_regex", "window", "test_share")):
        before = _index_before(dest)
        (dest / VOLUMES).mkdir(exist_ok=True)
        remove_remains(dest, shared=True)
        if (dest / VOLUMES).is_symlink():  # which the search above does not follow
            remove_remains(dest / VOLUMES, shared=True)
        headers: dict[str, Header] = {}
        damaged: dict[str, str] = {}
        again: list[str] = []
        threads = min(_THREADS, usable_cores(), max(1, available_memory() // (_WIDER * max(map(_bytes, kept)) + 1)))
        work = in_threads(lambda case: _convert_one(case, dest, how, again), kept, threads, "volumes")
        for case, made in zip(kept, with_progress(work, len(kept), "converting"), strict=True):
            if isinstance(made, str):
                damaged[case.name] = made
                say(f"densepath: damaged volume: {made}")
            else:
                headers[case.name] = made
        if again:
            say(f"densepath: the windows of {counted(len(again), 'volume')} of an earlier version were computed again")
        if not headers:
            raise UserError(f"none of the {counted(len(kept), 'volume')} can be read: {first_few([*damaged.values()])}")
        index = _index([case for case in kept if case.name in headers], headers, contents, how, before)
        with atomic_write(dest / INDEX) as part:
            part.write_text(json.dumps(index))
        (dest / _FORMER).unlink(missing_ok=True)
        _report(index, [*damaged])
    return dest


def _convert_one(case: Case, dest: Path, how: Conversion, again: list[str]) -> Header | str:
    """The header of a case's file, which is written if it is not there; or what is wrong with the case.

    Volumes whose windows an earlier version computed otherwise are added to ``again``. If a file that is there changes,
    the store is unfinished until all are done: ``volumes.json`` does not describe the new one.

    Raises:
        UserError: there is not enough memory for it.
    """
    path = dest / VOLUMES / f"{case.name}{SUFFIX}"
    inputs = digest_of([*_facts_of(case), *([case.cut] if case.cut else [])])
    try:
        header = read_header(path)
        if header.get("inputs") == inputs:
            if is_measured(header):
                return header
            _set_aside(dest)
            header = remeasure(dest, header)
            again.append(case.name)
            return header
    except CorruptImage:
        pass
    try:
        volume = case.read()
        labels = case.read_labels() if case.read_labels is not None else None
        ready = prepare(case.name, volume, labels, how.target)
    except TooLarge as error:
        raise UserError(f"{error}; change --spacing (in mm), or leave it out with --exclude") from error
    except CorruptImage as error:
        return str(error) if error.path == case.name else f"{case.name} ({error})"
    except Exception as error:
        if shortage(error) != "memory":
            raise
        raise UserError(
            f"this machine has not enough memory to convert {case.name}; free some, raise its limit (see ulimit -a), "
            "or leave the volume out with --exclude; then start again to continue"
        ) from error
    if path.exists():
        _set_aside(dest)
    return write_volume(path, {**ready.facts, "inputs": inputs}, ready.channels, ready.labels)


def _facts_of(case: Case) -> list[str]:
    """Name, size and time of change of each file that a volume and its labels are read from."""
    facts = []
    for path in (file for given in case.inputs for file in files_of(given)):
        try:
            status = path.stat()
        except OSError:
            continue
        facts.append(f"{path.name} {status.st_size} {status.st_mtime_ns}")
    return facts


def _bytes(case: Case) -> int:
    return sum(int(fact.split()[-2]) for fact in _facts_of(case))


def _check_source(dest: Path, names: set[str], how: Conversion) -> None:
    """Check that a store to continue is of the same source: volumes may have been added, but not taken away.

    Raises:
        UserError: it is not.
    """
    files = (dest / VOLUMES).rglob(f"*{SUFFIX}")
    there = {path.relative_to(dest / VOLUMES).as_posix()[: -len(SUFFIX)] for path in files}
    if lacking := sorted(there - names):
        raise UserError(
            f"{dest} holds volumes that {how.source} does not have: {first_few(lacking)}; use another folder, or put "
            "them back and leave them out with --exclude"
        )


def _check_channels(counts: Mapping[str, int]) -> None:
    """Check that all volumes have as many channels.

    Raises:
        UserError: they have not.
    """
    by_count: dict[int, list[str]] = defaultdict(list)
    for name, count in counts.items():
        by_count[count].append(name)
    if len(by_count) > 1:
        groups = sorted(by_count.items(), key=lambda group: len(group[1]), reverse=True)
        shown = ", ".join(f"{len(names)} have {count}" for count, names in groups)
        few = first_few([name for _, names in groups[1:] for name in names])
        raise UserError(f"volumes differ in their channels: {shown}; leave some out with --exclude, e.g. {few}")


def _set_aside(dest: Path) -> None:
    """Rename ``volumes.json``, so that the next command knows the former window even if this one is stopped."""
    with suppress(FileNotFoundError):  # done before
        os.replace(dest / INDEX, dest / _FORMER)


def _index_before(dest: Path) -> Header:
    """What ``volumes.json`` held after the last command that was not stopped; empty without it."""
    for name in (INDEX, _FORMER):
        with suppress(OSError, ValueError, TypeError):
            return dict(json.loads((dest / name).read_text()))
    return {}


def _index(
    cases: Sequence[Case], headers: Mapping[str, Header], contents: Contents, how: Conversion, before: Header
) -> Header:
    """What ``volumes.json`` holds; ``before`` is what it held."""
    rows = []
    for case in cases:
        header = headers[case.name]
        rows.append(
            {
                "name": case.name,
                "file": f"{case.name}{SUFFIX}",
                "patient": case.patient,
                "split": case.split,
                **{k: v for k, v in header.items() if k not in ("format", "version", "name")},
            }
        )
    _check_channels({row["name"]: len(row["scales"]) for row in rows})
    index: Header = {
        "format": FORMAT,
        "version": VERSION,
        "modality": contents.modality,
        "channels": len(rows[0]["scales"]),
        "channel_names": list(contents.channels),
        "label_names": {str(code): name for code, name in (contents.labels or {}).items()},
        "window": None,
        "volumes": rows,
    }
    window: Any = how.window
    if window is None:
        lows = [scale["window"][0] for row in rows for scale in row["scales"]]
        is_ct = contents.modality == "CT" or (not contents.modality and np.median(lows) < AIR)
        window = "shared" if is_ct else "volume"
    if window == "shared":
        index["window_sample"] = WINDOW_SAMPLE
        window = _shared_window(Path(how.dest), index, before)
    index["window"] = window if isinstance(window, str) else list(map(float, window))
    return index


def _shared_window(dest: Path, index: Header, before: Header) -> Sequence[float]:
    """The window of all volumes: that of an earlier command if it is of the same ones; it is reported if it changes."""
    former, now = before.get("window"), json.loads(json.dumps(index))
    if isinstance(former, list) and all(before.get(key) == now[key] for key in ("volumes", "window_sample")):
        return former
    window = shared_window(dest, index)
    if isinstance(former, list) and former != list(window):
        say(
            f"densepath: the window was {former[0]:g} to {former[1]:g} before; to keep it, start again with "
            f"--window {former[0]} {former[1]}"
        )
    return window


def _report(index: Header, damaged: Sequence[str]) -> None:
    rows, window = index["volumes"], index["window"]
    patients = {row["patient"] for row in rows}
    of = f" of {counted(len(patients), 'patient')}" if None not in patients else ""
    labelled = sum(row["labels"] is not None for row in rows)
    shown = "each volume's own" if window == "volume" else f"{window[0]:g} to {window[1]:g}"
    write_line(f"{counted(len(rows), 'volume')}{of}, {labelled} with labels; window: {shown}", sys.stdout)
    noted = defaultdict(list)
    for row in rows:
        for note in row["notes"]:
            noted[note].append(row["name"])
    for note, names in noted.items():
        say(
            f"densepath: warning: {counted(len(names), 'volume has', 'volumes have')} {note}: "
            f"{one_line(first_few(names))}"
        )
    if (names := index["channel_names"]) and len(names) != index["channels"]:
        say(
            f"densepath: warning: volumes have {counted(index['channels'], 'channel')}, and the data set names "
            f"{len(names)} ({', '.join(names)})"
        )
    for warning in warnings_of(rows, window):
        say(f"densepath: warning: {warning}")
    if damaged:
        say(
            f"densepath: warning: {counted(len(damaged), 'volume was', 'volumes were')} left out; "
            "replace them and start again to add them: "
            f"{one_line(first_few(damaged, _SHOWN))}"
        )
