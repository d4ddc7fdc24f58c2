"""``densepath data nodules``: crops around the candidates of LUNA16, to be classified."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from densepath.core.csv_files import read_rows, write_rows
from densepath.core.errors import UserError, counted
from densepath.core.random import ordered_by_seed
from densepath.core.single_values import list_single_fields
from densepath.core.spelling import decimal_in
from densepath.core.streams import say
from densepath.datasets.volumes.conversion import Case, Contents, Conversion
from densepath.datasets.volumes.convert import convert
from densepath.datasets.volumes.luna import CANDIDATES
from densepath.sources.corrupt import CorruptImage
from densepath.sources.volumes.open_store import open_volumes
from densepath.sources.volumes.store import VolumeStore
from densepath.sources.volumes.volume import Channel, Volume

LABELS = "labels.csv"
_AXES = ("x", "y", "z")
_DECIMALS = 6  # of a voxel: rounding must not decide where a crop of even sides lies
_NAMES = {"0": "other", "1": "nodule"}
_SPLITS = dict.fromkeys((f"subset{k}" for k in range(7)), "train") | {
    "subset7": "val",
    "subset8": "test",
    "subset9": "test",
}


@dataclass(frozen=True)
class NodulesConversion:
    """What to cut, and how.

    Args:
        source: a store of ``densepath data luna`` with ``candidates.csv``.
        dest: a new folder for the store of crops, or an unfinished one, which is continued.
        size: depth, height and width of the crops in voxels of the source.
        negatives: false candidates for each true one, at random; 0 for all of them, some 750,000 in LUNA16.
        seed: another one draws others.
    """

    source: str | Path
    dest: str | Path
    size: tuple[int, int, int] = (32, 64, 64)
    negatives: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        list_single_fields(self)
        if min(self.size) < 1 or self.negatives < 0:
            raise UserError("--size needs three sides of at least 1 voxel, and --negatives a number of at least 0")


@dataclass(frozen=True)
class _Crops(Conversion):
    """The record of a store of crops."""

    size: tuple[int, int, int] = (32, 64, 64)
    negatives: int = 10
    seed: int = 0


def convert_nodules(how: NodulesConversion) -> Path:
    """Cut crops around the candidates of LUNA16: a store of them, with ``labels.csv`` for ``densepath classify``.

    A scan is a patient. Subsets 0 to 6 are for training, 7 for validation, 8 and 9 for the test: 70, 10 and 20%, as in
    PCRL. Beyond the border of a scan, crops have the lowest value of its window.

    Returns:
        The folder of the store.

    Raises:
        UserError: the source is not a store of LUNA16 with candidates.
    """
    store = open_volumes(how.source)
    table, positions = Path(how.source) / CANDIDATES, {store.names(k): k for k in range(len(store))}
    rows = _chosen(_read(table), how)
    splits = {name: _SPLITS.get(str(store.rows[k]["split"]), "") for name, k in positions.items()}
    cases: list[Case] = []
    labels: list[dict[str, str]] = []
    for number, row in rows:
        position = positions.get(row["volume"])
        low = None if position is None else _corner(store, position, row, how.size)
        if position is None or low is None:
            continue
        name = f"{row['volume']}/{number:06d}"
        patient, split = str(store.rows[position]["patient"] or row["volume"]), splits[row["volume"]]
        read, path = partial(_crop, store, position, low, how.size), store.path(position)
        cut = f"{low} {how.size}"
        cases.append(Case(name, read, patient=patient, split=split, file=f"{path} {number}", inputs=(path,), cut=cut))
        labels.append({"file": name, "label": _NAMES[row["class"]], "patient": patient, "split": split})
    if len(cases) < len(rows):
        say(
            f"densepath: warning: {counted(len(rows) - len(cases), 'candidate lies', 'candidates lie')} in no volume "
            f"of {how.source}"
        )
    if len({row["label"] for row in labels}) < len(_NAMES):
        raise UserError(
            f"{table} has no true or no false candidates in the volumes of {how.source}; convert LUNA16 again"
        )
    known = store.index["window"]
    window: Any = known if isinstance(known, str) else tuple(known)
    options = _Crops(how.source, how.dest, window=window, size=how.size, negatives=how.negatives, seed=how.seed)
    dest = convert(cases, Contents("nodules", "CT"), options)
    columns = ("file", "label", "patient", *(("split",) if all(row["split"] for row in labels) else ()))
    write_rows(dest / LABELS, columns, [{key: row[key] for key in columns} for row in labels])
    return dest


def _read(table: Path) -> list[tuple[int, dict[str, str]]]:
    """The number and the columns of each candidate."""
    remedy = "put candidates_V2.csv beside the subsets of LUNA16, and convert it again"
    rows = [*enumerate(read_rows(table, remedy, ("volume", *_AXES, "class")))]
    if not rows or not all(row["class"] in _NAMES and row["volume"] and _is_placed(row) for _, row in rows):
        raise UserError(f"{table} is not the table of candidates that densepath data luna writes; {remedy}")
    return rows


def _is_placed(row: dict[str, str]) -> bool:
    return not any(math.isnan(decimal_in(row[axis])) for axis in _AXES)


def _chosen(rows: Sequence[tuple[int, dict[str, str]]], how: NodulesConversion) -> list[tuple[int, dict[str, str]]]:
    """All true candidates, and some of the false ones."""
    false = {f"{row['volume']} {number}": number for number, row in rows if row["class"] == "0"}
    count = how.negatives * (len(rows) - len(false)) if how.negatives else len(false)
    kept = {false[key] for key in ordered_by_seed(false, how.seed)[:count]}
    return [(number, row) for number, row in rows if row["class"] == "1" or number in kept]


def _corner(store: VolumeStore, position: int, row: dict[str, str], size: Sequence[int]) -> list[int] | None:
    """The low corner (D, H, W) of a crop in voxels of its volume; None for a place outside of the volume."""
    known = store.rows[position]
    world = [decimal_in(row[axis]) for axis in _AXES]
    voxel = (np.linalg.inv(np.array(known["affine"])) @ [*world, 1.0])[:3][::-1]
    if not all(-0.5 <= at < side - 0.5 for at, side in zip(voxel, known["size"], strict=True)):
        return None
    centers = np.round(voxel, _DECIMALS).tolist()
    return [math.floor(at - side / 2 + 1) for at, side in zip(centers, size, strict=True)]  # even: the lower middle


def _crop(store: VolumeStore, position: int, low: Sequence[int], size: Sequence[int]) -> Volume:
    """A crop of a volume. Raises CorruptImage."""
    whole, known = store.sizes(torch.tensor(position)), store.rows[position]
    first = torch.tensor(low)
    box = torch.stack((first.clamp(min=0), torch.minimum(first + torch.tensor(size), whole)))
    gathered = store.gather(torch.tensor([position]), box[None])
    if gathered.corrupt or int(gathered.index[0]) != position:
        raise CorruptImage(str(store.path(position)), "it is damaged; convert LUNA16 again")
    pixels = gathered.pixels[0].numpy()
    canvas = np.full((*size, pixels.shape[-1]), store.spec.window[0], pixels.dtype)
    inside = tuple(slice(a, b) for a, b in (box - first).T.tolist())
    canvas[inside] = pixels[tuple(slice(n) for n in (box[1] - box[0]).tolist())]
    affine = np.array(known["affine"], np.float64)
    affine[:, 3] = affine @ [*map(float, low[::-1]), 1.0]
    return Volume(tuple(Channel(canvas[..., c].transpose(2, 1, 0)) for c in range(canvas.shape[-1])), affine)
