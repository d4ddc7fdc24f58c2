"""Epochs of DSMIL: ``densepath mil``, compared with CLAM's layout of features that is read in each step.

CLAM and TRIDENT store features in HDF5 chunks of one tile; their loaders open a file and read it whole in each step,
as float32. The peer does this, with the step of DSMIL's released code. ``--memory`` measures the peak memory of a step
with a large bag for each model, ``--shuffled N`` whether shuffled labels give an AUC of 0.5.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import MIB, in_turns, isolated, parser, peak_memory, ratio, report, status_mib
from densepath.training.hardware import Hardware, choose_hardware, keep_freed_memory
from densepath.training.intervals import Intervals
from densepath.training.loop import train
from densepath.transfer.mil.bag_task import BagBatches, BagSet, BagTask
from densepath.transfer.mil.bags import read_bags
from densepath.transfer.mil.mil import mil
from densepath.transfer.mil.models import MODELS
from densepath.transfer.mil.models.dsmil import DSMIL
from densepath.transfer.mil.objectives import Classification


class Peer(nn.Module):
    """DSMIL in the form of its released code."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(dim, classes)
        self.q = nn.Sequential(nn.Linear(dim, 128), nn.ReLU(), nn.Linear(128, 128), nn.Tanh())
        self.fcc = nn.Conv1d(classes, classes, dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.fc(x)
        _, order = torch.sort(scores, 0, descending=True)
        queries = self.q(x)
        attention = torch.softmax(queries @ self.q(x[order[0]]).T / 128**0.5, 0)
        return self.fcc((attention.T @ x)[None]).view(1, -1), scores.max(0)[0].view(1, -1)


def peer_epoch(files: list[Path], model: Peer, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """A step for each file, which is read in it."""
    for number, path in enumerate(files):
        x = _read(path).to(device)
        truth = F.one_hot(torch.tensor([number % 2], device=device), 2).float()
        bag, critical = model(x)
        loss = F.binary_cross_entropy_with_logits(bag, truth) + F.binary_cross_entropy_with_logits(critical, truth)
        optimizer.zero_grad()
        (0.5 * loss).backward()
        optimizer.step()
        loss.item()


def _read(path: Path) -> Tensor:
    with h5py.File(path) as file:
        return torch.from_numpy(file["features"][:])


def bag_set(files: list[Path]) -> BagSet:
    """Read files as ``densepath mil`` does."""
    bags = read_bags([file.stem for file in files], [(file,) for file in files])
    return BagSet(bags, np.arange(len(files)), np.arange(len(files), dtype=float)[:, None] % 2)


def own_epochs(bags: BagSet, epochs: int, hardware: Hardware, folder: Path) -> None:
    """The training loop of ``densepath mil``, with a validation of one bag in each epoch."""
    shutil.rmtree(folder, ignore_errors=True)
    held = BagSet(bags.bags[:1], bags.cases[:1], bags.targets[:1])
    model = DSMIL(int(bags.bags[0].tiles().shape[1]), 2)
    batches = BagBatches(bags, 1, epochs, 0)
    mixed = hardware.precision == "bf16-mixed"
    task = BagTask(model, Classification(2, False), model.solver, held, batches.per_epoch, mixed)
    every = Intervals(log_every=batches.per_epoch, evaluate_every=batches.per_epoch)
    train(task, batches, folder, hardware=hardware, intervals=every, evaluate=task.evaluate, equal_shapes=False)


class BareSteps:
    """Steps of the model with bags that are already in its precision: a bound for any way to store and read bags."""

    def __init__(self, bags: BagSet, hardware: Hardware) -> None:
        mixed = hardware.precision == "bf16-mixed"
        self._model = DSMIL(int(bags.bags[0].tiles().shape[1]), 2)
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
        outputs, further = model.training_outputs(bag.to(torch.bfloat16 if mixed else torch.float32), 1)
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
    made.add_argument("--bags", type=int, default=16)
    made.add_argument("--tiles", type=int, default=4000)
    made.add_argument("--dim", type=int, default=1024)
    made.add_argument("--epochs", type=int, default=4, help="epochs of a measurement of densepath's loop")
    made.add_argument("--device", default="auto")
    made.add_argument("--precision", default="auto")
    made.add_argument("--memory", action="store_true")
    made.add_argument("--shuffled", type=int, default=0, metavar="N")
    asked = made.parse_args()
    hardware = choose_hardware(asked.device, asked.precision)
    keep_freed_memory(hardware)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if asked.shuffled:
            report("shuffled labels", [shuffled(asked.shuffled, 60, folder, "dsmil")], asked.json)
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
    peer = Peer(asked.dim, 2).to(hardware.device)
    optimizer = torch.optim.Adam(peer.parameters(), 2e-4, (0.5, 0.9), weight_decay=5e-2)
    kept = bag_set(ours)

    def cold(files: list[Path], own: bool) -> None:
        drop_from_cache(files)
        if own:
            own_epochs(bag_set(files), 1, hardware, folder / "run")
        else:
            peer_epoch(files, peer, optimizer, hardware.device)

    cases = {
        "clam warm": lambda: peer_epoch(theirs, peer, optimizer, hardware.device),
        "clam cold": lambda: cold(theirs, False),
        "clam warm, reading only": lambda: [_read(path) for path in theirs],
        "densepath, the model's steps only": BareSteps(kept, hardware),
        "densepath later epochs": lambda: own_epochs(kept, asked.epochs, hardware, folder / "run"),
        "densepath first epoch, cold, CLAM's files": lambda: cold(theirs, True),
        "densepath first epoch, cold, its own files": lambda: cold(ours, True),
    }
    seconds = in_turns(cases, asked.repeats, hardware.device, warmup=1)
    seconds["densepath later epochs"] = [value / asked.epochs for value in seconds["densepath later epochs"]]
    rows = [
        {
            "case": name,
            "bags_per_second": asked.bags / statistics.median(values),
            "times_clam_warm": ratio(seconds["clam warm"], values),
            "times_clam_cold": ratio(seconds["clam cold"], values),
        }
        for name, values in seconds.items()
    ]
    title = f"DSMIL, {asked.bags} bags of {asked.tiles} x {asked.dim}, {hardware.kind}, {hardware.precision}"
    report(title, rows, asked.json)


if __name__ == "__main__":
    main()
