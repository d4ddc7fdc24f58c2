"""Training on volumes and segmenting them: steps, precision and memory layout, the whole loader, sliding windows.

The times are those of the processor, on one thread, so that other work on the machine counts little. MONAI and torchio
are used if they are installed.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from benchmarks.corruptions import paint, shuffle
from benchmarks.measure import at_least, in_turns, report, shown
from benchmarks.step import Step
from benchmarks.volume_store import write_store
from densepath.nets.backbones import build_backbone
from densepath.sources.loader import ImageBatches
from densepath.sources.volumes.store import VolumeStore
from densepath.training.config import PretrainConfig
from densepath.training.hardware import choose_hardware, keep_freed_memory
from densepath.training.recipes import find_method
from densepath.training.resolve import resolve
from densepath.transfer.segment.network import SegmentationNet
from densepath.transfer.segment.sliding import SlidingWindow
from densepath.views.declarations import without_color
from densepath.views.maker import ViewMaker

CPU = torch.device("cpu")
RECIPES = ("pcrl_3d", "pcrl_3d_released", "model_genesis_3d", "cube", "cpc_3d", "moco_v2_3d", "c2l_3d", "concl_3d")
PARTS = ("steps", "layouts", "loader", "sliding")
_SIZE = (35, 50, 36)  # of small volumes, as hippocampus MR
_PAIRS = 16  # of crops in a batch, as in the released PCRL; half of the crops of ours are shuffled
_CUBE = (64, 64, 32)  # of the released PCRL, along x, y and z
_WINDOW = (32, 64, 64)


def turns(cases: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Seconds of the processor for a call of each case: medians of rounds."""
    with patch("benchmarks.measure.now", lambda device: time.process_time()):
        seconds = in_turns(cases, repeats, CPU, warmup=1)
    return {name: statistics.median(each) for name, each in seconds.items()}


def steps(
    store: VolumeStore, recipes: list[str], batch_size: int, repeats: int, backbone: str | None
) -> list[dict[str, Any]]:
    """A training step of each small recipe, compared with its bare passes."""
    rows, hardware = [], choose_hardware("cpu", "auto")
    for recipe in recipes:
        size = resolve(PretrainConfig, f"{recipe}_small", {"data": ".", "out": "."}).view_size
        step = Step(f"{recipe}_small", store, size, batch_size, backbone, hardware)
        found = turns({"step": step, "bare": step.bare}, repeats)
        named = {f"{name}, s": seconds for name, seconds in found.items()}
        rows.append(shown({"case": recipe} | named | {"ratio": found["step"] / found["bare"]}))
    return rows


def layouts(width: int, repeats: int) -> dict[str, Any]:
    """A pass and its gradient of a 3D U-Net, in float32 and in bfloat16 with channels last."""
    cases = {}
    for name, precision in (("float32", torch.float32), ("bfloat16, channels last", torch.bfloat16)):
        half = precision == torch.bfloat16
        layout = torch.channels_last_3d if half else torch.contiguous_format
        net = SegmentationNet(build_backbone(f"unet_3d_w{width}", 1), 3).to(memory_format=layout)
        x = torch.randn(2, 1, *_WINDOW).to(memory_format=layout)

        def run(net: torch.nn.Module = net, x: Tensor = x, half: bool = half) -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                made = net(x)
            made.float().square().mean().backward()

        cases[name] = run
    found = turns(cases, repeats)
    named = {f"{name}, s": seconds for name, seconds in found.items()}
    plain, ours = found.values()
    return {"case": f"U-Net of width {width}, 2 cubes of 32 x 64 x 64"} | named | {"ratio": plain / ours}


class ReleasedViews:
    """The views of the released 3D PCRL: a pair of crops made before, corrupted by torchio and plain loops."""

    def __init__(self) -> None:
        import torchio

        self.change = torchio.Compose([torchio.RandomFlip(), torchio.RandomAffine(), torchio.RandomBlur()])
        self.count = 0

    def __call__(self, pair: np.ndarray) -> list[np.ndarray]:
        """Both inputs, targets and clean crops."""
        made, painted = [], random.random() < 0.9
        for crop in pair:
            changed = self.change(crop[None])[0].astype(np.float64)
            self.count += 1
            if self.count % 2:  # half of them, as on average: a round has few crops
                changed = shuffle(changed)
            if painted:
                changed = paint(changed)
            axes = [axis for axis in range(3) if random.random() < 0.5]
            made += [changed, np.rot90(np.flip(changed, axes), random.randint(0, 3)).copy(), crop]
        return made


