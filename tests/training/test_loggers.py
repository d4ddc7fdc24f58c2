"""Measurements and pictures reach the loggers."""

import queue
import resource
import sys
from types import SimpleNamespace

import pytest
from PIL import Image

from densepath.core.errors import UserError
from densepath.runs.metrics import read_metrics
from densepath.training.loggers import check_loggers, make_loggers
from densepath.training.recorder import Recorder


class Run:
    """A run of Weights & Biases, but for its account and its network."""

    def __init__(self):
        self.logged, self.finished = [], False

    def log(self, row):
        self.logged.append(row)

    def finish(self):
        self.finished = True


def test_the_folder_of_its_runs_is_not_the_package(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(UserError, match="the logger wandb needs a package"):
        check_loggers(["wandb"])


def test_wandb_gets_measurements_and_a_picture_under_its_name_and_step(tmp_path, monkeypatch):
    begun, run = {}, Run()

    def init(**options):
        begun.update(options)
        return run

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(Image=Image.open, init=init))
    (logger,) = make_loggers(["wandb"], tmp_path, "a run")
    own = begun.pop("id")
    assert begun == {"project": "densepath", "name": "a run", "dir": str(tmp_path), "resume": "allow"}
    for start, same in ((5, True), (0, False)):  # resumed, and started again
        make_loggers(["wandb"], tmp_path, "a run", start)
        assert (begun["id"] == own) == same
    path = tmp_path / "some_views_0000012.png"
    Image.new("RGB", (3, 2), "red").save(path)
    logger.log({"loss": 1.5}, 10)
    logger.picture(path, 12)
    logger.close()
    numbers, picture = run.logged
    assert numbers == {"loss": 1.5, "trainer/global_step": 10}
    image = picture.pop("some_views")
    assert picture == {"trainer/global_step": 12} and run.finished
    assert image.size == (3, 2) and image.getpixel((0, 0)) == (255, 0, 0)


def test_tensorboard_shows_each_step_of_a_resumed_run_once(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start in (0, 2):
        (logger,) = make_loggers(["tensorboard"], tmp_path, "a run", start)
        for step in (start + 1, start + 2, start + 3):
            logger.log({"loss": float(start)}, step)
        logger.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0), (2, 0), (3, 2), (4, 2), (5, 2)]


@pytest.mark.parametrize(("kept", "warned"), [("1,2\n2,2\n", False), ("1,2\n2,", True), (None, True)])
def test_lost_measurements_are_reported_when_a_run_continues(tmp_path, capsys, kept, warned):
    if kept is not None:
        (tmp_path / "metrics.csv").write_text(f"step,loss\n{kept}")
    for logged in (False, True):
        assert capsys.readouterr().err == ""
        Recorder(tmp_path, 2, 4, first=True, loggers=(), name="run", logged=logged)
    lost = f"metrics.csv has lost its rows after step {0 if kept is None else 1}, as after a power cut"
    assert (lost in capsys.readouterr().err) == warned


def test_a_run_continues_without_a_logger_that_cannot_write(tmp_path, capsys):
    pytest.importorskip("tensorboard")
    recorder = Recorder(tmp_path, 0, 4, first=True, loggers=["tensorboard"], name="run")
    (events,) = (tmp_path / "tensorboard").iterdir()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (events.stat().st_size + 20, limits[1]))
    try:
        for step in (1, 2):
            recorder.write(step, {"loss": 1.5})
        recorder.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read_metrics(tmp_path / "metrics.csv") == [{"step": step, "loss": 1.5} for step in (1, 2)]
    (line,) = capsys.readouterr().err.splitlines()
    why = f"{events} cannot be written (File too large)"
    assert line == f"densepath: warning: {why}; the run continues without tensorboard"


class FailingLogger:
    """A logger whose queue is full."""

    name = "failing"
    closed = 0

    def log(self, row, step):
        raise queue.Full

    def close(self):
        self.closed += 1


def test_an_error_without_text_is_named_and_its_logger_is_closed(tmp_path, capsys, monkeypatch):
    logger = FailingLogger()
    monkeypatch.setattr("densepath.training.recorder.make_loggers", lambda *given: [logger])
    recorder = Recorder(tmp_path, 0, 4, first=True, loggers=["failing"], name="run")
    recorder.write(1, {"loss": 1.5})
    recorder.close()
    assert capsys.readouterr().err.splitlines() == ["densepath: warning: Full; the run continues without failing"]
    assert logger.closed == 1


def test_rows_that_cannot_be_written_at_the_end_are_reported_as_lost(tmp_path, capsys):
    recorder = Recorder(tmp_path, 0, 4, first=True, loggers=[], name="run")
    recorder.write(1, {"loss": 1.5})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "metrics.csv").stat().st_size + 1, limits[1]))
    try:
        recorder.write(2, {"loss": 1.25})
        recorder.flush()
        recorder.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    continues, lost = capsys.readouterr().err.splitlines()
    assert continues.endswith("(File too large); the run continues, and tries again with its next row")
    assert lost.endswith("(File too large); its rows from step 2 are lost")


def test_a_damaged_file_of_measurements_ends_the_run(tmp_path):
    recorder = Recorder(tmp_path, 0, 4, first=True, loggers=[], name="run")
    recorder.write(1, {"loss": 1.5})
    (tmp_path / "metrics.csv").write_text("step,loss\n1,many\n")
    with pytest.raises(UserError, match=r"metrics\.csv is damaged at line 2"):
        recorder.write(2, {"val_loss": 1.5})
