"""Images that are held out of pre-training: chosen by patient, and the method's loss on them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from densepath.annotations.patients import check_spelling, owners_by_name, owners_of_volumes
from densepath.core.distributed import alone, broadcast, rank
from densepath.core.errors import UserError, counted
from densepath.core.files import atomic_write
from densepath.core.output_names import names_below
from densepath.core.random import ordered_by_seed
from densepath.methods.base import Method
from densepath.nets.norms import plain_batch_norm
from densepath.nets.running_statistics import gather_statistics, set_statistics
from densepath.nets.weights import save_backbone
from densepath.runs.folder import BEST
from densepath.sources.image_files import ImageFiles
from densepath.sources.loader import ImageBatches
from densepath.sources.names import AllNames
from densepath.sources.packed import PackedTiles
from densepath.sources.per_image import PerImage
from densepath.sources.pixel_source import PixelSource
from densepath.sources.volumes.store import VolumeStore
from densepath.views.maker import ViewMaker

# Lists in a run folder: what the run learns from, is validated on, and what --fraction leaves to other runs
USED, HELD, LEFT = "images.txt", "validation_images.txt", "other_images.txt"


def hold_out_images(
    images: PixelSource, data: str | Path, share: float, seed: int, resumed: Path | None = None
) -> tuple[Tensor, Tensor]:
    """Divide images into those to train on and those to validate on; a patient is in one of them.

    Patients are those of :func:`owners_of`; any other image is a patient of its own. The division does not depend on
    where files lie, or how their folder is named.

    Args:
        images: the source.
        data: where it was found.
        share: the share of the images to hold out, which is reached with the last patient.
        seed: decides which.
        resumed: the folder of a run that is resumed, which keeps its division.

    Returns:
        The positions of both, ascending.

    Raises:
        UserError: they are tiles of slides, or all are of one patient.
    """
    owners = owners_of(images, data, resumed is not None)
    if owners is None:
        raise UserError("--val_share needs image files, a packed store or a store of volumes; leave it out for slides")
    if resumed is not None and (recorded := recorded_division(resumed, images, [USED], [HELD])):
        return recorded
    groups: dict[str, list[int]] = {owner: [] for owner in ordered_by_seed(set(owners), seed)}
    for number, owner in enumerate(owners):
        groups[owner].append(number)
    held: list[int] = []
    for numbers in groups.values():
        if len(held) >= share * len(owners):
            break
        held += numbers
    if len(held) == len(owners):
        what = "patient" if len(groups) < len(owners) else "image"
        raise UserError(f"--val_share {share} leaves no {what} to train on; give a smaller share, or more {what}s")
    kept = sorted({*range(len(owners))}.difference(held))
    return torch.tensor(kept), torch.tensor(sorted(held))


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


def recorded_division(
    out: Path, images: PixelSource, used: Sequence[str], others: Sequence[str]
) -> tuple[Tensor, Tensor] | None:
    """The division of images that a run has recorded in its folder; None if it has recorded none of these images.

    Names are compared below the folder that they have in common: the images may have moved.

    Args:
        out: the folder of the run.
        images: the source.
        used, others: the names of the lists of both parts.

    Returns:
        The positions of both, ascending.
    """
    first, second = ([name for each in lists for name in _read_list(out / each)] for lists in (used, others))
    before, now = names_below([*first, *second]), names_below(AllNames(images))
    kept, held = {*before[: len(first)]}, {*before[len(first) :]}
    if sorted(before) != sorted(now) or not (kept and held) or kept & held:
        return None
    is_kept = torch.tensor([name in kept for name in now])
    return is_kept.nonzero().flatten(), (~is_kept).nonzero().flatten()


def owners_of(images: PixelSource, data: str | Path, resumed: bool = False) -> list[str] | None:
    """The patient of each image, its name where patients are unknown; None for tiles of slides.

    Names of files are those below their common folder: see :func:`named_below`.

    Args:
        images: the source.
        data: where it was found.
        resumed: whether a run is resumed, which keeps its division: a patient with two names is only reported then.

    Raises:
        UserError: a patient has two names.
    """
    if not isinstance(images, VolumeStore | ImageFiles | PackedTiles):
        return None
    names = list(AllNames(images))
    known = owners_of_volumes(images.rows, data) if isinstance(images, VolumeStore) else owners_by_name(data, names)
    check_spelling(known[0], names, data, warn=resumed)
    return named_below(known[0], names) if isinstance(images, ImageFiles) else known[0]


def named_below(owners: Sequence[str], names: Sequence[str]) -> list[str]:
    """The patients of image files, with the paths of images of unknown patients relative to the folder of all images:
    a division by them does not depend on where the files lie, or how their folder is named.

    Args:
        owners: the patient of each image, or its path.
        names: the paths of the images.
    """
    below = names_below(names)
    return [own if owner == name else owner for owner, name, own in zip(owners, names, below, strict=True)]


def write_lists(out: Path, lists: Mapping[str, PixelSource], resumed: bool) -> None:
    """Write the names of images, of files their absolute paths: ``--data`` takes such a list of files.

    A run that is resumed keeps the lists of another division than this: it may be refused, and its division is recorded
    nowhere else. All are complete before the first is replaced.

    Args:
        out: the folder of the run.
        lists: the images of each list, by its file name.
        resumed: whether a run is resumed from a checkpoint.
    """
    now = {name: _names(images) for name, images in lists.items()}
    before = {name: _read_list(out / name) for name in lists}
    sizes, sizes_before = ([len(names) for names in each.values()] for each in (now, before))
    same = sizes == sizes_before and names_below(chain(*now.values())) == names_below(chain(*before.values()))
    with ExitStack() as stack:
        for name, names in now.items():
            if not resumed or same or not before[name]:
                part = stack.enter_context(atomic_write(out / name))
                lines = "".join(f"{line}\n" for line in names)
                part.write_text(lines, encoding="utf-8", errors="surrogateescape")


def _names(images: PixelSource) -> list[str]:
    names = AllNames(images)
    return [str(Path(name).absolute()) for name in names] if isinstance(images, ImageFiles) else list(names)


def _read_list(path: Path) -> list[str]:
    """The names in a list of :func:`write_lists`; none if it is missing."""
    with suppress(OSError):
        return path.read_bytes().decode("utf-8", "surrogateescape").split("\n")[:-1]
    return []


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
            views = replace(self.views(batch.to(device)), epoch=epoch, progress=progress, draws_epoch=0)
            losses.append(network(views).total)
            network.after_step()
        return torch.stack(losses).double().mean()
