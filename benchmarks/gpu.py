"""All measurements on a GPU in one call, without a network: first correctness, then speed and memory.

``python -m benchmarks.gpu --minutes 8 --json gpu.json``. A section that fails is reported and the next one starts;
sections that do not fit into the time are reported as left out. The last table has every target with its value.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import traceback
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import detect, end_to_end, loading
from benchmarks.measure import isolated, report, write_json
from benchmarks.step import Step, measure_peer, measure_recipe, options
from benchmarks.targets import PAPER_IMAGES, print_summary, summary
from benchmarks.tiles import jpeg_folder
from densepath.sources.packed import PackedTiles
from densepath.sources.packing import open_store, pack
from densepath.synthetic.tissue import write_tissue
from densepath.training.hardware import Hardware, choose_hardware

_BATCH = 64  # for the comparison with the CPU: two of the recipes' batch-norm groups
_PEER_STEPS = 40  # steps of a whole run of lightly: enough to measure its speed


@contextmanager
def synchronizations(device: torch.device) -> Iterator[list[str]]:
    """Code lines where the host synchronizes with the GPU."""
    places: list[str] = []
    if device.type != "cuda":
        yield places
        return
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield places
    finally:
        torch.cuda.set_sync_debug_mode("default")
    places += [f"{w.filename}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]


def correctness(recipe: str, images: PackedTiles, asked: Namespace, hardware: Hardware) -> dict[str, Any]:
    """The device in float32 and in its own precision, compared with the CPU in float32, on the same inputs."""
    tf32, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    host = replace(choose_hardware("cpu", "32"), channels_last=hardware.channels_last)
    exact = Step(recipe, images, asked.size, _BATCH, asked.backbone, host)
    same = Step(recipe, images, asked.size, _BATCH, asked.backbone, replace(hardware, precision="32"))
    own = Step(recipe, images, asked.size, _BATCH, asked.backbone, hardware)
    pairs = [(view.pixels, same.ready[name].pixels.cpu()) for name, view in exact.ready.views.items()]
    found = {"views, largest difference": (max(float((a - b).abs().max()) for a, b in pairs), 1e-3)}
    loss, gradients = exact.gradients()
    for name, step, loose in (("float32", same, 1e-3), (hardware.precision, own, 5e-2)):
        other, others = step.gradients()
        found[f"{name}: loss, relative difference"] = (abs(other - loss) / abs(loss), loose)
        found[f"{name}: gradient, relative difference"] = (
            float((others - gradients).norm() / gradients.norm()),
            10 * loose,
        )
    torch.backends.cudnn.allow_tf32 = tf32
    row: dict[str, Any] = {"case": recipe}
    for name, (value, limit) in found.items():
        row[name] = f"{value:.2g} ({'ok' if value <= limit else 'FAILED'}, limit {limit:.0e})"
    own()
    with synchronizations(own.device) as places:
        own()
    row["synchronizations in a step"] = "none" if not places else f"{len(places)} FAILED: {places[0]}"
    return row


def projected(row: dict[str, Any]) -> dict[str, Any]:
    """Adds the minutes that the paper's pre-training would take at this speed."""
    return row | {"minutes_for_200_epochs_of_80,000": PAPER_IMAGES / row["images_per_second"] / 60}


def long_epoch(folder: Path, out: Path, count: int) -> Path:
    """A folder with ``count`` links to the images of another one, so that no epoch ends while lightly is measured."""
    out.mkdir()
    paths = sorted(folder.iterdir())
    for number in range(count):
        os.link(paths[number % len(paths)], out / f"{number:07d}.jpg")
    return out


