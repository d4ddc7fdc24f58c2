"""How much more a training step costs than its bare passes, and where the rest goes.

The step starts from uint8 images in the memory of the device; the bare passes from views that lie ready. Both alternate
in one process. Peers (lightly) are measured twice: on views that lie ready, and with their own loader and transforms,
from JPEGs of the same images.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from typing import Any

import torch

from benchmarks.bare import bare_step
from benchmarks.measure import Parts, in_turns, parser, peak_memory, ratio, report
from benchmarks.peers import PEERS, loader
from benchmarks.tiles import batch_of, jpeg_folder, tiles_in_memory
from densepath.concepts import kmeans
from densepath.images.store import PackedTiles
from densepath.methods import METHODS, concl
from densepath.nets.backbones import build_backbone
from densepath.training.hardware import Hardware, choose_hardware, keep_freed_memory
from densepath.training.meter import Meter
from densepath.training.module import PretrainModule
from densepath.training.optimizers import Optimizer
from densepath.training.recipes import load_recipe, typed_options
from densepath.views.maker import ViewMaker

_PARTS = ("views", "k-means", "restoration", "queue", "EMA", "optimizer", "logging")


class Step:
    """A training step of densepath without its trainer, and its bare passes.

    Args:
        recipe: a recipe's name.
        images: what batches are taken from.
        size, batch_size, backbone: as in ``densepath pretrain``.
        hardware: where it computes.
    """

    def __init__(
        self,
        recipe: str,
        images: PackedTiles,
        size: int,
        batch_size: int,
        backbone: str,
        hardware: Hardware,
    ) -> None:
        self.device = hardware.device
        self.autocast = hardware.precision == "bf16-mixed"
        torch.manual_seed(0)
        recipe_options = typed_options(load_recipe(recipe))
        method_options = dict(recipe_options.get("method_options", {}))
        if batch_size % (method_options.get("batch_norm_group") or 1):
            method_options["batch_norm_group"] = 0  # a recipe's groups are for its own batch
        method = METHODS[recipe_options["method"]](build_backbone(backbone), **method_options)
        views = ViewMaker(
            method.views(recipe_options.get("augment")), size, seed=0, memory_format=hardware.memory_format
        )
        self.module = PretrainModule(method, views, recipe_options.get("optimizer", Optimizer()), 1000, 100.0)
        self.module.to(self.device, memory_format=hardware.memory_format)
        made = self.module.configure_optimizers()
        self.optimizer, self.schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
        self.batches = [batch_of(images, batch_size, step, self.device) for step in range(4)]
        self.ready = views(self.batches[0])
        self._bare = bare_step(method, self.ready)
        self.meter: Meter[Any] = Meter()
        self._done = 0

    def __call__(self) -> None:
        """One step: views, losses, gradients, weights; what it measures is kept, and looked at every ten steps."""
        batch = self.batches[self._done % len(self.batches)]
        with self._precision():
            outputs = self.module.training_step(batch, 0)
        self.optimizer.zero_grad()
        outputs["loss"].backward()
        self.optimizer.step()
        self.schedule.step()
        self.meter.record(self._done, outputs, batch)
        self._done += 1
        if self._done % 10 == 0:
            self.meter.collect()

    def bare(self) -> None:
        """The passes alone."""
        with self._precision():
            self._bare()

    def watch(self, parts: Parts) -> None:
        """Time what is not a pass of a network."""
        method = self.module.method
        parts.watch(self.module, "make_views", "views")
        parts.watch(kmeans, "spherical_kmeans", "k-means")
        parts.watch(concl, "warp_labels", "restoration")
        for name in ("queue", "concept_queue"):
            if hasattr(method, name):
                parts.watch(getattr(method, name), "enqueue", "queue")
                parts.watch(getattr(method, name), "keys", "queue")
        for name in ("key_backbone", "key_head"):
            parts.watch(getattr(method, name), "update", "EMA")
        parts.watch(self.optimizer, "step", "optimizer")
        for name in ("record", "collect"):
            parts.watch(self.meter, name, "logging")

    def _precision(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16) if self.autocast else nullcontext()


def measure(step: Step, batch_size: int, repeats: int, calls: int = 1) -> dict[str, Any]:
    """One row of the table."""
    row: dict[str, Any] = {}
    seconds = in_turns({"step": step, "bare": step.bare}, repeats, step.device, calls=calls)
    whole = statistics.median(seconds["step"])
    row["images_per_second"] = batch_size / whole
    row["bare_images_per_second"] = batch_size / statistics.median(seconds["bare"])
    row["step/bare"] = ratio(seconds["step"], seconds["bare"])
    parts = Parts(step.device)
    step.watch(parts)
    watched = in_turns({"step": step}, repeats, step.device)["step"]
    spent = parts.seconds()
    parts.restore()
    turns = repeats + 2  # those of the warm-up are in the sums
    for name in _PARTS:
        row[f"{name} %"] = 100 * spent.get(name, 0.0) / turns / statistics.median(watched)
    row["the rest %"] = 100 * (1 - 1 / row["step/bare"]) - sum(row[f"{name} %"] for name in _PARTS)
    with peak_memory(step.device, row):
        step()
    return row


def peer_step(name: str, backbone: str, hardware: Hardware) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """A step of a peer on query and key, in the same precision and layout."""
    torch.manual_seed(0)
    peer = PEERS[name](backbone).to(hardware.device, memory_format=hardware.memory_format)
    optimizer = torch.optim.SGD(peer.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-4)

    def step(query: torch.Tensor, key: torch.Tensor) -> None:
        query, key = (
            view.to(hardware.device, memory_format=hardware.memory_format, non_blocking=True) for view in (query, key)
        )
        optimizer.zero_grad()
        with torch.autocast(hardware.device.type, torch.bfloat16, enabled=hardware.precision == "bf16-mixed"):
            loss = peer(query, key)
        loss.backward()
        optimizer.step()

    return step


def measure_peer(name: str, step: Step, folder: Path, asked: Any, hardware: Hardware, calls: int) -> dict[str, Any]:
    """One row of the table."""
    peer = peer_step(name, asked.backbone, hardware)
    query, key = (step.ready[view].pixels for view in ("query", "key"))
    made = loader(name, str(folder), asked.size, asked.batch_size, asked.workers, hardware.kind)
    batches = (batch for epoch in count() for batch in made)
    cases = {"loaded": lambda: peer(*next(batches)[0]), "ready": lambda: peer(query, key)}
    seconds = in_turns(cases, asked.repeats, hardware.device, calls=calls)
    row: dict[str, Any] = {"case": f"lightly {name}"}
    row["images_per_second"] = asked.batch_size / statistics.median(seconds["loaded"])
    row["views ready, images per second"] = asked.batch_size / statistics.median(seconds["ready"])
    with peak_memory(hardware.device, row):
        peer(query, key)
    return row


def main() -> None:
    """Measure recipes and peers in turn."""
    made = parser(__doc__.splitlines()[0])
    made.add_argument("--method", nargs="+", default=["moco_v2", "concl"], help="recipes")
    made.add_argument("--peer", nargs="*", default=[], choices=sorted(PEERS), help="of lightly")
    made.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="of the peers' loader")
    made.add_argument("--backbone", default="resnet18")
    made.add_argument("--size", type=int, default=224, help="of the views, in pixels")
    made.add_argument("--image_size", type=int, default=224, help="of the images, in pixels")
    made.add_argument("--batch_size", type=int, default=64)
    made.add_argument("--device", default="auto")
    made.add_argument("--precision", default="auto", choices=("auto", "32", "bf16-mixed"))
    asked = made.parse_args()
    hardware = choose_hardware(asked.device, asked.precision)
    if hardware.kind == "cpu":
        keep_freed_memory()
    images = tiles_in_memory(asked.data, 64, asked.image_size)
    calls = 1 if hardware.kind == "cpu" else 10
    rows = []
    for name in asked.method:
        step = Step(name, images, asked.size, asked.batch_size, asked.backbone, hardware)
        rows.append({"case": f"densepath {name}"} | measure(step, asked.batch_size, asked.repeats, calls))
    if asked.peer:
        with jpeg_folder(asked.data, 4 * asked.batch_size, asked.image_size) as folder:
            rows += [measure_peer(name, step, folder, asked, hardware, calls) for name in asked.peer]
    title = f"{asked.backbone}, {asked.batch_size} views of {asked.size} px, {hardware.kind}, {hardware.precision}"
    report(title, rows, asked.json)


if __name__ == "__main__":
    main()
