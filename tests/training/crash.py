"""Crashes of a run from outside, in processes of their own, as in process_scenarios.py.

Usage: python crash.py FOLDER SCENARIO ... FOLDER holds tiles/, and gets a folder for each scenario. Prints what
happened, as JSON.
"""

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from process_scenarios import die, ended, fork, in_saving, in_step, in_writing, kill_after

import densepath.analysis.show
import densepath.transfer.probe.probe  # noqa: F401
from densepath.annotations.coco_writing import write_coco
from densepath.cli import main
from densepath.sources.image_files import ImageFiles
from densepath.transfer.detection.detect import detect
from densepath.transfer.detection.detection_task import DetectionTask
from densepath.transfer.detection.samples import _Samples

FOLDER = Path(sys.argv[1])
TILES, DATA = FOLDER / "tiles", FOLDER / "data"
RUN = (
    "--backbone test_resnet --method moco_v2 --method.queue_size 40 --batch_size 8 --view_size 48 --precision 32 "
    "--log_every 1 --devices cpu"
)
DETECT = (
    "--backbone test_resnet --detector mask_rcnn_fpn_small --max_steps 4 --batch_size 2 --train_size 48 64 "
    "--test_size 64 --precise_bn_batches 0 --devices cpu --precision 32 --save_every_steps 2 --log_every 1"
)


def draw_data(data):
    """Six images of one dark rectangle each, as a data set for detectors."""
    scenes = []
    for number in range(6):
        image, labels = np.full((64, 64, 3), 180, np.uint8), np.zeros((64, 64), np.int32)
        labels[8 + 3 * number :][:24, 10 : 40 - number] = 1
        image[labels > 0] = 60
        scenes.append((f"scene{number}", image, labels))
    write_coco(data, {"train": scenes, "test": scenes[:2]})


def run_detector(folder, out):
    detect(
        data=DATA,
        out=folder / out,
        backbone="test_resnet",
        detector="mask_rcnn_fpn_small",
        max_steps=8,
        batch_size=2,
        train_size=(48, 64),
        test_size=64,
        precise_bn_batches=2,
        pictures=1,
        workers=0,
        devices="cpu",
        precision="32",
        log_every=1,
        save_every_steps=1,
        resume=True,
    )


def in_detection_step(number, act):
    """Let something happen in the midst of the process's step ``number``."""
    calls, forward = iter(range(10**6)), DetectionTask.forward

    def disturbed(self, inputs):
        outputs = forward(self, inputs)
        if next(calls) == number:
            act()
        return outputs

    DetectionTask.forward = disturbed


def detected(folder):
    """An undisturbed fine-tuning, one that dies at awkward moments, and one that is killed by the clock."""
    draw = random.Random("detect")
    disturbances = [
        lambda: in_writing("config.yaml", "write"),
        lambda: in_detection_step(draw.randrange(0, 3), die),
        lambda: in_saving(1, "write"),
        lambda: in_saving(2, "rename"),
        lambda: in_detection_step(draw.randrange(0, 3), lambda: os.kill(os.getpid(), signal.SIGTERM)),
        lambda: in_writing("detector.safetensors", "write"),
        lambda: in_writing("scene0.png", "write"),
        lambda: in_writing("predictions.json", "rename"),
        lambda: None,
    ]

    def disturbed(disturb):
        disturb()
        run_detector(folder, "cut")

    started = time.monotonic()
    whole = ended(fork(lambda: run_detector(folder, "whole")))
    took = time.monotonic() - started
    cut = [ended(fork(lambda d=disturb: disturbed(d))) for disturb in disturbances]
    chance = random.Random()
    shot = [kill_after(chance.uniform(0.2, 0.8) * took, lambda: run_detector(folder, "shot")) for _ in range(2)]
    shot.append(ended(fork(lambda: run_detector(folder, "shot"))))
    return {"whole": whole, "cut": cut, "shot": shot}


def run_reported(folder, words, prepare=lambda: None):
    """The exit code of a command line in a process of its own, and the last line that it says to its user."""

    def run():
        prepare()
        said = io.StringIO()
        with redirect_stderr(said):
            code = main(list(map(str, words)))
        (folder / "said").write_text(said.getvalue() or "nothing")
        raise SystemExit(code)

    code = ended(fork(run))
    return [code, (folder / "said").read_text().splitlines()[-1]]


def fill(disk, spare=0):
    """Leave no room on a disk but some bytes."""
    room = os.statvfs(disk)
    (disk / "filler").write_bytes(bytes(room.f_bavail * room.f_frsize - spare))


