"""The demo: the whole package on built-in data: pre-train, probe, detect, predict, and a report on everything."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from densepath.api import pretrain
from densepath.core.errors import UserError
from densepath.core.files import atomic_write, require_new_folder
from densepath.core.locks import sole_writer
from densepath.core.random import check_seed
from densepath.core.remains import remove
from densepath.core.scores import SCALE
from densepath.core.single_values import take_single_values
from densepath.core.streams import open_console
from densepath.demo_pictures import BACKBONE, TILE, TITLES, draw, real_tile
from densepath.runs.signals import Interrupted, not_resumable
from densepath.synthetic.tissue import write_tiles, write_tissue
from densepath.tour import FOLDERS, REPORT, make_report, pretrain_on_slide, pretrain_on_volumes
from densepath.training.caller_state import state_of_the_caller
from densepath.transfer.detection.detect import detect
from densepath.transfer.predict import predict
from densepath.transfer.probe.pixels import probe_pixels
from densepath.version import __version__

MARKER = "demo.json"
_OF_TISSUE = (
    "tissue",
    "tiles",
    "real",
    "pretrained",
    "probe",
    "detector_random",
    "detector_pretrained",
    "predictions",
    "pictures",
)
_FOLDERS = (*_OF_TISSUE, *FOLDERS)
_IMAGE = 256  # pixels
_SHOWN = 160  # pixels: input size of the detector
_BATCH = 64
_QUICK = 0.1  # scale of a quick demo
_FAST = 0.03  # seconds per tile; machines that draw tiles faster finish all steps within eight minutes
_SCORES = {
    "probe, mean IoU": ("probe", "mean_iou"),
    "probe, Dice of glands": ("probe", "dice"),
    "detector, box AP50": ("detect", "box_ap50"),
    "detector, mask AP50": ("detect", "mask_ap50"),
    "detector, mask AP": ("detect", "mask_ap"),
}


@take_single_values
@state_of_the_caller()
def demo(
    *,
    out: str | Path = "densepath_demo",
    seed: int = 0,
    scale: float | None = None,
    quick: bool = False,
    open: bool = False,
) -> None:
    """Learn features of procedural tissue, evaluate them on held-out images, and report on everything in one page.

    Makes unlabelled tiles, and images with outlined glands; pre-trains ConCL on the tiles; probes and fine-tunes a
    small detector from random and from pre-trained weights, and applies it to new images; draws views, concepts,
    detections and curves. Then for some steps DiRL on the tiles of a slide, and PCRL on CT volumes. Ends with
    ``report.html``. Takes four to eight minutes on two CPU cores.

    Args:
        out: a new folder, or that of an earlier demo, which is replaced.
        seed: seed of the tissue, the weights and the training.
        scale: factor of the numbers of images and steps; smaller is faster and shows less. Default: 1, and on slow
            machines down to 0.6 of the steps.
        quick: a scale of 0.1, in one to two minutes: it shows the pipeline, but scores mean little.
        open: open the report in a browser.

    Raises:
        UserError: ``out`` holds other files than a demo, another process writes to it, or the seed or the scale is
            invalid.
    """
    check_seed(seed)
    if scale is not None and not 0 < scale < math.inf:
        raise UserError(f"scale is {scale}; give a number above 0")
    out = Path(out)
    console = open_console(sys.stdout)
    started = time.perf_counter()
    try:
        with sole_writer(out), not_resumable():
            _prepare_folder(out)
            _run(out, console, seed, _QUICK if quick and scale is None else scale, started, open)
    except Interrupted:
        console.print("The demo cannot be resumed. Start it again: it replaces this folder.")
        raise


def _run(out: Path, console: Console, seed: int, scale: float | None, started: float, open_it: bool) -> None:
    """Run the parts of the demo in order."""
    of_images = of_steps = 1.0 if scale is None else scale
    with _part(console, "1/9  tissue: unlabelled tiles, and images with outlined glands"):
        tiles = _share(500, of_images, 16)
        before = time.perf_counter()
        write_tiles(out / "tiles", tiles, TILE, seed)
        if scale is None:
            of_steps = _affordable((time.perf_counter() - before) / tiles)
            if of_steps < 1:
                console.print(
                    f"This machine is slow: running {of_steps:.0%} of the steps. To run all of them: --scale 1"
                )
        write_tissue(
            out / "tissue", train=_share(48, of_images, 4), test=_share(24, of_images, 3), size=_IMAGE, seed=seed
        )
        real = real_tile(out / "real", console)
    with _part(console, "2/9  pre-training: ConCL on the tiles"):
        run = _pretrain(out, seed, _share(350, of_steps, 4), min(_BATCH, tiles))
        weights: dict[str, str | Path] = {"random": "random", "pretrained": run}
    results: dict[str, dict[str, Any]] = {name: {} for name in weights}
    with _part(console, "3/9  probe: a linear pixel classifier on frozen features"):
        for name, source in weights.items():
            results[name]["probe"] = dict(
                probe_pixels(
                    data=out / "tissue",
                    weights=source,
                    backbone=BACKBONE,
                    seed=seed,
                    out=out / "probe" / f"{name}.json",
                )
            )
            console.print(f"{name}: mean IoU {results[name]['probe']['mean_iou']:.1f}")
    for number, (name, source) in enumerate(weights.items(), 4):
        with _part(console, f"{number}/9  detector from {name} weights"):
            results[name]["detect"] = _detect(out, name, source, seed, _share(200, of_steps, 3))
    with _part(console, "6/9  predict: the detector on images, and pictures"):
        predictions = predict(out / "detector_pretrained", data=out / "tissue" / "test", out=out / "predictions")
        draw(out, real, seed)
    probes, detectors = ([out / part.format(name) for name in weights] for part in ("probe/{}.json", "detector_{}"))
    shown = [run, *probes, *detectors, predictions.out or out]
    with _part(console, "7/9  a whole slide: tissue, tiles, cells, and DiRL for some steps"):
        shown += pretrain_on_slide(out, console, seed, _share(24, of_steps, 2))
    with _part(console, "8/9  volumes: PCRL in three dimensions, for too few steps to learn (it will warn)"):
        shown += pretrain_on_volumes(out, console, seed, _share(20, of_steps, 2))
    with _part(console, "9/9  report"):
        page = make_report(out, console, shown, open_it)
    _write_marker(
        out,
        {"seed": seed, "scale": scale, "steps": of_steps, "seconds": time.perf_counter() - started} | SCALE | results,
    )
    _report(console, out, results, started, page or out / "pictures" / "summary.png")


def _share(number: int, part: float, least: int) -> int:
    return max(least, round(number * part))


def _affordable(seconds_per_tile: float) -> float:
    """The share of the steps that can be done in time, estimated from the time to draw a tile."""
    return min(1.0, max(0.6, round(_FAST / seconds_per_tile, 1)))


def _prepare_folder(out: Path) -> Path:
    """Make the folder with a marker, after removing the files of an earlier demo."""
    if _is_demo(out):
        for name in (*_FOLDERS, REPORT):
            remove(out / name)
    else:
        require_new_folder(out, "the demo")
    out.mkdir(parents=True, exist_ok=True)
    _write_marker(out, {})
    return out


def _is_demo(out: Path) -> bool:
    try:
        return "densepath_demo" in json.loads((out / MARKER).read_text())
    except (OSError, ValueError, TypeError):  # TypeError: the file holds a number
        return False


def _write_marker(out: Path, results: Mapping[str, Any]) -> None:
    with atomic_write(out / MARKER) as part:
        part.write_text(json.dumps({"densepath_demo": __version__} | dict(results), indent=2) + "\n")


@contextmanager
def _part(console: Console, title: str) -> Iterator[None]:
    start = time.perf_counter()
    console.print(f"\n[bold]{title}[/bold]")
    yield
    console.print(f"[dim]{time.perf_counter() - start:.0f} s[/dim]")


def _pretrain(out: Path, seed: int, steps: int, batch_size: int) -> Path:
    # So few steps need a large learning rate: chosen by the probe, on procedural tissue.
    pretrain(
        "concl_small",
        data=out / "tiles",
        out=out / "pretrained",
        backbone=BACKBONE,
        seed=seed,
        max_steps=steps,
        batch_size=batch_size,
        optimizer={"lr": 0.2},
        method_options={"momentum": 0.99},
    )
    return out / "pretrained"


def _detect(out: Path, name: str, weights: str | Path, seed: int, steps: int) -> dict[str, float]:
    return detect(
        data=out / "tissue",
        out=out / f"detector_{name}",
        weights=weights,
        backbone=BACKBONE,
        detector="mask_rcnn_fpn_small",
        max_steps=steps,
        batch_size=4,
        lr=0.1,
        train_size=(128, _SHOWN),
        test_size=_SHOWN,
        rescale_filters=True,  # the large learning rate of this pre-training increases their norms
        precise_bn_batches=20,
        pictures=4,
        seed=seed,
        log_every=5,
    )


def _report(console: Console, out: Path, results: Mapping[str, Mapping[str, Any]], started: float, first: Path) -> None:
    table = Table(title="on held-out images, in percent", title_justify="left")
    table.add_column("")
    for name in results:
        table.add_column(TITLES[name], justify="right")
    for label, (task, score) in _SCORES.items():
        table.add_row(label, *(f"{result[task][score]:.1f}" for result in results.values()))
    console.print()
    console.print(table)
    minutes = (time.perf_counter() - started) / 60
    console.print(f"One seed, a few minutes of training. {minutes:.1f} minutes in total.")
    console.print(f"\nAll files are in {out}/; look at {first} first. On your own data:\n", markup=False)
    for line in (
        "densepath pretrain --config concl_small --data TILES --out RUN",
        "densepath probe --data OUTLINED --weights RUN",
        "densepath detect --config glas_small --data OUTLINED --weights RUN --out DETECTOR",
    ):
        console.print(f"  {line}", highlight=False)
    console.print(
        "\nTILES is a folder of images; OUTLINED holds images and COCO instances, as written by `densepath data glas`."
    )
