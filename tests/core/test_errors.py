"""An error message is one line, for any names in it; what a machine lacks is told from a bug."""

import errno
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from densepath import cli
from densepath.core.errors import UserError, shortage
from densepath.core.failures import describe_failure
from densepath.sources.corrupt import CorruptImage


def test_names_cannot_break_the_line_or_paint_the_terminal(capsys):
    name = "a\nb\r\x1b[31m\u2028\ud800é.png"
    expected = "a\\nb\\r\\x1b[31m\\u2028\\ud800é.png"
    assert str(UserError(f"{name} is missing")) == f"{expected} is missing"
    assert str(CorruptImage(name, "cut\noff")) == f"{expected}: cut\\noff"
    cli._fail(str(UserError(name)))
    assert capsys.readouterr().err == f"densepath: error: {expected}\n"


def test_a_message_of_several_lines_becomes_one_in_which_names_keep_their_blanks(capsys):
    cli._fail("my  tiles.png:\r\n  a\tb \n")
    assert capsys.readouterr().err == "densepath: error: my  tiles.png: a\\tb \n"


@pytest.mark.parametrize(
    ("error", "lacking"),
    [
        (MemoryError(), "memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory"),
        (RuntimeError("unable to mmap 99 bytes from file <a.safetensors>: Cannot allocate memory (12)"), "memory"),
        (RuntimeError("can't start new thread"), "threads"),
        (ValueError("other"), ""),
    ],
)
def test_what_a_machine_lacks_is_no_fault_of_the_program(error, lacking):
    assert shortage(error) == lacking
    assert describe_failure(error).startswith("a bug in densepath") == (not lacking)


@pytest.mark.parametrize("side", [2**40, 2**62, 10**21])
@pytest.mark.parametrize(
    "make",
    [
        lambda side: torch.empty(side, side),
        lambda side: np.empty((side, side)),
        lambda side: torch.arange(side**3),
        lambda side: Image.new("L", (2, 2)).resize((side, side)),
    ],
)
def test_a_size_that_no_machine_has_is_no_fault_of_the_program(side, make, monkeypatch, capsys):
    monkeypatch.setattr(cli, "_run", lambda argv: make(side))
    assert cli.main(["probe"]) == 2
    error = capsys.readouterr().err
    assert "error: this machine has not enough memory; " in error or "error: a number is too large for any" in error


def test_warnings_of_pillow_are_not_printed(recwarn, monkeypatch: pytest.MonkeyPatch):
    def run(argv: list[str]) -> None:
        warnings.warn_explicit("Corrupt EXIF data", UserWarning, "a.py", 1, module="PIL.TiffImagePlugin")

    monkeypatch.setattr(cli, "_run", run)
    assert cli.main([]) == 0
    assert not recwarn.list


def test_a_damaged_file_is_an_error_of_the_user(capsys, monkeypatch: pytest.MonkeyPatch):
    def run(argv: list[str]) -> None:
        raise CorruptImage("a.png", "the file is missing")

    monkeypatch.setattr(cli, "_run", run)
    assert cli._checked([]) == 2
    said = "a.png: the file is missing; replace the file, or take it out"
    assert capsys.readouterr().err == f"densepath: error: {said}\n"
