import math

import numpy as np
import pytest
import torch

from densepath.core import stopwatch as stopwatch_module
from densepath.runs.checkpoints import read_checkpoint, write_checkpoint
from densepath.training.meter import Meter


class Images(list):
    @property
    def index(self):
        return torch.tensor(self)


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(stopwatch_module.time, "perf_counter", lambda: Clock.now)
    return Clock


def test_means_are_taken_over_the_batches_that_report_a_value():
    meter = Meter()
    meter.record(0, {"loss": torch.tensor(1.0), "epoch": 0.5}, Images([1]))
    meter.record(1, {"loss": torch.tensor(2.0), "epoch": 1.0, "shared": torch.tensor(3)}, Images([1]))
    row = meter.collect()
    assert (row["loss"], row["epoch"], row["shared"]) == (1.5, 0.75, 3.0)
    meter.record(2, {"loss": torch.tensor(7.0)}, Images([1]))
    assert meter.collect()["loss"] == 7.0


def test_rates_count_neither_pauses_nor_what_came_before(clock):
    meter = Meter()

    def batches():
        for start in (0, 4):
            clock.now += 1  # a second until each batch is there
            yield Images(range(start, start + 4))

    for step, batch in enumerate(meter.timed(batches())):
        clock.now += 3
        meter.record(step, {"loss": torch.tensor(0.0)}, batch)
    with meter.paused():
        clock.now += 50
    row = meter.collect()
    assert row["images_per_second"] == pytest.approx(8 / 8)
    assert row["waiting"] == pytest.approx(2 / 8)


def test_a_checkpoint_keeps_what_was_recorded(tmp_path):
    meters = Meter(), Meter()
    for step, (loss, share) in enumerate([(1.0, np.float64(0.5)), (2.5, 0.25), (4.0, 1)]):
        for meter in meters:
            meter.record(step, {"loss": torch.tensor(loss), "share": share}, Images([1]))
        if step == 1:
            write_checkpoint(tmp_path, {"step": 2, "state_dict": {}, "measured": meters[1].state()})
            meters[1].restart()
            meters[1].restore(read_checkpoint(tmp_path / "last.ckpt")["measured"], torch.device("cpu"))
    rows = [meter.collect() for meter in meters]
    assert (
        [rows[1][name] for name in ("loss", "share")]
        == [rows[0][name] for name in ("loss", "share")]
        == [2.5, 1.75 / 3]
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_first_loss_that_is_not_finite_is_named_with_its_images(bad):
    meter = Meter()
    for step, loss in enumerate([1.0, bad, bad, 2.0]):
        meter.record(step, {"loss": torch.tensor(loss)}, Images([10 * step, 10 * step + 1]))
    assert meter.not_finite() == (1, [10, 11])
    meter.collect()
    assert meter.not_finite() is None


def test_of_a_long_run_without_rows_only_its_numbers_are_kept():
    """And the memory of a loss that is a corner of that of its summands is not."""
    meter, plain = Meter(), []
    for step in range(2500):
        loss = torch.full((64, 64), step / 3).mean() if step else torch.zeros(4096)[0]
        plain.append(loss)
        meter.record(step, {"loss": loss, "epoch": step / 7}, Images([step]))
        if step == 1500:
            state = meter.state()
            meter.restart()
            meter.restore(state, torch.device("cpu"))
    kept = [each for values in meter._tensors.values() for each in (*values._together, *values._single)]
    assert sum(each.untyped_storage().nbytes() for each in kept) == 4 * 2500
    assert len(kept) < 1026 and len(meter._losses) < 1026
    assert meter.newest() == (2499, [2499]) and meter.not_finite() is None
    row = meter.collect()
    assert row["loss"] == torch.stack(plain).double().mean().item()
    assert row["epoch"] == math.fsum(step / 7 for step in range(2500)) / 2500


def test_a_loss_that_is_not_finite_is_remembered_until_the_next_row():
    meter = Meter()
    for step in range(2100):
        meter.record(step, {"loss": torch.tensor(math.nan if step in (3, 1500) else 1.0)}, Images([step]))
    assert meter.not_finite() == (3, [3])
    meter.record(2100, {"loss": torch.tensor(math.inf)}, Images([2100]))
    assert meter.not_finite() == (3, [3]) and meter.newest() == (2100, [2100])
    meter.collect()
    assert meter.not_finite() is None
