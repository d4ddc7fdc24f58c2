"""All measurements on a GPU in one call, without a network, the most important one first.

``python -m benchmarks.gpu --minutes 6 --json gpu.json``. Each row is printed and written as soon as it is measured, so
a call that is cut off has measured something. A section that fails, because a package is missing too, is reported and
the next one starts; sections that do not fit into the time are reported as left out. The last table has every target
with its value. ``--sections`` chooses: a second call can measure what the first had no time for.

For a machine without this repository ``python -m benchmarks.gpu_evidence --pack`` writes a folder with all that is
needed.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import time
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import end_to_end, loading
from benchmarks.measure import isolated, listed, report, shown, synchronizations, write_json
from benchmarks.step import Step, images_for_peers, measure_peer, measure_recipe, options
from benchmarks.targets import PAPER_IMAGES, print_summary, summary
from benchmarks.tiles import jpeg_folder
from benchmarks.volume_store import write_store
from densepath.sources.packed import PackedTiles
from densepath.sources.packing import open_store, pack
from densepath.synthetic.tissue import write_tissue
from densepath.training.hardware import Hardware, choose_hardware

_BATCH = 64  # for the comparison with the CPU: two of the recipes' batch-norm groups
_PEER_STEPS = 40  # steps of a whole run of lightly: enough to measure its speed
_LOADING_SECONDS = 5.0  # for each source
# The other methods, with the backbones of their recipes.
MORE = ("densecl", "conv_mim", "mae", "dino", "dirl", "pcrl")
VOLUMES = ("pcrl_3d", "model_genesis_3d")
_SIDES = (160, 160, 112)  # of volumes, along x, y and z: windows of PCRL have up to 112 x 112 x 96 voxels
Section = Callable[[], Iterable[dict[str, Any]]]


def correctness(recipe: str, images: PackedTiles, asked: Namespace, hardware: Hardware) -> dict[str, Any]:
    """The device in float32 and in its own precision, compared with the CPU in float32, on the same inputs."""
    host = replace(choose_hardware("cpu", "32"), channels_last=hardware.channels_last)
    exact = Step(recipe, images, asked.size, _BATCH, asked.backbone, host)
    same = Step(recipe, images, asked.size, _BATCH, asked.backbone, replace(hardware, precision="32"))
    own = Step(recipe, images, asked.size, _BATCH, asked.backbone, hardware)
    pairs = [(view.pixels, same.ready[name].pixels.cpu()) for name, view in exact.ready.views.items()]
    found = {"views, largest difference": (max(float((a - b).abs().max()) for a, b in pairs), 1e-3)}
    with _no_tf32():
        found |= _differences(exact, {"float32": (same, 1e-3), hardware.precision: (own, 5e-2)})
    row: dict[str, Any] = {"case": recipe}
    for name, (value, limit) in found.items():
        row[name] = f"{value:.2g} ({'ok' if value <= limit else 'FAILED'}, limit {limit:.0e})"
    own()
    with synchronizations(own.device) as places:
        own()
    row["synchronizations in a step"] = "none" if not places else f"{len(places)} FAILED: {listed(places)}"
    return row


@contextmanager
def _no_tf32() -> Iterator[None]:
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _differences(exact: Step, others: Mapping[str, tuple[Step, float]]) -> dict[str, tuple[float, float]]:
    """Those of the losses and gradients of other steps, each with its limit, from an exact one."""
    found = {}
    loss, gradients = exact.gradients()
    for name, (step, loose) in others.items():
        its_loss, its_gradients = step.gradients()
        found[f"{name}: loss, relative difference"] = (abs(its_loss - loss) / abs(loss), loose)
        apart = float((its_gradients - gradients).norm() / gradients.norm())
        found[f"{name}: gradient, relative difference"] = (apart, 10 * loose)
    return found


def projected(row: dict[str, Any]) -> dict[str, Any]:
    """Adds the minutes that the paper's pre-training would take at this speed."""
    return row | {"minutes_for_200_epochs_of_80,000": PAPER_IMAGES / row["images_per_second"] / 60}


