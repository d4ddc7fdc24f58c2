"""Compares lightly's MoCo-v2 and DenseCL with densepath's methods: same tiles, budget, backbone and probe.

Each is trained twice: as in lightly's documentation, and with the learning rate, momentum and number of keys that
``glas_probe`` gives to densepath's MoCo-v2 for runs this short. Views, heads and losses stay lightly's own. A result is
kept in ``--out``, so the same command continues after a stop.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.measure import report

SETTINGS = {"as documented": [], "for short runs": ["--lr", "0.2", "--momentum", "0.99", "--memory", "512"]}


def score(method: str, setting: str, seed: int, asked: Any) -> dict[str, float]:
    """The probe's scores of one run; it is trained if it is not there yet."""
    folder = asked.out / f"{method}-{setting.replace(' ', '_')}-{seed}"
    weights, scores = folder / "weights.safetensors", folder / "probe.json"
    if not weights.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        part = weights.with_suffix(".part")
        command = ["benchmarks.peers", "--method", method, "--data", asked.tiles, "--backbone", asked.backbone]
        command += ["--size", asked.size, "--batch_size", asked.batch_size, "--workers", asked.workers, "--seed", seed]
        command += ["--steps", asked.steps, "--skip", 1, "--channels_last", "--save", part, "--device", "cpu"]
        _run([*command, "--precision", asked.precision, *SETTINGS[setting]])
        part.replace(weights)
    if not scores.is_file():
        command = ["densepath", "probe", "--data", asked.data, "--weights", weights, "--backbone", asked.backbone]
        _run([*command, "--devices", "cpu", "--seed", seed, "--out", scores])
    return json.loads(scores.read_text())


def _run(words: list[Any]) -> None:
    subprocess.run([sys.executable, "-m", *map(str, words)], check=True)


def main() -> None:
    """Train and probe what is missing, and print a table."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--data", type=Path, required=True, help="labelled data for the probe")
    made.add_argument("--tiles", type=Path, required=True)
    made.add_argument("--out", type=Path, required=True)
    made.add_argument("--backbone", default="regnetx_002")
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    made.add_argument("--steps", type=int, default=250)
    made.add_argument("--batch_size", type=int, default=64)
    made.add_argument("--size", type=int, default=96)
    made.add_argument("--workers", type=int, default=1)
    made.add_argument("--precision", default="bf16-mixed")
    made.add_argument("--json", help="a file for the results")
    asked = made.parse_args()
    rows = []
    for method in ("moco_v2", "densecl"):
        for setting in SETTINGS:
            found = [score(method, setting, seed, asked)["mean_iou"] for seed in asked.seeds]
            row = {"case": f"{method}, {setting}", "mean_iou": statistics.fmean(found)}
            rows.append(row | {f"seed_{seed}": value for seed, value in zip(asked.seeds, found, strict=True)})
    report("mean IoU of the probe", rows, asked.json)


if __name__ == "__main__":
    main()
