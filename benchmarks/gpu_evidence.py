"""Concepts against images on a GPU: b-ConCL with K = 1 and K = 8, views of 96 and 224 px, by the probe on GlaS.

``python -m benchmarks.gpu_evidence --pack FOLDER --data D --tiles TILES`` writes a folder of at most 60 MiB with all
that is needed. In it, without a network: ``python -m benchmarks.gpu_evidence --minutes 4 --json evidence.json``. A row
is written as soon as it is measured, pairs of K = 1 and K = 8 with the largest views first.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.measure import MIB, parser, report, shown, write_json
from densepath.runs.metrics import read_metrics
from densepath.sources.listing import find_images
from densepath.training.pretrain import pretrain
from densepath.transfer.probe.pixels import probe_pixels

_MOST_MIB = 60
_LAST = 5  # rows of metrics.csv whose mean is the final loss


def measure(asked: Any, folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each run."""
    for seed, size, concepts in product(asked.seeds, asked.sizes, asked.concepts):
        out, began = folder / f"{size}_{concepts}_{seed}", time.monotonic()
        pretrain(
            "concl_small",
            data=asked.tiles,
            out=out,
            seed=seed,
            view_size=size,
            max_steps=asked.steps,
            batch_size=asked.batch_size,
            backbone=asked.backbone,
            devices=asked.devices,
            save_every_minutes=0,
            method_options={"num_concepts": concepts},
        )
        trained = time.monotonic()
        scores = probe_pixels(data=asked.data, weights=out, devices=asked.devices)
        rows = [row for row in read_metrics(out / "metrics.csv") if "concept_loss_vs_chance" in row]
        losses = [row["concept_loss_vs_chance"] for row in rows[-_LAST:]]
        yield {
            "case": f"{size} px, K={concepts}, seed {seed}",
            "mean IoU %": scores["mean_iou"],
            "concept loss / chance": sum(losses) / len(losses),
            "images_per_second": asked.steps * asked.batch_size / (trained - began),
            "seconds": time.monotonic() - began,
        }


def write_folder(folder: Path, data: Path, tiles: Path, count: int | None = None) -> float:
    """Copy the package, benchmarks and images (of the tiles, ``count``) into a new folder; its size in MiB."""
    root, package = Path(__file__).parents[1], Path(sys.modules["densepath"].__file__ or "").parent
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    folder.mkdir(parents=True)
    shutil.copytree(package, folder / "densepath", ignore=ignored)
    shutil.copytree(root / "benchmarks", folder / "benchmarks", ignore=ignored)
    shutil.copytree(data, folder / "glas", ignore=ignored)
    (folder / "tiles").mkdir()
    paths = find_images(tiles)
    chosen = paths if count is None else [paths[i * len(paths) // count] for i in range(min(count, len(paths)))]
    for number, path in enumerate(chosen):
        shutil.copyfile(path, folder / "tiles" / f"{number:05d}{Path(path).suffix}")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / MIB
    if size > _MOST_MIB:
        sys.exit(f"{folder} has {size:.0f} MiB, more than {_MOST_MIB}; give fewer tiles (--count)")
    return size


def main() -> None:
    """Write the folder, or run what fits into the time."""
    made = parser(__doc__.splitlines()[0])
    made.set_defaults(data="glas")
    made.add_argument("--tiles", default="tiles", help="unlabelled tiles")
    made.add_argument("--pack", help="write this folder instead of measuring")
    made.add_argument("--count", type=int, help="number of tiles in that folder; all by default")
    made.add_argument("--minutes", type=float, default=4.0, help="no run starts that would take longer than this")
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    made.add_argument("--sizes", type=int, nargs="+", default=[224, 96])
    made.add_argument("--concepts", type=int, nargs="+", default=[8, 1])
    made.add_argument("--steps", type=int, default=800)
    made.add_argument("--batch_size", type=int, default=64)
    made.add_argument("--backbone", default="resnet18")
    made.add_argument("--devices", default="auto")
    asked = made.parse_args()
    if asked.pack:
        print(
            f"{asked.pack}: {write_folder(Path(asked.pack), Path(asked.data), Path(asked.tiles), asked.count):.1f} MiB"
        )
        return
    end = time.monotonic() + 60 * asked.minutes
    rows: list[dict[str, Any]] = []
    title = f"{asked.backbone}, {asked.steps} steps of {asked.batch_size}"
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        for row in measure(asked, Path(folder)):
            rows.append(shown(row))
            if asked.json:
                write_json(asked.json, {title: rows})
            if time.monotonic() + max(each["seconds"] for each in rows) > end:
                break
    report(title, rows)


if __name__ == "__main__":
    main()
