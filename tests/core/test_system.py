"""Progress without a terminal."""

from densepath.core import system
from densepath.core.system import with_progress


def test_long_work_is_reported_in_a_log(monkeypatch, capsys):
    assert list(with_progress("abc", 3, "reading")) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(system, "SECONDS_BETWEEN_LINES", 0.0)
    assert list(with_progress("ab", 2, "reading")) == ["a", "b"]
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["densepath: reading: 0 of 2", "densepath: reading: 1 of 2  ETA 0:00"]
