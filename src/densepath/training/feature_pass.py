"""A pass over all images, for methods that learn from the features of the whole source."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice, repeat

import torch
from torch import Tensor, nn

from densepath.core.distributed import rank, total, world_size
from densepath.methods.base import CENTER, Heartbeat, Method, no_heartbeat
from densepath.nets.preserve_mode import preserve_mode
from densepath.nets.running_statistics import gather_statistics, set_statistics
from densepath.sources.batch import ImageBatch
from densepath.sources.loader import ImageBatches
from densepath.views.declarations import Declaration
from densepath.views.maker import ViewMaker

_VIEW = "center"


class FeaturePass:
    """Extracts features of every image of a source with a method in its current state.

    Each process extracts the features of its share of the images. Meanwhile batch norms use the mean of all processes'
    running statistics, so that the features are the same as with one process.

    Args:
        batches: batches of the source; the pass uses batches of the same size.
        size: size of the views in pixels.
        memory_format: memory layout of the views.
        view: what the method's features are of.
    """

    def __init__(
        self,
        batches: ImageBatches,
        size: int | Sequence[int],
        memory_format: torch.memory_format,
        view: Declaration = CENTER,
    ) -> None:
        self.batches = batches
        self.make_views = ViewMaker({_VIEW: view}, size, batches.seed, batches.images.spec, memory_format)

    @torch.no_grad()
    def __call__(self, method: Method, device: torch.device, heartbeat: Heartbeat = no_heartbeat) -> Tensor:
        """The features (N, D) of all images, in the order of the source, on all processes.

        Args:
            method: the method that extracts them.
            device: the device of its weights.
            heartbeat: as for :meth:`densepath.methods.base.Method.on_features`.
        """
        features_of_batches = []
        # Those of the process with most images: all processes call the heartbeat equally often.
        rounds = math.ceil(math.ceil(len(self.batches.images) / world_size()) / self.batches.batch_size)
        with _evaluated(method):
            for done, images in enumerate(self._padded(rounds), 1):
                if images is not None:
                    with torch.autocast(device.type, enabled=False):
                        views = self.make_views(images.to(device))
                    features_of_batches.append(method.extract_features(views[_VIEW].pixels))
                heartbeat(f"extracting features of all images, {done / rounds:.0%}")
        torch.clear_autocast_cache()  # or the step would use copies of the weights that were cached without gradient
        mine = torch.cat(features_of_batches)
        features = mine.new_zeros(len(self.batches.images), mine.shape[1])
        features[rank() :: world_size()] = mine
        return total(features)

    def _padded(self, rounds: int) -> Iterator[ImageBatch | None]:
        """This process's batches, then None up to ``rounds``."""
        return islice(chain(self.batches.each_image(self.make_views.draw), repeat(None)), rounds)


@contextmanager
def _evaluated(network: nn.Module) -> Iterator[None]:
    """The network in evaluation mode with statistics that all processes share; its state is restored afterwards."""
    statistics = gather_statistics(network)
    set_statistics(network, statistics.mean(0))
    try:
        with preserve_mode(network):
            network.eval()
            yield
    finally:
        set_statistics(network, statistics[rank()])
