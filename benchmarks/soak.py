"""Checks that memory stays flat over thousands of steps of a real, tiny pre-training; exits with 1 otherwise.

The resident memory of this process and its workers is sampled during the run. The growth is the slope of a line
through the samples without the first steps, in which allocators still grow.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from statistics import linear_regression
from typing import Any

from densepath.synthetic.tissue import write_tiles
from densepath.training.pretrain import pretrain
from densepath.training.pretrain_task import PretrainTask

SETTLED = 0.3  # share of the run after which memory must be flat
SAMPLES = 40
LIMIT = 4.0  # MiB per 1,000 steps
_TILES, _BATCH = 96, 16


def soak(
    steps: int, *, method: str = "concl", backbone: str = "test_resnet", view_size: int = 48, workers: int = 0
) -> list[tuple[int, float]]:
    """Pre-train for some steps and return (steps done, MiB) at regular intervals."""
    samples: list[tuple[int, float]] = []
    queues = {"queue_size": 256} | ({"concept_queue_size": 512, "stage": 3} if method == "concl" else {})
    with tempfile.TemporaryDirectory() as folder, _sampled(max(1, steps // SAMPLES), samples):
        write_tiles(Path(folder, "tiles"), _TILES, 2 * view_size, seed=0)
        pretrain(
            data=Path(folder, "tiles"),
            out=Path(folder, "run"),
            method=method,
            method_options=queues,
            backbone=backbone,
            view_size=view_size,
            batch_size=_BATCH,
            max_steps=steps,
            workers=workers,
            cache="none",
            devices="cpu",
            save_every_steps=max(1, steps // 10),
            log_every=10,
        )
    return samples


def growth(samples: list[tuple[int, float]]) -> float:
    """MiB per 1,000 steps."""
    settled = [(step, size) for step, size in samples if step >= SETTLED * samples[-1][0]]
    return 1000 * linear_regression(*zip(*settled, strict=True)).slope


def resident_mib(pid: int | str = "self") -> float:
    """Memory of a process and its children."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = [c for task in Path(f"/proc/{pid}/task").iterdir() for c in (task / "children").read_text().split()]
    except FileNotFoundError:  # it has just ended
        return 0.0
    own = int(status.partition("VmRSS:")[2].split()[0]) / 1024 if "VmRSS:" in status else 0.0
    return own + sum(resident_mib(child) for child in children)


@contextmanager
def _sampled(every: int, samples: list[tuple[int, float]]) -> Iterator[None]:
    """Sample the memory in every ``every``-th step of pre-training."""
    forward, calls = PretrainTask.forward, count()

    def sampled(self: PretrainTask, inputs: Any) -> Any:
        step = next(calls)
        if step % every == 0:
            samples.append((step, resident_mib()))
        return forward(self, inputs)

    PretrainTask.forward = sampled  # type: ignore[method-assign]
    try:
        yield
    finally:
        PretrainTask.forward = forward  # type: ignore[method-assign]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--method", default="concl", choices=["concl", "moco_v2"])
    parser.add_argument("--backbone", default="test_resnet", help="a timm name")
    parser.add_argument("--view_size", type=int, default=48, help="pixels")
    parser.add_argument("--workers", type=int, default=0, help="number of processes that decode images")
    parser.add_argument("--limit", type=float, default=LIMIT, help="allowed growth in MiB per 1,000 steps")
    asked = vars(parser.parse_args())
    limit = asked.pop("limit")
    samples = soak(**asked)
    for step, size in samples[:: max(1, len(samples) // 10)]:
        print(f"step {step:6}  {size:8.1f} MiB")
    grown = growth(samples)
    print(f"{grown:+.2f} MiB per 1,000 steps over {asked['steps']} steps; the limit is {limit}")
    return int(grown > limit)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
