"""Epochs of DSMIL: ``densepath mil``, compared with CLAM's layout of features that is read in each step.

CLAM and TRIDENT store features in HDF5 chunks of one tile; their loaders open a file and read it whole in each step,
as float32. The peer does this, with the step of DSMIL's released code: ``--model dsmil`` is its present version,
``dsmil_linear`` the one that was released with the paper. ``--memory`` measures the peak memory of a step with a large
bag for each model, ``--shuffled N`` whether shuffled labels give an AUC of 0.5.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import MIB, at_least, in_turns, isolated, parser, peak_memory, ratio, report, status_mib
from densepath.training.hardware import Hardware, choose_hardware, keep_freed_memory
from densepath.training.intervals import Intervals
from densepath.training.loop import train
from densepath.transfer.mil.bag_task import BagBatches, BagSet, BagTask
from densepath.transfer.mil.bags import read_bags
from densepath.transfer.mil.mil import mil
from densepath.transfer.mil.models import MODELS
from densepath.transfer.mil.objectives import Classification

CACHES = ("warm", "cold")


class Peer(nn.Module):
    """DSMIL in the form of its released code.

    Args:
        dim, classes: D and K.
        linear: queries are linear.
        values: values are linear; otherwise they are the features.
    """

    def __init__(self, dim: int, classes: int, linear: bool, values: bool) -> None:
        super().__init__()
        deep = nn.Sequential(nn.Linear(dim, 128), nn.ReLU(), nn.Linear(128, 128), nn.Tanh())
        self.fc = nn.Linear(dim, classes)
        self.q = nn.Linear(dim, 128) if linear else deep
        self.v = nn.Linear(dim, dim) if values else nn.Identity()
        self.fcc = nn.Conv1d(classes, classes, dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.fc(x)
        _, order = torch.sort(scores, 0, descending=True)
        queries = self.q(x)
        attention = torch.softmax(queries @ self.q(x[order[0]]).T / 128**0.5, 0)
        return self.fcc((attention.T @ self.v(x))[None]).view(1, -1), scores.max(0)[0].view(1, -1)


class PeerTraining:
    """Epochs of the peer: a step for each file, which is read in it."""

    def __init__(self, dim: int, device: torch.device, linear: bool, values: bool) -> None:
        self._device, self._model = device, Peer(dim, 2, linear, values).to(device)
        self._optimizer = torch.optim.Adam(self._model.parameters(), 2e-4, (0.5, 0.9), weight_decay=5e-2)

    def epoch(self, files: list[Path]) -> None:
        for number, path in enumerate(files):
            x = _read(path).to(self._device)
            truth = F.one_hot(torch.tensor([number % 2], device=self._device), 2).float()
            bag, critical = self._model(x)
            loss = F.binary_cross_entropy_with_logits(bag, truth) + F.binary_cross_entropy_with_logits(critical, truth)
            self._optimizer.zero_grad()
            (0.5 * loss).backward()
            self._optimizer.step()
            loss.item()


def _read(path: Path) -> Tensor:
    with h5py.File(path) as file:
        return torch.from_numpy(file["features"][:])


def bag_set(files: list[Path]) -> BagSet:
    """Read files as ``densepath mil`` does."""
    bags = read_bags([file.stem for file in files], [(file,) for file in files])
    return BagSet(bags, np.arange(len(files)), np.arange(len(files), dtype=float)[:, None] % 2)


def own_epochs(name: str, bags: BagSet, epochs: int, hardware: Hardware, folder: Path) -> None:
    """The training loop of ``densepath mil``, with a validation of one bag in each epoch."""
    shutil.rmtree(folder, ignore_errors=True)
    held = BagSet(bags.bags[:1], bags.cases[:1], bags.targets[:1])
    model = MODELS[name](int(bags.bags[0].tiles().shape[1]), 2)
    batches = BagBatches(bags, 1, epochs, 0)
    mixed = hardware.precision == "bf16-mixed"
    task = BagTask(model, Classification(2, False), model.solver, held, batches.per_epoch, mixed)
    every = Intervals(log_every=batches.per_epoch, evaluate_every=batches.per_epoch)
    train(task, batches, folder, hardware=hardware, intervals=every, evaluate=task.evaluate, equal_shapes=False)


class BareSteps:
    """Steps of the model with bags that are already as it takes them: a bound for any way to store and read bags."""

    def __init__(self, name: str, bags: BagSet, hardware: Hardware) -> None:
        mixed = hardware.precision == "bf16-mixed"
        self._model = MODELS[name](int(bags.bags[0].tiles().shape[1]), 2)
        self._task = BagTask(self._model, Classification(2, False), self._model.solver, bags, len(bags), mixed)
        self._task.to(hardware.device)
        self._optimizer, self._mixed, self._kind = self._task.updates().optimizer, mixed, hardware.kind
        self._ready = [self._task.inputs(batch) for batch in BagBatches(bags, 1, 1, 0)]

    def __call__(self) -> None:
        for inputs in self._ready:
            with torch.autocast(self._kind, torch.bfloat16, enabled=self._mixed):
                loss = self._task(inputs)["loss"]
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()


def write_files(folder: Path, bags: int, tiles: int, dim: int) -> tuple[list[Path], list[Path]]:
    """The same features in CLAM's layout (float32, chunks of a tile) and in densepath's (float16, contiguous)."""
    rng, theirs, ours = np.random.default_rng(0), [], []
    for name in ("clam", "own"):
        (folder / name).mkdir()
    for number in range(bags):
        values = rng.standard_normal((tiles, dim), dtype=np.float32)
        theirs.append(folder / "clam" / f"{number}.h5")
        with h5py.File(theirs[-1], "w") as file:
            file.create_dataset("features", data=values, chunks=(1, dim), maxshape=(None, dim))
        ours.append(folder / "own" / f"{number}.h5")
        with h5py.File(ours[-1], "w") as file:
            file["features"] = values.astype(np.float16)
    return theirs, ours


def drop_from_cache(files: list[Path]) -> None:
    """Remove files from the system's cache."""
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def step_memory(name: str, tiles: int, dim: int, mixed: bool) -> float:
    """MiB that a training step with a bag takes at most, besides the float16 bag."""
    bag = torch.randn(tiles, dim, dtype=torch.float16)
    model = MODELS[name](dim, 2)
    before, result = status_mib("VmRSS"), dict[str, float]()
    with peak_memory(bag.device, result), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        ready = bag if model.takes_stored else bag.to(torch.bfloat16 if mixed else torch.float32)
        outputs, further = model.training_outputs(ready, 1)
        (outputs.sum() + (0 if further is None else further)).backward()
    return result["peak_mib"] - before