def loader(store: VolumeStore, pairs: int, repeats: int) -> dict[str, Any]:
    """A pair of crops with all their views: ours from the store, the released ones from files of crops."""
    config = resolve(PretrainConfig, "pcrl_3d_released", {"data": ".", "out": "."})
    method = find_method(config.method)(
        build_backbone("unet_3d_w1", 1), **{**config.method_options, "border": (4, 8, 8)}
    )
    declared, _ = without_color(method.views(config.augment), method.views(), store.spec)
    views = ViewMaker(declared, config.view_size, 0, store.spec)

    def ours() -> list[Any]:
        batches = ImageBatches(store, batch_size=pairs, seed=0, max_steps=1, draw=views.draw)
        return [views(batch) for batch in batches]

    cases: dict[str, Callable[[], Any]] = {"ours": ours}
    try:
        released = ReleasedViews()
    except ImportError:
        return {"case": "loader of the released PCRL", "ours, ms a pair": 1000 * turns(cases, repeats)["ours"] / pairs}
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{number}.npy") for number in range(pairs)]
        for path in paths:
            np.save(path, np.random.default_rng(0).random((2, *_CUBE), np.float32))

        def plain() -> list[Tensor]:
            made: list[Tensor] = torch.utils.data.default_collate([released(np.load(path)) for path in paths])
            return made

        found = {name: 1000 * s / pairs for name, s in turns({"plain": plain, **cases}, repeats).items()}
    named = {f"{name}, ms a pair": each for name, each in found.items()}
    return {"case": "loader of the released PCRL"} | named | {"ratio": found["plain"] / found["ours"]}


def sliding(store: VolumeStore, width: int, repeats: int) -> dict[str, Any]:
    """The classes of a whole volume: ours and MONAI's sliding window, with the same network and precision."""
    hardware = choose_hardware("cpu", "auto")
    half = hardware.precision == "bf16-mixed"
    net = SegmentationNet(build_backbone(f"unet_3d_w{width}", 1), 3).eval()
    hardware.lay_out(net)
    pixels = store.read(0)[:64, :128, :128]
    own = SlidingWindow(net, store.spec, _WINDOW, half=half)
    cases: dict[str, Callable[[], Any]] = {"ours": lambda: own.classes(pixels)}
    row: dict[str, Any] = {"case": f"a volume of {' x '.join(map(str, pixels.shape[:3]))}, windows of 32 x 64 x 64"}
    try:
        from monai.inferers import sliding_window_inference
    except ImportError:
        return row | {"ours, s": turns(cases, repeats)["ours"]}

    def theirs() -> np.ndarray:
        x = store.spec.normalize(store.spec.apply_window(torch.from_numpy(pixels).movedim(-1, 0)[None].float()))
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            made = sliding_window_inference(x, _WINDOW, 4, lambda part: net(part).float(), 0.5, mode="gaussian")
        classes: np.ndarray = made[0].argmax(0).byte().numpy()
        return classes

    row["equal classes, %"] = 100 * float((theirs() == own.classes(pixels)).mean())
    found = turns({"MONAI": theirs, **cases}, repeats)
    named = {f"{name}, s": seconds for name, seconds in found.items()}
    return row | named | {"ratio": found["MONAI"] / found["ours"]}


def main() -> None:
    """Print a table for each part."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    made.add_argument("--recipes", nargs="+", default=RECIPES, help="without _small")
    made.add_argument("--backbone", help="of the steps, instead of the recipes'")
    made.add_argument("--batch_size", type=int, default=16)
    made.add_argument("--width", type=int, default=8, help="of U-Nets")
    made.add_argument("--repeats", type=at_least(1), default=5, help="rounds that are measured")
    asked = made.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory(choose_hardware("cpu", "auto"))  # as in a run
    with tempfile.TemporaryDirectory() as folder:
        if "steps" in asked.parts:
            small = write_store(Path(folder, "small"), 2 * asked.batch_size, _SIZE)
            rows = steps(small, list(asked.recipes), asked.batch_size, asked.repeats, asked.backbone)
            report("A step of the small recipes", rows, None)
        if "layouts" in asked.parts:
            report("Precision and layout", [layouts(asked.width, asked.repeats)], None)
        large = (
            write_store(Path(folder, "large"), _PAIRS, (128, 192, 192))
            if {"loader", "sliding"} & {*asked.parts}
            else None
        )
        if large is not None and "loader" in asked.parts:
            report("The whole loader", [loader(large, _PAIRS, asked.repeats)], None)
        if large is not None and "sliding" in asked.parts:
            report("Sliding windows", [sliding(large, asked.width, asked.repeats)], None)


if __name__ == "__main__":
    main()
