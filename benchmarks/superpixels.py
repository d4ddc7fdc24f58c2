"""Compares superpixels computed once per image with superpixels computed in every view, as in ConCL's paper.

Pre-trains both variants of fh-ConCL with the small recipe, and probes the features on outlined images. The paper's
variant exists only here: scikit-image segments each reference view on the CPU while the step waits.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from benchmarks.measure import report
from densepath.analysis.pictures import colors_of
from densepath.concepts.source import Concepts
from densepath.concepts.superpixels import Superpixels
from densepath.methods import ConCL
from densepath.nets.backbones import Backbone
from densepath.sources.pixel_source import PixelSource
from densepath.training.pretrain import pretrain
from densepath.transfer.probe.probe import probe
from densepath.views.view import Batch

SCALES = {"per_image": 200, "per_view": 100}  # for images of 224 px, and for views of 96 px


class ViewSuperpixels:
    """Superpixels of reference views."""

    num_concepts = None
    superpixels = Superpixels(SCALES["per_view"])

    def check(self, backbone: Backbone, size: Sequence[int]) -> None:
        """Accepts any view."""

    def prepare(self, images: Any) -> None:
        """Does nothing: superpixels depend on the views."""

    def __call__(self, batch: Batch, encoder: Backbone) -> Concepts:
        view = batch["reference"]
        labels = np.stack([self.superpixels.label(colors_of(pixels), "") for pixels in view.pixels])
        return Concepts(torch.from_numpy(labels).to(view.pixels.device), view.map)


class ViewConCL(ConCL):
    """ConCL with superpixels of reference views."""

    def needs(self) -> dict[str, Any]:
        return {}

    def prepare(self, images: PixelSource, given: Mapping[str, Any] = MappingProxyType({})) -> None:
        self.source = ViewSuperpixels()
        self.unused_views = ()


def compare(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Pre-train and probe: one row per variant."""
    rows = []
    for variant in arguments.variants:
        scores = []
        for seed in arguments.seeds:
            run = pretrain(
                "concl_superpixels_small",
                data=arguments.tiles,
                out=arguments.out / f"{variant}_{seed}",
                method=ViewConCL if variant == "per_view" else "concl",
                method_options={"momentum": arguments.momentum, "superpixel_scale": SCALES["per_image"]},
                backbone=arguments.backbone,
                seed=seed,
                max_steps=arguments.steps,
                batch_size=arguments.batch_size,
                optimizer={"lr": arguments.lr},
            )
            score = probe(data=arguments.data, weights=run, backbone=arguments.backbone, seed=seed)
            scores.append(score["mean_iou"])
            print(f"{variant}, seed {seed}: mean IoU {scores[-1]:.1f}", flush=True)
        rows.append({"case": variant, "mean IoU": mean(scores), "runs": len(scores)})
    return rows


def main() -> None:
    """Print one table."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--tiles", type=Path, required=True, help="unlabelled images of about 224 px")
    made.add_argument("--data", type=Path, required=True, help="outlined images, as densepath data writes them")
    made.add_argument("--out", type=Path, required=True, help="a folder for the runs")
    made.add_argument("--variants", nargs="+", choices=SCALES, default=list(SCALES))
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    made.add_argument("--steps", type=int, default=250)
    made.add_argument("--batch_size", type=int, default=64)
    made.add_argument("--backbone", default="regnetx_002")
    made.add_argument("--lr", type=float, default=0.2)
    made.add_argument("--momentum", type=float, default=0.99)
    report("Superpixels per image and per view", compare(made.parse_args()))


if __name__ == "__main__":
    main()
