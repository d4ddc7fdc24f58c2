"""A pass over all images, for methods that learn from the features of the whole source."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice, repeat

import torch
from torch import Tensor, nn

from densepath.core.distributed import rank, total, world_size
from densepath.methods.base import Method, Tick, no_heartbeat
from densepath.nets.norms import gather_statistics, set_statistics
from densepath.nets.preserve_mode import preserve_mode
from densepath.sources.batch import ImageBatch
from densepath.sources.loader import ImageBatches
from densepath.views.declarations import Center
from densepath.views.maker import ViewMaker

_VIEW = "center"


class Sweep:
    """Describes every image of a source by a method as it stands.

    Each process describes its share. While it does, batch norms have the mean of all processes' running statistics, so
    that the features are those of one process.

    Args:
        batches: whose source is swept, in batches of the same size.
        size: of the views in pixels.
        memory_format: of the views.
    """

    def __init__(self, batches: ImageBatches, size: int | Sequence[int], memory_format: torch.memory_format) -> None:
        self.batches = batches
        self.make_views = ViewMaker({_VIEW: Center()}, size, batches.seed, batches.images.spec, memory_format)

    @torch.no_grad()
    def __call__(self, method: Method, device: torch.device, tick: Tick = no_heartbeat) -> Tensor:
        """The features (N, D) of all images, in the order of the source, on all processes.

        Args:
            method: describes them.
            device: where it lies.
            tick: as for :meth:`densepath.methods.base.Method.on_features`.
        """
        described = []
        # That of the process with most images: all tick as often.
        rounds = math.ceil(math.ceil(len(self.batches.images) / world_size()) / self.batches.batch_size)
        with _evaluated(method):
            for done, images in enumerate(self._padded(rounds), 1):
                if images is not None:
                    with torch.autocast(device.type, enabled=False):
                        views = self.make_views(images.to(device))
                    described.append(method.describe(views[_VIEW].pixels))
                tick(f"describing all images, {done / rounds:.0%}")
        torch.clear_autocast_cache()  # or the step would train copies of weights that were made without gradient
        mine = torch.cat(described)
        features = mine.new_zeros(len(self.batches.images), mine.shape[1])
        features[rank() :: world_size()] = mine
        return total(features)

    def _padded(self, rounds: int) -> Iterator[ImageBatch | None]:
        """This process's batches, and then None until there are as many as another may have."""
        return islice(chain(self.batches.each_image(self.make_views.draw), repeat(None)), rounds)


@contextmanager
def _evaluated(network: nn.Module) -> Iterator[None]:
    """The network in evaluation mode with statistics that all processes share; put back as it was."""
    statistics = gather_statistics(network)
    set_statistics(network, statistics.mean(0))
    try:
        with preserve_mode(network):
            network.eval()
            yield
    finally:
        set_statistics(network, statistics[rank()])
