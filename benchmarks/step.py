"""The cost of a training step compared with its bare passes, and the parts of the difference.

The step starts with uint8 images in the memory of the device; the bare passes with prepared views, and they have plain
batch norms. Both alternate in one process. If the encoder sees only the visible patches (MAE, EVA), there is also a
dense step, whose encoder sees all patches; its decoder still gets the visible ones. lightly is measured twice: on
prepared views, and with its own loader and transforms, from JPEGs of the same images. Peak memory is that of a process
that does nothing else.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import replace
from functools import cached_property, partial
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import yaml

from benchmarks.bare import bare_step, encode_all
from benchmarks.measure import (
    PEERS,
    Parts,
    in_turns,
    isolated,
    listed,
    measure_cpu_time,
    parser,
    peak_memory,
    ratio,
    report,
    shown,
    synchronizations,
)
from benchmarks.tiles import RandomCells, batch_of, jpeg_folder, packed_store
from densepath.concepts import kmeans
from densepath.core.momentum import Momentum
from densepath.methods import concl, conv_mim, densecl
from densepath.methods.base import no_heartbeat
from densepath.nets.backbones import build_backbone
from densepath.sources.loader import ImageBatches
from densepath.sources.open import find_source
from densepath.sources.packed import PackedTiles
from densepath.sources.pixel_source import PixelSource
from densepath.training.batch_norm import share_statistics
from densepath.training.compiled import compile_networks
from densepath.training.config import PretrainConfig
from densepath.training.hardware import Hardware, choose_hardware, keep_freed_memory
from densepath.training.inputs import make_inputs
from densepath.training.meter import Meter
from densepath.training.pretrain_task import PretrainTask
from densepath.training.recipes import find_method
from densepath.training.resolve import resolve
from densepath.views.declarations import view_sizes, without_color
from densepath.views.maker import ViewMaker
from densepath.views.view import Batch

_PARTS = ("views", "k-means", "restoration", "queue", "EMA", "optimizer", "logging")


class Step:
    """A training step of densepath without its trainer, and its bare passes.

    Args:
        recipe: name of a recipe.
        images: the images of the batches.
        size, batch_size: as in ``densepath pretrain``; of volumes, batches hold the boxes that their views need.
        backbone: as there; None for that of the recipe.
        hardware: the device and its precision.
        given: options of the method that its recipe does not set.
        compiled: whether ``torch.compile`` compiles the backbones of the method.
    """

    def __init__(
        self,
        recipe: str,
        images: PixelSource,
        size: int | Sequence[int],
        batch_size: int,
        backbone: str | None,
        hardware: Hardware,
        given: Mapping[str, Any] | None = None,
        compiled: bool = False,
    ) -> None:
        self.device = hardware.device
        self.autocast = hardware.precision == "bf16-mixed"
        torch.manual_seed(0)
        options, run = dict(given or {}), {"data": ".", "out": "."}
        run |= {name: options.pop(name) for name in ("teacher", "teacher_weights", "tokenizer") if name in options}
        config = resolve(PretrainConfig, recipe, {**run, "method_options": options})
        images = copy(images)
        images.spec = images.spec.override(config.mean, config.std, config.window)
        group = config.batch_norm_group
        network = build_backbone(str(backbone or config.backbone), images.spec.channels)
        method = find_method(config.method)(network, **config.method_options)
        # A recipe's groups are for its own batch.
        share_statistics(method, "auto", 0 if batch_size % (group or 1) else group, batch_size, processes=1)
        declared, _ = without_color(method.views(config.augment), method.views(), images.spec)
        method.check(view_sizes(declared, size, images.spec.ndim), batch_size)
        needs = method.needs()
        method.prepare(images, {"cells": RandomCells()} if "cells" in needs else make_inputs(method, config, images))
        views = ViewMaker(declared, size, seed=0, spec=images.spec, memory_format=hardware.memory_format)
        self.task = PretrainTask(method, views, config.optimizer, 1000, 100.0)
        self.task.to(self.device)
        hardware.lay_out(self.task)
        self.updates = self.task.updates()
        self.compiled = compiled
        if compiled:
            compile_networks(self.task)
        if images.reads_boxes:
            drawn = ImageBatches(
                images, batch_size=batch_size, seed=0, max_steps=4, draw=views.draw, extras=method.extras
            )
            self.batches = [replace(batch, progress=0.5).to(self.device) for batch in drawn]
        else:
            self.batches = [batch_of(images, batch_size, step, self.device, method.extras) for step in range(4)]
        self.meter: Meter[Any] = Meter()
        self._done = 0

    def __call__(self) -> None:
        """One step: views, losses, gradients, weights; metrics are recorded, and collected every ten steps."""
        batch = self.batches[self._done % len(self.batches)]
        inputs = self.task.inputs(batch)
        self.task.before_step(inputs, partial(nullcontext, no_heartbeat))
        with self._precision():
            outputs = self.task(inputs)
        outputs["loss"].backward()
        self.updates.clip_gradients()
        self.updates.optimizer.step()
        self.updates.schedule.step()
        self.updates.optimizer.zero_grad()
        self.task.after_step()
        self.meter.record(self._done, outputs, batch)
        self._done += 1
        if self._done % 10 == 0:
            self.meter.collect()

    @cached_property
    def ready(self) -> Batch:
        """Prepared views."""
        return self.task.inputs(self.batches[0])

    @cached_property
    def _bare(self) -> Callable[[], None]:
        return bare_step(self.task.method, self.ready, self.compiled)

    def bare(self) -> None:
        """Only the passes."""
        passes = self._bare  # makes the views, which autocast must not touch
        with self._precision():
            passes()

    @property
    def encodes_visible_only(self) -> bool:
        """Whether the method's encoder sees only the visible patches."""
        return hasattr(self._file, "encode_visible")

    def dense(self) -> None:
        """A step whose encoder sees all patches."""
        with patch.object(self._file, "encode_visible", encode_all):
            self()

    @property
    def _file(self) -> Any:
        """The module that defines the method."""
        return sys.modules[type(self.task.method).__module__]

    def gradients(self) -> tuple[float, torch.Tensor]:
        """The loss of the first batch, and its concatenated gradients, on the CPU."""
        inputs = self.task.inputs(self.batches[0])
        self.task.before_step(inputs, partial(nullcontext, no_heartbeat))
        with self._precision():
            loss = self.task(inputs)["loss"]
        loss.backward()
        self.task.after_step()
        trained = [p.grad for p in self.task.parameters() if p.grad is not None]
        return float(loss.detach()), torch.cat([gradient.flatten() for gradient in trained]).cpu()

    def watch(self, parts: Parts) -> None:
        """Time everything that is not a pass of a network."""
        method = self.task.method
        parts.watch(self.task, "make_views", "views")
        parts.watch(kmeans, "spherical_kmeans", "k-means")
        parts.watch(concl, "warp_labels", "restoration")
        parts.watch(densecl, "warp", "restoration")
        parts.watch(conv_mim, "sample", "restoration")
        parts.watch(conv_mim, "sample_nearest", "restoration")
        parts.watch(densecl, "most_similar", "restoration")
        for name in ("queue", "concept_queue", "dense_queue"):
            if hasattr(method, name):
                for part in ("enqueue", "keys", "after_step"):
                    parts.watch(getattr(method, name), part, "queue")
        for module in method.modules():
            if isinstance(module, Momentum):
                parts.watch(module, "update", "EMA")
        parts.watch(self.updates.optimizer, "step", "optimizer")
        for name in ("record", "collect"):
            parts.watch(self.meter, name, "logging")

    def _precision(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16) if self.autocast else nullcontext()


