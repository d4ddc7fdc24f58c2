"""Progress without a terminal, and numbers of processes."""

import pytest

from densepath.core import system
from densepath.core.errors import UserError
from densepath.core.system import with_progress
from densepath.training.config import PretrainConfig
from densepath.transfer.classify.config import ClassifyConfig
from densepath.transfer.detection.config import DetectConfig
from densepath.transfer.segment.config import SegmentConfig


@pytest.mark.parametrize("made", [PretrainConfig, ClassifyConfig, SegmentConfig, DetectConfig])
def test_a_number_of_processes_that_would_fill_the_memory_is_refused(made):
    for workers in (-1, 1025, 10**21):
        with pytest.raises(UserError, match=f"^workers is {workers}; give a number of processes up to 1,024, or 0"):
            made(data="d", out="o", workers=workers)
    assert made(data="d", out="o", workers=1024).workers == 1024


def test_long_work_is_reported_in_a_log(monkeypatch, capsys):
    assert list(with_progress("abc", 3, "reading")) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(system, "SECONDS_BETWEEN_LINES", 0.0)
    assert list(with_progress("ab", 2, "reading")) == ["a", "b"]
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["densepath: reading: 0 of 2", "densepath: reading: 1 of 2  ETA 0:00"]
