import importlib.util
import itertools
import json
import math
import os
import resource
import signal
import sys

import pytest
import torch

from densepath.core.errors import UserError
from densepath.runs.checkpoints import newest_checkpoint
from densepath.runs.metrics import read_metrics
from densepath.runs.signals import Interrupted
from densepath.training.agreement import Start, require_equal_starts
from densepath.training.intervals import Intervals, due, interval_at
from densepath.training.recorder import Recorder
from densepath.training.saver import Saver

from .toy import Toy, fit_toy


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_run_learns_logs_and_saves(tmp_path):
    toy = fit_toy(tmp_path, 200, Toy(noise=0.0))
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [row["step"] for row in rows] == list(range(5, 201, 5))
    assert rows[-1]["loss"] < 0.1 * rows[0]["loss"]
    # The rate of the last step, whose index is one below the number of steps done.
    assert [row["lr"] for row in rows] == pytest.approx([0.1 * 0.99 ** (step - 1) for step in range(5, 201, 5)])
    assert rows[-1]["norm"] == pytest.approx(toy.net.weight.norm().item(), rel=1e-2)
    assert all(row["images_per_second"] > 0 and 0 <= row["waiting"] <= 1 for row in rows)
    state = newest_checkpoint(tmp_path / "checkpoints")
    assert state["step"] == 200
    assert torch.equal(state["state_dict"]["net.weight"], toy.net.weight)


def test_accumulated_batches_make_the_step_of_one_large_batch(tmp_path):
    large = fit_toy(tmp_path / "large", 20, Toy(noise=0.0), size=12)
    small = fit_toy(tmp_path / "small", 20, Toy(noise=0.0), size=3, accumulate=4)
    torch.testing.assert_close(small.net.weight, large.net.weight, rtol=1e-5, atol=1e-7)
    rows = [read_metrics(tmp_path / name / "metrics.csv") for name in ("large", "small")]
    for one, other in zip(*rows, strict=True):
        assert (one["step"], one["lr"]) == (other["step"], other["lr"])
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_hooks_come_once_a_step_before_and_after_its_batches(tmp_path, accumulate):
    toy = fit_toy(tmp_path, 4, accumulate=accumulate)
    assert [(name, seen) for name, seen, _ in toy.hooks] == [
        (name, accumulate * (step + (name == "after"))) for step in range(4) for name in ("before", "after")
    ]
    assert [index for name, _, index in toy.hooks if name == "before"] == toy.seen[::accumulate]
    weights = [weight for name, _, weight in toy.hooks if name == "after"]
    assert torch.equal(weights[-1], toy.net.weight)  # the optimizer has stepped
    assert all(not torch.equal(one, other) for one, other in itertools.pairwise(weights))


def test_a_stop_before_the_first_step_says_that_the_run_starts_again(tmp_path, monkeypatch, capsys):
    def stop(*_):
        raise Interrupted(15)

    monkeypatch.setattr(Toy, "before_step", stop)
    with pytest.raises(Interrupted):
        fit_toy(tmp_path, 5)
    said = f"stopped before anything was saved in {tmp_path}; the same command with --resume starts it again"
    assert capsys.readouterr().err.splitlines()[-1] == f"densepath: {said}"


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_resumed_run_equals_the_undisturbed(tmp_path, signum, accumulate, capsys):
    whole = fit_toy(tmp_path / "whole", 30, accumulate=accumulate)

    def send():
        os.kill(os.getpid(), signum)

    handler = signal.getsignal(signum)
    stopped = Toy(at_step={13 * accumulate: send})
    with pytest.raises(Interrupted) as caught:
        fit_toy(tmp_path / "cut", 30, stopped, accumulate=accumulate)
    assert caught.value.code == 128 + signum
    assert signal.getsignal(signum) == handler
    assert "--resume" in capsys.readouterr().err.splitlines()[-1]
    assert len(stopped.seen) == 14 * accumulate, "the current step is finished, and no other is started"

    resumed = fit_toy(tmp_path / "cut", 30, accumulate=accumulate, resume=True)
    assert stopped.seen + resumed.seen == whole.seen
    assert same(resumed, whole)
    measured = [
        [
            [row[column] for column in ("step", "loss", "norm", "lr")]
            for row in read_metrics(tmp_path / name / "metrics.csv")
        ]
        for name in ("cut", "whole")
    ]
    assert [row[0] for row in measured[0]] == [5, 10, 15, 20, 25, 30]
    assert measured[0] == measured[1], "also in the row that the signal cut"


