"""Surroundings that do not answer, with real processes, forked from one that has imported everything.

Usage: python hangs.py SCENARIO FOLDER. FOLDER holds tiles/, and gets a folder for the scenario. Prints what happened,
as JSON: for each process its exit code, the lines that it said, and how many seconds it took.
"""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import lightning.fabric  # noqa: F401
from process_scenarios import ended, fork, in_step
from toy import Toy, fit_toy

from densepath.cli import main
from densepath.training.intervals import Intervals

TILES = Path(sys.argv[2]) / "tiles"
RUN = (
    f"pretrain --data {TILES} --backbone test_resnet --method moco_v2 --method.queue_size 40 --batch_size 8 "
    "--view_size 48 --precision 32 --log_every 1 --devices cpu --cache none --max_steps 12"
)
PATIENCE = {"DENSEPATH_WAIT_NOTICE": "2", "DENSEPATH_WAIT_LIMIT": "8"}
LONG = {"DENSEPATH_WAIT_NOTICE": "2", "DENSEPATH_WAIT_LIMIT": "600"}


class Said:
    """A process whose standard streams go into a file."""

    def __init__(self, folder, name, action, **environment):
        self.path = folder / f"{name}.txt"
        self.began = time.monotonic()

        def run():
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            code = action()
            raise SystemExit(code or 0)

        self.pid = fork(run, **environment)

    def says(self, words, seconds=120):
        """Wait until it has said something."""
        end = time.monotonic() + seconds
        while not self.path.exists() or words not in self.path.read_text():
            assert time.monotonic() < end, f"not said: {words}"
            time.sleep(0.1)

    def ends(self):
        code = ended(self.pid)
        return [code, self.path.read_text().splitlines(), time.monotonic() - self.began]


def command(words, prepare=lambda: None):
    def run():
        prepare()
        return main(words.split())

    return run


def reader(folder):
    """A file that turns into a pipe, in this process and in one that decodes; a process that is stopped."""
    pipe = folder / "fifo"
    os.mkfifo(pipe)
    kept = {}

    def clog():
        """From now on every file is a pipe that nobody writes to."""
        for path in TILES.iterdir():
            kept[path] = path.rename(folder / path.name)
            os.link(pipe, path)

    def unclog():
        for path in folder.glob("*.png"):
            path.replace(TILES / path.name)

    def stop_worker():
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGSTOP)

    story = {"whole": Said(folder, "whole", command(f"{RUN} --workers 0 --out {folder}/whole"), **LONG).ends()}
    acts = {"pipe": (0, clog), "worker_pipe": (1, clog), "stopped": (1, stop_worker)}
    for name, (workers, act) in acts.items():
        words = f"{RUN} --workers {workers} --out {folder}/{name}"
        story[name] = Said(folder, name, command(words, lambda act=act: in_step(2, act)), **PATIENCE).ends()
        unclog()
    words = f"{RUN} --workers 0 --out {folder}/pipe --resume"
    story["resumed"] = Said(folder, "resumed", command(words), **LONG).ends()
    words = f"{RUN} --workers 1 --out {folder}/asked"
    asked = Said(folder, "asked", command(words, lambda: in_step(2, clog)), **LONG)
    asked.says("waiting for image data")
    os.kill(asked.pid, signal.SIGTERM)
    story["asked"] = asked.ends()
    unclog()
    return story


def peers(folder):
    """Of two processes one is stopped: the second, the first, the second before a signal comes; or it never begins."""

    def two(name, stopped, patience, ranks=(0, 1)):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        shared |= {"TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0", **patience}

        def stop():
            if os.environ["RANK"] == stopped:
                os.kill(os.getpid(), signal.SIGSTOP)

        def run():
            try:
                fit_toy(folder / name, 40, Toy(at_step={13: stop}), intervals=Intervals(5, save_every_steps=5))
            except Exception as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
                return 2

        return [Said(folder, f"{name}{rank}", run, RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank in ranks]

    story = {}
    for stopped in "10":
        both = two(f"stopped{stopped}", stopped, PATIENCE)
        left, gone = both if stopped == "1" else both[::-1]
        story[f"rank {stopped}"] = left.ends()
        os.kill(gone.pid, signal.SIGKILL)
        gone.ends()
    left, gone = two("asked", "1", LONG)
    left.says("waiting for rank 1")
    asked = time.monotonic()
    os.kill(left.pid, signal.SIGTERM)
    story["asked"] = left.ends()
    story["asked"][2] = time.monotonic() - asked
    os.kill(gone.pid, signal.SIGKILL)
    gone.ends()
    (alone,) = two("alone", "none", PATIENCE, ranks=(0,))
    story["alone"] = alone.ends()
    return story


def slurm(folder):
    """Two tasks that nobody has started."""
    environment = {"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "train", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1"}
    words = f"{RUN} --workers 0 --out {folder}/run"
    return {"run": Said(folder, "run", command(words), **environment, **LONG).ends()}


def streams(folder):
    """Standard streams that nobody reads, that are full, or closed."""
    words = f"{RUN} --workers 0 --out {folder}/"

    def gone():
        ours, theirs = os.pipe()
        os.close(ours)
        os.dup2(theirs, 1)
        os.dup2(theirs, 2)

    def full():
        descriptor = os.open("/dev/full", os.O_WRONLY)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)

    def closed():
        os.close(1)
        os.close(2)

    def stopped():
        full()
        in_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM))

    acts = {"gone": gone, "full": full, "closed": closed, "stopped": stopped}
    story = {name: Said(folder, name, command(words + name, act)).ends()[0] for name, act in acts.items()}
    story["mistaken"] = Said(folder, "mistaken", command(f"{words}mistaken --batch_size 0", gone)).ends()[0]
    return story


def shared_memory(folder):
    """Little room for what worker processes hand over, none, and enough; in our own namespace."""
    story = {}
    for name, size in (("little", "600k"), ("none", "12k"), ("enough", "64m")):
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", "/dev/shm"], check=True)
        words = f"{RUN} --workers 1 --batch_size 32 --out {folder}/{name}"
        story[name] = Said(folder, name, command(words), **PATIENCE).ends()
    return story


if __name__ == "__main__":
    name, folder = sys.argv[1], Path(sys.argv[2], sys.argv[1])
    folder.mkdir()
    print(json.dumps(globals()[name](folder)))
