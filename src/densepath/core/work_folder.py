"""A folder that several processes fill together: its record, which all must agree on, and its log."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from densepath.core.errors import UserError
from densepath.core.files import atomic_write, require_new_folder, writing
from densepath.core.locks import shared_work
from densepath.core.log import logged
from densepath.core.plain import plain
from densepath.core.records import CONFIG, record_text, recorded, same_value
from densepath.core.shared_work import LOCKS


@contextmanager
def work_folder(
    out: Path,
    options: Mapping[str, Any],
    *,
    log: str,
    free: Collection[str] = (),
    later: Collection[str] = (),
    latest: Collection[str] = (),
) -> Iterator[Callable[[], None]]:
    """Create the folder of some work, or continue in it; other processes may do so at the same time.

    What is printed in this block is also appended to its log.

    Args:
        out: the folder.
        options: of the work, for the record ``config.yaml``.
        log: the name of the log.
        free: names of options that may differ from the record, or be absent from it.
        later: names of options that may be given later, if the record has None for them.
        latest: names of options that may be given later, or be absent from the record, and whose values may change; but
            a command without one that was given is refused, as its work would be undone.

    Yields:
        Writes the new values of ``later`` and ``latest``; to be called when nothing refuses the work any more.

    Raises:
        UserError: the folder holds something else, or work with other options.
    """
    if not _is_begun(out):
        try:
            require_new_folder(out, "the results")
        except UserError:
            if not _is_begun(out):  # another process may just have begun the same work
                raise
    with writing(out):
        (out / LOCKS).mkdir(parents=True, exist_ok=True)

    def check(write_added: bool = False) -> None:
        with shared_work(out / LOCKS / "start", "start"):
            _check(out / CONFIG, plain(options), free, later, latest, write_added)

    check()
    with logged(out / log):
        yield partial(check, write_added=True)


def _is_begun(out: Path) -> bool:
    return (out / CONFIG).exists() or (out / LOCKS).exists()


def _check(
    path: Path,
    options: dict[str, Any],
    free: Collection[str],
    later: Collection[str],
    latest: Collection[str],
    write_added: bool,
) -> None:
    """Write the record, or compare the options with it, and if asked add those that it lacks or that may change."""
    if not path.exists():
        _write(path, options)
        return
    old = recorded(path.parent)
    open_ones = [*(name for name in later if old.get(name) is None), *latest]
    given = {name: options[name] for name in open_ones if options.get(name) is not None}
    added = {name: value for name, value in given.items() if not same_value(name, old.get(name), value)}
    old = dict.fromkeys(latest) | old | added
    changed = [name for name in options if name not in free and not same_value(name, old.get(name), options[name])]
    if (old.keys() ^ options.keys()).difference(free):
        raise UserError(f"{path.parent} holds other work of densepath (see {path}); use another folder")
    if left_out := [f"--{name} {old[name]}" for name in changed if name in latest]:
        them = "it" if len(left_out) == 1 else "them"
        raise UserError(
            f"{path.parent} was made with {' and '.join(left_out)} (see {path}); give {them} again (a new value is "
            f"allowed): without {them}, slides would lose their results"
        )
    if changed:
        names = ", ".join(changed)
        raise UserError(
            f"{path.parent} was made with other values of {names} (see {path}); use those, or another folder"
        )
    if added and write_added:
        _write(path, old)


def _write(path: Path, options: Mapping[str, Any]) -> None:
    with atomic_write(path) as part:
        part.write_text(record_text(options))
