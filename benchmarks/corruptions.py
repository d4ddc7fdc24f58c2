"""The cost of corrupted views: ours, and plain implementations image by image, as in the released codes."""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

from benchmarks.measure import at_least, in_turns, report
from benchmarks.released_pcrl import released_views
from densepath.methods import PCRLReleased
from densepath.sources.image_files import ImageFiles
from densepath.sources.loader import ImageBatches
from densepath.views.corruptions import Bezier, Painting
from densepath.views.declarations import without_color
from densepath.views.local_shuffle import LocalShuffle
from densepath.views.maker import ViewMaker
from densepath.views.random_streams import Draw

Floats = npt.NDArray[np.float64]
SIZES = {"images of 224 px": (224, 224), "cubes of 64 x 64 x 32": (64, 64, 32)}
_SIDE = 1024  # pixels of a radiograph of ChestX-ray14


def shuffle(x: Floats) -> Floats:
    """10,000 windows, one after the other."""
    out, size = x.copy(), x.shape
    for _ in range(10_000):
        sides = [random.randint(1, n // 10) for n in size]
        low = [random.randint(0, n - side) for n, side in zip(size, sides, strict=True)]
        window = tuple(slice(start, start + side) for start, side in zip(low, sides, strict=True))
        values = x[window].flatten()
        np.random.shuffle(values)
        out[window] = values.reshape(sides)
    return out


def bezier(x: Floats) -> Floats:
    """A curve of 100,000 points, sorted and interpolated."""
    points = [(0.0, 0.0), (random.random(), random.random()), (random.random(), random.random()), (1.0, 1.0)]
    t = np.linspace(0.0, 1.0, 100_000)
    basis = [(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3]
    xs, ys = (sum(b * p[i] for b, p in zip(basis, points, strict=True)) for i in (0, 1))
    return np.interp(x, np.sort(xs), np.sort(ys))


def paint(x: Floats) -> Floats:
    """Noise outside of five blocks."""
    out = np.random.rand(*x.shape)
    for _ in range(5):
        sides = [n - random.randint(3 * n // 7, 4 * n // 7) for n in x.shape]
        low = [random.randint(3, n - side - 3) for n, side in zip(x.shape, sides, strict=True)]
        window = tuple(slice(start, start + side) for start, side in zip(low, sides, strict=True))
        out[window] = x[window]
    return out


CASES: dict[str, tuple[Any, Callable[[Floats], Floats]]] = {
    "local shuffle": (LocalShuffle(1.0), shuffle),
    "Bezier remap": (Bezier(1.0), bezier),
    "out-painting": (Painting(1.0, 0.0), paint),
}


class ReleasedViews:
    """The views of the released PCRL: two crops, their corrupted forms, and these flipped and turned."""

    def __init__(self) -> None:
        self.crop = transforms.RandomResizedCrop(224, scale=(0.2, 1.0))
        self.clean = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.485] * 3, [0.229] * 3)])
        self.change = transforms.Compose(
            [
                transforms.RandomRotation(10),
                transforms.RandomHorizontalFlip(),
                transforms.RandomGrayscale(p=0.2),
                transforms.RandomApply([transforms.GaussianBlur(17, (0.1, 2.0))], p=0.5),
                transforms.ColorJitter(0.4, 0.4, 0.4, 0.4),
                self.clean,
            ]
        )

    def __call__(self, path: str) -> list[Tensor]:
        """Both inputs, targets and clean crops of a file."""
        image, made = Image.open(path).convert("RGB"), []
        for _ in range(2):
            crop = self.crop(image)
            changed = self.change(crop)
            for _ in range(3):
                y, x = (random.randint(0, 223) for _ in range(2))
                changed[:, max(0, y - 16) : y + 16, max(0, x - 16) : x + 16] = 0
            target = np.rot90(np.flip(changed.numpy(), 1 + random.randint(0, 1)), random.randint(0, 3), (1, 2))
            made += [changed, torch.from_numpy(target.copy()), self.clean(crop)]
        return made


def loader_cases(folder: Path, count: int) -> dict[str, Callable[[], Any]]:
    """A batch of the released PCRL's views of radiographs in files: in plain numpy, by the libraries of the released
    code, and by ours."""
    generator = np.random.default_rng(0)
    paths = [str(folder / f"{number}.jpg") for number in range(count)]
    for path in paths:
        coarse = Image.fromarray(generator.integers(0, 256, (32, 32), dtype=np.uint8))
        coarse.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC).save(path, quality=92)
    source, released = ImageFiles(paths), ReleasedViews()
    own = PCRLReleased.views()
    views = ViewMaker(without_color(own, own, source.spec)[0], 224, 0, source.spec)

    def ours() -> Any:
        return [views(batch) for batch in ImageBatches(source, batch_size=count, seed=0, max_steps=1)]

    def plain() -> Any:
        return [np.stack(views).astype(np.float32) for views in zip(*map(released_views, paths), strict=True)]

    libraries = lambda: torch.utils.data.default_collate([released(path) for path in paths])  # noqa: E731
    return {"plain": plain, "PIL and torchvision": libraries, "ours": ours}


def compare(count: int, repeats: int) -> list[dict[str, Any]]:
    """A row for each corruption and size, and one for the whole loader."""
    device, rows = torch.device("cpu"), []

    def row(name: str, cases: dict[str, Callable[[], Any]]) -> dict[str, Any]:
        seconds = in_turns(cases, repeats, device, warmup=1)
        found = {each: 1000 * statistics.median(times) / count for each, times in seconds.items()}
        ratio = found["plain"] / found["ours"]
        return {"case": name} | {f"{each}, ms each": value for each, value in found.items()} | {"ratio": ratio}

    for kind, size in SIZES.items():
        x = torch.rand(count, 1, *size)
        for name, (operation, plain) in CASES.items():
            draw = lambda: Draw(0, 0, torch.arange(count), torch.zeros(count, dtype=torch.int64))  # noqa: E731
            arrays = x[:, 0].double().numpy()
            cases = {
                "plain": lambda plain=plain, arrays=arrays: [plain(each) for each in arrays],
                "ours": lambda operation=operation, x=x, draw=draw: operation.apply(x.clone(), draw()),
            }
            rows.append(row(f"{name}, {kind}", cases))
    with tempfile.TemporaryDirectory() as folder:
        rows.append(row("loader of the released PCRL, 224 px", loader_cases(Path(folder), count)))
    return rows


def main() -> None:
    """Print one table."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--count", type=at_least(1), default=8, help="images or cubes in a batch")
    made.add_argument("--repeats", type=at_least(1), default=5, help="rounds that are measured")
    made.add_argument("--json", help="a file for the result")
    asked = made.parse_args()
    report("Corrupted views", compare(asked.count, asked.repeats), asked.json)


if __name__ == "__main__":
    main()
