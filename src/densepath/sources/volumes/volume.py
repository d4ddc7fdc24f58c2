"""A volume as its file stores it, and turning it to RAS+ and back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from densepath.core.errors import UserError, shortage
from densepath.core.system import available_memory
from densepath.sources.corrupt import CorruptImage

Array = npt.NDArray[Any]
Spacing = tuple[float, float, float]
RAS = "RAS"
_PLAUSIBLE = (1e-3, 100.0)  # mm between voxels
_ALL_NUMBERS = "biuf"
_RIGHT = 1e-3  # cosine of the angle between axes that are at right angles
_WHOLE = 1e-3  # by which a label may differ from a whole number


@dataclass(frozen=True, eq=False)
class Channel:
    """One channel of a volume.

    Args:
        values: (X, Y, Z) as stored in the file, of an integer or floating type.
        slope, intercept: a voxel's value is ``slope * stored + intercept``.
    """

    values: Array
    slope: float = 1.0
    intercept: float = 0.0


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume as its file stores it.

    Args:
        channels: of one shape.
        affine: (4, 4) float64 from the indices i, j, k of a voxel's center to x, y, z in mm, in RAS+ axes.
        notes: what is unusual about the file, in a few words each.
    """

    channels: tuple[Channel, ...]
    affine: npt.NDArray[np.float64]
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """X, Y, Z."""
        return self.channels[0].values.shape


class TooLarge(CorruptImage):
    """A volume that would have more voxels at another spacing than there is memory for."""


def whole_labels(name: str, channels: Sequence[Channel], bits: int) -> Array:
    """Labels (X, Y, Z), whole numbers of so many bits with a sign.

    Raises:
        CorruptImage: they are something else.
    """
    if len(channels) != 1:
        raise CorruptImage(name, f"they have {len(channels)} channels")
    channel, highest = channels[0], 2 ** (bits - 1) - 1
    if (channel.slope, channel.intercept) != (1.0, 0.0) or channel.values.dtype.kind == "f":
        values, low, high = _rounded(name, channel)
    else:
        values = channel.values
        low, high = values.min(), values.max()
    if low < -highest or high > highest:
        raise CorruptImage(name, f"they range from {low:g} to {high:g}, beyond {bits} bits")
    return values


def _rounded(name: str, channel: Channel) -> tuple[npt.NDArray[np.int32], float, float]:
    """The values of a channel as integers, and the lowest and the highest of them, which may be beyond 32 bits.

    They are computed slice by slice: 64 bits for each voxel of a large volume would not fit into memory.

    Raises:
        CorruptImage: they are not whole numbers.
    """
    made, ends = np.empty(channel.values.shape, np.int32, order="F"), np.iinfo(np.int32)
    low, high = math.inf, -math.inf
    for k in range(channel.values.shape[2]):
        real = channel.values[..., k] * np.float64(channel.slope) + channel.intercept
        whole = np.rint(real)
        if not abs(whole - real).max() <= _WHOLE:  # NaN is not whole
            raise CorruptImage(name, "they are not whole numbers")
        low, high = min(low, float(whole.min())), max(high, float(whole.max()))
        made[..., k] = whole.clip(ends.min, ends.max)
    return made, low, high


def library(name: str) -> Any:
    """A package of the extra ``volumes``.

    Raises:
        UserError: it is not installed.
    """
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        if shortage(error):
            raise MemoryError from error
        package = name.partition(".")[0]
        raise UserError(f'volumes need the package {package}; pip install "densepath[volumes]"') from error


def spacing_of(affine: Array) -> Spacing:
    """The distance in mm of neighboring voxels along i, j and k."""
    x, y, z = np.linalg.norm(np.asarray(affine)[:3, :3], axis=0).tolist()
    return x, y, z


def sheared_steps(affine: Array) -> npt.NDArray[np.float64] | None:
    """The vectors (3, 3) in mm from a voxel to the next one along i, j and k, as rows; None if these axes are at right
    angles. Those of CT with a tilted gantry are not.
    """
    steps = np.asarray(affine, np.float64)[:3, :3].T
    unit = steps / np.linalg.norm(steps, axis=1, keepdims=True)
    return steps if np.abs(unit @ unit.T - np.eye(3)).max() > _RIGHT else None