def measure(step: Step, batch_size: int, repeats: int, calls: int = 1) -> dict[str, Any]:
    """One row of the table."""
    row: dict[str, Any] = {}
    in_turns({"step": step}, 1, step.device)
    with peak_memory(step.device, row):  # before the prepared views exist
        step()
    with synchronizations(step.device) as places:
        step()
    row["synchronizations"] = len(places)
    if places:
        row["synchronized"] = listed(places)
    cases = {"step": step, "bare": step.bare} | ({"dense": step.dense} if step.encodes_visible_only else {})
    seconds = in_turns(cases, repeats, step.device, calls=calls)
    whole = statistics.median(seconds["step"])
    row["images_per_second"] = batch_size / whole
    row["bare_images_per_second"] = batch_size / statistics.median(seconds["bare"])
    row["step/bare"] = ratio(seconds["step"], seconds["bare"])
    if step.encodes_visible_only:
        row["dense/step"] = ratio(seconds["dense"], seconds["step"])
    parts = Parts(step.device)
    step.watch(parts)
    watched = in_turns({"step": step}, repeats, step.device, warmup=0)["step"]
    spent = parts.seconds()
    parts.restore()
    for name in _PARTS:
        row[f"{name} %"] = 100 * spent.get(name, 0.0) / sum(watched)
    row["the rest %"] = 100 * (1 - 1 / row["step/bare"]) - sum(row[f"{name} %"] for name in _PARTS)
    return row


def _hardware(asked: Any) -> Hardware:
    if asked.cpu_time:
        measure_cpu_time()
    hardware = choose_hardware(asked.device, asked.precision)
    keep_freed_memory(hardware)
    torch.backends.cudnn.benchmark = hardware.kind == "cuda"  # as in runs
    return hardware


def images_for_peers(asked: Any, hardware: Hardware) -> int:
    """Images that one method of lightly needs for one epoch, so that none starts while it is measured."""
    return (asked.repeats + 4) * _calls(hardware) * asked.batch_size


