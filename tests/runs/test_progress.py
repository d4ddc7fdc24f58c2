import io
import re

from rich.console import Console

from densepath.core import stopwatch as stopwatch_module
from densepath.core.log import logged
from densepath.runs import progress as progress_module
from densepath.runs.progress import Progress, clock

ROW = {"loss": 1.23456, "images_per_second": 200.0, "waiting": 0.25}


def test_plain_lines_come_at_intervals_and_at_the_end(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(stopwatch_module.time, "perf_counter", lambda: now[0])
    progress = Progress(start=0, total=100)
    now[0] = 1000.0  # compilers and processes take their time to start
    progress.begin()
    for step in range(1, 101):
        now[0] += 1.0
        progress.step(step, ROW if step % 10 == 0 else None)
    progress.close()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["10/100", "40/100", "70/100", "100/100"]
    assert lines[1] == "step 40/100  loss 1.2346  200.0 images/s  data wait 25%  ETA 1:00"


def test_the_most_important_loss_is_shown_relative_to_chance(capsys):
    progress = Progress(start=0, total=1)
    progress.step(1, {**ROW, "instance_loss_vs_chance": 0.5, "concept_loss_vs_chance": 0.987})
    assert "loss 1.2346  concept loss 0.99 of chance  200.0 images/s" in capsys.readouterr().err


def test_a_resumed_run_estimates_from_its_own_steps(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(stopwatch_module.time, "perf_counter", lambda: now[0])
    progress = Progress(start=500, total=1000)
    progress.begin()
    now[0] = 100.0
    progress.step(600, ROW)
    assert capsys.readouterr().err.rstrip().endswith("ETA 6:40")


def test_only_one_process_speaks(capsys):
    progress = Progress(0, 10, shown=False)
    progress.step(10, ROW)
    assert capsys.readouterr().err == ""


def test_hours_are_not_wrapped():
    assert clock(3600 * 30 + 61) == "30:01:01"


def test_a_bar_takes_the_whole_width_and_the_log_has_the_lines(tmp_path, monkeypatch):
    for width in (70, 140):
        shown = io.StringIO()
        console = Console(file=shown, force_terminal=True, width=width, color_system=None)
        monkeypatch.setattr(progress_module, "open_console", lambda stream, console=console: console)
        with logged(tmp_path / f"{width}.log"):
            progress = Progress(0, 100)
            progress.begin()
            progress.step(10, {**ROW, "concept_loss_vs_chance": 0.5})
            progress._bar.refresh()
            progress.close()
        plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown.getvalue())
        last = [line for line in re.split(r"[\r\n]", plain) if "step 10/100" in line][-1]
        assert len(last) == width and "ETA" in last and ("data wait 25%" in last) == (width == 140)
        line = (tmp_path / f"{width}.log").read_text()
        assert line.startswith("step 10/100  loss 1.2346  concept loss 0.50 of chance  200.0 images/s  data wait 25%")