def long_epoch(folder: Path, out: Path, count: int) -> Path:
    """A folder with ``count`` links to the images of another one, so that no epoch ends while lightly is measured."""
    if out.exists():
        return out
    out.mkdir()
    paths = sorted(folder.iterdir())
    for number in range(count):
        os.link(paths[number % len(paths)], out / f"{number:07d}.jpg")
    return out


def sections(asked: Namespace, hardware: Hardware, scratch: Path) -> dict[str, Section]:
    """All measurements, the most important first. JPEGs and their store are written to ``scratch`` first."""
    folder, store = scratch / "jpeg", scratch / "tiles.safetensors"
    with jpeg_folder(asked.data, max(4 * asked.batch_size, 4 * _BATCH), asked.image_size) as made:
        made.rename(folder)
    pack(folder, store)

    def compare() -> Iterator[dict[str, Any]]:
        images = open_store(store).to("cpu")
        for recipe in asked.method:
            yield correctness(recipe, images, asked, hardware)

    def steps(recipes: Iterable[str], **changed: Any) -> Iterator[dict[str, Any]]:
        options = Namespace(**(vars(asked) | changed))
        for recipe in recipes:
            yield projected(_alone(hardware, measure_recipe, recipe, store, options))

    def volumes() -> Iterator[dict[str, Any]]:
        write_store(scratch / "volumes", 8, _SIDES)
        options = Namespace(**(vars(asked) | {"as_recipe": True, "batch_size": asked.volume_batch}))
        for recipe in asked.volumes:
            yield _alone(hardware, measure_recipe, recipe, scratch / "volumes", options)

    def compiled() -> Iterator[dict[str, Any]]:
        for recipe in asked.method:  # compiling cannot be interrupted, but a process can be ended
            options, left = Namespace(**(vars(asked) | {"compile": True})), asked.end - time.monotonic()
            yield projected(isolated(measure_recipe, recipe, store, options, seconds=left))

    def many() -> Path:
        enough = max(images_for_peers(asked, hardware), _PEER_STEPS * asked.batch_size)
        return long_epoch(folder, scratch / "long", enough)

    def peers() -> Iterator[dict[str, Any]]:
        for name in asked.peer:
            yield _alone(hardware, measure_peer, name, many(), asked)

    devices = "1" if hardware.kind == "cuda" else "cpu"
    as_run = {"precision": hardware.precision, "devices": devices, "cache": "auto"}

    def whole_runs() -> Iterator[dict[str, Any]]:
        options = Namespace(**(vars(asked) | as_run))
        for recipe in asked.method:
            bare = end_to_end.bare(recipe, options)
            row = end_to_end.densepath_run(recipe, store, options)
            row["share of bare"] = row["images_per_second"] / bare
            yield projected({"case": f"densepath {recipe}, packed store"} | row)

    def whole_runs_of_peers() -> Iterator[dict[str, Any]]:
        options = Namespace(**(vars(asked) | as_run | {"steps": min(asked.steps, _PEER_STEPS)}))
        for name in asked.peer:
            run = end_to_end.lightly_run(name, many(), asked.workers, options)
            yield {"case": f"lightly {name}, JPEGs"} | run

    def loaded() -> Iterator[dict[str, Any]]:
        return loading.speed(folder, asked.batch_size, asked.steps, asked.workers, 1, _LOADING_SECONDS)

    def detectors() -> Iterable[dict[str, Any]]:
        from benchmarks import detect  # needs pycocotools

        data = scratch / "tissue"
        small = hardware.kind == "cpu"
        write_tissue(data, train=4 if small else 16, test=2 if small else 8, size=128 if small else 512, seed=0)
        options = {"detector": "mask_rcnn_fpn", "train_size": (400, 522), "test_size": 480, "batch_size": 16}
        if small:
            options = {"detector": "mask_rcnn_fpn_small", "train_size": (64, 64), "test_size": 64, "batch_size": 2}
        options |= {"backbone": asked.backbone, "workers": asked.workers, "repeats": asked.repeats}
        return detect.measure(data, Namespace(**options), hardware)

    return {
        f"steps, {asked.backbone}": lambda: steps(asked.method),
        "whole runs": whole_runs,
        "steps, other methods": lambda: steps(asked.more, backbone=None),
        "steps, volumes": volumes,
        "correctness": compare,
        "steps, compiled": compiled,
        "peers": peers,
        "whole runs, lightly": whole_runs_of_peers,
        "loading": loaded,
        "detection": detectors,
        **{f"steps, {name}": lambda name=name: steps(asked.method, backbone=name) for name in asked.more_backbones},
    }


