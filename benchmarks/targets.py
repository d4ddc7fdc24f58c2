"""The targets for a GPU with their measured values, and all failures, in one table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

PAPER_IMAGES = 200 * 80_000  # ConCL: 200 epochs of NCT-CRC-HE-100K's 80,000 training tiles
SPEEDS = {"moco_v2": 8000.0, "concl": PAPER_IMAGES / 3600}  # images/s, ResNet-18 at 224 px on one H200

Found = Mapping[str, Any]  # section -> rows, or a message
Row = dict[str, str]  # target, measured, verdict


def summary(found: Found, asked: Any) -> list[Row]:
    """One row per target, and one per section that failed or was left out."""
    return [*_targets(found, asked), *_failures(found)]


def print_summary(rows: list[Row]) -> None:
    """Print the table."""
    table = Table(title="Against the targets")
    for name in ("target", "measured", "verdict"):
        table.add_column(name)
    for row in rows:
        table.add_row(*row.values())
    Console(width=max(100, Console().width)).print(table)


def _targets(found: Found, asked: Any) -> Iterator[Row]:
    steps = f"steps, {asked.backbone}"
    for recipe in asked.method:
        case, run = f"densepath {recipe}", f"densepath {recipe}, packed store"
        yield _compare(f"{recipe}: step/bare", _figure(found, steps, case, "step/bare"), most=1.15)
        waits = _figure(found, steps, case, "synchronizations")
        yield _compare(f"{recipe}: synchronizations in a step", waits, most=0)
        yield _compare(f"{recipe}: whole run/bare", _figure(found, "whole runs", run, "share of bare"), least=0.9)
        if recipe in SPEEDS and (asked.backbone, asked.size) == ("resnet18", 224):
            speed, measured = _figure(found, "whole runs", run, "images_per_second"), "whole run"
            if speed is None:
                speed, measured = _figure(found, steps, case, "images_per_second"), "step"
            yield _compare(f"{recipe}: {measured}, images/s", speed, least=SPEEDS[recipe])
            if recipe == "concl":
                minutes = None if speed is None else PAPER_IMAGES / speed / 60
                yield _compare(f"{recipe}: {measured}, minutes for 200 epochs of 80,000 tiles", minutes, most=60)
    ours = _figure(found, "whole runs", "densepath moco_v2, packed store", "images_per_second")
    theirs = _figure(found, "whole runs, lightly", "lightly moco_v2, JPEGs", "images_per_second")
    yield _compare("moco_v2: whole run/lightly's (no target on a GPU)", ours / theirs if ours and theirs else None)
    loops = _figure(found, "detection", "training, densepath", "torchvision/densepath")
    yield _compare("detector: speed of training/torchvision's (no target)", loops)
    yield _compare(
        "detector: time of evaluation/its forward passes",
        _figure(found, "detection", "evaluation, densepath", "evaluation/forward"),
        most=1.0,
    )


def _figure(found: Found, section: str, case: str, measure: str) -> float | None:
    rows = found.get(section)
    for row in rows if isinstance(rows, list) else ():
        if row["case"] == case and measure in row:
            return float(row[measure])
    return None


def _compare(what: str, value: float | None, least: float | None = None, most: float | None = None) -> Row:
    limit = f", at least {least:,.4g}" if least is not None else f", at most {most:,.4g}" if most is not None else ""
    if value is None:
        return {"target": what + limit, "measured": "", "verdict": "not measured"}
    missed = (least is not None and not value >= least) or (most is not None and not value <= most)
    verdict = "missed" if missed else "met" if limit else ""
    return {"target": what + limit, "measured": f"{value:,.0f}" if value >= 100 else f"{value:.3g}", "verdict": verdict}


def _failures(found: Found) -> Iterator[Row]:
    for title, rows in found.items():
        if isinstance(rows, str):
            yield {"target": title, "measured": "", "verdict": rows}
            continue
        for row in rows:
            for measure, value in row.items():
                if "FAILED" in str(value):
                    yield {"target": f"{title}: {row['case']}, {measure}", "measured": str(value), "verdict": "FAILED"}