def files_in(place):
    return sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())


def full(folder):
    """What happens on a disk that is full, and after room has been made; and on one that nobody may write to."""
    disk, whole, detector = folder / "disk", folder / "whole", folder / "detector"
    pretrain = ["pretrain", *RUN.split(), "--data", TILES, "--max_steps", "4", "--save_every_steps", "2"]
    fine_tune = ["detect", *DETECT.split(), "--data", DATA, "--workers", "0"]
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk], check=True)
    story = {
        "pretrain whole": run_reported(folder, [*pretrain, "--out", whole]),
        "detect whole": run_reported(folder, [*fine_tune, "--out", detector]),
    }

    def squeeze(words, out, like):
        """Room for a checkpoint and a half; then, after a look, enough."""
        fill(disk, spare=3 * (like / "checkpoints" / "last.ckpt").stat().st_size // 2 + 2**16)
        squeezed = [*run_reported(folder, [*words, "--out", out]), files_in(out)]
        (disk / "filler").unlink()
        return squeezed, run_reported(folder, [*words, "--out", out, "--resume"])

    story["pretrain"], story["pretrain resumed"] = squeeze(pretrain, disk / "run", whole)
    story["detect"], story["detect resumed"] = squeeze(fine_tune, disk / "found", detector)
    before = files_in(disk)
    fill(disk)
    blocked = {
        "pretrain": [*pretrain, "--out", disk / "new"],
        "detect": [*fine_tune, "--out", disk / "deep" / "new"],
        "pack": ["data", "pack", TILES, disk / "store.safetensors"],
        "tissue": ["data", "tissue", disk / "tissue", "--train", "1", "--test", "1", "--size", "64"],
        "export": ["export", whole, "--out", disk / "weights.safetensors"],
        "probe": ["probe", "--data", DATA, "--size", "64", "--out", disk / "scores.json"],
        "show": ["show", "views", "--data", TILES, "--count", "1", "--view_size", "48"],
    }
    blocked["show"] += ["--out", disk / "views.png"]
    for name, words in blocked.items():
        story[f"full {name}"] = run_reported(folder, words)
    (disk / "filler").unlink()
    story["full left"] = sorted(set(files_in(disk)) - set(before))
    subprocess.run(["cp", "-r", disk / "run", disk / "found", folder], check=True)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for name, words in blocked.items():
        story[f"closed {name}"] = run_reported(folder, words)
    story["closed evaluate"] = run_reported(folder, [*fine_tune, "--out", disk / "found", "--evaluate"])
    return story


def lost(folder):
    """Runs that lose what they read from: a worker process, and images."""
    pretrain = ["pretrain", *RUN.split(), "--data", TILES, "--cache", "none"]
    pretrain += ["--max_steps", "12", "--save_every_steps", "4"]
    fine_tune = ["detect", *DETECT.split(), "--data", DATA, "--workers", "1"]

    def deadly(reader, method, number):
        """The process of the reader dies when that has read a number of times."""
        read, calls = getattr(reader, method), iter(range(10**6))

        def dying_read(self, position):
            if next(calls) == number:
                die()
            return read(self, position)

        setattr(reader, method, dying_read)

    def vanishing():
        """Every second image goes in the fifth step."""
        in_step(4, lambda: [path.unlink() for path in sorted(TILES.iterdir())[::2]])

    story = {"whole": run_reported(folder, [*pretrain, "--workers", "0", "--out", folder / "whole"])}
    out = ["--out", folder / "cut"]
    story["worker"] = run_reported(folder, [*pretrain, "--workers", "1", *out], lambda: deadly(ImageFiles, "read", 50))
    story["worker left"] = files_in(folder / "cut")
    story["resumed"] = run_reported(folder, [*pretrain, "--workers", "0", *out, "--resume"])
    out = ["--out", folder / "found"]
    story["detect worker"] = run_reported(folder, [*fine_tune, *out], lambda: deadly(_Samples, "__getitem__", 5))
    out = ["--out", folder / "missing"]
    story["images"] = run_reported(folder, [*pretrain, "--workers", "0", *out], vanishing)
    story["images left"] = files_in(folder / "missing")
    return story


if __name__ == "__main__":
    draw_data(DATA)
    story = {}
    for name in sys.argv[2:]:
        (FOLDER / name).mkdir()
        story[name] = {"detected": detected, "full": full, "lost": lost}[name](FOLDER / name)
    print(json.dumps(story))
