"""``densepath pretrain`` as a user runs it, compared with lightly and Lightning, and with the bare step.

Each run is a separate process that reads a folder of JPEGs (densepath: also a packed store). Images per second do not
include the first steps; memory is that of the process and its workers. The runs alternate.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import PEERS, TreeMemory, parser, report
from benchmarks.tiles import jpeg_folder
from densepath.runs.metrics import read_metrics
from densepath.sources.packing import pack

_SKIP = 5  # first steps, which are not measured


def run(command: list[str]) -> tuple[str, float]:
    """The output of a process, and the peak memory in MiB of it and its children."""
    process = subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with TreeMemory(process.pid) as memory:
        printed, errors = process.communicate()
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{errors.decode()}")
    return printed.decode(), memory.peak_mib


def densepath_run(recipe: str, data: Path, asked: Any) -> dict[str, float]:
    """Images per second and memory of ``densepath pretrain``."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "run")
        command = ["densepath", "pretrain", "--config", recipe, "--data", data, "--out", out]
        command += ["--max_steps", asked.steps, "--batch_size", asked.batch_size, "--view_size", asked.size]
        command += ["--backbone", asked.backbone, "--precision", asked.precision, "--log_every", _SKIP]
        command += ["--devices", asked.devices, "--cache", asked.cache]
        if recipe.startswith("concl"):
            command += ["--method.warmup", 0]
        if asked.batch_size % 32 and not recipe.startswith("dino"):  # transformers have no batch norms
            command += ["--batch_norm_group", 0]
        if recipe == "dino":
            command += ["--optimizer.freeze_epochs", 0]  # frozen prototypes need no gradients; lightly computes them
        _, memory = run([str(word) for word in command])
        rows = [row for row in read_metrics(out / "metrics.csv") if row["step"] > _SKIP]
    return {
        "images_per_second": statistics.harmonic_mean([row["images_per_second"] for row in rows]),
        "data_wait_%": 100 * statistics.fmean(row["waiting"] for row in rows),
        "peak_mib_of_the_host": memory,
    }


def lightly_run(method: str, data: Path, workers: int, asked: Any) -> dict[str, float]:
    """Images per second and memory of lightly."""
    command = ["benchmarks.peers", "--method", method, "--data", data, "--backbone", asked.backbone]
    command += ["--size", asked.size, "--batch_size", asked.batch_size, "--workers", workers]
    command += ["--steps", asked.steps, "--skip", _SKIP]
    if asked.devices.startswith("cpu"):
        command += ["--device", "cpu"]
    command += ["--precision", {"32": "32-true"}.get(asked.precision, "bf16-mixed"), "--channels_last"]
    printed, memory = run([str(word) for word in command])
    return json.loads(printed.splitlines()[-1]) | {"peak_mib_of_the_host": memory}


def bare(recipe: str, asked: Any) -> float:
    """Images per second of the bare passes of a recipe."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "step.json")
        command = ["benchmarks.step", "--method", recipe, "--size", asked.size, "--batch_size", asked.batch_size]
        command += ["--backbone", asked.backbone, "--precision", asked.precision, "--repeats", 3, "--json", out]
        command += ["--device", asked.devices]
        run([str(word) for word in command])
        (rows,) = json.loads(out.read_text())["tables"].values()
        return rows[0]["bare_images_per_second"]


def main() -> None:
    """Measure all of them, alternating."""
    made = parser(__doc__.splitlines()[0])
    made.set_defaults(repeats=3)
    made.add_argument("--method", nargs="+", default=["moco_v2", "concl"], help="recipes")
    made.add_argument("--peer", nargs="*", default=["moco_v2", "densecl"], choices=PEERS)
    made.add_argument("--peer_workers", type=int, nargs="+", default=[1, len(os.sched_getaffinity(0))])
    made.add_argument("--backbone", default="resnet18")
    made.add_argument("--size", type=int, default=224, help="size of the views in pixels")
    made.add_argument("--image_size", type=int, default=224)
    made.add_argument("--batch_size", type=int, default=64)
    made.add_argument("--steps", type=int, default=25)
    made.add_argument("--devices", default="auto")
    made.add_argument(
        "--cache", default="none", choices=("none", "auto", "ram"), help="cache of densepath for image files"
    )
    made.add_argument("--precision", default="32", choices=("32", "bf16-mixed"), help="precision of both")
    asked = made.parse_args()
    found: dict[str, list[dict[str, float]]] = {}
    with jpeg_folder(asked.data, asked.steps * asked.batch_size, asked.image_size) as folder:
        store = pack(folder, folder.parent / "tiles.safetensors")
        for _ in range(asked.repeats):
            for recipe in asked.method:
                speed = bare(recipe, asked)
                found.setdefault(f"bare {recipe}", []).append({"images_per_second": speed})
                for name, data in (("JPEGs", folder), ("packed", store)):
                    row = densepath_run(recipe, data, asked)
                    row["share of bare"] = row["images_per_second"] / speed
                    found.setdefault(f"densepath {recipe}, {name}", []).append(row)
            for method in asked.peer:
                for workers in asked.peer_workers:
                    row = lightly_run(method, folder, workers, asked)
                    found.setdefault(f"lightly {method}, JPEGs, {workers} workers", []).append(row)
    rows = [{"case": name} | _median(measured) for name, measured in found.items()]
    report(
        f"{asked.backbone}, {asked.batch_size} views of {asked.size} px, precision {asked.precision}", rows, asked.json
    )


def _median(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


if __name__ == "__main__":
    main()
