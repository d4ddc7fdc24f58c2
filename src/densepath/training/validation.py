"""The loss of a method on images that are held out of pre-training."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from densepath.core.distributed import alone, broadcast, rank
from densepath.core.errors import UserError, counted
from densepath.methods.base import Method
from densepath.nets.norms import plain_batch_norm
from densepath.nets.running_statistics import gather_statistics, set_statistics
from densepath.nets.weights import save_backbone
from densepath.runs.folder import BEST
from densepath.sources.loader import ImageBatches
from densepath.sources.per_image import PerImage
from densepath.sources.pixel_source import PixelSource
from densepath.views.maker import ViewMaker


def check_held(method: Method, held: PixelSource, batch_size: int) -> None:
    """Check that a method has a loss on so few held-out images.

    Args:
        method: the method in training.
        held: the held-out images.
        batch_size: as for :class:`Validation`.

    Raises:
        UserError: they are too few.
    """
    try:
        method.check_batch(min(batch_size, len(held)))
    except UserError as error:
        raise UserError(f"--val_share holds out {counted(len(held), 'image')}: {error}") from None


class PartOf:
    """What is known of some images of a source.

    Args:
        whole: what is known of all of them.
        positions: (K,) positions of the images in it.
    """

    def __init__(self, whole: PerImage, positions: Tensor) -> None:
        self._whole, self._positions = whole, positions

    def __len__(self) -> int:
        return len(self._positions)

    def gather(self, index: Tensor, pin: bool = False) -> Tensor:
        """What is known of the images at the positions ``index`` (B,) among the K."""
        return self._whole.gather(self._positions[index], pin)


class Patience(nn.Module):
    """The lowest validation loss of a run, and the number of evaluations since: part of the state of its task.

    Args:
        evaluations: after how many without a lower loss the run ends; 0 for never.
    """

    lowest: Tensor
    since: Tensor

    def __init__(self, evaluations: int) -> None:
        super().__init__()
        self.evaluations = evaluations
        self.register_buffer("lowest", torch.tensor(torch.finfo(torch.float64).max, dtype=torch.float64))
        self.register_buffer("since", torch.zeros((), dtype=torch.int64))

    def improved(self, loss: float) -> bool:
        """Take a loss into account: whether it is the lowest."""
        better = loss < float(self.lowest)
        if better:
            self.lowest.fill_(loss)
        self.since.copy_(torch.zeros_like(self.since) if better else self.since + 1)
        return better

    def restart(self) -> None:
        """Forget the lowest loss: the next one is the lowest."""
        self.lowest.fill_(torch.finfo(torch.float64).max)

    def ended(self) -> bool:
        """Whether the run ends."""
        return 0 < self.evaluations <= int(self.since)


class Validation:
    """Computes the loss of a method on held-out images, always with the same views, and keeps its best backbone.

    Batches have the views and random numbers of the first epoch, but the epoch and progress of the run, on which the
    loss may depend. Until it has the meaning that it keeps to the end
    (:meth:`~densepath.methods.base.Method.comparable`), the newest backbone is the best, and the run does not end.

    The method is copied, so that queues and other state do not change. All processes compute the whole loss, each as if
    alone, with the mean of their running statistics: it is that of one process. The first one's counts, as devices
    round differently. Images that do not fill a batch are left out.

    Args:
        method: the method in training.
        views: makes its views.
        images: the held-out images.
        batch_size: images in a batch of all processes together; all if there are fewer.
        patience: told of each loss.
        out: the run folder.
        metadata: kept in the file of the best backbone.
        extras: annotations of the held-out images, by name, if the method needs them.
    """

    def __init__(
        self,
        method: Method,
        views: ViewMaker,
        images: PixelSource,
        batch_size: int,
        patience: Patience,
        out: Path,
        metadata: Mapping[str, str],
        extras: Mapping[str, PerImage] = MappingProxyType({}),
    ) -> None:
        self.extras = dict(extras)
        self.method, self.views, self.images = method, views, images
        self.batch_size, self.patience = min(batch_size, len(images)), patience
        self.out, self.metadata = out, dict(metadata)

    @torch.no_grad()
    def __call__(self, epoch: float, progress: float) -> dict[str, float]:
        """The mean loss; a backbone with the lowest is written to ``exported/best.safetensors``.

        Args:
            epoch: epochs of the run that are done.
            progress: the share of the run that is done.
        """
        network = copy.deepcopy(self.method).eval()
        set_statistics(network, gather_statistics(network).mean(0))
        with alone():
            mine = self._loss(network, epoch, progress)
        loss = float(broadcast(mine))
        if self.patience.improved(loss) and rank() == 0:
            backbone, notes = network.exported_backbone(), {**self.metadata, "validation_loss": f"{loss:.6g}"}
            save_backbone(self.out / BEST, plain_batch_norm(backbone), "timm", notes)
        if not self.method.comparable(epoch, progress):
            self.patience.restart()
        return {"val_loss": loss}

    def _loss(self, network: Method, epoch: float, progress: float) -> Tensor:
        device, losses = next(network.parameters()).device, []
        seed, size = self.views.seed, self.batch_size
        for batch in ImageBatches(
            self.images, batch_size=size, seed=seed, epochs=1.0, extras=self.extras, draw=self.views.draw
        ):
            views = self.views(batch.to(device)).at(epoch, progress)
            losses.append(network(views).total)
            network.after_step()
        return torch.stack(losses).double().mean()
