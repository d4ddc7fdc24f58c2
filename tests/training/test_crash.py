"""Crashes: a run ends with one line that says what to do, keeps its good files, and can be resumed."""

import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from densepath.core import stopwatch as stopwatch_module
from densepath.core.errors import UserError
from densepath.core.stopwatch import Stopwatch
from densepath.runs.checkpoints import newest_checkpoint, read_checkpoint
from densepath.runs.metrics import read_metrics
from densepath.runs.progress import Progress
from densepath.training.intervals import Intervals
from densepath.training.optimizers import Optimizer
from densepath.training.pretrain import pretrain
from densepath.training.pretrain_task import PretrainTask

from .conftest import draw_tiles
from .test_survival import differing
from .toy import Toy, fit_toy

KILL, STOPPED = -signal.SIGKILL, 128 + signal.SIGTERM
SMALL = {"backbone": "test_resnet", "view_size": 48, "devices": "cpu", "precision": "32", "method": "moco_v2"}
NAMESPACE = ("unshare", "--map-root-user", "--mount")


def can_mount():
    """Whether a disk of one's own can be mounted here."""
    trial = [*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return bool(shutil.which("unshare")) and subprocess.run(trial, capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def crashes(tmp_path_factory):
    """What happened in the scenarios of ``crash.py``, and the folder that they played in."""
    folder = tmp_path_factory.mktemp("crash")
    draw_tiles(folder / "tiles")
    within, scenarios = (NAMESPACE, ["detected", "full", "lost"]) if can_mount() else ((), ["detected", "lost"])
    command = [*within, sys.executable, Path(__file__).parent / "crash.py", folder, *scenarios]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), folder


def assert_same_run(one, other):
    """Both ended with the same bits: weights, optimiser, schedule, generators, measurements, what was exported."""
    states = [read_checkpoint(out / "checkpoints" / "last.ckpt") for out in (one, other)]
    for part in ("step", "state_dict", "optimizers", "schedules", "random"):
        assert differing(states[0][part], states[1][part]) == []
    for path in one.rglob("exported/*.safetensors"):
        assert differing(load_file(path), load_file(other / path.relative_to(one))) == []
    ignored = {"images_per_second", "waiting"}
    rows = [read_metrics(out / "metrics.csv") for out in (one, other)]
    kept = [[{key: value for key, value in row.items() if key not in ignored} for row in part] for part in rows]
    assert kept[0] == kept[1]
    assert not list(other.rglob(".*"))


def results(left):
    """The files of a run without what is written beside them for people: the log, the sessions, pictures."""
    return [name for name in left if name not in ("train.log", "sessions.yaml", "views.png", "curves.png")]


def test_a_killed_fine_tuning_ends_as_if_nothing_had_happened(crashes):
    story, folder = crashes[0]["detected"], crashes[1] / "detected"
    assert story["whole"] == 0
    assert story["cut"] == [KILL, KILL, KILL, KILL, STOPPED, KILL, KILL, KILL, 0]
    assert set(story["shot"][:-1]) <= {KILL, 0} and story["shot"][-1] == 0  # the clock may come too late
    for out in ("cut", "shot"):
        assert_same_run(folder / "whole", folder / out)
        for name in ("metrics.json", "predictions.json"):
            assert (folder / "whole" / name).read_bytes() == (folder / out / name).read_bytes()


FULL = {
    "pretrain": "disk/new/config.yaml",
    "detect": "disk/deep/new/config.yaml",
    "pack": "disk/store.safetensors",
    "tissue": "disk/tissue",
    "export": "disk",
    "probe": "disk/scores.json",
    "show": "disk/views.png",
}


def test_a_full_or_read_only_disk_is_reported_and_keeps_its_files(crashes):
    if "full" not in crashes[0]:
        pytest.skip("no disk can be mounted here")
    story, folder = crashes[0]["full"], crashes[1] / "full"
    for verb, out, whole in (("pretrain", "run", "whole"), ("detect", "found", "detector")):
        code, line, left = story[verb]
        assert code == 2 and f"disk/{out}/checkpoints/last.ckpt" in line and "No space left on device" in line
        assert line.startswith("densepath: error: ") and line.endswith("then continue with --resume")
        assert results(left) == ["checkpoints/last.ckpt", "config.yaml", "metrics.csv"]
        assert story[f"{verb} resumed"][0] == story[f"{verb} whole"][0] == 0
        assert_same_run(folder / whole, folder / out)
    for state, reason in (("full", "No space left on device"), ("closed", "Read-only file system")):
        for verb, name in FULL.items():
            code, line = story[f"{state} {verb}"]
            remedy = "free disk space" if state == "full" else "use another path"
            named = f"{folder}/{name}" in line and remedy in line
            unmade = f"the folder {(folder / name).parent} cannot be created" in line
            assert code == 2 and reason in line and (named or unmade), line
    assert story["full left"] == []
    code, line = story["closed evaluate"]
    assert code == 2 and "disk/found cannot be written" in line and "Read-only file system" in line


def test_a_worker_that_dies_and_images_that_go_end_the_run_with_what_was_saved(crashes):
    story, folder = crashes[0]["lost"], crashes[1] / "lost"
    saved = ["checkpoints/last.ckpt", "config.yaml", "metrics.csv"]
    code, line = story["worker"]
    assert code == 2 and "a process that decodes images died" in line and "or pack the images first" in line
    assert results(story["worker left"]) == saved
    assert story["resumed"][0] == story["whole"][0] == 0
    assert_same_run(folder / "whole", folder / "cut")
    code, line = story["detect worker"]
    assert code == 2 and "a process that decodes images died" in line and line.endswith("use fewer workers")
    code, line = story["images"]
    assert code == 2 and "of 40 images were found damaged" in line and ".png: the file is missing" in line
    assert results(story["images left"]) == saved


@pytest.fixture
def hundred(tmp_path):
    """A folder of a hundred images of 48 px."""
    folder = tmp_path / "hundred"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(100):
        coarse = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((48, 48)).save(folder / f"{number:03d}.png")
    return folder


def at_step(monkeypatch, number, act):
    """Let something happen before a step of pre-training."""
    calls, forward = iter(range(10**6)), PretrainTask.forward

    def disturbed(self, inputs):
        if next(calls) == number:
            act()
        return forward(self, inputs)

    monkeypatch.setattr(PretrainTask, "forward", disturbed)


def test_an_image_that_goes_during_the_run_is_named_once_and_replaced(tmp_path, hundred, monkeypatch, caplog):
    options = SMALL | {"method_options": {"queue_size": 20}, "batch_size": 20, "workers": 0, "cache": "none"}
    at_step(monkeypatch, 0, (hundred / "042.png").unlink)  # it is wanted again in the second epoch
    with caplog.at_level(logging.WARNING):
        out = pretrain(data=hundred, out=tmp_path / "run", epochs=2, **options)
    assert caplog.text.count("042.png: the file is missing") == 1
    assert newest_checkpoint(out / "checkpoints")["step"] == 10


def test_a_method_with_a_loss_of_nan_stops_and_keeps_the_good_weights(tmp_path, tiles):
    options = SMALL | {"method_options": {"queue_size": 40}, "batch_size": 8, "max_steps": 12, "log_every": 1}
    steep = Optimizer(lr=1e18, schedule="constant", warmup_epochs=1)  # of 5 steps: it overflows within them
    with pytest.raises(UserError, match=r"not finite at step \d+ .*not_finite\.json lists") as error:
        pretrain(data=tiles, out=tmp_path / "run", optimizer=steep, save_every_steps=1, **options)
    note = json.loads((tmp_path / "run" / "not_finite.json").read_text())
    assert f"at step {note['step']} " in str(error.value)
    assert len(set(note["images"])) == 8 and set(note["images"]) <= set(range(40))
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        weights = read_checkpoint(path)["state_dict"]
        assert all(value.isfinite().all() for name, value in weights.items() if "running" not in name)
    assert newest_checkpoint(tmp_path / "run" / "checkpoints")["step"] == note["step"]


class Exploding(Toy):
    """A finite loss whose gradient is not."""

    def forward(self, batch):
        outputs = super().forward(batch)
        if len(self.seen) == 8:
            outputs["loss"] = outputs["loss"] + (self.net.weight.sum() * 0).sqrt()
        return outputs


def test_weights_with_nan_or_inf_are_not_saved(tmp_path):
    """The loss shows what a step did only at the next one: the checkpoint between them would be the last."""
    broken = Exploding()
    with pytest.raises(UserError, match="weights are not finite at step 7"):
        fit_toy(tmp_path, 20, broken, intervals=Intervals(log_every=1, save_every_steps=1))
    assert json.loads((tmp_path / "not_finite.json").read_text()) == {"step": 7, "images": broken.seen[7]}
    for name, step in (("last.ckpt", 7), ("previous.ckpt", 6)):
        state = read_checkpoint(tmp_path / "checkpoints" / name)
        assert state["step"] == step and state["state_dict"]["net.weight"].isfinite().all()


JUMPS = {"back": -86_400.0, "forth": 86_400.0}


class Clocks:
    """The system's clocks, which may be set."""

    def __init__(self, monkeypatch):
        self.ahead = 0.0
        for name in ("time", "monotonic", "perf_counter"):
            real = getattr(time, name)
            monkeypatch.setattr(time, name, lambda real=real: real() + self.ahead)


@pytest.mark.parametrize("jump", JUMPS)
def test_a_clock_that_jumps_changes_no_weights_and_no_intervals(tmp_path, monkeypatch, jump, capsys):
    plain = fit_toy(tmp_path / "plain", 40)
    clocks, saved = Clocks(monkeypatch), []

    def leap():
        clocks.ahead += JUMPS[jump]

    def save_later():
        clocks.ahead += 700.0  # seconds: a checkpoint is due every ten minutes

    def look():
        saved.append((tmp_path / "run" / "checkpoints" / "last.ckpt").exists())

    steps = {12: leap, 13: look, 20: save_later, 21: look}
    module = fit_toy(tmp_path / "run", 40, Toy(at_step=steps), intervals=Intervals(log_every=1))
    assert saved == [jump == "forth", True]
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), plain.parameters(), strict=True))
    for row in read_metrics(tmp_path / "run" / "metrics.csv"):
        assert math.isfinite(row["images_per_second"]) and 0 <= row["images_per_second"] < 1e7
        assert 0 <= row["waiting"] <= 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert lines and not any("ETA -" in line or "inf" in line or "nan" in line for line in lines)


