"""Volumes to predict: on the voxels that a segmenter was trained on, and the way back to those of their files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from densepath.core.closing import command
from densepath.core.errors import UserError, counted
from densepath.core.files import atomic_write
from densepath.core.output_names import names_below, output_names, refuse_repeated
from densepath.sources.corrupt import CorruptImage
from densepath.sources.dicom_image import holds_dicom
from densepath.sources.listing import Passed, list_images
from densepath.sources.other_bits import other_window
from densepath.sources.volumes.nifti import NO_MAP
from densepath.sources.volumes.open_store import is_volume_store, open_volumes
from densepath.sources.volumes.prepare import prepare, resampled
from densepath.sources.volumes.read import SUFFIXES, files_of, has_map, read_volume
from densepath.sources.volumes.store import VolumeStore
from densepath.sources.volumes.volume import Spacing, from_ras, library, spacing_of, to_ras
from densepath.transfer.segment.legend import ClassMap
from densepath.transfer.segment.segmenter import SAME_SPACING, SegmenterNotes

_KINDS = "volume (NIfTI, MetaImage)"
_SCANNER, _UNKNOWN = 1, 0  # NIfTI's codes of an affine map to the coordinates of the scanner, and of none


@dataclass(frozen=True, eq=False)
class VolumeInput:
    """A volume as a segmenter sees it.

    Args:
        pixels: (D, H, W, C) as a store of the training has them.
        shape: D, H, W of the file's voxels.
        steps: how many voxels of ``pixels`` are as long as one of the file, along D, H and W.
        affine: of the file.
        codes: the axis codes of the file.
        spacing: mm between ``pixels`` along D, H and W.
        space: NIfTI's code of the file's coordinates; 0 if the file has no affine map, only a spacing.
    """

    pixels: npt.NDArray[Any]
    shape: tuple[int, ...]
    steps: tuple[float, ...]
    affine: npt.NDArray[np.float64]
    codes: str
    spacing: tuple[float, ...]
    space: int = _SCANNER

    def restored(self, slabs: Iterator[tuple[int, Tensor]]) -> ClassMap:
        """The classes (D, H, W) of the file's voxels, from parts of logits of ``pixels`` along their first axis.

        Logits are interpolated linearly, from two slices at a time; beyond the outermost centers they stay constant.
        """
        if self.pixels.shape[:-1] == self.shape and np.allclose(self.steps, 1):
            return np.concatenate([part.argmax(0).to(torch.uint8).cpu().numpy() for _, part in slabs])
        places = [_places(n, m, step) for n, m, step in zip(self.shape, self.pixels.shape, self.steps, strict=False)]
        along = [2 * (p + 0.5) / m - 1 for p, m in zip(places[1:], self.pixels.shape[1:3], strict=True)]
        grid = torch.stack(torch.meshgrid(*along, indexing="ij")[::-1], dim=-1)
        out, slices = np.empty(self.shape, np.uint8), _slices(slabs)
        below, number = next(slices), 0
        above = below
        for k, place in enumerate(places[0].tolist()):
            while number < int(place) + 1 and (following := next(slices, None)) is not None:
                below, above, number = above, following, number + 1
            share = place - (number - 1) if number else 0.0
            mixed = below + min(share, 1.0) * (above - below)
            sampled = F.grid_sample(mixed[None], grid[None].to(mixed), padding_mode="border", align_corners=False)[0]
            out[k] = sampled.argmax(0).to(torch.uint8).cpu().numpy()
        return out

    @property
    def placed(self) -> bool:
        """Whether the file has an affine map, not only a spacing."""
        return self.space != _UNKNOWN

    def on_pixels(self, classes: ClassMap) -> ClassMap:
        """The classes of the file's voxels on the nearest ones of ``pixels``, for pictures."""
        nearest = [
            ((np.arange(m) + 0.5) / step).astype(int).clip(0, n - 1)
            for n, m, step in zip(self.shape, self.pixels.shape, self.steps, strict=False)
        ]
        return classes[np.ix_(*nearest)]

    def write(self, path: Path, values: npt.NDArray[Any]) -> None:
        """Write label values (D, H, W) of the file's voxels as NIfTI with its affine map, shape and orientation.

        Without a map if the file has only a spacing: programs differ in where they place such files.
        """
        nibabel = library("nibabel")
        turned = from_ras(values.transpose(2, 1, 0), self.codes)
        affine = self.affine if self.placed else None
        image = nibabel.Nifti1Image(np.ascontiguousarray(turned), affine, dtype=turned.dtype)
        if affine is None:
            image.header.set_zooms(spacing_of(self.affine))
        else:
            image.set_sform(affine, self.space)
            image.set_qform(affine, self.space)
        image.header.set_xyzt_units("mm")
        with atomic_write(path) as part:
            with_suffix = part.with_name(part.name + ".nii.gz")
            try:
                nibabel.save(image, with_suffix)
                with_suffix.replace(part)
            finally:
                with_suffix.unlink(missing_ok=True)


