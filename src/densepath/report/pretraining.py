"""The page of a pre-training run."""

from __future__ import annotations

from densepath.report.blocks import Block, Cards, Facts, Section, Slider
from densepath.report.common import curve_section, ending, figure, options, picture_sliders
from densepath.report.embedding import read_embedding
from densepath.report.runs import Kind, Run
from densepath.report.values import MISSING, number, pretty
from densepath.runs.closing import CHANCE
from densepath.runs.folder import VIEWS

_OPTIONS = {
    "method": "method",
    "backbone": "backbone",
    "data": "images",
    "weights": "initial weights",
    "batch_size": "images per step",
    "view_size": "size of views (px)",
    "optimizer.name": "optimizer",
    "optimizer.lr": "learning rate",
    "epochs": "epochs",
    "precision": "precision",
    "seed": "seed",
}


def _sections(run: Run, most: int) -> list[Section]:
    made: list[Section] = [Section("Summary", [*_cards(run), Facts({"state": run.state, **options(run, _OPTIONS)})])]
    views = figure(run.path, VIEWS, "Images, the outlines of their views, and the views as in training") if most else []
    if views:
        made.append(Section("Views", views))
    sliders: list[Slider] = picture_sliders(run.path, most) if most else []
    if sliders:
        made.append(Section("What it has learned, over training", sliders))
    embedding = read_embedding(run.path) if most else None
    if embedding is not None:
        made.append(Section("Map of the images", [embedding]))
    return [*made, *curve_section(run, most), *ending(run)]


def _cards(run: Run) -> list[Block]:
    last, steps = run.last, _planned(run)
    rows: dict[str, tuple[str, str]] = {}
    if "step" in last:
        rows["steps"] = (number(int(last["step"])), f"of {steps:,}" if steps else run.state)
    if "loss" in last:
        rows["loss"] = (number(last["loss"]), "")
    for name in [column for column in last if column.endswith(CHANCE)]:
        label = name.removesuffix(CHANCE).replace("_", " ")
        rows[label] = (f"{last[name]:.2f}", "of chance")
    for name in [column for column in last if column.startswith("probe_")]:
        rows[pretty(name.removeprefix("probe_"))] = (f"{last[name]:.1f}", "probe, in percent")
    if "images_per_second" in last:
        waiting = last.get("waiting")
        line = MISSING if waiting is None else f"data wait {waiting:.0%}"
        rows["images per second"] = (number(last["images_per_second"], 3), line)
    return [Cards(rows)] if rows else []


def _planned(run: Run) -> int | None:
    """The number of steps of the whole run."""
    data = run.sessions[-1].get("data") if run.sessions else None
    steps = data.get("steps") if isinstance(data, dict) else None
    return steps if isinstance(steps, int) else None


PRETRAINING = Kind("pre-training", lambda run: run.has("method"), _sections)
