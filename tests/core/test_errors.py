"""An error message is one line, for any names in it."""

from densepath.cli import _fail
from densepath.core.errors import UserError
from densepath.sources.corrupt import CorruptImage


def test_names_cannot_break_the_line_or_paint_the_terminal(capsys):
    name = "a\nb\r\x1b[31m\u2028\ud800é.png"
    expected = "a\\nb\\r\\x1b[31m\\u2028\\ud800é.png"
    assert str(UserError(f"{name} is missing")) == f"{expected} is missing"
    assert str(CorruptImage(name, "cut\noff")) == f"{expected}: cut\\noff"
    _fail(str(UserError(name)))
    assert capsys.readouterr().err == f"densepath: error: {expected}\n"
