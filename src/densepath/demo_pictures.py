"""The pictures of the demo."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image
from rich.console import Console

from densepath.analysis.concepts import find_concepts
from densepath.analysis.curves import draw_curves
from densepath.analysis.panels import compose
from densepath.analysis.pictures import draw_concepts, draw_detections
from densepath.analysis.show import show_concepts, show_views
from densepath.annotations.coco import open_split
from densepath.core.records import CONFIG
from densepath.nets.backbones import build_backbone
from densepath.nets.weights import load_weights
from densepath.sources.decode import read_image

BACKBONE = "regnetx_002"  # trains six times as fast as ResNet-18 on a CPU
TILE = 128  # pixels: side of the tiles
TITLES = {"random": "random weights", "pretrained": "pre-trained weights"}
_REAL = "immunohistochemistry.png"
_NOTE = """Query and key are random views of one image, the reference covers both. A dot marks a view's
upper left corner. Detections have the color of their true object; false ones are red, missed ones dashed."""


def real_tile(folder: Path, console: Console) -> Path | None:
    """The stained section that comes with scikit-image; None if it is not installed."""
    try:
        tile = skimage.data.immunohistochemistry()
    except Exception as error:  # for a missing file it tries the network, which can fail in many ways
        console.print(f"scikit-image's immunohistochemistry tile is missing ({type(error).__name__}); continuing")
        return None
    folder.mkdir()
    Image.fromarray(np.asarray(tile)).save(folder / _REAL)
    return folder


def draw(out: Path, real: Path | None, seed: int) -> None:
    pictures = out / "pictures"
    recipe = out / "pretrained" / CONFIG
    views = show_views(
        data=out / "tiles", out=pictures / "views.png", config=recipe, view_size=TILE, count=4, seed=seed
    )
    test = open_split(out / "tissue", "test")
    detectors = {title: out / f"detector_{name}" for name, title in TITLES.items()}
    crowded = sorted(range(len(test)), key=lambda i: -len(test[i]["masks"]))
    shown = sorted(crowded[len(crowded) // 4 :][:3])  # images with a medium number of objects
    detections = draw_detections(test, detectors, pictures / "detections.png", indices=shown)
    learning = ("instance_loss", "concept_loss", "shared_concepts", "lr")
    draw_curves({"pre-training": out / "pretrained" / "metrics.csv"}, pictures / "pretraining.png", columns=learning)
    metrics = {title: folder / "metrics.csv" for title, folder in detectors.items()}
    losses = ("loss", "loss_objectness", "loss_class", "loss_mask")
    draw_curves(metrics, pictures / "detection.png", columns=losses)
    right = [("Glands found in held-out tissue", detections)]
    if real is not None:
        weights = ("random", str(out / "pretrained"))
        show_concepts(data=real, out=pictures / "concepts.png", weights=weights, backbone=BACKBONE, count=1, seed=seed)
        right.insert(0, ("Concepts on a real section", _draw_real(out, real, seed)))
    compose([[("Views of unlabelled tissue", views)], right], pictures / "summary.png", note=_NOTE)


def _draw_real(out: Path, real: Path, seed: int) -> Path:
    """The concepts of f4 on the real tile, in the columns of the detections."""
    tile = read_image(real / _REAL)
    columns: dict[str, list[np.ndarray]] = {}
    sources: tuple[str | Path, ...] = ("random", out / "pretrained")
    for title, weights in zip(TITLES.values(), sources, strict=True):
        torch.manual_seed(seed)
        backbone = build_backbone(BACKBONE)
        load_weights(backbone, weights)
        columns[title] = [find_concepts(backbone, tile, stages=(4,), seed=seed)[4]]
    return draw_concepts([tile], columns, out / "pictures" / "concepts_f4.png")