def _alone(hardware: Hardware, measure: Callable[..., Any], *arguments: Any) -> Any:
    """In a process of its own, whose memory is that of the case; on a GPU in this one, as its memory can be emptied."""
    if hardware.kind == "cpu":
        return isolated(measure, *arguments)
    try:
        return measure(*arguments)
    finally:
        torch.backends.cudnn.benchmark = False  # views of detectors differ in size
        gc.collect()
        torch.cuda.empty_cache()


def chosen(all_sections: Mapping[str, Section], beginnings: Sequence[str] | None) -> dict[str, Section]:
    """The sections whose titles begin as asked for, in that order; all by default."""
    found: dict[str, Section] = {}
    for beginning in beginnings if beginnings is not None else [""]:
        some = {title: section for title, section in all_sections.items() if title.startswith(beginning)}
        if not some:
            sys.exit(f"no section begins with {beginning!r}; there are: {'; '.join(all_sections)}")
        found |= {title: section for title, section in some.items() if title not in found}
    return found


def main() -> None:
    """Run one section after another until the time is over."""
    made = options(__doc__.splitlines()[0])
    made.set_defaults(batch_size=256, workers=8, peer=["moco_v2", "densecl"], repeats=5)
    made.add_argument("--minutes", type=float, default=6.0, help="no case starts after three quarters of this time")
    made.add_argument("--more", nargs="*", default=MORE, help="recipes whose steps are measured with their backbones")
    made.add_argument(
        "--volumes", nargs="*", default=VOLUMES, help="recipes for volumes, with their sizes and networks"
    )
    made.add_argument("--volume_batch", type=int, default=32)
    made.add_argument("--more_backbones", nargs="*", default=["resnet50"])
    made.add_argument("--steps", type=int, default=200, help="steps of a whole run")
    made.add_argument(
        "--sections", nargs="+", help="beginnings of the titles of the sections to measure, in this order; default: all"
    )
    asked = made.parse_args()
    if asked.device == "auto" and not torch.cuda.is_available():
        sys.exit("there is no GPU; use --device cpu to test the program with a small --size and --batch_size")
    hardware = choose_hardware(asked.device, asked.precision)
    start = time.monotonic()
    end, asked.end = start + 60 * 0.75 * asked.minutes, start + 60 * asked.minutes
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for title, section in chosen(sections(asked, hardware, Path(scratch)), asked.sections).items():
            rows: list[dict[str, Any]] = []
            failed = ""
            try:
                cases = iter(section() if time.monotonic() < end else ())
                while time.monotonic() < end and (row := next(cases, None)) is not None:
                    rows.append(shown(row))
                    found[title] = rows
                    if asked.json:  # after each row: an interrupted call keeps its results
                        write_json(asked.json, found)
            except (Exception, SystemExit) as error:  # the other sections still run
                traceback.print_exc()
                failed = f"FAILED: {error}"
            if rows:
                report(title, rows)
            found[title] = [*rows, {"case": failed}] if rows and failed else rows or failed or "left out: no time"
            if isinstance(found[title], str):
                print(f"{title}: {found[title]}", flush=True)
    rows = summary(found, asked)
    print_summary(rows)
    if asked.json:
        write_json(asked.json, found | {"against the targets": rows})


if __name__ == "__main__":
    main()