@pytest.mark.parametrize("moment", ["last step", "evaluation", "early end"])
def test_a_signal_at_the_end_stops_the_command_that_would_train_further(tmp_path, moment, capsys):
    def send():
        os.kill(os.getpid(), signal.SIGTERM)

    evaluated = []

    def evaluate():
        evaluated.append(1)
        if moment != "last step":
            send()
        return {}

    toy = Toy(at_step={9: send} if moment == "last step" else {})
    toy.finished = lambda: bool(evaluated) and moment == "early end"
    with pytest.raises(Interrupted):
        fit_toy(tmp_path, 10, toy, evaluate=evaluate, intervals=Intervals(log_every=5, evaluate_every=10))
    assert (
        f"stopped and saved at step 10; the same command with --resume continues {tmp_path}" in capsys.readouterr().err
    )
    assert fit_toy(tmp_path, 10, resume=True).seen == []
    assert newest_checkpoint(tmp_path / "checkpoints")["step"] == 10


def test_a_signal_while_workers_and_loggers_end_is_not_lost(tmp_path, monkeypatch):
    def close(recorder):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Recorder, "close", close)
    with pytest.raises(Interrupted):
        fit_toy(tmp_path, 10)
    monkeypatch.undo()
    assert fit_toy(tmp_path, 10, resume=True).seen == []


def test_what_a_crash_lost_is_made_again(tmp_path):
    def crash():
        raise ZeroDivisionError

    whole = fit_toy(tmp_path / "whole", 40)
    with pytest.raises(ZeroDivisionError):
        fit_toy(tmp_path / "cut", 40, Toy(at_step={33: crash}), intervals=Intervals(5, save_every_steps=8))
    assert read_metrics(tmp_path / "cut" / "metrics.csv")[-1]["step"] == 30
    (tmp_path / "cut" / "checkpoints" / "last.ckpt").write_bytes(b"damaged")
    resumed = fit_toy(tmp_path / "cut", 40, resume=True)  # from step 24, the one before the last
    assert len(resumed.seen) == 16
    assert same(resumed, whole)
    steps = [row["step"] for row in read_metrics(tmp_path / "cut" / "metrics.csv")]
    assert steps == [5, 10, 15, 20, 25, 30, 35, 40]


def test_a_full_disk_does_not_stop_a_run_between_its_checkpoints(tmp_path, capsys):
    """Nor does the run lose a row of its measurements, once there is room."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def write_at_most(size):
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))

    try:
        fit_toy(tmp_path, 30, Toy(at_step={7: write_at_most(150), 24: write_at_most(limits[0])}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.csv")] == [5, 10, 15, 20, 25, 30]
    assert newest_checkpoint(tmp_path / "checkpoints")["step"] == 30
    warning = f"warning: {tmp_path / 'metrics.csv'} cannot be written (File too large); the run continues"
    assert capsys.readouterr().err.count(warning) == 1


def test_a_checkpoint_is_saved_after_the_rows_before_it(tmp_path, monkeypatch):
    """A run that is killed after it does not measure them again."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    kept, save = [], Saver.save

    def saving(self, *given):
        kept.append([row["step"] for row in read_metrics(tmp_path / "metrics.csv")])
        save(self, *given)

    def write_at_most(size):
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))

    monkeypatch.setattr(Saver, "save", saving)
    try:
        room = {7: write_at_most(150), 11: write_at_most(limits[0])}
        fit_toy(tmp_path, 15, Toy(at_step=room), intervals=Intervals(5, save_every_steps=12))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert kept[0] == [5, 10]


def test_a_complete_run_is_not_trained_on(tmp_path):
    first = fit_toy(tmp_path, 10)
    again = fit_toy(tmp_path, 10, resume=True)
    assert again.seen == [] and same(first, again)


def test_resuming_with_other_data_is_refused(tmp_path):
    fit_toy(tmp_path, 10, facts={"images": 100})
    with pytest.raises(UserError, match="started with 100 images, but there are 90"):
        fit_toy(tmp_path, 10, facts={"images": 90}, resume=True)


def test_a_conversion_that_a_run_has_not_recorded_is_not_compared(tmp_path):
    for out, facts in ((tmp_path / "old", {}), (tmp_path / "new", {"conversion": "a"})):
        fit_toy(out, 10, facts=facts)
    fit_toy(tmp_path / "old", 10, facts={"conversion": "b"}, resume=True)
    with pytest.raises(UserError, match=r"the volumes were converted again since the run in .*new was started"):
        fit_toy(tmp_path / "new", 10, facts={"conversion": "b"}, resume=True)


def test_resuming_another_module_is_refused(tmp_path):
    fit_toy(tmp_path, 10)
    other = Toy()
    other.more = torch.nn.Linear(1, 1)
    with pytest.raises(UserError, match="does not fit the network of this run"):
        fit_toy(tmp_path, 10, other, resume=True)


