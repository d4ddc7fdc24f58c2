"""The last lines of a run, and the record of where it was computed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import yaml

from densepath.core.closing import command, say_end
from densepath.core.errors import UserError
from densepath.core.stopwatch import Stopwatch
from densepath.runs.closing import describe_training, draw_safely, newest_measurements
from densepath.runs.folder import from_weights
from densepath.runs.sessions import record_session
from densepath.version import __version__


def test_losses_are_described_with_what_chance_is(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(
        "step,loss,a_loss,a_loss_vs_chance,probe_dice\n1,9,8,2,\n2,3,2,0.5,61\n3,2,1,0.25,\n"
    )
    measured = newest_measurements(tmp_path)
    assert describe_training(measured) == "loss 2.0000, a loss 1.000 (chance is 4.000), probe dice 61.0"
    assert describe_training({}) == ""


def test_the_last_lines_name_what_exists_and_can_be_pasted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "w").touch()
    commands = [command("predict", "my run"), command("export", "my run")]
    say_end(Stopwatch(), "loss 1", {"weights": tmp_path / "w", "pictures": tmp_path / "none"}, commands)
    assert capsys.readouterr().err.splitlines() == [
        "densepath: done in 0:00: loss 1",
        f"densepath: weights: {tmp_path}/w",
        "densepath: next: densepath predict 'my run'",
        "densepath: or: densepath export 'my run'",
    ]


def test_paths_in_commands_are_not_read_as_other_things() -> None:
    random, dash = Path("random"), Path("-x")
    assert command("export", random) == "densepath export ./random"
    assert command("tile", "--data", dash, "--out", Path("a/random")) == "densepath tile --data ./-x --out a/random"
    assert command("embed", "--weights", "random") == "densepath embed --weights random"
    assert from_weights(random) == "--weights ./random --out random_2"


def test_a_picture_that_cannot_be_drawn_does_not_stop_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> Path:
        raise UserError("the disk\nis full")

    draw_safely(fail)
    assert capsys.readouterr().err.count("\n") == 1


def test_each_start_of_a_run_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/lib/densepath/__main__.py", "pretrain", "--data", "my tiles"])
    for step in (0, 40):
        record_session(tmp_path, step, torch.device("cpu"), 2, {"images": 7, "names": "abc"})
    first, second = yaml.safe_load((tmp_path / "sessions.yaml").read_text())
    assert (first["step"], second["step"]) == (0, 40)
    assert first["command"] == "densepath pretrain --data 'my tiles'" and first["devices"] == "2 x cpu"
    assert first["versions"]["densepath"] == __version__
    assert torch.__version__.partition("+")[0] in first["versions"]["torch"]
    assert first["data"] == {"images": 7, "names": "abc"}
    assert first["matmul_precision"] == "highest"
    record_session(tmp_path / "missing", 0, torch.device("cpu"), 1, {})  # no error
