"""What a run says of itself at its end: its measurements and its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from densepath.core.errors import unwrapped
from densepath.core.streams import say
from densepath.runs.folder import CURVES, VIEWS
from densepath.runs.metrics import METRICS, read_metrics

CHANCE = "_vs_chance"  # of the name of a loss that is divided by its value for a network that knows nothing


def draw_safely(draw: Callable[[], Path], failure: str = "a picture was not drawn") -> bool:
    """Draw a picture, or write another file for people; an error is reported, and does not stop the run.

    Returns:
        Whether it was drawn.
    """
    try:
        draw()
        return True
    except Exception as error:  # whatever a full disk or a drawing library raises
        say(f"densepath: warning: {failure} ({unwrapped(str(error))})")
        return False


def files_of_run(run: Path, **others: Path) -> dict[str, Path]:
    """The files that a run has left, by name."""
    named = {**others, "curves": run / CURVES, "views": run / VIEWS}
    return {name: path for name, path in named.items() if path.exists()}


def newest_measurements(run: Path) -> dict[str, float]:
    """The newest value of each column of a run's metrics; empty without any."""
    return {name: value for row in read_metrics(run / METRICS) for name, value in row.items()}


def describe_training(row: Mapping[str, float]) -> str:
    """Measurements of pre-training in a line: losses, what chance is, and the probe's scores."""
    parts = [f"loss {row['loss']:.4f}"] if "loss" in row else []
    for name in (column.removesuffix(CHANCE) for column in row if column.endswith(CHANCE)):
        value, share = row.get(name, 0.0), row[name + CHANCE]
        if share > 0:
            parts.append(f"{name.replace('_', ' ')} {value:.3f} (chance is {value / share:.3f})")
    parts += [f"{name.replace('_', ' ')} {value:.1f}" for name, value in row.items() if name.startswith("probe_")]
    return ", ".join(parts)