@pytest.mark.parametrize("log_every", [1, 4, 50])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_images(tmp_path, log_every):
    broken = Toy(at_step={21: lambda: math.nan})
    with pytest.raises(UserError, match="not finite at step 21"):
        fit_toy(tmp_path, 60, broken, intervals=Intervals(log_every, save_every_steps=10))
    assert json.loads((tmp_path / "not_finite.json").read_text()) == {"step": 21, "images": broken.seen[21]}
    state = newest_checkpoint(tmp_path / "checkpoints")
    assert state["step"] == 20
    assert all(torch.isfinite(value).all() for value in state["state_dict"].values())


def test_a_checkpoint_is_written_when_its_time_is_due(tmp_path):
    hits = []

    def look():
        hits.append((tmp_path / "checkpoints" / "last.ckpt").exists())

    fit_toy(tmp_path, 10, Toy(at_step={3: look, 4: look}), intervals=Intervals(100, 0, save_every_minutes=1e-9))
    assert hits == [True, True]


def test_an_evaluation_is_measured_and_changes_nothing(tmp_path):
    plain = fit_toy(tmp_path / "plain", 20)
    module = Toy()

    def evaluate():
        module.eval()
        torch.rand(3)
        return {"probe": float(len(module.seen))}

    evaluated = fit_toy(tmp_path / "evaluated", 20, module, evaluate=evaluate, intervals=Intervals(5, evaluate_every=7))
    assert same(evaluated, plain)
    assert evaluated.net.training
    rows = read_metrics(tmp_path / "evaluated" / "metrics.csv")
    assert [(row["step"], row["probe"]) for row in rows if "probe" in row] == [(7, 7.0), (14, 14.0)]


def test_a_warning_of_the_task_is_printed_once(tmp_path, capsys):
    module, rows = Toy(), []

    def warnings(row, last):
        rows.append((row["loss"], last))
        return ["it is small"] * (len(rows) > 1) + ["it is over"] * last

    module.warnings = warnings
    fit_toy(tmp_path, 20, module, intervals=Intervals(5))
    assert [row["loss"] for row in read_metrics(tmp_path / "metrics.csv")] == [loss for loss, _ in rows]
    assert [last for _, last in rows] == [False, False, False, True]
    said = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert said == ["densepath: warning: it is small", "densepath: warning: it is over"]


def test_a_run_that_ends_early_ends_like_a_complete_one(tmp_path):
    module, evaluated, drawn, warned = Toy(), [], [], []
    module.finished = lambda: len(evaluated) == 2
    module.warnings = lambda row, last: warned.append((row["loss"], last)) or []
    fit_toy(
        tmp_path,
        20,
        module,
        intervals=Intervals(5, evaluate_every=4, draw_every=6),
        evaluate=lambda: evaluated.append(1) or {"probe": 1.0},
        draw=lambda step: drawn.append(step) or [],
    )
    assert len(module.seen) == 8 and drawn == [6, 8]
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [(row["step"], row["loss"]) for row in rows if "loss" in row] == [(5, warned[0][0]), (8, warned[1][0])]
    assert [last for _, last in warned] == [False, True] and rows[-1]["probe"] == 1.0


def test_tensorboard_gets_what_the_csv_gets(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit_toy(tmp_path, 20, loggers=["tensorboard"])
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    logged = [(event.step, event.value) for event in events.Scalars("norm")]
    rows = read_metrics(tmp_path / "metrics.csv")
    assert logged == [(row["step"], pytest.approx(row["norm"], rel=1e-6)) for row in rows]


def test_a_logger_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    if importlib.util.find_spec("wandb"):
        monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"densepath\[wandb\]"):
        fit_toy(tmp_path, 10, loggers=["wandb"])
    with pytest.raises(UserError, match="no logger is called 'mlflow'"):
        fit_toy(tmp_path, 10, loggers=["mlflow"])


def test_fewer_batches_than_a_step_needs_is_refused(tmp_path):
    with pytest.raises(UserError, match="make it longer"):
        fit_toy(tmp_path, 0)
    with pytest.raises(UserError, match="log_every"):
        Intervals(log_every=0)


@pytest.mark.parametrize(
    ("every", "steps"),
    [
        (4, [(4, 1), (8, 2), (12, 3)]),
        (2.5, [(2, 1), (5, 2), (7, 3), (10, 4), (12, 5)]),
        (7 / 3, [(2, 1), (4, 2), (7, 3), (9, 4), (11, 5)]),
        (0.5, [(n, 2 * n) for n in range(1, 13)]),
        (0, []),
    ],
)
def test_an_interval_ends_with_its_last_whole_step(every, steps):
    assert [(step, interval_at(step, every)) for step in range(1, 13) if due(step, every)] == steps


def test_one_process_has_nothing_to_compare_itself_with():
    require_equal_starts(Start(config={"momentum": float("nan")}), free=())
