"""Everything that has to be measured on a GPU, in one go, without a network: correctness first, then speed and memory.

``python -m benchmarks.gpu --minutes 8 --json gpu.json``. What no longer fits into the time is named as left out.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import detect, end_to_end, loading
from benchmarks.measure import machine, parser, report
from benchmarks.step import Step, measure
from benchmarks.tiles import tiles_in_memory
from densepath.images.packing import pack
from densepath.images.store import PackedTiles
from densepath.images.tissue import write_tissue
from densepath.training.hardware import Hardware, choose_hardware

_PAPER_IMAGES = 200 * 80_000  # ConCL: 200 epochs of NCT-CRC-HE-100K's 80,000 training tiles


@contextmanager
def no_waiting(device: torch.device) -> Any:
    """Whatever makes the host wait for the GPU is an error."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def correctness(recipe: str, images: PackedTiles, asked: Namespace, hardware: Hardware) -> dict[str, Any]:
    """The device in float32 and in its own precision, against the CPU in float32, on the same images and weights."""
    host = replace(choose_hardware("cpu", "32"), channels_last=hardware.channels_last)
    exact = Step(recipe, images, asked.size, 16, asked.backbone, host)
    same = Step(recipe, images, asked.size, 16, asked.backbone, replace(hardware, precision="32"))
    own = Step(recipe, images, asked.size, 16, asked.backbone, hardware)
    names = list(exact.ready.views)
    row: dict[str, Any] = {"case": recipe}
    pairs = [(exact.ready[name].pixels, same.ready[name].pixels.cpu()) for name in names]
    row["views: largest difference"] = max(float((a - b).abs().max()) for a, b in pairs)
    losses = {}
    for name, step in (("float32 on the CPU", exact), ("float32", same), (hardware.precision, own)):
        tf32 = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = False
        with torch.autocast(step.device.type, torch.bfloat16) if step.autocast else nullcontext():
            losses[name] = float(step.module.training_step(step.batches[0], 0)["loss"].detach())
        torch.backends.cudnn.allow_tf32 = tf32
    row |= {f"loss, {name}": value for name, value in losses.items()}
    own()
    with no_waiting(own.device):
        own()
    row["a step waits for the device"] = "no"
    return row


def projected(row: dict[str, Any]) -> dict[str, Any]:
    """With the minutes that the paper's pre-training would take at this speed."""
    return row | {"minutes_for_200_epochs_of_80,000": _PAPER_IMAGES / row["images_per_second"] / 60}


def sections(asked: Namespace, hardware: Hardware, scratch: Path) -> dict[str, Callable[[], list[dict[str, Any]]]]:
    """What is measured, the most important first."""
    images = tiles_in_memory(asked.data, max(64, 2 * asked.batch_size), asked.image_size)

    def steps(backbone: str) -> list[dict[str, Any]]:
        return [
            {"case": f"{recipe}, {backbone}"}
            | projected(
                measure(
                    Step(recipe, images, asked.size, asked.batch_size, backbone, hardware),
                    asked.batch_size,
                    asked.repeats,
                    calls=asked.calls,
                )
            )
            for recipe in asked.method
        ]

    def whole_runs() -> list[dict[str, Any]]:
        folder = scratch / "jpeg"
        _write_jpegs(images, folder, asked.batch_size * 4)
        store = pack(folder, scratch / "tiles.safetensors")
        options = Namespace(
            steps=asked.steps,
            batch_size=asked.batch_size,
            size=asked.size,
            backbone=asked.backbone,
            precision=hardware.precision,
            devices="1" if hardware.kind == "cuda" else "cpu",
            cache="auto",
        )
        return [
            {"case": f"densepath pretrain, {recipe}, packed store"}
            | projected(end_to_end.densepath_run(recipe, store, options))
            for recipe in asked.method
        ]

    def sources() -> list[dict[str, Any]]:
        folder = scratch / "jpeg"
        _write_jpegs(images, folder, asked.batch_size * 4)
        return list(loading.speed(folder, asked.batch_size, asked.steps, asked.workers, asked.repeats))

    def detectors() -> list[dict[str, Any]]:
        data = scratch / "tissue"
        write_tissue(data, train=16, test=8, size=512, seed=0)
        options = {"detector": "mask_rcnn_fpn", "train_size": (400, 522), "test_size": 480, "batch_size": 16}
        if hardware.kind == "cpu":
            options = {"detector": "mask_rcnn_fpn_small", "train_size": (64, 64), "test_size": 64, "batch_size": 2}
        options |= {"backbone": asked.backbone, "workers": asked.workers, "repeats": asked.repeats}
        return detect.measure(data, Namespace(**options), hardware)

    return {
        "correctness": lambda: [correctness(recipe, images, asked, hardware) for recipe in asked.method],
        f"steps, {asked.backbone}": lambda: steps(asked.backbone),
        "whole runs": whole_runs,
        "loading": sources,
        "detection": detectors,
        **{f"steps, {name}": lambda name=name: steps(name) for name in asked.more_backbones},
    }


def _write_jpegs(images: PackedTiles, folder: Path, count: int) -> None:
    from PIL import Image

    if folder.exists():
        return
    folder.mkdir()
    for number in range(count):
        pixels = images.gather(torch.tensor([number % len(images)])).pixels[0].cpu().numpy()
        Image.fromarray(pixels).save(folder / f"{number:05d}.jpg", quality=90)


def main() -> None:
    """Measure section after section until the time is up."""
    made = parser(__doc__.splitlines()[0])
    made.add_argument("--minutes", type=float, default=8.0, help="no section starts after three quarters of them")
    made.add_argument("--method", nargs="+", default=["moco_v2", "concl"], help="recipes")
    made.add_argument("--backbone", default="resnet18")
    made.add_argument("--more_backbones", nargs="*", default=["resnet50"])
    made.add_argument("--size", type=int, default=224)
    made.add_argument("--image_size", type=int, default=224)
    made.add_argument("--batch_size", type=int, default=256)
    made.add_argument("--calls", type=int, default=10, help="steps between two looks at the clock")
    made.add_argument("--steps", type=int, default=200, help="of a whole run")
    made.add_argument("--workers", type=int, default=8)
    made.add_argument("--device", default="auto", help="cpu tries the program out, and measures nothing of interest")
    asked = made.parse_args()
    if asked.device == "auto" and not torch.cuda.is_available():
        sys.exit("there is no GPU here; --device cpu tries the program out at small --size and --batch_size")
    hardware = choose_hardware(asked.device)
    end = time.monotonic() + 60 * 0.75 * asked.minutes
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for title, section in sections(asked, hardware, Path(scratch)).items():
            if time.monotonic() > end:
                found[title] = "left out: no time"
                print(f"{title}: left out, no time")
                continue
            found[title] = section()
            report(title, found[title])
            if asked.json:  # after each section: a run that is cut off leaves what it has
                Path(asked.json).write_text(json.dumps({"machine": machine(), "sections": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
