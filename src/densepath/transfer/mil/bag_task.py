"""Training a model of bags as a task of the training loop; it keeps the weights of its best epoch."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from math import ceil, cos, pi
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.checkpoint import checkpoint

from densepath.core.random import shuffled
from densepath.training.task import Task
from densepath.training.updates import Updates
from densepath.transfer.best_epoch import is_better
from densepath.transfer.mil.bags import Bag
from densepath.transfer.mil.models.base import BagModel, Solver, Standardization
from densepath.transfer.mil.objectives import Classification, Objective
from densepath.transfer.probe.metrics import Floats, Integers

_TILES = 7  # separates the random numbers of tiles from those of bags
_READ = 4096  # tiles whose mean is taken at a time
_ROWS = 128  # tiles that are converted at a time: as float32 they stay in the cache of a core


@dataclass(frozen=True, eq=False)
class BagSet:
    """Bags with their targets: those of training, of validation, or of the test, and no others.

    Args:
        bags: the bags.
        cases: (B,) the case of each bag, numbers from 0; cases with several bags get the mean of their answers.
        targets: (C, T) of the cases.
    """

    bags: list[Bag]
    cases: Integers
    targets: Floats

    def __len__(self) -> int:
        return len(self.bags)

    def names(self) -> list[str]:
        """The names of the bags."""
        return [bag.name for bag in self.bags]

    def mean_of_cases(self, answers: Floats) -> Floats:
        """(C, K) means of answers (B, K) over the bags of each case."""
        summed = np.zeros((len(self.targets), answers.shape[1]))
        np.add.at(summed, self.cases, answers)
        return summed / np.bincount(self.cases, minlength=len(summed))[:, None]

    def standardization(self) -> Standardization:
        """That of all tiles of these bags; a feature that is the same everywhere is only shifted."""
        count, mean, squares = 0, 0.0, 0.0
        for rows in (rows for bag in self.bags for rows in bag.tiles().split(_READ)):
            # Merges means and sums of squared differences, as sums of squares would cancel.
            tiles = rows.double().numpy()
            own, added = tiles.mean(0), len(tiles)
            squares = squares + ((tiles - own) ** 2).sum(0) + (own - mean) ** 2 * (count * added / (count + added))
            mean = mean + (own - mean) * (added / (count + added))
            count += added
        scale = np.sqrt(squares / count)
        scale[scale < 1e-6 * np.maximum(np.abs(mean), 1e-3)] = 1
        return Standardization(torch.from_numpy(mean), torch.from_numpy(scale))


@dataclass(frozen=True, eq=False)
class BagBatch:
    """The bags of a step.

    Args:
        tiles: (N, D) float16 of each bag.
        targets: (B, T).
        index: (B,) positions of the bags in their set.
    """

    tiles: list[Tensor]
    targets: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.tiles)


class BagBatches:
    """The bags in a new order for each epoch; a function of the seed, so that a run can be resumed anywhere.

    Args:
        bags: the training bags.
        size: bags per step.
        epochs: number of epochs.
        seed: seed of the orders.
        most: tiles of a bag, others are left out at random in each epoch; 0 for all.
    """

    def __init__(self, bags: BagSet, size: int, epochs: int, seed: int, most: int = 0) -> None:
        self._bags, self._size, self._seed, self._most = bags, size, seed, most
        self.per_epoch = ceil(len(bags) / size)
        self.start_step, self.total_steps = 0, self.per_epoch * epochs

    def __iter__(self) -> Iterator[BagBatch]:
        order, known = torch.empty(0, dtype=torch.int64), -1
        for step in range(self.start_step, self.total_steps):
            epoch, place = divmod(step, self.per_epoch)
            if epoch != known:
                order, known = shuffled(len(self._bags), self._seed, epoch), epoch
            index = order[place * self._size : (place + 1) * self._size]
            tiles = [self._chosen(int(position), epoch) for position in index]
            yield BagBatch(tiles, torch.from_numpy(self._bags.targets[self._bags.cases[index.numpy()]]).float(), index)

    def _chosen(self, position: int, epoch: int) -> Tensor:
        tiles = self._bags.bags[position].tiles()
        if not self._most or len(tiles) <= self._most:
            return tiles
        chosen = shuffled(len(tiles), self._seed + (_TILES << 40) + position, epoch)[: self._most]
        return tiles[chosen.sort()[0]]


class BagTask(Task):
    """Trains a model, and keeps a copy of it from the epoch that was best on the validation bags.

    It never sees a test bag.

    Args:
        model: the model.
        objective: the loss.
        solver: the optimizer, its schedule, and the number of epochs.
        validation: the validation bags.
        steps: steps of an epoch.
        mixed: whether features are bfloat16 in the network, as in mixed precision.
    """

    def __init__(
        self, model: BagModel, objective: Objective, solver: Solver, validation: BagSet, steps: int, mixed: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        self.chosen = deepcopy(model).requires_grad_(False)
        self.objective, self.solver, self.mixed = objective, solver, mixed
        self._validation, self._steps = validation, steps
        # Epochs done; of the weights that are kept: epoch from 1, 0 for none, score, and loss.
        self.register_buffer("record", torch.zeros(4, dtype=torch.float64))
        self.record: Tensor

    def updates(self) -> Updates:
        """Adam with L2 decay, or RAdam; the rate changes after each epoch."""
        solver = self.solver
        given: dict[str, Any] = {"lr": solver.lr, "betas": solver.betas, "weight_decay": solver.weight_decay}
        optimizer: torch.optim.Optimizer
        if solver.optimizer == "radam":
            optimizer = torch.optim.RAdam(self.model.parameters(), **given)
        else:
            optimizer = torch.optim.Adam(self.model.parameters(), **given, fused=True)
        last = min(1.0, solver.last_lr / solver.lr) if solver.lr else 0.0  # a lower rate of the user stays as it is

        def factor(step: int) -> float:
            passed = (step // self._steps) / solver.epochs
            return last + (1 - last) * (1 + cos(pi * passed)) / 2 if solver.schedule == "cosine" else 1.0

        return Updates(optimizer, LambdaLR(optimizer, factor))

    def inputs(self, batch: BagBatch) -> tuple[list[Tensor], Tensor]:
        device = self.record.device
        return [_ready(tiles, self.model, device, self.mixed) for tiles in batch.tiles], batch.targets.to(device)

    def forward(self, inputs: tuple[list[Tensor], Tensor]) -> dict[str, Tensor | float]:
        """The loss of the streams, and that of the tiles if the model has one.

        Of several bags only the outputs are kept: each is computed again in its backward pass, so that a step needs the
        memory of one bag.
        """
        bags, targets = inputs
        classes = isinstance(self.objective, Classification)
        labels = targets[:, 0].long().tolist() if classes else [None] * len(bags)
        own_outputs = self.model.training_outputs
        found = [
            checkpoint(own_outputs, bag, label, use_reentrant=False) if len(bags) > 1 else own_outputs(bag, label)
            for bag, label in zip(bags, labels, strict=True)
        ]
        outputs, further = zip(*found, strict=True)
        streams = torch.stack(outputs, 1)  # (S, B, K)
        loss = sum(
            weight * self.objective(stream, targets) for weight, stream in zip(self.model.streams, streams, strict=True)
        )
        own = [each for each in further if each is not None]
        if own:
            loss = loss + torch.stack(own).mean()
        return {"loss": loss}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Score the validation bags after an epoch; the weights are kept if no earlier ones were better.

        Better is a higher score: the mean AUC of the classes, the concordance of survival, less the squared error. Of
        equal scores the lower loss decides.
        """
        bags = self._validation
        outputs = self._outputs(self.model, bags)
        loss = float(self.objective(outputs, torch.from_numpy(bags.targets[bags.cases]).float()))
        score = self.objective.score(bags.mean_of_cases(self._answers(outputs)), bags.targets)
        self.record[0] += 1
        done, epoch, best, lowest = self.record.tolist()
        if not epoch or is_better((score, -loss), (best, -lowest)):
            self.chosen.load_state_dict(self.model.state_dict())
            self.record[1:] = torch.tensor([done, score, loss], dtype=torch.float64)
        return {"validation_loss": loss, "validation_score": score}

    def answers(self, bags: BagSet) -> Floats:
        """(C, K) the answers of the weights that were kept, for the cases of some bags."""
        return bags.mean_of_cases(self._answers(self._outputs(self.chosen, bags)))

    def _answers(self, outputs: Tensor) -> Floats:
        return self.objective.answers(outputs).double().numpy()

    @torch.no_grad()
    def _outputs(self, model: BagModel, bags: BagSet) -> Tensor:
        """(B, K) outputs for whole bags, on the CPU."""
        model.eval()
        return torch.stack([answer(model, bag, self.record.device, self.mixed)[0].cpu() for bag in bags.bags])


@torch.no_grad()
def answer(model: BagModel, bag: Bag, device: torch.device, mixed: bool) -> tuple[Tensor, Tensor]:
    """The outputs and the attention of a model for a whole bag, in the precision of training, as float32."""
    with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
        outputs, attention = model(_ready(bag.tiles(), model, device, mixed))
    return outputs.float(), attention.float()


def _ready(tiles: Tensor, model: BagModel, device: torch.device, mixed: bool) -> Tensor:
    """Features as a network takes them."""
    if model.takes_stored:
        return tiles.to(device)
    prepare = model.prepare
    on_device, dtype = tiles.to(device), torch.bfloat16 if mixed else torch.float32
    if not mixed or device.type != "cpu":
        return (on_device if prepare is None else prepare(on_device)).to(dtype)
    ready = torch.empty(tiles.shape, dtype=dtype)
    for rows, converted in zip(tiles.split(_ROWS), ready.split(_ROWS), strict=True):
        # On a CPU this is four times as fast as without float32.
        converted.copy_(rows.float() if prepare is None else prepare(rows))
    return ready