def test_a_stopwatch_never_goes_back(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(stopwatch_module.time, "perf_counter", lambda: now[0])
    watch, read = Stopwatch(), []
    for now[0] in (101.0, 50.0, 52.0, 52.0, 1000.0):
        read.append(watch.read())
    assert read == [1.0, 1.0, 3.0, 3.0, 951.0]


def test_progress_continues_after_the_clock_was_set_back(monkeypatch, capsys):
    clocks = Clocks(monkeypatch)
    progress = Progress(0, 100)
    progress.begin()
    row = {"loss": 1.0, "images_per_second": 1.0, "waiting": 0.0}
    for step in range(1, 100):
        clocks.ahead += 1.0 if step != 50 else -86_400.0
        progress.step(step, row)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["1/100", "31/100", "62/100", "92/100"]


@pytest.mark.parametrize("text", ["step,loss\nfirst,1\n", "loss\n1\n", "step\n\0\n"])
def test_files_without_measurements_are_refused_by_name(tmp_path, text):
    fit_toy(tmp_path, 10)
    (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(UserError, match=r"metrics\.csv is damaged"):
        fit_toy(tmp_path, 20, resume=True)


def test_a_folder_below_a_file_is_refused_by_name(tmp_path, tiles):
    (tmp_path / "file").write_text("text")
    options = SMALL | {"method_options": {"queue_size": 8}, "batch_size": 8, "max_steps": 1}
    with pytest.raises(UserError, match=rf"{tmp_path}/file/run cannot be created \(Not a directory\)"):
        pretrain(data=tiles, out=tmp_path / "file" / "run", **options)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become nobody")
def test_a_folder_without_permission_is_refused_by_name():
    """By somebody who for a while is not root, for whom permissions count."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        os.seteuid(65534)
        try:
            with pytest.raises(UserError) as refused:
                fit_toy(Path(folder), 5)
        finally:
            os.seteuid(0)
        assert str(refused.value).startswith(f"cannot write the checkpoint {folder}/checkpoints/last.ckpt (")
        assert os.listdir(folder) == []