def shuffled(repeats: int, patients: int, folder: Path, model: str) -> dict[str, Any]:
    """Macro AUC with labels that the features do not know; a tool that stops on its test fold is above 50."""
    rng, values, covered = np.random.default_rng(0), [], 0
    (folder / "f").mkdir()
    for repeat in range(repeats):
        for number in range(patients):
            torch.save(torch.from_numpy(rng.standard_normal((30, 16), dtype=np.float32)), folder / f"f/{number}.pt")
        labels = rng.permutation(np.arange(patients) % 2)
        lines = [f"{number},{number},{'ab'[label]}" for number, label in enumerate(labels)]
        (folder / "t.csv").write_text("\n".join(["case_id,slide_id,label", *lines]) + "\n")
        options: dict[str, Any] = {"epochs": 4, "folds": 3, "seed": repeat, "attention": 0, "model": model}
        out = mil(data=folder / "f", table=folder / "t.csv", out=folder / f"r{repeat}", lr=[1e-3], **options)
        score = json.loads((out / "scores.json").read_text())["scores"]["macro_auc"]
        values.append(score["value"])
        covered += score["low"] <= 50 <= score["high"]
    return {
        "case": f"{repeats} repeats, {patients} patients",
        "macro_auc": statistics.mean(values),
        "standard_error": statistics.stdev(values) / repeats**0.5,
        "lowest": min(values),
        "highest": max(values),
        "intervals_with_50": covered,
    }