class VolumeInputs:
    """The volumes of a store, or in files.

    Args:
        data: a store; or a file, a folder, a list or a glob of files.
        notes: of the segmenter.
        exclude: patterns of names to leave out.

    Attributes:
        names: of the volumes, as those of their results.
        passed: what was passed over.

    Raises:
        UserError: there are none, or they do not fit the segmenter.
    """

    def __init__(self, data: str | Path, notes: SegmenterNotes, exclude: Sequence[str] = ()) -> None:
        self._notes, self._store, self.passed = notes, None, Passed()
        self._target: Spacing | None = None if notes.spacing is None else tuple(notes.spacing[::-1])  # type: ignore
        if is_volume_store(data):
            self._store = open_volumes(data, exclude)
            self._check(self._store, data)
            self.names = [self._store.names(k) for k in range(len(self._store))]
            return
        self._paths = _files(data, exclude, self.passed)
        below = names_below(self._paths, data)
        refuse_repeated(below, data)
        ends = [max((end for end in SUFFIXES if name.lower().endswith(end)), key=len) for name in below]
        plain = [name[: -len(end)] + "." + end[1:].replace(".", "_") for name, end in zip(below, ends, strict=True)]
        self.names = output_names([Path(name) for name in plain])  # .nii.gz is one suffix

    def __len__(self) -> int:
        return len(self.names)

    def files(self, position: int) -> Sequence[Path]:
        """The files that a volume is read from."""
        return files_of(self._paths[position]) if self._store is None else (self._store.path(position),)

    def known(self, position: int) -> Sequence[Any]:
        """What changes the label map of a volume besides its files: a version before gave those without a map one."""
        if self._store is not None:
            return [_UNKNOWN] if NO_MAP in self._store.rows[position].get("notes", ()) else []
        return [] if has_map(self._paths[position]) else [_UNKNOWN]

    def read(self, position: int) -> VolumeInput:
        """A volume. Raises CorruptImage."""
        return self._of_file(self._paths[position]) if self._store is None else self._of_store(self._store, position)

    def _check(self, store: VolumeStore, data: str | Path) -> None:
        spec = self._notes.spec
        if store.spec.channels != spec.channels:
            raise UserError(
                f"the volumes of {data} have {counted(store.spec.channels, 'channel')}, and the segmenter takes "
                f"{spec.channels}"
            )
        if store.own_window != self._notes.own_window:
            raise other_window(spec, self._notes.own_window, store, data)

    def _differs(self, affine: npt.NDArray[Any]) -> bool:
        """Whether voxels of an affine map in RAS axes have another size than those of the training."""
        return self._target is not None and not np.allclose(
            spacing_of(affine), self._target, rtol=SAME_SPACING - 1, atol=0
        )

    def _of_file(self, path: str) -> VolumeInput:
        volume = read_volume(path, channels=self._notes.spec.channels > 1)
        count = len(volume.channels)
        if count != self._notes.spec.channels:
            raise CorruptImage(path, f"it has {count} channels, and the segmenter takes {self._notes.spec.channels}")
        _, turned, _ = to_ras(volume.channels[0].values, volume.affine)
        made = prepare(path, volume, None, self._target if self._differs(turned) else None)
        pixels = np.stack([np.asarray(channel, np.float32) for channel in made.channels], axis=-1)
        for channel, scale in zip(np.moveaxis(pixels, -1, 0), made.facts["scales"], strict=True):
            channel *= scale["slope"]
            channel += scale["intercept"]
            if self._notes.own_window:
                low, high = scale["window"]
                channel -= low
                channel /= high - low
        origin = made.facts["origin"]
        return self._input(pixels, origin, np.array(made.facts["affine"]), _space_of(path, volume.notes))

    def _of_store(self, store: VolumeStore, position: int) -> VolumeInput:
        row, pixels = store.rows[position], store.read(position)
        affine = np.array(row["affine"])
        if self._differs(affine):
            channels = (part.transpose(2, 1, 0) for part in np.moveaxis(pixels, -1, 0))
            parts = [resampled(row["name"], values, affine, self._target) for values in channels]
            pixels, affine = np.stack([values.transpose(2, 1, 0) for values, _ in parts], axis=-1), parts[0][1]
        return self._input(pixels, row["origin"], affine, _UNKNOWN if NO_MAP in row["notes"] else _SCANNER)

    def _input(self, pixels: npt.NDArray[Any], origin: Any, affine: npt.NDArray[Any], space: int) -> VolumeInput:
        from_file, codes = np.array(origin["affine"], np.float64), str(origin["codes"])
        axes = library("nibabel.orientations").io_orientation(from_file)[:, 0].astype(int)  # a RAS axis for each
        shape, old = [0] * 3, [0.0] * 3
        for axis, ras in enumerate(axes):
            shape[ras], old[ras] = int(origin["shape"][axis]), spacing_of(from_file)[axis]
        spacing = spacing_of(affine)
        steps = tuple(a / b for a, b in zip(old, spacing, strict=True))
        return VolumeInput(pixels, tuple(shape[::-1]), steps[::-1], from_file, codes, spacing[::-1], space)


