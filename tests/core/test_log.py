"""The log of a run holds what was printed, and never stops the run."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import pytest

from densepath.core.log import log, logged
from densepath.core.streams import say


def test_a_log_holds_lines_and_warnings_and_is_appended_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "train.log"
    before = warnings.showwarning
    with logged(path):
        say("first")
        with pytest.warns(UserWarning, match="odd"):  # pytest records it: Python does not show it
            warnings.warn("odd", stacklevel=1)
    with logged(path):
        log("only here: \udc80")
        warnings.showwarning("shown", UserWarning, "module.py", 7)
        logging.getLogger("densepath.part").warning("damaged %s", "a.png")
    say("afterwards")
    lines = path.read_text().splitlines()
    assert lines[:3] == ["first", "only here: \\udc80", "module.py:7: UserWarning: shown"]
    assert lines[-1] == "damaged a.png" and "afterwards" not in lines
    printed = capsys.readouterr().err
    assert "first" in printed and "only here" not in printed
    assert warnings.showwarning is before and not logging.getLogger("densepath").handlers


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").symlink_to("/dev/full")
    for path in (tmp_path / "full", tmp_path / "missing" / "train.log", tmp_path):
        with logged(path):
            say("a line")
    assert capsys.readouterr().err == "a line\n" * 3
