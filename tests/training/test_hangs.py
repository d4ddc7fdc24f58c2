"""A run never waits for ever, and says what it waits for; dead streams do not stop it."""

import os
import re
import subprocess
import sys

import pytest

from densepath.runs.checkpoints import read_checkpoint

from .test_crash import NAMESPACE, assert_same_run, can_mount

TERMINATED = 143


@pytest.fixture
def played(tmp_path, tiles, run_scenario):
    """Play a scenario of ``hangs.py``: what happened, and the folder that it played in."""

    def play(scenario, **options):
        return run_scenario(scenario, "hangs.py", **options)[0], tmp_path / scenario

    return play


def saved(out):
    return read_checkpoint(out / "checkpoints" / "last.ckpt")["step"]


def test_a_reader_that_hangs_is_named_and_the_run_saved(played):
    story, folder = played("reader")
    assert story["whole"][0] == story["resumed"][0] == 0
    for name in ("pipe", "worker_pipe", "stopped"):
        code, lines, _ = story[name]
        assert code == 2, lines
        assert lines[-2].startswith("densepath: waiting for image data since ")
        assert (
            lines[-1].startswith("densepath: error: no image data for ")
            and "a file or a process that reads files" in lines[-1]
        )
        assert name == "pipe" or 3 <= saved(folder / name) < 12
    assert re.search(r"resuming .*/pipe at step [3-9] of 12", story["resumed"][1][0])
    assert_same_run(folder / "whole", folder / "pipe")
    code, lines, _ = story["asked"]
    assert code == TERMINATED
    assert lines[-1] == f"densepath: stopped and saved at step {saved(folder / 'asked')}; " + (
        f"the same command with --resume continues {folder}/asked"
    )


def test_a_process_that_is_stopped_is_named_by_the_others(played):
    story, folder = played("peers")
    for rank in "01":
        code, lines, _ = story[f"rank {rank}"]
        assert code == 2, lines
        assert lines[-2].startswith(f"densepath: waiting for rank {rank} since ")
        assert lines[-1].startswith(f"densepath: error: rank {rank} did not answer for 8 s; continue with --resume")
        assert saved(folder / f"stopped{rank}") == 10
    code, lines, seconds = story["asked"]
    assert code == TERMINATED and seconds < 20
    assert lines[-1].startswith("densepath: stopped while waiting for rank 1; continue with --resume")
    code, lines, _ = story["alone"]
    assert code == 2
    assert lines[-2].startswith("densepath: waiting for the other processes since ")
    assert lines[-1].startswith("densepath: error: the other processes have not begun within 8 s; start again")


def test_tasks_that_nobody_has_started_are_not_waited_for(played):
    story, folder = played("slurm")
    code, lines, _ = story["run"]
    assert code == 0 and saved(folder / "run") == 12
    assert (
        lines.count(
            "densepath: SLURM_NTASKS is 2, but srun did not start this process, so it is the only one; "
            "for 2 processes start it by srun"
        )
        == 1
    )


def test_streams_that_nobody_reads_or_that_are_full_or_closed_change_nothing(played):
    story, folder = played("streams")
    assert story == {"gone": 0, "full": 0, "closed": 0, "stopped": TERMINATED, "mistaken": 2}
    for name in ("gone", "full", "closed"):
        assert saved(folder / name) == 12
        assert (folder / name / "exported" / "backbone.safetensors").exists()
    assert saved(folder / "stopped") == 3


def pretrain_in_shell(tmp_path, python, streams):
    words = f"-m densepath pretrain --data {tmp_path}/tiles --out {tmp_path}/run --method moco_v2 --log_every 1"
    words += " --method.queue_size 16 --backbone test_resnet --view_size 48 --batch_size 8 --max_steps 3 --devices cpu"
    script = f"set -o pipefail; {python} {words} --workers 0 {streams}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done
    assert saved(tmp_path / "run") == 3
    return done.stdout


def test_a_new_program_ends_well_with_a_stream_that_is_closed_and_one_that_is_full(tmp_path, tiles):
    """Closed by the shell before Python starts, and full when it flushes at its end."""
    pretrain_in_shell(tmp_path, sys.executable, ">&- 2>/dev/full")


def test_a_pipe_that_its_reader_closes_changes_nothing(tmp_path, tiles, forked_python):
    printed = pretrain_in_shell(tmp_path, forked_python, "2>&1 | head -2")
    assert printed.count(b"\n") == 2


def test_with_little_shared_memory_a_run_is_the_same(played):
    if not can_mount():
        pytest.skip("no file system can be mounted here")
    story, folder = played("shared_memory", python=(*NAMESPACE, sys.executable))
    code, lines, _ = story["none"]
    assert code == 2
    assert lines[-1].startswith("densepath: error: /dev/shm is too small for the images from worker processes")
    assert "--shm-size" in lines[-1] and lines[-1].endswith("or use --workers 0")
    for name in ("little", "enough"):
        code, lines, _ = story[name]
        assert code == 0, lines
        assert sum("so images are copied from worker processes" in line for line in lines) == (name != "enough")
        assert_same_run(folder / "enough", folder / name)
