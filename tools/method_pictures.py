"""Write docs/pictures/methods: a picture for each page on a method, from procedural tissue and volumes only.

python tools/method_pictures.py --work FOLDER [--only mae pcrl]

The folder keeps two small runs whose features and attention are drawn: about three minutes on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from picture_parts import (
    OUT,
    SIDE,
    Inputs,
    Panel,
    boxed,
    contrast,
    draw,
    framed,
    hidden,
    in_colors,
    maps_of,
    of_views,
    outlined,
    pointed,
    rgb,
    vectors_of,
)
from PIL import Image

from densepath.analysis.attention import LastAttention, aggregated
from densepath.analysis.concepts import find_concepts
from densepath.analysis.panels import LINES, OBJECTS, show
from densepath.analysis.pictures import colors_of, paint_concepts
from densepath.annotations.cells.blobs import find_cells
from densepath.concepts.build import build_source
from densepath.concepts.nuclei import Nuclei
from densepath.concepts.superpixels import Superpixels
from densepath.core.affine import warp_labels, warp_points
from densepath.core.block_masking import block_masks, count_draws
from densepath.core.masking import random_visible
from densepath.core.mixing import mix
from densepath.core.regions import Regions
from densepath.methods import METHODS
from densepath.methods.densecl import most_similar
from densepath.nets.backbones import build_backbone
from densepath.sources.loader import ImageBatches
from densepath.sources.open import open_images
from densepath.synthetic.slide import SlidePainter
from densepath.synthetic.tissue import tissue_image
from densepath.synthetic.volumes import SyntheticVolumes
from densepath.views.cubes import divide, join, rotations
from densepath.views.maker import ViewMaker
from densepath.views.turns import turned


def supervised(inputs: Inputs) -> None:
    kinds = {"class 1: crypts": 0.0, "class 2: adenoma": 0.5, "class 3: carcinoma": 1.0}
    rows = [
        [tissue_image(seed, 160, grade=grade)[0] for grade in kinds.values() for seed in (base, base + 7)]
        for base in (1, 2)
    ]
    draw("supervised", [title if k == 0 else "" for title in kinds for k in range(2)], rows, breaks=(2, 4))


def moco(inputs: Inputs) -> None:
    contrast(inputs, "moco", "query", "key", "in the queue", 4, "moco_v2")


def simclr(inputs: Inputs) -> None:
    names = list(METHODS["simclr"].views())
    contrast(inputs, "simclr", names[0], names[1], "in the batch", 4, "simclr")


def byol(inputs: Inputs) -> None:
    batch = inputs.views("byol")
    names = list(METHODS["byol"].views())
    draw(
        "byol",
        ["image", *names] * 2,
        [[p for row in (k, k + 1) for p in of_views(inputs, batch, names, row)] for k in (0, 2)],
        breaks=(1, 3, 4),
    )


def pcl_v2(inputs: Inputs) -> None:
    from sklearn.cluster import KMeans

    every = next(iter(ImageBatches(open_images(inputs.tiles), batch_size=200, seed=5, max_steps=1)))
    view = ViewMaker({"view": METHODS["pcl_v2"].feature_view}, SIDE, 0)(every)["view"]
    (vectors,) = vectors_of(inputs, view.pixels)
    labels = KMeans(12, n_init=3, random_state=0).fit_predict(vectors.numpy())
    largest = np.bincount(labels).argsort()[::-1][:3]
    rows = [[every.pixels[i].numpy() for i in np.flatnonzero(labels == label)[:5]] for label in largest]
    draw("pcl_v2", [""] * 5, [row for row in rows if len(row) == 5])


def densecl(inputs: Inputs) -> None:
    batch = inputs.views("densecl", 128)
    q, k = batch["query"], batch["key"]
    match = most_similar(maps_of(inputs, q.pixels, 4), maps_of(inputs, k.pixels, 4))  # (B, positions)
    side = round(match.shape[1] ** 0.5)
    own = torch.tensor([(1, 1), (1, 6), (3, 3), (4, 5), (6, 2), (6, 6)])
    here = (own.flip(1) + 0.5) / side
    moved, _ = warp_points(2 * here[None].repeat(len(batch), 1, 1) - 1, q.map, k.map)
    rows = []
    for row in (0, 1):
        found = match[row][own[:, 0] * side + own[:, 1]]
        alike = torch.stack([found % side, found // side], 1).add(0.5) / side
        key = rgb(batch, "key", row)
        panels = [
            pointed(rgb(batch, "query", row), here.numpy()),
            pointed(key, alike.numpy()),
            pointed(key, ((moved[row] + 1) / 2).numpy()),
        ]
        rows.append([outlined(inputs, batch, ("query", "key"), row), *panels])
    draw("densecl", ["image", "positions of the query", "match: features", "match: geometry"], rows, (1, 2), side=1.5)


def concl(inputs: Inputs) -> None:
    batch = inputs.views("concl", 128)
    source = build_source("kmeans", num_concepts=8, stage=4, grid_size=3, superpixel_scale=500, nucleus_radius=5.0)
    with torch.no_grad():
        concepts = source(batch, inputs.features)
    rows = []
    for row in (0, 1, 2):
        painted = []
        for name in ("query", "key"):
            labels, _ = warp_labels(concepts.labels, concepts.map, batch[name].map, (16, 16), 8)
            painted.append(paint_concepts((255 * rgb(batch, name, row)).astype(np.uint8), labels[row].numpy()))
        reference = paint_concepts((255 * rgb(batch, "reference", row)).astype(np.uint8), concepts.labels[row].numpy())
        rows.append(
            [
                outlined(inputs, batch, ("query", "key", "reference"), row),
                rgb(batch, "query", row),
                rgb(batch, "key", row),
                reference,
                *painted,
            ]
        )
    draw("concl", ["image", "query", "key", "concepts", "in the query", "in the key"], rows, (1, 3, 4))


def concl_sources(inputs: Inputs) -> None:
    rows = []
    for row in (0, 1):
        tile = inputs.images.pixels[row].numpy()
        grid = np.arange(9).reshape(3, 3)
        with torch.no_grad():
            clusters = find_concepts(inputs.features, tile, (4,))[4]
        maps = [grid, Superpixels(500).label(tile, ""), Nuclei(5.0).label(tile, ""), clusters]
        rows.append([tile, *(paint_concepts(tile, each) for each in maps)])
    draw("concl_sources", ["tile", "grid", "superpixels", "nuclei", "kmeans"], rows, (1,), side=1.5)


def parts_of(inputs: Inputs, name: str, backbone: str, size: int) -> list[list[np.ndarray]]:
    """For each image: the view, what of it is visible, the target, and the target where it counts in the loss."""
    made = METHODS[name](build_backbone(backbone)).eval().reconstruct(inputs.views(name, size))
    counted = torch.where(made.counted, made.target, made.target.new_tensor(1.6))
    return [[colors_of(x[k]) for x in (made.view, made.visible, made.target, counted)] for k in range(len(made.view))]


def masked(inputs: Inputs, name: str, backbone: str, size: int) -> None:
    rows = parts_of(inputs, name, backbone, size)
    titles = ["view", "visible", "target", "what counts"] * 2
    draw(name, titles, [rows[k] + rows[k + 1] for k in (0, 2)], (4,))


def mae(inputs: Inputs) -> None:
    masked(inputs, "mae", "vit_tiny_patch16_224", 128)


def spark(inputs: Inputs) -> None:
    masked(inputs, "spark", "regnetx_002", 160)


def conv_mim(inputs: Inputs) -> None:
    masked(inputs, "conv_mim", "regnetx_002", 160)


def model_genesis(inputs: Inputs) -> None:
    parts = parts_of(inputs, "model_genesis", "resnet18", 128)
    rows = [[panel for k in ks for panel in parts[k][0:3:2]] for ks in ((0, 1, 2), (3, 4, 5))]
    draw("model_genesis", ["corrupted", "target"] * 3, rows, (2, 4))


def pcrl(inputs: Inputs) -> None:
    """Three rows for each image: the ordinary, the momentum and the hybrid encoder."""
    batch = inputs.views("pcrl", 128)
    share = torch.full((len(batch),), 0.5)
    rows: list[list[Panel]] = []
    for name in ("first", "second"):
        seen, clean, target = (batch[f"{name}{part}"].pixels for part in ("", "_clean", "_target"))
        rows.append([colors_of(x[k]) for k in (0, 2) for x in (seen, clean, target)])
    mixed = mix(share, batch["first_clean"].pixels, batch["second_clean"].pixels)
    seen = mix(share, batch["first"].pixels, batch["second"].pixels)
    linear = torch.linalg.solve(batch["first_clean"].map[..., :-1], batch["mixed_target"].map[..., :-1]).round() + 0.0
    target = turned(mixed, linear)
    rows.append([colors_of(x[k]) for k in (0, 2) for x in (seen, mixed, target)])
    draw("pcrl", ["input", "clean", "target"] * 2, rows, (3,))


def eva(inputs: Inputs) -> None:
    view = inputs.views("eva", 128)["image"].pixels
    visible = random_visible(torch.rand(len(view), 64, generator=torch.Generator().manual_seed(0)), 16).view(-1, 8, 8)
    features = maps_of(inputs, view, 3)
    rows = []
    for row in (0, 1):
        image, targets = colors_of(view[row]), in_colors(torch.nn.functional.adaptive_avg_pool2d(features[row], 8))
        masked = np.where(visible[row].numpy()[..., None], 0.82, targets)
        rows.append([image, hidden(image, ~visible[row]), targets, masked])
    draw("eva", ["view", "visible", "teacher's features", "predicted ones"], rows, (2,), side=1.5)


def beit_v2(inputs: Inputs) -> None:
    view = inputs.views("beit_v2", 128)["image"].pixels
    generator = torch.Generator().manual_seed(1)
    mask = block_masks(torch.rand(len(view), count_draws(64), generator=generator), 8, 26, 4).view(-1, 8, 8)
    rows = []
    for row in (0, 1):
        image = colors_of(view[row])
        codes = find_concepts(inputs.features, (255 * image).astype(np.uint8), (3,), 12)[3][::16, ::16]
        painted = paint_concepts((255 * image).astype(np.uint8), codes, 1.0)
        rows.append([image, hidden(image, mask[row]), painted, hidden(painted, ~mask[row])])
    draw("beit_v2", ["view", "masked", "codes", "predicted codes"], rows, (2,), side=1.5)


def dino(inputs: Inputs) -> None:
    batch = inputs.views("dino")
    draw(
        "dino",
        ["image", "first", "second", "local crops"],
        [of_views(inputs, batch, ("first", "second", "local"), k) for k in (0, 1)],
        (1,),
        side=1.5,
    )


def swav(inputs: Inputs) -> None:
    batch = inputs.views("swav")
    draw(
        "swav",
        ["image", *batch.views],
        [of_views(inputs, batch, tuple(batch.views), k) for k in (2, 3)],
        (1,),
        side=1.5,
    )


def dirl(inputs: Inputs) -> None:
    """The tokens with cells and without, and the attention of a small run of DINO."""
    student = inputs.run("dino").exported_backbone().eval()
    rows = []
    for row in (0, 1):
        tile = inputs.images.pixels[row].numpy()[:144, :144]
        points = torch.from_numpy(find_cells(tile, 0.7)) / 72 - 1
        cellular = Regions.of_points(points[None], (9, 9)).masks[0, 0].view(9, 9)
        view = torch.from_numpy(tile.copy()).permute(2, 0, 1)[None].float() / 255
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        attention = aggregated(LastAttention(student)((view - mean) / std)[0].mean(1))[0].view(9, 9)
        image = tile / 255

        def cells(axes: Axes, image: np.ndarray = image, points: torch.Tensor = points) -> None:
            show(axes, image)
            axes.scatter(*((points + 1) * 72).T.numpy(), s=7, c=OBJECTS[1], edgecolors="black", linewidths=0.4)

        def heat(axes: Axes, image: np.ndarray = image, attention: torch.Tensor = attention) -> None:
            show(axes, image)
            axes.imshow(attention.numpy(), extent=(0, 144, 144, 0), cmap="viridis", alpha=0.6)

        rows.append([image, cells, hidden(image, ~cellular), hidden(image, cellular), heat])
    draw("dirl", ["tile", "cells", "cell tokens", "background tokens", "attention"], rows, (2, 4), side=1.4)


def esvit(inputs: Inputs) -> None:
    batch = inputs.views("esvit", 128)
    student, teacher = batch["second"].pixels, batch["first"].pixels
    match = most_similar(maps_of(inputs, student, 4), maps_of(inputs, teacher, 4))
    side = round(match.shape[1] ** 0.5)
    own = torch.tensor([(1, 1), (1, 6), (3, 3), (4, 5), (6, 2), (6, 6)])
    rows = []
    for row in (0, 1):
        found = match[row][own[:, 0] * side + own[:, 1]]
        alike = torch.stack([found % side, found // side], 1).add(0.5) / side
        panels = [
            pointed(colors_of(student[row]), ((own.flip(1) + 0.5) / side).numpy()),
            pointed(colors_of(teacher[row]), alike.numpy()),
        ]
        rows.append([outlined(inputs, batch, ("second", "first"), row), *panels])
    draw("esvit", ["image", "student's positions", "the most similar"], rows, (1,), side=1.5)


def selfpatch(inputs: Inputs) -> None:
    batch = inputs.views("selfpatch", 128)
    view = batch["first"].pixels
    features = torch.nn.functional.normalize(
        torch.nn.functional.adaptive_avg_pool2d(maps_of(inputs, view, 3), 8), dim=1
    )
    rows = []
    for first in (0, 2):
        panels: list[Panel] = []
        for row in (first, first + 1):
            image, boxes = colors_of(view[row]), []
            for y, x in ((2, 2), (5, 5)):
                near = [(y + j, x + i) for j in (-1, 0, 1) for i in (-1, 0, 1) if (i, j) != (0, 0)]
                near.sort(key=lambda p: -float(features[row, :, p[0], p[1]] @ features[row, :, y, x]))
                boxes += [
                    (16 * x + 2, 16 * y + 2, 12, 12, OBJECTS[1]),
                    *((16 * i + 2, 16 * j + 2, 12, 12, LINES[0]) for j, i in near[:4]),
                ]
            panels.append(boxed(image, boxes))
        rows.append(panels)
    draw("selfpatch", ["patches (yellow) and their", "four neighbors (blue)"], rows, side=1.8)


def ibot(inputs: Inputs) -> None:
    batch = inputs.views("ibot")
    count = torch.tensor([5, 8, 14, 17]).repeat(6)
    mask = block_masks(torch.rand(24, count_draws(36), generator=torch.Generator().manual_seed(2)), 6, count, 4).view(
        -1, 6, 6
    )
    rows = []
    for row in (0, 1):
        first, second = (rgb(batch, name, row) for name in ("first", "second"))
        rows.append(
            [
                outlined(inputs, batch, ("first", "second"), row),
                first,
                hidden(first, mask[row]),
                second,
                hidden(second, mask[row + 2]),
            ]
        )
    draw(
        "ibot",
        ["image", "teacher: first", "student: first", "teacher: second", "student: second"],
        rows,
        (1, 3),
        side=1.3,
    )


def hipt(inputs: Inputs) -> None:
    region = SlidePainter((4096, 4096), 1.0, 4).part(1024, 1024, 1024, 1024)
    tiles = (
        torch.from_numpy(region.copy())
        .unflatten(0, (16, 64))
        .unflatten(2, (16, 64))
        .permute(0, 2, 4, 1, 3)
        .flatten(0, 1)
    )
    grid = maps_of(inputs, (tiles.float() / 255 - 0.5) / 0.25).mean((2, 3)).T.unflatten(1, (16, 16))
    small = np.asarray(Image.fromarray(region).resize((320, 320), Image.Resampling.BOX))
    colors = np.kron(in_colors(grid), np.ones((20, 20, 1)))
    windows = [
        (0, 20, 280, 280, LINES[0]),
        (40, 0, 280, 280, LINES[1]),
        *((20 * x, 20 * y, 120, 120, LINES[2]) for x, y in ((1, 8), (9, 3))),
    ]
    draw(
        "hipt",
        ["region of 16 x 16 tiles", "features of the tiles", "windows"],
        [[small, colors, boxed(colors, windows)]],
        side=2.2,
    )


def c2l(inputs: Inputs) -> None:
    batch = inputs.views("c2l")
    first = batch["first"].pixels
    share = torch.full((len(first),), 0.65)
    mixed = mix(share, first, first.roll(-1, 0))
    rows = [
        [*of_views(inputs, batch, ("first", "second"), k), colors_of(first[k + 1]), colors_of(mixed[k])] for k in (0, 2)
    ]
    draw("c2l", ["image", "first", "second", "another image's", "65% and 35%"], rows, (1, 3), side=1.3)


def _slice(pixels: np.ndarray) -> np.ndarray:
    """The middle slice of a volume (D, H, W, 1) in Hounsfield units, as colors; seen from the front."""
    plane = pixels[:, pixels.shape[1] // 2, :, 0].astype(np.float64)
    return np.clip((plane + 1000) / 1500, 0, 1)[..., None].repeat(3, 2)


def semantic_genesis(inputs: Inputs) -> None:
    volumes = SyntheticVolumes(5, 2, (64, 64, 64))
    places = [
        (6.0, 8.0, 20.0, 20.0, OBJECTS[1]),
        (36.0, 12.0, 20.0, 20.0, OBJECTS[0]),
        (10.0, 40.0, 20.0, 20.0, OBJECTS[6]),
    ]
    planes = [_slice(volumes.read(k)) for k in range(5)]
    planes = [np.asarray(Image.fromarray((255 * p).astype(np.uint8)).resize((64, 64))) / 255 for p in planes]
    crops = [[p[int(y) : int(y + h), int(x) : int(x + w)] for p in planes] for x, y, w, h, _ in places]
    rows: list[list[Panel]] = [[boxed(p, places) for p in planes]]
    rows += [[framed(crop, place[4]) for crop in own] for own, place in zip(crops, places, strict=True)]
    draw("semantic_genesis", ["similar images", *[""] * 4], rows)


def cube(inputs: Inputs) -> None:
    tiles = inputs.images.pixels[:4, :128, :128].permute(0, 3, 1, 2).float() / 255
    generator = torch.Generator().manual_seed(0)
    cubes = divide(tiles, 32)  # (N, C, K, side**2)
    order = torch.rand(4, 1, 16, 1, generator=generator).argsort(2).expand_as(cubes)
    turned = rotations(32, 2, "xy")[torch.randint(4, (4, 16), generator=generator)][:, None].expand_as(cubes)
    shuffled = join(cubes.gather(2, order).gather(3, turned), (128, 128), 32)
    rows = [[p[k].permute(1, 2, 0).numpy() for k in ks for p in (shuffled, tiles)] for ks in ((0, 1), (2, 3))]
    draw("cube", ["input", "target"] * 2, rows, (2,), side=1.4)


def cpc(inputs: Inputs) -> None:
    panels: list[Panel] = []
    for row in (0, 1):
        image = np.rot90(inputs.images.pixels[row, :128, :96].numpy() / 255)
        boxes = [
            (32.0 * c + 2, 32.0 * r + 2, 28.0, 28.0, LINES[2] if c < 2 else LINES[1])
            for r in range(3)
            for c in range(4)
        ]
        panels.append(boxed(np.ascontiguousarray(np.rot90(image, 3)), [(y, x, h, w, c) for x, y, w, h, c in boxes]))
    draw("cpc", ["read: green", "predicted: orange"], [panels], side=1.8)


PAGES: dict[str, Callable[[Inputs], None]] = {
    page.__name__: page
    for page in (
        *(supervised, moco, simclr, byol, pcl_v2, densecl, concl, concl_sources, spark, mae, conv_mim, eva, beit_v2),
        *(dino, dirl, esvit, selfpatch, ibot, hipt, pcrl, c2l, model_genesis, swav, semantic_genesis, cube, cpc),
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=PAGES, default=list(PAGES))
    given = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    inputs = Inputs(given.work)
    for name in given.only:
        PAGES[name](inputs)


if __name__ == "__main__":
    main()