def sections(asked: Namespace, hardware: Hardware, scratch: Path) -> dict[str, Callable[[], list[dict[str, Any]]]]:
    """All measurements, the most important first. JPEGs and their store are written to ``scratch`` first."""
    folder, store = scratch / "jpeg", scratch / "tiles.safetensors"
    with jpeg_folder(asked.data, max(4 * asked.batch_size, 4 * _BATCH), asked.image_size) as made:
        made.rename(folder)
    pack(folder, store)

    def compare() -> list[dict[str, Any]]:
        images = open_store(store).to("cpu")
        return [correctness(recipe, images, asked, hardware) for recipe in asked.method]

    def steps(backbone: str) -> list[dict[str, Any]]:
        options = Namespace(**(vars(asked) | {"backbone": backbone}))
        return [projected(isolated(measure_recipe, recipe, store, options)) for recipe in asked.method]

    def peers() -> list[dict[str, Any]]:
        return [isolated(measure_peer, name, folder, asked) for name in asked.peer]

    devices = "1" if hardware.kind == "cuda" else "cpu"
    as_run = {"precision": hardware.precision, "devices": devices, "cache": "auto"}

    def whole_runs() -> list[dict[str, Any]]:
        options = Namespace(**(vars(asked) | as_run))
        rows = []
        for recipe in asked.method:
            bare = end_to_end.bare(recipe, options)
            row = end_to_end.densepath_run(recipe, store, options)
            row["share of bare"] = row["images_per_second"] / bare
            rows.append(projected({"case": f"densepath {recipe}, packed store"} | row))
        return rows

    def whole_runs_of_peers() -> list[dict[str, Any]]:
        options = Namespace(**(vars(asked) | as_run | {"steps": min(asked.steps, _PEER_STEPS)}))
        long = long_epoch(folder, scratch / "long", options.steps * asked.batch_size)
        return [
            {"case": f"lightly {name}, JPEGs"} | end_to_end.lightly_run(name, long, asked.workers, options)
            for name in asked.peer
        ]

    def detectors() -> list[dict[str, Any]]:
        data = scratch / "tissue"
        small = hardware.kind == "cpu"
        write_tissue(data, train=4 if small else 16, test=2 if small else 8, size=128 if small else 512, seed=0)
        options = {"detector": "mask_rcnn_fpn", "train_size": (400, 522), "test_size": 480, "batch_size": 16}
        if small:
            options = {"detector": "mask_rcnn_fpn_small", "train_size": (64, 64), "test_size": 64, "batch_size": 2}
        options |= {"backbone": asked.backbone, "workers": asked.workers, "repeats": asked.repeats}
        return detect.measure(data, Namespace(**options), hardware)

    return {
        "correctness": compare,
        f"steps, {asked.backbone}": lambda: steps(asked.backbone),
        "whole runs": whole_runs,
        "peers": peers,
        "whole runs, lightly": whole_runs_of_peers,
        "loading": lambda: list(loading.speed(folder, asked.batch_size, asked.steps, asked.workers, asked.repeats)),
        "detection": detectors,
        **{f"steps, {name}": lambda name=name: steps(name) for name in asked.more_backbones},
    }


def main() -> None:
    """Run one section after another until the time is over."""
    made = options(__doc__.splitlines()[0])
    made.set_defaults(batch_size=256, workers=8, peer=["moco_v2", "densecl"], repeats=5)
    made.add_argument("--minutes", type=float, default=8.0, help="no section starts after three quarters of this time")
    made.add_argument("--more_backbones", nargs="*", default=["resnet50"])
    made.add_argument("--steps", type=int, default=200, help="steps of a whole run")
    asked = made.parse_args()
    if asked.device == "auto" and not torch.cuda.is_available():
        sys.exit("there is no GPU; use --device cpu to test the program with a small --size and --batch_size")
    hardware = choose_hardware(asked.device, asked.precision)
    end = time.monotonic() + 60 * 0.75 * asked.minutes
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for title, section in sections(asked, hardware, Path(scratch)).items():
            try:
                found[title] = section() if time.monotonic() < end else "left out: no time"
            except (Exception, SystemExit) as error:  # the other sections still run
                traceback.print_exc()
                found[title] = f"FAILED: {error}"
            if isinstance(found[title], str):
                print(f"{title}: {found[title]}")
            else:
                report(title, found[title])
            if asked.json:  # after each section: an interrupted run keeps its results
                write_json(asked.json, found)
    rows = summary(found, asked)
    print_summary(rows)
    if asked.json:
        write_json(asked.json, found | {"against the targets": rows})


if __name__ == "__main__":
    main()
