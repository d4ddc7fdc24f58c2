"""Concepts against images on a GPU: b-ConCL with K = 1 and K = 8, views of 96 and 224 px, by the probe on GlaS.

``python -m benchmarks.gpu_evidence --pack FOLDER --data D --tiles TILES`` writes a folder of at most 60 MiB with all
that is needed for this program and for ``benchmarks.gpu``: also the wheels of packages that machines with torch, timm
and Lightning often lack. It prints the commands to run there, and writes them to COMMANDS.txt: the first installs the
wheels into the folder, without a network, then ``python -m benchmarks.gpu_evidence --minutes 4 --json evidence.json``.
A row is written as soon as it is measured, pairs of K = 1 and K = 8 with the largest views first; runs that do not fit
into the time are left out.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.measure import MIB, parser, report, shown, write_json
from densepath.annotations.coco import open_split
from densepath.core.errors import UserError
from densepath.core.files import atomic_write, require_new_folder
from densepath.runs.metrics import read_metrics
from densepath.sources.listing import find_images
from densepath.training.pretrain import pretrain
from densepath.transfer.probe.pixels import probe_pixels

_MOST_MIB = 60
_LAST = 5  # rows of metrics.csv whose mean is the final loss
WHEELS = (
    "docstring-parser",
    "faster-coco-eval",
    "jsonargparse",
    "lightly",
    "nibabel",
    "pycocotools",
    "typeshed-client",
)
# Wheels for the newest of these systems are not always there, and pip takes each name exactly.
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
_INSTALL = "python -m pip install --no-index --no-deps --find-links wheels --target ."


def measure(asked: Any, folder: Path, seed: int, size: int, concepts: int) -> dict[str, Any]:
    """The row of one run."""
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
    trained = time.monotonic() - began
    scores = probe_pixels(data=asked.data, weights=out, devices=asked.devices)
    rows = [row for row in read_metrics(out / "metrics.csv") if "concept_loss_vs_chance" in row]
    speeds = [row["images_per_second"] for row in rows]
    return {
        "case": f"{size} px, K={concepts}, seed {seed}",
        "mean IoU %": scores["mean_iou"],
        "concept loss / chance": statistics.fmean(row["concept_loss_vs_chance"] for row in rows[-_LAST:]),
        "images_per_second": statistics.harmonic_mean(speeds[1:] or speeds),  # without the start
        "seconds of pre-training": trained,
        "seconds": time.monotonic() - began,
    }


def expected_seconds(size: int, spent: Mapping[int, Sequence[tuple[float, float]]]) -> float:
    """Seconds that a run is expected to take: the longest of its size; else of others, by the area of the views.

    Args:
        size: of the views in pixels.
        spent: size -> the seconds of pre-training and of all, for each run so far.
    """
    if size in spent:
        return max(whole for _, whole in spent[size])
    runs = [(trained * (size / other) ** 2, whole - trained) for other in spent for trained, whole in spent[other]]
    return max(map(sum, runs), default=0.0)


def write_folder(
    folder: Path, data: Path, tiles: Path, count: int | None = None, wheels: Sequence[str] = WHEELS
) -> float:
    """Copy the package, benchmarks, images (of the tiles, ``count``) and wheels into a new folder; its size in MiB."""
    root, package = Path(__file__).parents[1], Path(sys.modules["densepath"].__file__ or "").parent
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    require_new_folder(folder, "the packed folder")
    for split in ("train", "test"):
        open_split(data, split)
    with atomic_write(folder) as part:
        part.mkdir()
        if wheels:
            download(part / "wheels", wheels)
        shutil.copytree(package, part / "densepath", ignore=ignored)
        shutil.copytree(root / "benchmarks", part / "benchmarks", ignore=ignored)
        shutil.copytree(data, part / "glas", ignore=ignored)
        (part / "tiles").mkdir()
        paths = find_images(tiles)
        chosen = paths if count is None else [paths[i * len(paths) // count] for i in range(min(count, len(paths)))]
        for number, path in enumerate(chosen):
            shutil.copyfile(path, part / "tiles" / f"{number:05d}{Path(path).suffix}")
        (part / "COMMANDS.txt").write_text("\n".join(commands(wheels)) + "\n")
        size = sum(path.stat().st_size for path in part.rglob("*") if path.is_file()) / MIB
        if size > _MOST_MIB:
            sys.exit(f"{folder} would have {size:.0f} MiB, more than {_MOST_MIB}; give fewer tiles (--count)")
    return size


def commands(wheels: Sequence[str]) -> list[str]:
    """What is run in the folder."""
    install = [" ".join((_INSTALL, *wheels))] if wheels else []
    return [
        *install,
        "python -m benchmarks.gpu --minutes 6 --json gpu.json",
        "python -m benchmarks.gpu_evidence --minutes 4 --json evidence.json",
    ]


def download(folder: Path, names: Sequence[str]) -> None:
    """Wheels of packages for Linux on x86-64 and Python 3.12, in the versions that are installed here."""
    platforms = [word for name in _PLATFORMS for word in ("--platform", name)]
    options = ["--no-deps", "--only-binary", ":all:", "--implementation", "cp", "--python-version", "3.12", *platforms]
    command = [sys.executable, "-m", "pip", "download", "--quiet", *options, "--dest", str(folder)]
    if subprocess.run([*command, *map(_pinned, names)]).returncode:
        sys.exit("the wheels could not be downloaded; give other packages, or none, by --wheels")


def _pinned(name: str) -> str:
    try:
        return f"{name}=={version(name)}"
    except PackageNotFoundError:
        return name


def main() -> None:
    """Write the folder, or run what fits into the time."""
    made = parser(__doc__.splitlines()[0])
    made.set_defaults(data="glas")
    made.add_argument("--tiles", default="tiles", help="unlabelled tiles")
    made.add_argument("--pack", help="write this folder instead of measuring")
    made.add_argument("--count", type=int, help="number of tiles in that folder; all by default")
    made.add_argument("--wheels", nargs="*", default=WHEELS, help="packages whose wheels that folder gets")
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
        try:
            size = write_folder(Path(asked.pack), Path(asked.data), Path(asked.tiles), asked.count, asked.wheels)
        except UserError as error:
            sys.exit(str(error))
        print("\n".join((f"{asked.pack}: {size:.1f} MiB. Run in it:", *commands(asked.wheels))))
        return
    end = time.monotonic() + 60 * asked.minutes
    rows: list[dict[str, Any]] = []
    spent: dict[int, list[tuple[float, float]]] = {}
    title = f"{asked.backbone}, {asked.steps} steps of {asked.batch_size}"
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        for seed, size, concepts in product(asked.seeds, asked.sizes, asked.concepts):
            if time.monotonic() + expected_seconds(size, spent) > end:
                continue
            row = measure(asked, Path(folder), seed, size, concepts)
            spent.setdefault(size, []).append((row["seconds of pre-training"], row["seconds"]))
            rows.append(shown(row))
            if asked.json:
                write_json(asked.json, {title: rows})
    report(title, rows)


if __name__ == "__main__":
    main()
