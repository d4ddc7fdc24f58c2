"""Blocks of features: files in a folder, until all of them become one file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open

from densepath.core.errors import UserError
from densepath.core.files import atomic_write
from densepath.nets.weights import write_tensors
from densepath.transfer.embed.inputs import Inputs

_LEAST = 256  # images of a block: what a stop costs at most


@dataclass(frozen=True, eq=False)
class Block:
    """The features of consecutive images.

    Args:
        positions: positions of the images in their source, without those that cannot be read.
        features: (n, D).
        damaged: file name and reason of those that cannot be read.
    """

    positions: list[int]
    features: npt.NDArray[Any]
    damaged: list[str]


class Blocks:
    """The blocks of a source. They do not depend on the number of processes, and each is done once.

    Args:
        folder: where they are kept.
        inputs: the images.
        batch_size: images in a batch; a block is several batches.
        dtype: of the features, "float32" or "float16".
        begun: the ``batch_size`` of the command that began them, if it was another one: blocks stay as large.
    """

    def __init__(self, folder: Path, inputs: Inputs, batch_size: int, dtype: str, begun: int | None = None) -> None:
        self._folder, self._inputs, self._dtype = folder, inputs, dtype
        self.batch_size = batch_size
        self.size = -(-_LEAST // (begun or batch_size)) * (begun or batch_size)

    def __len__(self) -> int:
        return -(-len(self._inputs) // self.size)

    def positions(self, block: int) -> range:
        """The images of a block."""
        return range(len(self._inputs))[block * self.size : (block + 1) * self.size]

    def path(self, block: int) -> Path:
        """The file of a block."""
        return self._folder / f"{block:08d}.safetensors"

    def is_done(self, block: int) -> bool:
        """Whether a block is on disk, and its images have not been replaced since."""
        try:
            with safe_open(self.path(block), "np") as file:
                return bool(file.metadata()["images"] == self._inputs.stamp(self.positions(block)))
        except (OSError, SafetensorError, LookupError, TypeError):
            return False

    def write(self, block: int, content: Block) -> None:
        """Write a block; its file appears when it is complete.

        Raises:
            UserError: a feature is too large for the dtype.
        """
        with np.errstate(over="ignore"):
            values = content.features.astype(self._dtype)
        if (np.isinf(values) & np.isfinite(content.features)).any():
            raise UserError("features exceed 65504, the largest number of float16; use --dtype float32")
        features = torch.from_numpy(values)
        tensors = {"features": features, "positions": torch.tensor(content.positions, dtype=torch.int64)}
        notes = {"images": self._inputs.stamp(self.positions(block)), "damaged": json.dumps(content.damaged)}
        with atomic_write(self.path(block)) as part:
            write_tensors(tensors, part, notes)

    def remove(self) -> None:
        """Remove the folder, the record of what they are last."""
        for path in self._folder.glob("[0-9]*.safetensors"):
            path.unlink(missing_ok=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    def read(self) -> Iterator[Block]:
        """All blocks, in their order."""
        for block in range(len(self)):
            with safe_open(self.path(block), "np") as file:
                positions = file.get_tensor("positions").astype(np.int64).tolist()
                yield Block(positions, file.get_tensor("features"), json.loads(file.metadata()["damaged"]))
