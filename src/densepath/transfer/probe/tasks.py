"""Pretext tasks on frozen features: which way up an image is, and how two of its patches lie (PCRL, Table 1)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from densepath.annotations.classes import Classes, read_column
from densepath.annotations.label_table import table_columns
from densepath.annotations.patients import check_spelling, owners_by_name, patient_in_name
from densepath.core.columns import SPLIT_OF
from densepath.core.errors import UserError, counted
from densepath.core.random import uniform
from densepath.core.streams import say
from densepath.sources.image_files import passed_over
from densepath.sources.listing import LIST_SUFFIXES
from densepath.sources.names import AllNames
from densepath.training.hardware import choose_hardware
from densepath.transfer.embed.encoder import Encoder, input_size, load_encoder
from densepath.transfer.embed.inputs import Inputs, open_source
from densepath.transfer.probe.folds import given_split
from densepath.transfer.probe.images import Encoding, ImageProbe, encode_all, probe_labelled
from densepath.transfer.probe.labelled import Labelled, Listed

Task = Literal["rotation", "patch_position"]
DEGREES = ("0", "90", "180", "270")
# Rows and columns from a patch to the other one.
NEIGHBORS = {
    **{"top_left": (-1, -1), "top": (-1, 0), "top_right": (-1, 1), "left": (0, -1), "right": (0, 1)},
    **{"bottom_left": (1, -1), "bottom": (1, 0), "bottom_right": (1, 1)},
}
GRID = 14  # patches along each side
_SIZE = 224  # pixels
_PATCH = 32  # pixels, to which patches are resized: the least that a ConvNet with a stride of 32 takes
_BATCH = 16  # images


class Rotations:
    """The features of an image (size, size, C) rotated by 0, 90, 180 and 270 degrees counterclockwise, in a row.

    Args:
        encoder: the network.
    """

    classes = DEGREES

    def __init__(self, encoder: Encoder) -> None:
        self.encoder, self.each, self.dim = encoder, encoder.dim, len(DEGREES) * encoder.dim

    def __call__(self, pixels: Tensor) -> Tensor:
        """(B, size, size, C) -> (B, 4 * D)."""
        return torch.cat([self.encoder(pixels.rot90(turns, (1, 2))) for turns in range(len(DEGREES))], dim=1)


class PatchPairs:
    """The features of eight pairs of neighboring patches of an image, one for each position of the second patch.

    An image is divided into 14 x 14 patches; the first patch of a pair is drawn from those that have all neighbors.

    Args:
        encoder: the network; it must take patches of 32 px.
        seed: decides on the patches, together with the number of the image.
    """

    classes = tuple(NEIGHBORS)

    def __init__(self, encoder: Encoder, seed: int) -> None:
        self.encoder, self.seed, self.seen = encoder, seed, 0
        self.each, self.dim = 2 * encoder.dim, 2 * len(NEIGHBORS) * encoder.dim
        encoder.backbone.check_size(_PATCH, _PATCH)

    def __call__(self, pixels: Tensor) -> Tensor:
        """(B, size, size, C) of consecutive images -> (B, 8 * 2 * D)."""
        count, side = len(pixels), pixels.shape[1] // GRID
        index = torch.arange(self.seen, self.seen + count)
        self.seen += count
        pairs = self.patches(pixels, index, side)  # (B, 8, 2, side, side, C)
        flat = pairs.flatten(0, 2).movedim(-1, 1).float()
        patches = F.interpolate(flat, (_PATCH, _PATCH), mode="bilinear", align_corners=False, antialias=True)
        return self.encoder(patches.movedim(1, -1)).view(count, -1)

    def patches(self, pixels: Tensor, index: Tensor, side: int) -> Tensor:
        """(B, 8, 2, side, side, C): the first and the second patch of each pair of the images with numbers (B,)."""
        drawn = torch.stack([uniform(self.seed, 0, index, 0, kind)[:, :2] for kind in range(len(NEIGHBORS))], dim=1)
        first = 1 + (drawn * (GRID - 2)).long()  # (B, 8, 2) row and column
        cells = torch.stack((first, first + torch.tensor(tuple(NEIGHBORS.values()))), dim=2)
        grid = pixels[:, : GRID * side, : GRID * side].unflatten(2, (GRID, side)).unflatten(1, (GRID, side))
        rows, columns = cells.to(pixels.device).unbind(-1)
        images = torch.arange(len(pixels), device=pixels.device).view(-1, 1, 1).expand_as(rows)
        return grid.movedim(3, 2)[images, rows, columns]


def probe_task(
    task: Task,
    data: str | Path,
    encoding: Encoding,
    *,
    patient_regex: str | None = None,
    folds: int = 5,
    neighbors: int = 20,
    fraction: float = 1.0,
) -> ImageProbe:
    """How well frozen features tell how images are rotated, or how two of their patches lie.

    Test images are those that a column split of ``data``, a table, or folders train and test name, else those of folds;
    all rotations and pairs of an image, and all images of a patient, are on one side.

    Args:
        task: "rotation" by quarter turns, or "patch_position": one of eight positions.
        data: the images.
        encoding: the network; its size is that of the images, 224 px by default.
        patient_regex, folds, neighbors, fraction: as for :func:`densepath.probe`.

    Raises:
        UserError: images cannot be read or are too small, or the network does not take them.

    Source: Zhou et al., PCRL, ICCV 2021, Table 1. The paper says neither the angles nor how the features of a pair are
    joined: quarter turns and concatenation are ours.
    """
    hardware = choose_hardware(encoding.devices, "32")
    source = open_source(data)
    encoder, line = load_encoder(
        encoding.weights, encoding.backbone, source, stage=encoding.stage, pool=encoding.pool, seed=encoding.seed
    )
    size = input_size(encoder, encoding.size or encoder.input_size or _SIZE)
    assert size is not None
    if size < GRID:
        raise UserError(f"images of {size} px cannot be divided into {GRID} x {GRID} patches; give a larger --size")
    inputs = Inputs(source, data, encoder.spec, size)
    views: Rotations | PatchPairs = Rotations(encoder) if task == "rotation" else PatchPairs(encoder, encoding.seed)
    say(
        f"densepath: {line}; {counted(len(inputs), 'image')} of {size} px, "
        f"{counted(len(views.classes), 'class', 'classes')}{passed_over(source)}"
    )
    positions, values = encode_all(views, encoder, inputs, hardware)
    paths = list(AllNames(source))
    images = _rows(
        [paths[p] for p in positions], [inputs.names[p] for p in positions], values, views, data, patient_regex
    )
    notes = {"weights": str(encoding.weights), "data": str(data), **encoder.notes(), "size": size, "task": task}
    return probe_labelled(images, notes, folds=folds, neighbors=neighbors, fraction=fraction, seed=encoding.seed)


def _rows(
    paths: list[str],
    names: list[str],
    values: npt.NDArray[np.float32],
    views: Rotations | PatchPairs,
    data: str | Path,
    patient_regex: str | None,
) -> Labelled:
    """A row for each rotation or pair of each image."""
    classes, count = views.classes, len(paths)
    if patient_regex is not None:
        owners, source = [patient_in_name(name, patient_regex) for name in names], "--patient_regex"
    else:
        owners, source = owners_by_name(data, paths)
    check_spelling(owners, paths)
    patient_names, patients = np.unique(owners, return_inverse=True)
    test = official_test(paths, names, data)
    labels = torch.arange(len(classes), dtype=torch.int32).repeat(count)
    return Labelled(
        [f"{name}#{kind}" for name in names for kind in classes],
        values.reshape(count * len(classes), views.each).astype(np.float64),
        Classes(classes, labels),
        np.repeat(patients.astype(np.int64), len(classes)),
        patient_names.tolist(),
        source,
        None if test is None else np.repeat(test, len(classes)),
    )


def official_test(paths: list[str], names: list[str], data: str | Path) -> npt.NDArray[np.bool_] | None:
    """(N,) which images are test images, if the data name any: their paths, and their names below the data."""
    if str(data).lower().endswith(LIST_SUFFIXES) and "split" in table_columns(str(data)):
        return given_split(read_column(Listed(paths), str(data), "split"), str(data))
    tops = [name.partition("/")[0].lower() if "/" in name else "" for name in names]
    divided = set(tops) <= set(SPLIT_OF) and len(set(tops)) > 1
    return given_split(tops, "the folder of images") if divided else None