def voxel_mm3(affine: Any) -> float:
    """The volume of a voxel."""
    return float(abs(np.linalg.det(np.asarray(affine)[:3, :3])))


def diagonal(spacing: Sequence[float]) -> npt.NDArray[np.float64]:
    """The affine map of axes along x, y and z with a spacing in mm, whose first voxel is at the origin."""
    return np.diag([*map(float, spacing), 1.0])


def check_affine(path: str, affine: Array) -> None:
    """Check that voxels lie at different places at a plausible distance.

    Raises:
        CorruptImage: they do not.
    """
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise CorruptImage(path, "its affine map is not finite")
    low, high = _PLAUSIBLE
    spacing = spacing_of(affine)
    if min(spacing) < low or max(spacing) > high:
        shown = " x ".join(f"{side:g}" for side in spacing)
        raise CorruptImage(path, f"its voxels are {shown} mm apart; if that is wrong, fix its header")
    if abs(np.linalg.det(affine[:3, :3])) < 1e-3 * float(np.prod(spacing)):
        raise CorruptImage(path, "the axes of its affine map lie in a plane")


def check_size(path: str, shape: Sequence[int], spacing: Sequence[float], needed: float) -> None:
    """Check that a volume that is to be resampled will fit into memory.

    Args:
        path: of the volume.
        shape, spacing: its voxels along x, y and z, and the mm between them.
        needed: bytes of memory that resampling takes.

    Raises:
        TooLarge: it will not.
    """
    memory = available_memory()
    if needed > memory:
        sides, steps = (" x ".join(f"{side:,g}" for side in sides) for sides in (shape, spacing))
        raise TooLarge(
            path, f"at {steps} mm it would have {sides} voxels, too many for {memory / 1e9:.3g} GB of memory"
        )


def check_values(path: str, channels: Iterable[Array]) -> tuple[list[Array], tuple[str, ...]]:
    """The values (X, Y, Z) of each channel, real and finite, and in the machine's byte order.

    Returns:
        The same arrays, or copies in which the largest finite value replaces Inf, and the smallest one NaN and -Inf;
        and a note if any was replaced.

    Raises:
        CorruptImage: there are none, or they are complex or colors.
    """
    made = [_finite(path, values) for values in channels]
    note = ("NaN or Inf, replaced by the smallest or the largest value",)
    return [values for values, _ in made], note if any(replaced for _, replaced in made) else ()


def _finite(path: str, values: Array) -> tuple[Array, bool]:
    """The values of a channel, and whether some were not finite."""
    replaced = False
    if values.size == 0:
        raise CorruptImage(path, "it is empty")
    if values.dtype.kind not in _ALL_NUMBERS:
        kind = "complex numbers" if values.dtype.kind == "c" else "colors"
        raise CorruptImage(path, f"its voxels are {kind}; save them as real numbers")
    if values.dtype.kind == "f":
        finite = np.isfinite(values)
        if not finite.any():
            raise CorruptImage(path, "none of its values is finite")
        replaced = not finite.all()
        if replaced:
            low, high = values[finite].min(), values[finite].max()
            values = np.nan_to_num(values, nan=low, neginf=low, posinf=high)
    return values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("=")), replaced


def to_ras(values: Array, affine: Array) -> tuple[Array, npt.NDArray[np.float64], str]:
    """Turn and mirror an array so that its axes point right, anterior and superior, as nearly as they can.

    Args:
        values: (X, Y, Z, ...).
        affine: (4, 4).

    Returns:
        A view of the values, its affine map, and the codes of the original axes, e.g. "LPS".
    """
    nibabel = library("nibabel.orientations")
    turn = nibabel.io_orientation(affine)
    turned = nibabel.apply_orientation(values, turn)
    own = np.asarray(affine, np.float64) @ nibabel.inv_ornt_aff(turn, values.shape[:3])
    return turned, own, "".join(nibabel.ornt2axcodes(turn))


def from_ras(values: Array, codes: str) -> Array:
    """Undo :func:`to_ras`: an array whose axes point as they do, with axes of other codes."""
    nibabel = library("nibabel.orientations")
    return np.asarray(
        nibabel.apply_orientation(
            values, nibabel.ornt_transform(nibabel.axcodes2ornt(RAS), nibabel.axcodes2ornt(codes))
        )
    )
