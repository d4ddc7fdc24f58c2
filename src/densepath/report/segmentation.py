"""The page of a segmenter: Dice by region, what was missed, and the worst and best images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from densepath.core.csv_files import read_rows
from densepath.core.errors import UserError
from densepath.report.blocks import Block, Chart, Facts, Gallery, Note, Section, Slider, Table
from densepath.report.common import PICTURES, curve_section, ending, options, score_cards
from densepath.report.embedded import picture
from densepath.report.paths import own_file
from densepath.report.runs import Kind, Run
from densepath.report.values import MISSING, number, plotly_text
from densepath.report.volumes import MOST, volume_sliders
from densepath.transfer.segment.volume_slices import SUFFIX

_SCORES = ("mean_dice", "mean_iou", "pooled_iou", "mean_hd95")
_OPTIONS = {
    "data": "images",
    "labels": "labels",
    "weights": "initial weights",
    "backbone": "backbone",
    "decoder": "decoder",
    "head": "head",
    "loss": "loss",
    "epochs": "epochs",
    "seed": "seed",
}
_MOST = 9  # pictures of the worst, and of the best
_SIDE = 800  # pixels
_REGIONS = 24  # in the chart

Case = tuple[str, str]  # the training, and an image that it tested


def _sections(run: Run, most: int) -> list[Section]:
    blocks: list[Block] = [*score_cards(run, _SCORES), Facts({"state": run.state, **options(run, _OPTIONS)})]
    blocks.append(_score_table(run))
    made = [Section("Summary", blocks)]
    try:
        rows = read_rows(own_file(run.path, "cases.csv"), "make it again")
        cases = _dice(rows)
    except (UserError, LookupError, ValueError) as error:
        made.append(Section("Cases", [Note(f"The scores of the images are not shown: {error}", warning=True)]))
    else:
        made.append(Section("Dice of the images", [_chart(rows)]))
        if most:
            made += _pictures(run.path, cases)
    return [*made, *curve_section(run, most), *ending(run)]


def _score_table(run: Run) -> Table:
    """Dice, IoU, distance and failures of each region."""
    try:
        failures = json.loads((run.path / "metrics.json").read_text()).get("failures", {})
    except (OSError, ValueError, AttributeError):
        failures = {}
    regions = [name.removeprefix("dice_") for name in run.scores if name.startswith("dice_")]
    rows = []
    for region in regions:
        own: Any = failures.get(region) if isinstance(failures, Mapping) else None
        counts = own if isinstance(own, Mapping) else {}
        texts = [str(run.scores.get(f"{score}_{region}", MISSING)) for score in ("dice", "iou", "hd95")]
        rows.append([region, *texts, *(number(counts.get(key, MISSING)) for key in ("present", "missed", "false"))])
    heads = ["region", "Dice", "IoU", "HD95", "images with it", "missed", "false"]
    return Table(heads, rows, caption="In percent and in mm or px, with 95% intervals by patient")


def _dice(rows: Sequence[Mapping[str, str]]) -> dict[Case, float]:
    """The mean Dice of each image, over its regions; those where it is undefined are left out."""
    found: dict[Case, list[float]] = {}
    for row in rows:
        value = float(row["dice"] or "nan")
        if np.isfinite(value):
            found.setdefault((row.get("run", ""), row["image"]), []).append(value)
    return {case: float(np.mean(values)) for case, values in found.items()}


def _chart(rows: Sequence[Mapping[str, str]]) -> Chart:
    """The Dice of all images, as a box for each region."""
    known = list(dict.fromkeys(row["region"] for row in rows))
    regions = known[:_REGIONS]
    traces = []
    for place, region in enumerate(regions):
        own = [row for row in rows if row["region"] == region and row["dice"]]
        traces.append(
            {
                "type": "box",
                "name": plotly_text(region),
                "y": [float(row["dice"]) for row in own],
                "text": [plotly_text(row["image"]) for row in own],
                "boxpoints": "all",
                "jitter": 0.4,
                "pointpos": 0,
                "meta": {"color": place},
            }
        )
    layout = {"yaxis": {"title": {"text": "Dice, percent"}, "range": [-2, 102]}, "showlegend": False}
    some = f" (the first {_REGIONS} of {len(known)})" if len(known) > _REGIONS else ""
    return Chart(f"Dice of each image, by region{some}", traces, layout, wide=True)


def _pictures(run: Path, cases: Mapping[Case, float]) -> list[Section]:
    """The pictures of the worst and the best images, among those that were drawn in any of the trainings."""
    files: dict[Case, Path] = {}
    for pattern in (PICTURES, f"*/{PICTURES}", f"*/*/{PICTURES}"):
        for folder in sorted(run.glob(pattern)):
            training = folder.parent.relative_to(run).as_posix() if folder.parent != run else "run"
            for path in folder.rglob("*.png"):
                name = path.relative_to(folder).with_suffix("").as_posix()
                files |= {(training, name): path, ("", name): path}  # tables may not name the training
    own = {
        (training, name): file
        for training, name in cases
        if (file := files.get((training, name)) or files.get((training, str(Path(name).with_suffix("")))))
    }
    several = len({training for training, _ in cases}) > 1
    names = {case: f"{case[1]} ({case[0]})" if several else case[1] for case in own}
    order = sorted(own, key=lambda case: cases[case])
    blocks: list[Block] = []
    for title, some in (("The worst", order[:_MOST]), ("The best", order[::-1][:_MOST])):
        found = [picture(own[case], run, f"{names[case]}: Dice {cases[case]:.1f}", _SIDE) for case in some]
        if shown := [each for each in found if each is not None]:
            blocks.append(Gallery(f"{title} of the drawn images: truth and prediction", shown))
        if len(order) <= _MOST:
            break
    drawn = order[: MOST - 1] + order[MOST - 1 :][-1:]
    volumes = [each for case in drawn for each in _slices(own[case], run, names[case])]
    if volumes and len(order) > MOST:
        blocks.insert(0, Note(f"Sliders through the {MOST - 1} worst and the best of {len(order)} drawn volumes."))
    return [Section("Images", [*volumes, *blocks])] if blocks else []


def _slices(picture: Path, run: Path, name: str) -> list[Slider]:
    """The sliders of a volume, which is saved beside its picture."""
    return volume_sliders(picture.with_name(f"{picture.stem}{SUFFIX}"), run, name)


SEGMENTATION = Kind("segmenter", lambda run: run.has("labels", "oversample", "head"), _sections)
