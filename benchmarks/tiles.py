"""Images for measurements."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import torch
import torch.nn.functional as F
from PIL import Image

from densepath.core.random import uniform
from densepath.sources.batch import ImageBatch
from densepath.sources.listing import find_images
from densepath.sources.packing import pack
from densepath.sources.per_image import PerImage
from densepath.sources.pixel_source import PixelSource
from densepath.synthetic.tissue import write_tiles


@contextmanager
def jpeg_folder(data: str | None, count: int, size: int) -> Iterator[Path]:
    """A folder of ``count`` JPEGs: the images in ``data`` (repeated if there are fewer), or procedural tissue."""
    with tempfile.TemporaryDirectory() as folder:
        made, out = Path(folder, "made"), Path(folder, "jpeg")
        out.mkdir()
        if data is None:
            write_tiles(made, min(count, 128), size, seed=0)
        paths = find_images(data or made)
        for number in range(count):
            picture = Image.open(paths[number % len(paths)]).convert("RGB")
            picture.save(out / f"{number:06d}.jpg", quality=90)
        yield out


@contextmanager
def packed_store(data: str | None, count: int, size: int) -> Iterator[Path]:
    """A packed store of ``count`` of the images in ``data``, or of procedural tissue."""
    with jpeg_folder(data, count, size) as folder:
        yield pack(folder, folder.parent / "tiles.safetensors")


class RandomCells:
    """Cells at random positions of each image, all of one class."""

    class_names = ("cell",)

    def __init__(self, count: int = 60) -> None:
        self.count = count

    def describe(self) -> str:
        """A line on the cells."""
        return f"{self.count} random cells in each image"

    def gather(self, index: torch.Tensor, pin: bool = False) -> torch.Tensor:
        """(B, count, 3): x and y, normalized, and the class."""
        numbers = uniform(0, 0, index[:, None], 0, torch.arange(-(-self.count // 2))).view(len(index), -1, 2)
        return F.pad(numbers[:, : self.count] * 2 - 1, (0, 1))


def batch_of(
    images: PixelSource,
    batch_size: int,
    step: int,
    device: torch.device,
    extras: Mapping[str, PerImage] = MappingProxyType({}),
) -> ImageBatch:
    """A batch in the second half of a run, where all parts of a method are active."""
    index = (torch.arange(batch_size) + step * batch_size) % len(images)
    gathered = images.gather(index)
    known = {name: extra.gather(gathered.index) for name, extra in extras.items()}
    batch = ImageBatch.of(gathered, step=step, epoch=float(step), progress=0.5, extras=known)
    return batch.to(device)
