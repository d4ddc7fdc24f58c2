import resource

import pytest

from densepath.core.errors import UserError
from densepath.runs.metrics import MetricsFile, read_metrics


def test_rows_come_back_with_the_columns_they_had(tmp_path):
    file = MetricsFile(tmp_path / "metrics.csv")
    rows = [{"step": 10, "loss": 1.5}, {"step": 20, "loss": 0.1 + 0.2, "probe": 0.7}, {"step": 30, "probe": 0.8}]
    for row in rows:
        file.write(row)
    assert read_metrics(tmp_path / "metrics.csv") == rows
    assert (tmp_path / "metrics.csv").read_text().splitlines()[0] == "step,loss,probe"


def test_resuming_takes_out_what_will_come_again(tmp_path):
    path = tmp_path / "metrics.csv"
    file = MetricsFile(path)
    for step in (10, 20, 30):
        file.write({"step": step, "loss": step / 7})
    before = path.read_text().splitlines()
    resumed = MetricsFile(path, resume_at=20)
    assert path.read_text().splitlines() == before[:3]
    resumed.write({"step": 30, "loss": 30 / 7})
    assert path.read_text().splitlines() == before


def test_a_line_that_was_cut_short_is_left_out(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n10,1.5\n20,1.2")
    assert read_metrics(path) == [{"step": 10, "loss": 1.5}]
    MetricsFile(path, resume_at=20)
    assert path.read_text() == "step,loss\n10,1.5\n"


@pytest.mark.parametrize("line", ["20,abc", "20,1.2,3", "20,\0\0"])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.csv"
    path.write_text(f"step,loss\n10,1.5\n{line}\n30,1.1\n")
    for read in (read_metrics, lambda path: MetricsFile(path, resume_at=10)):
        with pytest.raises(UserError, match=r"metrics\.csv is damaged at line 3 \("):
            read(path)


def test_no_file_is_made_before_the_first_row(tmp_path):
    MetricsFile(tmp_path / "metrics.csv")
    assert list(tmp_path.iterdir()) == []


def test_probe_scores_of_an_earlier_version_become_percent_once(tmp_path):
    """Version 0.1 wrote shares, together with the numbers of images; a resumed run has one scale in its file."""
    path = tmp_path / "metrics.csv"
    head = "step,loss,probe_mean_iou,probe_dice,probe_train_images,probe_test_images,probe_train_positions"
    path.write_text(f"{head}\n10,1.5,,,,,\n20,1.25,0.5625,0.5,85,60,1000\n")
    rows = [{"step": 10, "loss": 1.5}, {"step": 20, "loss": 1.25, "probe_mean_iou": 56.25, "probe_dice": 50.0}]
    assert read_metrics(path) == rows
    for _ in range(2):
        MetricsFile(path, resume_at=20)
        assert read_metrics(path) == rows
    assert path.read_text().splitlines()[0] == "step,loss,probe_mean_iou,probe_dice"


@pytest.mark.parametrize("column", ["loss", "val_loss"])
def test_rows_that_a_full_disk_refused_are_written_with_the_next_one(tmp_path, column):
    """Within a line, or where the file is written again for a new column."""
    path = tmp_path / "metrics.csv"
    rows = [{"step": 10, "loss": 1.5}, {"step": 20, column: 1.25}, {"step": 30, "loss": 1.125}]
    file = MetricsFile(path)
    file.write(rows[0])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 3, limits[1]))
    try:
        with pytest.raises(UserError, match=r"metrics\.csv cannot be written \(File too large\)"):
            file.write(rows[1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read_metrics(path) == rows[:1]
    file.write(rows[2])
    assert read_metrics(path) == rows
    file.flush()
    assert read_metrics(path) == rows
