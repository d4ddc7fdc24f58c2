"""Sections that most runs have."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from densepath.core.spacing import evenly_spaced
from densepath.report.blocks import Block, Cards, Facts, Gallery, Picture, Section, Slider, Text
from densepath.report.curves import columns_of, draw_curves
from densepath.report.embedded import picture
from densepath.report.runs import Run, log_lines, next_commands
from densepath.report.values import decimals, flat, number, pretty, text

PICTURES = "pictures"
_STEP = re.compile(r"(.+)_(\d{7,})\.(?:png|jpg|webp)")
_FACTS = ("images", "names", "sizes", "samples", "processes")
_LOG_LINES = 60
_KINDS = {  # of pictures over training
    "concepts": "Images, the clusters of their features, and of a vision transformer the attention of its last block",
    "reconstruction": "Reconstruction of views",
}
_DIGEST = re.compile(r"([0-9a-f]{16})[0-9a-f]{48}")


def score_cards(run: Run, names: Sequence[str]) -> list[Block]:
    """The most important scores, by name, as far as the run has them."""
    rows = {}
    for name in [name for name in names if name in run.scores]:
        score = run.scores[name]
        rows[pretty(name)] = (decimals(score.value), score.interval)
    return [Cards(rows)] if rows else []


def curve_section(run: Run, most: int) -> list[Section]:
    """The measurements of a run, on a page that has room for ``most`` pictures of it."""
    curves = {name: [rows] for name, rows in run.curves.items()}
    if not curves:
        return []
    return [Section("Curves", draw_curves(curves, columns_of(list(run.curves.values())), coarse=not most))]


def picture_sliders(run: Path, most: int) -> list[Slider]:
    """Pictures of a run with the step in their names (``concepts_0000100.png``), a slider for each kind."""
    kinds: dict[str, list[tuple[int, Path]]] = {}
    try:
        for path in sorted((run / PICTURES).iterdir()):
            if match := _STEP.fullmatch(path.name):
                kinds.setdefault(match[1], []).append((int(match[2]), path))
    except OSError:
        return []
    sliders = []
    for kind, files in kinds.items():
        files.sort()
        frames = [picture(path, run, f"step {step:,}") for step, path in evenly(files, most)]
        if shown := [frame for frame in frames if frame is not None]:
            sliders.append(
                Slider(f"{_KINDS.get(kind, pretty(kind))}{some_of(len(shown), len(files))}", shown, len(shown) - 1)
            )
    return sliders


def gallery(title: str, files: Sequence[Path], within: Path, most: int, side: int = 640) -> list[Gallery]:
    """Pictures of a run, evenly spaced if there are many; the title says so."""
    folder = Path(os.path.commonpath([path.parent for path in files])) if files else within
    some = {path: path.relative_to(folder).with_suffix("").as_posix() for path in evenly(files, most)}
    found = [picture(path, within, caption, side) for path, caption in some.items()]
    shown = [each for each in found if each is not None]
    return [Gallery(f"{title}{some_of(len(shown), len(files))}", shown)] if shown else []


def some_of(shown: int, there: int) -> str:
    """What a title says of pictures that are left out."""
    return f" ({shown} of {there:,}, evenly spaced)" if shown < there else ""


def pictures_below(folder: Path) -> list[Path]:
    """The PNG files in a folder without a step in their names."""
    try:
        return sorted(path for path in folder.rglob("*.png") if not _STEP.fullmatch(path.name))
    except OSError:
        return []


def evenly(items: Sequence[Any], most: int) -> list[Any]:
    """At most ``most`` of the items, evenly spaced, the first and the last included."""
    return [items[place] for place in evenly_spaced(most, len(items))]


def figure(folder: Path, name: str | Path, caption: str) -> list[Picture]:
    """A picture of a folder, if it is there."""
    found = picture(folder / name, folder, caption)
    return [] if found is None else [replace(found, wide=True)]


def ending(run: Run) -> Iterator[Section]:
    """What to do next, how the run was configured, and where it was computed."""
    if commands := next_commands(run):
        yield Section("Next", [Text("\n".join(commands), "Commands that continue from here", copied=True)])
    blocks: list[Block] = []
    if run.sessions:
        blocks += [Facts(_session(entry)) for entry in run.sessions[-3:]]
    if run.config:
        options = yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True)
        blocks.append(Text(options, "Configuration", folded=True))
    if lines := log_lines(run):
        blocks.append(Text("\n".join(lines[-_LOG_LINES:]), "End of the log", folded=True))
    if blocks:
        yield Section("Provenance", blocks)


def _session(entry: Mapping[str, Any]) -> dict[str, str]:
    data = entry.get("data")
    rows = {name: text(entry[name]) for name in ("date", "command", "machine", "devices") if name in entry}
    versions = entry.get("versions")
    if isinstance(versions, Mapping):
        rows["versions"] = ", ".join(f"{name} {value}" for name, value in versions.items() if value is not None)
    if isinstance(data, Mapping):
        rows |= {f"data: {name}": _DIGEST.sub(r"\1…", number(data[name])) for name in _FACTS if name in data}
    return rows


def options(run: Run, names: Mapping[str, str]) -> dict[str, str]:
    """Options of a run, with names for people: dotted name -> name."""
    known = flat(run.config)
    return {label: text(known[name]) for name, label in names.items() if known.get(name) is not None}
