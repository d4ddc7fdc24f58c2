"""The model card of exported weights: a Markdown file beside them, with the header that the Hugging Face hub reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from densepath.core.errors import UserError
from densepath.core.files import atomic_write
from densepath.core.markdown import table_row
from densepath.core.records import UNLIKE
from densepath.nets.backbones import Backbone
from densepath.nets.backbones.names import parse_name
from densepath.nets.weights.hub import is_hub_name
from densepath.runs.metrics import METRICS, read_metrics
from densepath.training.load_code import loading_code
from densepath.version import __version__

_PROBE = "probe_"
_LOADING = "## How to load it"
_SPELLED = "cc- apache- mit bsd- gpl- lgpl- agpl- mpl- openrail unlicense"  # beginnings of the hub's names of licences


def card_path(path: Path) -> Path:
    """The card of a file of weights: ``backbone.safetensors.md``."""
    return path.with_name(f"{path.name}.md")


def write_card(
    path: Path,
    backbone: Backbone | None,
    layout: str,
    notes: Mapping[str, str],
    *,
    facts: Mapping[str, Any] | None = None,
    scores: Mapping[str, float] | None = None,
    licence: str | None = None,
) -> Path:
    """Write the model card of a file of weights.

    Paths among the run's options are reduced to their last part.

    Args:
        path: the file of weights.
        backbone: what it contains; None for tensors of an unknown network.
        layout: the layout of the file.
        notes: its metadata: "method", "steps", and "config", the run's options as JSON; or "origin", the file that it
            was converted from.
        facts: of the run: "images", their number, and the digests "names", "sizes", "samples" and "pixels".
        scores: that were measured on the weights, in percent.
        licence: its name.

    Returns:
        The card.
    """
    config: dict[str, Any] = json.loads(notes.get("config", "{}"))
    name = backbone.name if backbone is not None else "tensors"
    architecture = parse_name(name.removesuffix(UNLIKE))[0]
    header: dict[str, Any] = {
        "license": _hub_licence(licence),
        **({"license_name": licence} if licence and _hub_licence(licence) == "other" else {}),
        "library_name": layout if backbone is not None and backbone.library == "timm" else "densepath",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["densepath", "medical-imaging", *filter(None, (config.get("method"), architecture))],
    }
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n\n# {path.stem}: {name}",
        f"Written by densepath {__version__} on {date.today().isoformat()}. Licence: {licence or 'not stated'}.",
        _model(backbone, layout, notes),
        _data(config, facts or {}, notes),
        _recipe(config, notes),
        _scores(scores or {}),
        "## Intended use\n\nResearch: features of medical images, and initial weights of networks for them. Not a "
        "medical device; not for diagnosis or treatment. Evaluate it on your own images before you rely on it.",
        f"{_LOADING}\n\nFrom the folder of the file:\n\n" + loading_code(path, backbone, layout, notes),
    ]
    card = card_path(path)
    with atomic_write(card) as part:
        part.write_text("\n\n".join(filter(None, parts)) + "\n", encoding="utf-8", errors="backslashreplace")
    return card


def rename_card(old: Path, new: Path) -> None:
    """Rename the card of a file of weights, if it has one, and the file in its title and its code."""
    if card_path(old).is_file():
        text = card_path(old).read_text(encoding="utf-8", errors="backslashreplace")
        facts, title, code = text.partition(_LOADING)
        text = facts.replace(f"\n# {old.stem}: ", f"\n# {new.stem}: ") + title + code.replace(old.name, new.name)
        with atomic_write(card_path(new)) as part:
            part.write_text(text, encoding="utf-8")
        card_path(old).unlink()


def recorded_scores(run: Path) -> dict[str, float]:
    """The scores that a run recorded: of a trained network, or the last ones of the probe during pre-training."""
    try:
        found: dict[str, Any] = json.loads((run / "metrics.json").read_text())
        if isinstance(each := found.get("scores"), dict):  # with intervals
            return {key: float(score["value"]) for key, score in each.items() if score.get("value") is not None}
        return {key: float(value) for key, value in found.items() if isinstance(value, int | float)}
    except (OSError, ValueError, AttributeError, TypeError):
        pass
    try:
        rows = read_metrics(run / METRICS)
    except (OSError, UserError):
        return {}
    return next(
        (found for row in reversed(rows) if (found := {key: row[key] for key in row if key.startswith(_PROBE)})), {}
    )


def _model(backbone: Backbone | None, layout: str, notes: Mapping[str, str]) -> str:
    if backbone is None:
        return "## Model\n\nThe tensors of a network that densepath does not have, under their own names."
    count = sum(parameter.numel() for parameter in backbone.parameters())
    stages = ", ".join(f"f{stage}: {backbone.channels[stage]}" for stage in backbone.stages)
    rows = {
        "network": f"`{backbone.name}`",
        "layout of the tensors": layout,
        "parameters": f"{count / 1e6:.1f} million",
        "channels of its maps": stages,
        "input channels": str(backbone.in_channels),
    }
    rows |= {name: notes[name] for name in ("window", "mean", "std") if name in notes}
    table = "\n".join(map(table_row, rows.items()))
    return (
        f"## Model\n\n| | |\n|---|---|\n{table}\n\nPixels between the ends of the window become 0 to 1; then the mean "
        "is subtracted, and the result is divided by the standard deviation (std)."
    )


def _data(config: Mapping[str, Any], facts: Mapping[str, Any], notes: Mapping[str, str]) -> str:
    if "origin" in notes:
        return (
            f"## Training data\n\nNot known to densepath: the weights come from `{notes['origin']}`. Mean and std are "
            "those that it records, or else assumed: ImageNet's."
        )
    lines = [f"- Folder or file: `{bare(config.get('data', ''))}`"]
    lines += [f"- Images: {facts['images']:,}"] if "images" in facts else []
    lines += [
        f"- SHA-256 of their {key}: `{facts[key]}`" for key in ("names", "sizes", "samples", "pixels") if key in facts
    ]
    return "## Training data\n\n" + "\n".join(lines)


def _recipe(config: Mapping[str, Any], notes: Mapping[str, str]) -> str:
    if not config:
        return ""
    options = yaml.safe_dump(bare(dict(config)), sort_keys=False)
    done = f"{config.get('method')}, {notes.get('steps')} optimizer steps. All options:"
    return f"## Recipe\n\n{done}\n\n```yaml\n{options}```"


def _scores(scores: Mapping[str, float]) -> str:
    if not scores:
        return "## Scores\n\nNone are recorded."
    rows = "\n".join(table_row([key.removeprefix(_PROBE), f"{value:.2f}"]) for key, value in scores.items())
    return f"## Scores\n\n| measured by the run, in percent unless it is a count or px | |\n|---|---|\n{rows}"


def bare(value: Any) -> Any:
    """Options without the folders of this machine, which may name patients: of paths only the last part remains."""
    if isinstance(value, dict):
        return {key: bare(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [bare(entry) for entry in value]
    return Path(value).name if isinstance(value, str) and "/" in value and not is_hub_name(value) else value


def _hub_licence(licence: str | None) -> str:
    """The hub's name of a licence, or "other"; "unknown" if none is stated."""
    if licence is None:
        return "unknown"
    known = any(licence.lower().startswith(start) for start in _SPELLED.split())
    return licence.lower() if known else "other"