def _calls(hardware: Hardware) -> int:
    return 1 if hardware.kind == "cpu" else 10


def measure_recipe(recipe: str, store: Path, asked: Any) -> dict[str, Any]:
    """The row of one recipe of densepath."""
    hardware = _hardware(asked)
    found = find_source(store)
    images = found.to("cpu") if isinstance(found, PackedTiles) else found
    given = {name: yaml.safe_load(value) for name, value in (pair.split("=", 1) for pair in asked.given)}
    backbone, size = asked.backbone, asked.size
    if asked.as_recipe:
        backbone, size = None, resolve(PretrainConfig, recipe, {"data": ".", "out": "."}).view_size
    step = Step(recipe, images, size, asked.batch_size, backbone, hardware, given, asked.compile)
    return {"case": f"densepath {recipe}"} | measure(step, asked.batch_size, asked.repeats, _calls(hardware))


def peer_step(name: str, backbone: str, hardware: Hardware) -> Callable[..., None]:
    """A step of lightly on its views, in the same precision and memory layout."""
    from benchmarks.peers import METHODS

    torch.manual_seed(0)
    peer = METHODS[name](backbone).to(hardware.device, memory_format=hardware.memory_format)
    optimizer = torch.optim.SGD(peer.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-4)

    def step(*views: torch.Tensor) -> None:
        views = tuple(
            view.to(hardware.device, memory_format=hardware.memory_format, non_blocking=True) for view in views
        )
        optimizer.zero_grad()
        with torch.autocast(hardware.device.type, torch.bfloat16, enabled=hardware.precision == "bf16-mixed"):
            loss = peer(*views)
        loss.backward()
        optimizer.step()

    return step


def measure_peer(name: str, folder: Path, asked: Any) -> dict[str, Any]:
    """The row of one method of lightly."""
    from benchmarks.peers import loader

    hardware = _hardware(asked)
    peer = peer_step(name, asked.backbone, hardware)
    calls = _calls(hardware)
    made = loader(name, str(folder), asked.size, asked.batch_size, asked.workers, hardware.kind)
    views = next(iter(made))[0]
    row: dict[str, Any] = {"case": f"lightly {name}"}
    for _ in range(2):
        peer(*views)
    with peak_memory(hardware.device, row):
        peer(*views)
    ready = in_turns({"": lambda: peer(*views)}, asked.repeats, hardware.device, calls=calls)[""]
    batches = (batch for epoch in count() for batch in made)  # from here on, workers load in the background
    loaded = in_turns({"": lambda: peer(*next(batches)[0])}, asked.repeats, hardware.device, calls=calls)[""]
    row["images_per_second"] = asked.batch_size / statistics.median(loaded)
    row["images per second with prepared views"] = asked.batch_size / statistics.median(ready)
    return row


def options(description: str) -> argparse.ArgumentParser:
    """The options of a step, also for other benchmarks."""
    made = parser(description)
    made.add_argument("--method", nargs="+", default=["moco_v2", "concl"], help="recipes")
    made.add_argument(
        "--given", nargs="*", default=[], help="options of the methods in YAML: num_clusters=[8] teacher=resnet18"
    )
    made.add_argument("--peer", nargs="*", default=[], choices=PEERS, help="methods of lightly")
    made.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="workers of lightly's loader")
    made.add_argument("--backbone", default="resnet18")
    made.add_argument("--size", type=int, default=224, help="size of the views in pixels")
    made.add_argument("--as_recipe", action="store_true", help="the backbone and the size of the views of each recipe")
    made.add_argument("--image_size", type=int, default=224, help="size of the images in pixels")
    made.add_argument("--batch_size", type=int, default=64)
    made.add_argument("--device", default="auto")
    made.add_argument("--compile", action="store_true", help="compile the backbones by torch.compile")
    made.add_argument("--cpu_time", action="store_true", help="measure the time of the CPU, on a busy machine")
    made.add_argument("--precision", default="auto", choices=("auto", "32", "bf16-mixed"))
    return made


def main() -> None:
    """Measure recipes and lightly, each in a separate process."""
    asked = options(__doc__.splitlines()[0]).parse_args()
    kind = choose_hardware(asked.device, asked.precision)
    with packed_store(asked.data, 4 * asked.batch_size, asked.image_size) as store:
        rows = [shown(isolated(measure_recipe, name, store, asked)) for name in asked.method]
    if asked.peer:
        with jpeg_folder(asked.data, images_for_peers(asked, kind), asked.image_size) as folder:
            rows += [shown(isolated(measure_peer, name, folder, asked)) for name in asked.peer]
    what = "backbones and views of the recipes" if asked.as_recipe else f"{asked.backbone}, views of {asked.size} px"
    title = f"{what}, {asked.batch_size} images, {kind.kind}, {kind.precision}"
    report(title, rows, asked.json)


if __name__ == "__main__":
    main()
