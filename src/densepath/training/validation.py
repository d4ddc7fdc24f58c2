"""Images that are held out of pre-training: chosen by patient, and the method's loss on them."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from densepath.annotations.patients import patients_of
from densepath.core.distributed import alone, broadcast, rank
from densepath.core.errors import UserError
from densepath.core.files import atomic_write
from densepath.core.random import ordered_by_seed
from densepath.methods.base import Method
from densepath.nets.norms import gather_statistics, plain_batch_norm, set_statistics
from densepath.nets.weights import save_backbone
from densepath.sources.image_files import ImageFiles
from densepath.sources.loader import ImageBatches
from densepath.sources.pixel_source import PixelSource
from densepath.sources.restrict import take
from densepath.views.maker import ViewMaker

LISTS = ("images.txt", "validation_images.txt")  # in a run folder
BEST = Path("exported") / "best.safetensors"
# NIH ChestX-ray14: 00001280_004.png; CheXpert: patient00001/study1/view1_frontal.jpg
_PATIENT = re.compile(r"(?:^|/)(?:(patient\d+)/|(\d{8})_\d{3}\.)")


def hold_out_images(images: PixelSource, data: str | Path, share: float, seed: int) -> tuple[PixelSource, PixelSource]:
    """Divide image files into those to train on and those to validate on; a patient is in one of them.

    Patients are known from a manifest (see :func:`~densepath.annotations.patients.patients_of`), or from names as those
    of ChestX-ray14 and CheXpert; any other image is a patient of its own.

    Args:
        images: the source.
        data: where it was found.
        share: the share of the images to hold out, which is reached with the last patient.
        seed: decides which.

    Raises:
        UserError: they are not image files, or all are of one patient.
    """
    if not isinstance(images, ImageFiles):
        raise UserError("--val_share needs image files; leave it out for slides and packed stores")
    names = [str(images.paths[number]) for number in range(len(images))]
    known = patients_of(data, names)
    owners = [known.get(name) or _in_name(name) for name in names]
    groups: dict[str, list[int]] = {owner: [] for owner in ordered_by_seed(set(owners), seed)}
    for number, owner in enumerate(owners):
        groups[owner].append(number)
    held: list[int] = []
    for numbers in groups.values():
        if len(held) >= share * len(names):
            break
        held += numbers
    if len(held) == len(names):
        raise UserError(f"--val_share {share} leaves no patient to train on; give a smaller share, or more patients")
    kept = sorted({*range(len(names))}.difference(held))
    return take(images, torch.tensor(kept)), take(images, torch.tensor(sorted(held)))


def write_lists(out: Path, *sources: PixelSource) -> None:
    """Write the paths of the images of both sources to the run folder; ``--data`` takes such lists."""
    for name, images in zip(LISTS, sources, strict=True):
        assert isinstance(images, ImageFiles)
        with atomic_write(out / name) as part:
            lines = (f"{Path(images.paths[number]).absolute()}\n" for number in range(len(images)))
            part.write_text("".join(lines), errors="surrogateescape")


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
        self.lowest.fill_(min(loss, float(self.lowest)))
        self.since.copy_(torch.zeros_like(self.since) if better else self.since + 1)
        return better

    def ended(self) -> bool:
        """Whether the run ends."""
        return 0 < self.evaluations <= int(self.since)


class Validation:
    """Computes the loss of a method on held-out images, always with the same views, and keeps its best backbone.

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
    ) -> None:
        if method.needs():
            raise UserError("--val_share is for methods that need only images; leave it out")
        self.method, self.views, self.images = method, views, images
        self.batch_size, self.patience = min(batch_size, len(images)), patience
        self.out, self.metadata = out, dict(metadata)

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """The mean loss; a backbone with the lowest is written to ``exported/best.safetensors``."""
        network = copy.deepcopy(self.method).eval()
        set_statistics(network, gather_statistics(network).mean(0))
        with alone():
            mine = self._loss(network)
        loss = float(broadcast(mine))
        if self.patience.improved(loss) and rank() == 0:
            backbone, notes = network.exported_backbone(), {**self.metadata, "validation_loss": f"{loss:.6g}"}
            save_backbone(self.out / BEST, plain_batch_norm(backbone), "timm", notes)
        return {"val_loss": loss}

    def _loss(self, network: Method) -> Tensor:
        device, losses = next(network.parameters()).device, []
        for batch in ImageBatches(self.images, batch_size=self.batch_size, seed=self.views.seed, epochs=1.0):
            losses.append(network(self.views(batch.to(device))).total)
            network.after_step()
        return torch.stack(losses).double().mean()


def _in_name(name: str) -> str:
    match = _PATIENT.search(name)
    return name if match is None else match[1] or match[2]
