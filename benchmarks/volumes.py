"""The cost of cropping cubes of 64 x 64 x 32 voxels from volumes: in the views, and in a plain implementation.

The plain implementation works on the canvas of the whole batch, sums along its axes in a fixed order, and samples maps
that rotate as finely along every axis as the one that shrinks most needs. Both give the same crops; rotated ones they
smooth differently.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import at_least, in_turns, report
from densepath.core.boxes import onto_boxes
from densepath.core.filters import axis_taps, weighted_rows
from densepath.core.resampling import sample
from densepath.sources.batch import ImageBatch
from densepath.sources.pixel_source import PixelSpec
from densepath.views.crops import Crop
from densepath.views.declarations import RandomView
from densepath.views.intensity import Gamma, GaussianBlur, GaussianNoise, IntensityJitter
from densepath.views.maker import ViewMaker
from densepath.views.random_streams import Draw

SIZE = (32, 64, 64)
SPEC = PixelSpec(3, 1, (-1000.0, 1000.0), (0.5,), (0.25,))
CROPS = {
    "crop": Crop(scale=(0.02, 0.2)),
    "crop, turned in xy": Crop(scale=(0.02, 0.2), rotation=10.0),
    "crop, turned about all axes": Crop(scale=(0.02, 0.2), rotation=10.0, rotation_axes="all"),
}
LOOKS = {
    "blur": GaussianBlur(1.0, (0.5, 2.0)),
    "noise": GaussianNoise(1.0),
    "brightness and contrast": IntensityJitter(1.0),
    "gamma": Gamma(1.0),
}


def plain_sample(x: Tensor, maps: Tensor, size: Sequence[int], extent: Tensor) -> Tensor:
    """What ``densepath.core.resampling.sample`` gives, bilinearly, in the plain implementation.

    Args:
        x: (B, 1, D, H, W) floats.
        maps: (B, 3, 4) to the inputs, which lie in the low corner of the canvas.
        size: the output's.
        extent: (B, 3) the inputs' sizes.
    """
    linear = maps[..., :3]
    if not bool((linear - torch.diag_embed(linear.diagonal(dim1=1, dim2=2))).any()):
        table = x.movedim(1, -1)
        for axis in range(3):
            scale, shift = maps[:, 2 - axis, 2 - axis], maps[:, 2 - axis, 3]
            taps = axis_taps(shift - scale, shift + scale, size[axis], "bilinear", extent[:, axis], x.device)
            table = weighted_rows(table, *taps, axis=1 + axis)
        return table.movedim(-1, 1)
    across = extent.flip(-1).to(maps).unsqueeze(-1)
    steps = (linear * across).norm(dim=1) / torch.tensor(tuple(size)).flip(0)
    parts = max(1, math.ceil(float(steps.max()) - 1e-3))
    share = across / torch.tensor(x.shape[2:]).flip(0).view(3, 1)
    onto_canvas = torch.cat((linear * share, maps[..., 3:] * share + share - 1), -1).float()
    grid = F.affine_grid(onto_canvas, [len(x), 1, *(n * parts for n in size)], align_corners=False)
    samples = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    return F.avg_pool3d(samples, parts) if parts > 1 else samples


def crop_cases(crop: Crop, count: int) -> dict[str, Callable[[], Any]]:
    """Cubes cropped from the boxes that a source reads for them, and the plain implementation on the same boxes."""
    sizes = torch.tensor([[160, 192, 192]] * count)
    maker = ViewMaker({"cube": RandomView(crop)}, SIZE, 0, SPEC)
    plan = maker.draw(torch.arange(count), sizes)
    boxes = plan.boxes(sizes)
    sides = boxes[:, 1] - boxes[:, 0]
    pixels = torch.zeros(count, *sides.amax(0).tolist(), 1, dtype=torch.int16)
    for row, side in enumerate(sides.tolist()):
        values = torch.nn.functional.interpolate(torch.rand(1, 1, 8, 8, 8), side, mode="trilinear")[0, 0]
        pixels[row, : side[0], : side[1], : side[2], 0] = (2000 * values - 1000).to(torch.int16)
    batch = ImageBatch(pixels, sizes, torch.arange(count), boxes=boxes, plan=plan)
    maps = onto_boxes(plan.views["cube"].map, sizes, boxes[:, 0], boxes[:, 1])

    def plain() -> Tensor:
        return plain_sample(pixels.movedim(-1, 1).to(torch.float32), maps, SIZE, sides)

    def ours() -> Tensor:
        return sample(pixels.movedim(-1, 1), maps, SIZE, extent=sides)

    return {"plain": plain, "ours": ours, "view": lambda: maker(batch)}


def compare(count: int, repeats: int) -> list[dict[str, Any]]:
    """Milliseconds per cube: one row for each kind of crop and each operation."""
    rows = []
    for name, crop in CROPS.items():
        cases = crop_cases(crop, count)
        difference = (cases["plain"]() - cases["ours"]()).abs().max().item() / 2000
        seconds = in_turns(cases, repeats, torch.device("cpu"), warmup=1)
        row: dict[str, Any] = {"case": name}
        for case, times in seconds.items():
            row[f"{case}, ms per cube"] = 1000 * statistics.median(times) / count
        rows.append(row | {"largest difference, share of the window": difference})
    x = torch.rand(count, 1, *SIZE)
    for name, look in LOOKS.items():

        def apply(look: Any = look) -> Tensor:
            made: Tensor = look.apply(x.clone(), Draw(0, 0, torch.arange(count), torch.zeros(count, dtype=torch.int64)))
            return made

        seconds = in_turns({"ours": apply}, repeats, torch.device("cpu"), warmup=1)
        rows.append({"case": name, "ours, ms per cube": 1000 * statistics.median(seconds["ours"]) / count})
    return rows


def main() -> None:
    """Print one table."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--count", type=at_least(1), default=8, help="cubes in a batch")
    made.add_argument("--repeats", type=at_least(1), default=5, help="rounds that are measured")
    made.add_argument("--json", help="a file for the result")
    asked = made.parse_args()
    report("Cubes of volumes", compare(asked.count, asked.repeats), asked.json)


if __name__ == "__main__":
    main()
