"""Does it matter that superpixels are found once on each image, and not in every view of it anew, as in ConCL's paper?

Pre-trains fh-ConCL both ways, with the small recipe, and probes the features on outlined images. The paper's way is
built here alone: scikit-image segments each reference view on the CPU while the step waits.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from benchmarks.measure import report
from densepath.analysis.pictures import colors_of
from densepath.concepts.source import Concepts
from densepath.concepts.superpixels import Superpixels
from densepath.methods import METHODS, ConCL
from densepath.nets.backbones import Backbone
from densepath.sources.pixel_source import PixelSource
from densepath.training.pretrain import pretrain
from densepath.training.recipes import load_recipe, typed_options
from densepath.transfer.probe.probe import probe
from densepath.views.view import Batch

SCALES = {"per_image": 200, "per_view": 100}  # of images of 224 px, and of the part of them that a view of 96 px shows


class ViewSuperpixels:
    """Superpixels of the reference views."""

    num_concepts = None
    superpixels = Superpixels(SCALES["per_view"])

    def check(self, backbone: Backbone, size: Sequence[int]) -> None:
        """Any view will do."""

    def prepare(self, images: Any) -> None:
        """Nothing is known before the views."""

    def __call__(self, batch: Batch, encoder: Backbone) -> Concepts:
        view = batch["reference"]
        labels = np.stack([self.superpixels.label(colors_of(pixels), "") for pixels in view.pixels])
        return Concepts(torch.from_numpy(labels).to(view.pixels.device), view.map)


class ViewConCL(ConCL):
    """ConCL with superpixels of the reference views."""

    def prepare(self, images: PixelSource) -> None:
        self.source = ViewSuperpixels()
        self.unused_views = ()


def compare(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Pre-train and probe: one row for each way."""
    METHODS["view_concl"] = ViewConCL
    rows = []
    for way in arguments.ways:
        scores = []
        for seed in arguments.seeds:
            recipe = typed_options(load_recipe("concl_superpixels_small")) | {
                "max_steps": arguments.steps,
                "batch_size": arguments.batch_size,
            }
            recipe["optimizer"] = replace(recipe["optimizer"], lr=arguments.lr)
            recipe["method_options"] |= {"momentum": arguments.momentum, "superpixel_scale": SCALES["per_image"]}
            if way == "per_view":
                recipe["method"] = "view_concl"
            run = arguments.out / f"{way}_{seed}"
            pretrain(data=arguments.tiles, out=run, backbone=arguments.backbone, seed=seed, **recipe)
            score = probe(data=arguments.data, weights=run, backbone=arguments.backbone, seed=seed)
            scores.append(100 * score["mean_iou"])
            print(f"{way}, seed {seed}: mean IoU {scores[-1]:.1f}", flush=True)
        rows.append({"case": way, "mean IoU": mean(scores), "runs": len(scores)})
    return rows


def main() -> None:
    """Print one table."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--tiles", type=Path, required=True, help="unlabelled images of about 224 px")
    made.add_argument("--data", type=Path, required=True, help="outlined images, as densepath data writes them")
    made.add_argument("--out", type=Path, required=True, help="a folder for the runs")
    made.add_argument("--ways", nargs="+", choices=SCALES, default=list(SCALES))
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    made.add_argument("--steps", type=int, default=250)
    made.add_argument("--batch_size", type=int, default=64)
    made.add_argument("--backbone", default="regnetx_002")
    made.add_argument("--lr", type=float, default=0.2)
    made.add_argument("--momentum", type=float, default=0.99)
    report("Superpixels per image and per view", compare(made.parse_args()))


if __name__ == "__main__":
    main()
