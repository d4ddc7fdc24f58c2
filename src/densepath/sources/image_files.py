"""Images as files, decoded whenever they are asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from densepath.core.errors import UserError
from densepath.core.system import usable_cores, with_progress
from densepath.sources.batch import lay, new_canvas
from densepath.sources.corrupt import SHOWN, Damage, allowed
from densepath.sources.decode import DamagedImage, read_image, read_size
from densepath.sources.path_table import Names
from densepath.sources.pixel_source import Gathered

MAX_SIDE = 1024
SAMPLE = 256
_MOST_THREADS = 32


class ImageFiles:
    """Image files, decoded one at a time; a damaged one is replaced by the next in the source that can be read.

    Args:
        paths: the files.
        max_side: the longest side in pixels that a batch must find room for; larger images are reduced by a whole
            factor (see :func:`densepath.sources.decode.read_image`).
    """

    def __init__(self, paths: Iterable[str | Path] | Names, max_side: int = MAX_SIDE) -> None:
        self.paths = paths if isinstance(paths, Names) else Names.of(str(path) for path in paths)
        self.max_side = max_side

    def __len__(self) -> int:
        return len(self.paths)

    def names(self, position: int) -> str:
        """The path of an image."""
        return self.paths[position]

    def read(self, position: int) -> npt.NDArray[np.uint8]:
        """Decode one image to uint8 (H, W, 3), or raise :class:`DamagedImage`."""
        return read_image(self.names(position), self.max_side)

    def sample_sizes(self, most: int = SAMPLE) -> dict[int, tuple[int, int]]:
        """(height, width) by position, of up to ``most`` images evenly spread over the source, from their headers.

        Raises:
            UserError: none of them can be read.
        """
        count = min(most, len(self))
        sizes: dict[int, tuple[int, int]] = {}
        last: DamagedImage | None = None
        for position in (k * len(self) // count for k in range(count)):
            try:
                sizes[position] = read_size(self.names(position), self.max_side)
            except DamagedImage as error:
                last = error
        if not sizes:
            raise UserError(f"none of {count} images can be read; check the files ({last})")
        return sizes

    def smallest(self) -> tuple[int, int]:
        """The position of the image with the shortest side, and that side in pixels, among a sample of the files."""
        sides = {position: min(size) for position, size in self.sample_sizes().items()}
        return min(sides.items(), key=lambda item: item[1])

    def gather(self, index: Tensor) -> Gathered:
        """Decode the images at the positions ``index`` (B,) int64.

        Returns:
            The images. If more of them are damaged than a source may have, only those before the last such one.
        """
        images: list[npt.NDArray[np.uint8]] = []
        taken: list[int] = []
        damaged: dict[int, str] = {}
        for position in index.tolist():
            readable = self._read_or_next(position, damaged)
            if readable is None:
                break
            taken.append(readable[0])
            images.append(readable[1])
        sizes = torch.tensor([image.shape[:2] for image in images], dtype=torch.int64).reshape(-1, 2)
        height, width = sizes.amax(dim=0).tolist() if images else (0, 0)
        canvas = new_canvas(len(images), height, width)
        lay(canvas.numpy(), images)
        return Gathered(canvas, sizes, torch.tensor(taken, dtype=torch.int64), damaged)

    def _read_or_next(self, position: int, damaged: dict[int, str]) -> tuple[int, npt.NDArray[np.uint8]] | None:
        while len(damaged) <= allowed(len(self)):
            if position not in damaged:
                try:
                    return position, self.read(position)
                except DamagedImage as error:
                    damaged[position] = str(error)
            position = (position + 1) % len(self)
        return None


def decode_all(files: ImageFiles, damage: Damage, what: str, start: int = 0) -> Iterator[npt.NDArray[np.uint8] | None]:
    """Decode a source in threads and in order, from one of its images on; None stands for a damaged one.

    The progress is shown, as ``what``.

    Raises:
        UserError: too many images are damaged.
    """
    threads = min(_MOST_THREADS, usable_cores())
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    pending: deque[Future[npt.NDArray[np.uint8]]] = deque()
    try:
        for position in with_progress(range(start, len(files)), len(files) - start, what):
            while len(pending) <= 2 * threads and position + len(pending) < len(files):
                pending.append(pool.submit(files.read, position + len(pending)))
            try:
                yield pending.popleft().result()
            except DamagedImage as error:
                damage.add(position, str(error))
                if len(damage.found) >= SHOWN:  # before that the whole source is worth looking through for the list
                    damage.check()
                yield None
        damage.check()
    finally:
        pool.shutdown(cancel_futures=True)
