"""A module and batches so small that hundreds of steps take a moment."""

from pathlib import Path

import torch
from torch import nn

from densepath.training.hardware import choose_hardware
from densepath.training.intervals import Intervals
from densepath.training.loop import train
from densepath.training.task import Task
from densepath.training.updates import Updates


class Rows:
    """A batch of rows with their positions."""

    def __init__(self, values, index):
        self.values, self.index = values, index

    def __len__(self):
        return len(self.index)


class ToyBatches:
    """Step s of a run takes the rows sG to (s + 1)G, whatever the number of processes."""

    def __init__(self, total_steps, size=6, rank=0, world_size=1):
        self.total_steps, self.start_step = total_steps, 0
        self.size, self.rank, self.world_size = size, rank, world_size

    def __iter__(self):
        torch.rand(1)  # as loaders do that draw a seed when they start
        for step in range(self.start_step, self.total_steps):
            first = (step * self.world_size + self.rank) * self.size
            index = torch.arange(first, first + self.size)
            yield Rows(torch.sin(index[:, None] * torch.arange(1.0, 5.0)), index)


class Toy(Task):
    """Linear regression; with ``noise`` it draws from torch's generator."""

    def __init__(self, noise=1.0, at_step=None):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(4, 2)
        self.noise = noise
        self.at_step = at_step or {}
        self.seen = []
        self.hooks = []

    def inputs(self, batch):
        return batch

    def before_step(self, inputs, long_work):
        self.hooks.append(("before", len(self.seen), inputs.index.tolist()))

    def after_step(self):
        self.hooks.append(("after", len(self.seen), self.net.weight.detach().clone()))

    def forward(self, batch):
        number = len(self.seen)
        self.seen.append(batch.index.tolist())
        factor = 1.0
        if number in self.at_step:
            factor = self.at_step[number]() or 1.0
        values = batch.values + self.noise * torch.randn_like(batch.values)
        loss = (self.net(values) - batch.values[:, :2]).square().mean()
        return {"loss": loss * factor, "norm": self.net.weight.detach().norm()}

    def updates(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.99**step)
        return Updates(optimizer, schedule)


def fit_toy(out: Path, steps: int, module=None, size=6, accumulate=1, intervals=None, **options):
    """Train a toy on the CPU and return it."""
    module = module or Toy()
    hardware = choose_hardware(options.pop("devices", "cpu"), "32")
    batches = ToyBatches(steps * accumulate, size, hardware.rank, hardware.world_size)
    intervals = intervals or Intervals(log_every=5)
    train(module, batches, out, hardware=hardware, intervals=intervals, accumulate=accumulate, **options)
    return module
