"""What learns in a pre-training: a backbone with its initial weights in a method, and the views that this needs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from densepath.core.errors import UserError, that_or_these
from densepath.methods import Method
from densepath.nets.backbones import Backbone, is_named
from densepath.nets.backbones.choose import choose_backbone
from densepath.nets.weights import load_weights
from densepath.sources.pixel_source import PixelSpec
from densepath.training.batch_norm import BatchNorm, share_statistics
from densepath.training.compiled import require_compilable
from densepath.training.config import PretrainConfig
from densepath.training.hardware import Hardware
from densepath.training.inputs import check_inputs
from densepath.training.recipes import all_options, find_method, name_of
from densepath.training.sharding import require_shardable
from densepath.views.augment import Augment
from densepath.views.declarations import Declaration, RandomView, are_scaled, view_sizes, without_color
from densepath.views.maker import ViewMaker


@dataclass(frozen=True, eq=False)
class Learner:
    """A method with its backbone, before the first step.

    Args:
        network: the backbone.
        method: the method that trains it.
        options: all options of the method.
        batch_norm: how batch norms take statistics, as chosen.
        batch: images in a batch of all processes together.
        world_size: number of processes.
        loaded: a line on the initial weights, if any were loaded.
        tensors: a line for each tensor of the initial weights.
        named: whether a later command can name the backbone.
    """

    network: Backbone
    method: Method
    options: dict[str, Any]
    batch_norm: BatchNorm
    batch: int
    world_size: int
    loaded: str | None
    tensors: Sequence[str]
    named: bool


def make_learner(config: PretrainConfig, spec: PixelSpec, fresh: bool, batch: int, world_size: int) -> Learner:
    """Build the backbone and the method of a run, from its seed.

    Args:
        config: the configuration.
        spec: of the images.
        fresh: whether the run starts: its initial weights are loaded.
        batch: images in a batch of all processes together.
        world_size: number of processes.

    Raises:
        UserError: options that do not fit each other or the images, or weights that cannot be loaded.
    """
    torch.manual_seed(config.seed)
    network = choose_backbone(config.backbone, spec.channels, config.output_stride)
    if network.ndim != spec.ndim:
        raise UserError(
            f"{network.name} takes images of {network.ndim} dimensions, but those of {config.data} have "
            f"{spec.ndim}; choose another backbone"
        )
    if not any(each.requires_grad for each in network.parameters()):
        raise UserError(
            f"the backbone {network.name} is frozen: none of its parameters requires a gradient; call "
            ".requires_grad_(True) before pre-training"
        )
    named = isinstance(config.backbone, str) or is_named(network.name)
    tensors: list[str] = []
    loaded = load_weights(network, config.weights, report=tensors) if fresh else None
    options = all_options(config.method, config.method_options)
    method = find_method(config.method)(network, **options)
    if config.val_share and method.phases:
        raise UserError(
            f"--val_share compares losses, and those of {name_of(config.method)} have other terms in other parts of "
            "a run; leave it out"
        )
    if fresh and config.weights == "random" and isinstance(config.backbone, str):
        with torch.random.fork_rng(devices=[]):  # a resumed run draws the same numbers without it
            method.initialize()
    norm = share_statistics(method, config.batch_norm, config.batch_norm_group, batch, world_size)
    if config.strategy == "fsdp":
        require_shardable(method, config.optimizer.name, world_size)
    if config.compile:
        require_compilable(method, world_size)
    check_inputs(method, config)
    return Learner(network, method, options, norm, batch, world_size, loaded, tensors, named)


@dataclass(frozen=True, eq=False)
class RunViews:
    """The views of a run.

    Args:
        declared: those that the method uses, by name.
        without: views that lack operations on color, which the images do not have.
        smallest: the smallest side of a view in pixels, early ones included.
        size: size of the last views.
        seed: the run's seed.
        spec: of the images.
        memory_format: as the networks prefer it.
    """

    declared: Mapping[str, Declaration]
    without: Sequence[str]
    smallest: int
    size: int | Sequence[int]
    seed: int
    spec: PixelSpec
    memory_format: torch.memory_format

    def maker(self, early: Sequence[tuple[float, int | Sequence[int]]] = ()) -> ViewMaker:
        """What computes them, with other sizes before so many epochs; by default the last sizes at all times."""
        return ViewMaker(self.declared, self.size, self.seed, self.spec, self.memory_format, early)


def plan_run_views(learner: Learner, config: PretrainConfig, spec: PixelSpec, hardware: Hardware) -> RunViews:
    """The views that a method declares for these images.

    Raises:
        UserError: views that the method, the backbone or the images cannot have.
    """
    method, network = learner.method, learner.network
    declared, without = without_color(method.views(config.augment), method.views(), spec)
    smallest = math.inf
    for size in (*(size for _, size in config.early_view_sizes), config.view_size):
        sizes = view_sizes(declared, size, spec.ndim)
        method.check(sizes, learner.batch, learner.world_size)
        network.check_reach(*max(sizes.values(), key=math.prod))  # local crops may be smaller
        smallest = min(smallest, *(min(sides) for sides in sizes.values()))
    seen = {name: view for name, view in declared.items() if name not in method.unused_views}
    views = RunViews(seen, without, int(smallest), config.view_size, config.seed, spec, hardware.memory_format)
    views.maker()  # refuses what these images cannot have before files are labelled
    return views


def check_scale(declared: Mapping[str, Declaration], augment: Augment | None) -> None:
    """Check that a scale or ratio of crops is given only for views that are crops.

    Raises:
        UserError: all random views are windows, which have a size of their own.
    """
    are_random = any(isinstance(view, RandomView) for view in declared.values())
    if augment is None or not are_random or are_scaled(declared):
        return
    plain = Augment()
    names = [name for name in ("scale", "ratio") if getattr(augment, name) != getattr(plain, name)]
    if idle := [f"--augment.{name}" for name in names]:
        raise UserError(
            f"views are windows here, whose size is not random: {' and '.join(idle)} would have no effect; leave "
            f"{that_or_these(idle)} out"
        )