def main() -> None:
    """Measure epochs in turns; or memory; or shuffled labels."""
    made = parser(__doc__.splitlines()[0])
    made.add_argument("--model", choices=("dsmil", "dsmil_linear"), default="dsmil")
    made.add_argument("--bags", type=int, default=16)
    made.add_argument("--tiles", type=int, default=4000)
    made.add_argument("--dim", type=int, default=1024)
    made.add_argument("--epochs", type=int, default=4, help="epochs of a measurement of densepath's loop")
    made.add_argument("--device", default="auto")
    made.add_argument("--precision", default="auto")
    made.add_argument("--memory", action="store_true")
    made.add_argument("--shuffled", type=at_least(2), default=0, metavar="N")
    asked = made.parse_args()
    hardware = choose_hardware(asked.device, asked.precision)
    keep_freed_memory(hardware)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if asked.shuffled:
            report("shuffled labels", [shuffled(asked.shuffled, 60, folder, asked.model)], asked.json)
        elif asked.memory:
            mixed = hardware.precision == "bf16-mixed"
            rows = [
                {"case": name, "peak_mib": isolated(step_memory, name, asked.tiles, asked.dim, mixed)}
                for name in MODELS
            ]
            bag = asked.tiles * asked.dim * 2 / MIB
            report(f"a step with {asked.tiles} tiles x {asked.dim} ({bag:.0f} MiB)", rows, asked.json)
        else:
            _epochs(asked, hardware, folder)


def _epochs(asked: Any, hardware: Hardware, folder: Path) -> None:
    theirs, ours = write_files(folder, asked.bags, asked.tiles, asked.dim)
    linear = asked.model == "dsmil_linear"
    peers = {"clam": PeerTraining(asked.dim, hardware.device, linear, values=linear)}
    if linear:
        peers["clam, values are features"] = PeerTraining(asked.dim, hardware.device, True, values=False)
    kept = bag_set(ours)

    def train(bags: BagSet, epochs: int = 1) -> None:
        own_epochs(asked.model, bags, epochs, hardware, folder / "run")

    cases: dict[str, Callable[[], Any]] = {}
    for name, peer in peers.items():
        cases[f"{name}, warm"] = partial(peer.epoch, theirs)
        cases[f"{name}, cold"] = partial(cold, peer.epoch, theirs)
    cases |= {
        "clam warm, reading only": lambda: [_read(path) for path in theirs],
        "densepath, the model's steps only": BareSteps(asked.model, kept, hardware),
        "densepath later epochs": lambda: train(kept, asked.epochs),
        "densepath first epoch, cold, CLAM's files": lambda: cold(lambda files: train(bag_set(files)), theirs),
        "densepath first epoch, cold, its own files": lambda: cold(lambda files: train(bag_set(files)), ours),
    }
    seconds = in_turns(cases, asked.repeats, hardware.device, warmup=1)
    seconds["densepath later epochs"] = [value / asked.epochs for value in seconds["densepath later epochs"]]
    rows = [
        {"case": case, "bags_per_second": asked.bags / statistics.median(values)}
        | {f"times {name}, {cache}": ratio(seconds[f"{name}, {cache}"], values) for name in peers for cache in CACHES}
        for case, values in seconds.items()
    ]
    title = f"{asked.model}, {asked.bags} bags of {asked.tiles} x {asked.dim}, {hardware.kind}, {hardware.precision}"
    report(title, rows, asked.json)


def cold(epoch: Callable[[list[Path]], None], files: list[Path]) -> None:
    """An epoch of files that are not in the system's cache."""
    drop_from_cache(files)
    epoch(files)


if __name__ == "__main__":
    main()