def _files(data: str | Path, exclude: Sequence[str], passed: Passed) -> list[str]:
    """The files of volumes. Raises UserError, which says what to do with DICOM, if there are none."""
    try:
        return [str(path) for path in list_images(data, exclude, passed, suffixes=SUFFIXES, kinds=_KINDS)]
    except UserError as error:
        if not (os.path.isdir(data) and holds_dicom(data)):
            raise
        convert = command("data", "dicom", Path(data), Path("STORE"))
        raise UserError(f"{error}, or convert DICOM with {convert} and give STORE") from error


def _places(length: int, voxels: int, step: float) -> Tensor:
    """Where the centers of a file's voxels lie among those of the pixels, along an axis: both begin at one corner."""
    return ((torch.arange(length, dtype=torch.float64) + 0.5) * step - 0.5).clamp(0, voxels - 1)


def _slices(slabs: Iterator[tuple[int, Tensor]]) -> Iterator[Tensor]:
    """The slices (K, H, W) of slabs, one by one."""
    for _, slab in slabs:
        yield from slab.unbind(1)


def _space_of(path: str, notes: Sequence[str]) -> int:
    """NIfTI's code of the coordinates of a file; that of a scanner for other formats."""
    if NO_MAP in notes:
        return _UNKNOWN
    try:
        header = library("nibabel").load(path).header
        return int(header["sform_code"]) or int(header["qform_code"]) or _SCANNER
    except Exception:  # other formats, and whatever nibabel raises: the coordinates are the same
        return _SCANNER
