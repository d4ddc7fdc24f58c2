"""Do concepts agree with glands? Purity and mutual information of k-means concepts, for each stage and number K.

The paper claims that an untrained network already groups tissue well. For each labelled image the features of a stage
are clustered as b-ConCL does. Purity is the share of positions whose class (object or rest) is that of most positions
of their concept; NMI the normalized mutual information of concepts and classes. "positions only" clusters where a
position is instead of its features: what any compact regions reach.

``python -m benchmarks.concept_purity --data D --weights random trained=RUN --out purity.png --json purity.json``
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from benchmarks.measure import write_json
from densepath.analysis.curves import style_curve
from densepath.analysis.panels import LINES, add_legend, new_figure, save
from densepath.annotations.coco import open_split
from densepath.concepts.kmeans import ITERATIONS
from densepath.core.clustering import spherical_kmeans
from densepath.core.random import uniform
from densepath.nets.weights.pretrained import pretrained_backbone
from densepath.sources.pixel_source import PixelSpec
from densepath.transfer.detection.precise_norm import precise_batch_norm

CONTROL = "positions only"
MEASURES = ("purity", "NMI")
_MULTIPLE = 32  # pixels


def purity(concepts: np.ndarray, truth: np.ndarray) -> float:
    """The share of positions (N,) that have the most frequent class of their concept."""
    pairs = Counter(zip(concepts.tolist(), truth.tolist(), strict=True))
    most = Counter[int]()
    for (concept, _), count in pairs.items():
        most[concept] = max(most[concept], count)
    return sum(most.values()) / len(truth)


def cluster(points: Tensor, count: int, seed: int, image: int) -> np.ndarray:
    """Concepts (N,) of points (N, C): b-ConCL's k-means, with its random starts."""
    draws = uniform(seed, 0, torch.tensor([image]), 0, torch.arange(-(-(1 + ITERATIONS) * count // 4))).flatten()
    starts = (draws[: (1 + ITERATIONS) * count] * len(points)).long().view(1 + ITERATIONS, 1, count)
    labels, _ = spherical_kmeans(points.unsqueeze(0), starts[0], starts[1:])
    return np.asarray(labels[0].cpu())


def places(grid: Sequence[int]) -> Tensor:
    """Unit vectors (positions, 3) whose angles are the distances of the positions of a grid."""
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) * n / max(grid) for n in grid), indexing="ij")
    flat = torch.stack((x, y), dim=-1).view(-1, 2)
    return torch.cat((flat, torch.full((len(flat), 1), 2.0)), dim=1)


@torch.no_grad()
def measure(
    source: str, backbone: str | None, data: Path, counts: Sequence[int], size: int, images: int, seed: int
) -> Iterator[dict[str, Any]]:
    """A row for each stage and K: means over the images, of the weights and of positions only.

    Batch norms get the statistics of these images for all weights: b-ConCL clusters with those of its batch, and random
    weights have none.
    """
    torch.manual_seed(seed)
    network, spec, *_ = pretrained_backbone(source, backbone)
    test = open_split(data, "test", PixelSpec())

    def resized(index: int) -> Tensor:
        pixels = torch.from_numpy(test.sample(index, masks=False)["image"]).permute(2, 0, 1).unsqueeze(0).float()
        scale = size / min(pixels.shape[2:])
        working = [max(1, round(n * scale / _MULTIPLE)) * _MULTIPLE for n in pixels.shape[2:]]
        return F.interpolate(spec.normalize(spec.apply_window(pixels)), working, mode="bilinear", antialias=True)

    indices = range(min(images, len(test)))
    precise_batch_norm(network, map(resized, indices), network)
    network.eval()
    found: dict[tuple[int, int, str], list[tuple[float, float]]] = {}
    for index in indices:
        glands = torch.from_numpy(test.foreground(index).copy())[None, None].float()
        for stage, features in network(resized(index)).items():
            grid = features.shape[2:]
            truth = np.asarray(F.interpolate(glands, grid, mode="area")[0, 0] > 0.5).flatten()
            if truth.all() or not truth.any():
                continue
            for name, points in (("", features[0].flatten(1).T), (CONTROL, places(grid))):
                for count in counts:
                    concepts = cluster(points, count, seed, index)
                    pair = purity(concepts, truth), float(normalized_mutual_info_score(truth, concepts))
                    found.setdefault((stage, count, name), []).append(pair)
    for (stage, count, name), pairs in found.items():
        means = np.mean(pairs, axis=0).tolist()
        row = {"control": bool(name), "seed": seed, "stage": stage, "K": count, "images": len(pairs)}
        yield row | dict(zip(MEASURES, means, strict=True))


def draw(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """A panel for each measure and stage; a line for each kind of weights, with the range of its seeds."""
    stages, names = sorted({row["stage"] for row in rows}), list(dict.fromkeys(row["case"] for row in rows))
    figure = new_figure(2.2 * len(stages), 4.0)
    grid = figure.subplots(len(MEASURES), len(stages), squeeze=False, sharey="row")
    for line, of_measure in zip(MEASURES, grid, strict=True):
        for stage, axes in zip(stages, of_measure, strict=True):
            for name, color in zip(names, LINES, strict=False):
                points: dict[int, list[float]] = {}
                for row in rows:
                    if (row["stage"], row["case"]) == (stage, name):
                        points.setdefault(row["K"], []).append(row[line])
                x = sorted(points)
                axes.plot(x, [np.mean(points[k]) for k in x], color=color, lw=1.8, marker="o", ms=3)
                axes.fill_between(
                    x, [min(points[k]) for k in x], [max(points[k]) for k in x], color=color, alpha=0.15, lw=0
                )
            style_curve(axes, f"{line}, f{stage}", "K")
            axes.set_xscale("log", base=2)
    figure.tight_layout(pad=0.7)
    handles = [grid[0, 0].plot([], [], color=color, lw=2)[0] for _, color in zip(names, LINES, strict=False)]
    add_legend(figure, handles, names)
    return save(figure, path)


def main() -> None:
    """Measure all weights; equal names are seeds of one line."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--data", required=True, help="a folder of densepath data")
    made.add_argument("--weights", nargs="+", required=True, help="NAME=SOURCE, or random; the same name again: a seed")
    made.add_argument("--backbone", help="of random weights")
    made.add_argument("--concepts", type=int, nargs="+", default=[2, 4, 8, 16])
    made.add_argument("--size", type=int, default=256, help="short side of the images in pixels")
    made.add_argument("--images", type=int, default=60)
    made.add_argument("--out", help="a PNG file")
    made.add_argument("--json")
    asked = made.parse_args()
    rows: list[dict[str, Any]] = []
    seeds: Counter[str] = Counter()
    for word in asked.weights:
        name, sign, source = word.partition("=")
        seed, seeds[name] = seeds[name], seeds[name] + 1
        measured = measure(
            source if sign else name, asked.backbone, Path(asked.data), asked.concepts, asked.size, asked.images, seed
        )
        for row in measured:
            if not row["control"] or (seed == 0 and len(seeds) == 1):
                rows.append({"case": CONTROL if row["control"] else name} | row)
        if asked.json:
            write_json(asked.json, {"purity": rows})
    if asked.out:
        draw(rows, Path(asked.out))
    for row in rows:
        print(f"{row['case']:20} f{row['stage']} K={row['K']:<3} purity {row['purity']:.3f}  NMI {row['NMI']:.3f}")


if __name__ == "__main__":
    main()
