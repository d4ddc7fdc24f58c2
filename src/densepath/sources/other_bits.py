"""Images of other bits than a network's training images: which of their values it takes for dark and bright."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densepath.core.errors import UserError, first_few
from densepath.core.spacing import evenly_spaced
from densepath.core.streams import say
from densepath.core.system import first_of_job, usable_cores
from densepath.core.threads import in_threads
from densepath.sources.conversion import MOST, highest_of_bits
from densepath.sources.corrupt import CorruptImage
from densepath.sources.image_files import ImageFiles
from densepath.sources.pixel_source import PixelSource, PixelSpec, bits_of
from densepath.sources.volumes.store import VolumeStore

FILE_WINDOWS = tuple((0, 2**bits - 1) for bits in range(8, 17))  # of networks that were trained on files
_SHARES = (-1.0, 2.0)  # shares of a volume's own window, 0 to 1, are within, and so is another window of such shares
_SAMPLE = 32  # images
_BEYOND = 0.01  # share of an image's values above a window, from which the window is not the image's


def seen_as(trained: PixelSpec, images: PixelSource) -> PixelSpec:
    """How a trained network sees images: with their window and bits, if its training images had other bits.

    Files of 16 bits may use fewer, such as 12. If most of a sample of the images go beyond the window of the training
    images, they have more bits and are seen in their own window; a line says so. If they use fewer bits, they may just
    be dark: the window stays, and a warning says so. A window that is not of whole bits stays.

    Volumes are seen in the window of their store, which a line says, where it is not of the same kind: see
    :func:`same_kind_of_window`.
    """
    bits, own = bits_of(images), images.spec.window
    if not same_kind_of_window(trained, images.spec):
        (low, high), (first, last) = own, trained.window
        say(
            f"densepath: the volumes are seen in the window {low:g} to {high:g}, and the weights were trained in the "
            f"window {first:g} to {last:g}: 0 to 1 are shares of each volume's own window"
        )
        return trained.override(window=own)
    if bits is None:
        return trained
    if bits != trained.file_bits:
        return trained.override(window=own, bits=bits)
    if own == trained.window or own not in FILE_WINDOWS or trained.window not in FILE_WINDOWS:
        return trained
    if own[1] < trained.window[1]:
        say(
            f"densepath: warning: the images have values up to {own[1]:g} (a sample of them), and the training images "
            f"were read with the window 0 to {trained.window[1]:g}, which is kept: images of the same camera or "
            "scanner are as dark as they should be; scale the values of another one to this window"
        )
        return trained
    if not _most_beyond(trained, images):
        return trained
    spec = trained.override(window=own, bits=bits)
    _say_window(spec, trained)
    return spec


def prediction_spec(
    trained: PixelSpec,
    images: PixelSource,
    converted: bool = False,
    data: str | Path = "the images",
    own_window: bool = False,
) -> PixelSpec:
    """As :func:`seen_as`, for predictions: another window is reported, and so are images that no one window fits.

    Args:
        trained: of the network.
        images: that it will see.
        converted: whether pixels are read with the bits of the specification. Then images that use all of their bits
            are seen as those of the training, and need no other one.
        data, own_window: as for :func:`check_window`.

    Raises:
        UserError: volumes whose window is of another kind.
    """
    check_window(trained, own_window, images, data)
    spec = seen_as(trained, images)
    warn_of_mixed_bits(images, spec)
    if spec.file_bits == trained.file_bits:
        return spec
    if _is_full(spec) and _is_full(trained):
        return trained if converted else spec
    _say_window(spec, trained)
    return spec


def warn_of_mixed_bits(images: PixelSource, spec: PixelSpec) -> None:
    """Print :func:`mixed_bits` as a warning, where there is something to say, in the first process of a job."""
    if isinstance(images, ImageFiles) and first_of_job() and (line := mixed_bits(images, spec)):
        say(f"densepath: {line}")


def mixed_bits(images: ImageFiles, spec: PixelSpec) -> str:
    """A warning if images of 16 bits that use 14 or fewer, such as 12, are among images of 8 bits; empty if not.

    Args:
        images: the files, of which a sample is read.
        spec: how all of them are seen.
    """
    dim = images.dim_among_bright()
    if not dim:
        return ""
    lost = "these are dark" if _is_full(spec) else "the others are nearly white"
    return (
        f"warning: {first_few([Path(name).name for name in dim])} {'uses' if len(dim) == 1 else 'use'} only some of 16 "
        f"bits, and other images have 8; one window is for all, in which {lost}: put them into a folder of their own"
    )


def has_own_window(images: PixelSource) -> bool:
    """Whether the values of volumes are known to be shares of each volume's own window, as of MR."""
    return isinstance(images, VolumeStore) and images.own_window


def may_be_shares(low: float, high: float) -> bool:
    """Whether values from ``low`` to ``high`` may be shares of a volume's own window."""
    return _SHARES[0] <= low and high <= _SHARES[1]


def same_kind_of_window(trained: PixelSpec, images: PixelSpec) -> bool:
    """Whether the values of volumes may compare with those of a training.

    They do not where the window of one side is 0 to 1, as that of shares of each volume's own window, and the window of
    the other is one of values with a unit. A window close to 0 to 1 may be another one of shares, as of ``pretrain
    --window``.
    """
    windows = (trained.window, images.window)
    return 2 in (trained.ndim, images.ndim) or (0, 1) not in windows or all(may_be_shares(*each) for each in windows)


def check_window(trained: PixelSpec, own_window: bool, images: PixelSource, data: str | Path) -> None:
    """Refuse volumes whose values do not compare with those of a training.

    Args:
        trained: of the network.
        own_window: whether each volume of the training has its own window.
        images: the volumes; others are not refused.
        data: where they are, for the message.

    Raises:
        UserError: their window is of another kind.
    """
    known = trained.override(window=(0, 1)) if own_window else trained  # weights may have brought another one of shares
    if not same_kind_of_window(known, images.spec):
        raise other_window(trained, own_window, images, data)


def other_window(trained: PixelSpec, own_window: bool, images: PixelSource, data: str | Path) -> UserError:
    """The error for volumes whose window is of another kind than that of a training; as for :func:`check_window`."""
    low, high = trained.window
    if isinstance(images, VolumeStore):
        advice = f"run its conversion again with --window {'volume' if own_window else f'{low:g} {high:g}'}"
    else:
        values = (
            "each volume as shares of its own window" if own_window else f"values of the window {low:g} to {high:g}"
        )
        advice = f"write it again with {values}"
    return UserError(f"the windows of {data} are not those of the training; {advice}")


def warn_of_pixels(pixels: npt.NDArray[Any], spec: PixelSpec) -> None:
    """Warn, once, where one image does not show which range is meant, and that of the training is not its own.

    Args:
        pixels: of an image of 8 or 16 bits, as they are stored.
        spec: of a network that was trained on files.
    """
    high, most = spec.window[1], int(pixels.max(initial=0))
    if pixels.dtype == np.uint8:
        if spec.file_bits == 16 and high < MOST:
            _warn_once(
                "an image has 8 bits, and the network was trained on 16 with values up to "
                f"{high:g}: times 257 most are white; give uint16 in the range of the training, or a folder of "
                "such files to densepath predict, which finds their window"
            )
    elif spec.file_bits == 8:
        if most > 0 and highest_of_bits(most) < MOST:
            _warn_once(
                f"an image uses {most.bit_length()} of its 16 bits, and the network was "
                "trained on 8: it is given the upper 8, which are dark; give uint8 in the range of the training, or a "
                "folder of such files to densepath predict, which finds their window"
            )
    elif _is_beyond(pixels, spec):
        _warn_once(
            f"an image has values up to {most}, and the network was trained with the window 0 to {high:g}: higher "
            "values are white; give values in the range of the training, or a folder of such files to densepath "
            "predict, which finds their window"
        )
    elif most > 0 and highest_of_bits(most) < high:
        _warn_once(
            f"an image has values up to {most} only, and the network was trained with the window 0 to {high:g}: if the "
            "image is not just dark, scale its values to this window"
        )


def _most_beyond(trained: PixelSpec, images: PixelSource) -> bool:
    """Whether most of a sample of the images go beyond a window; a few that do are reported."""

    def beyond(position: int) -> bool | None:
        try:
            return _is_beyond(images.read(position), trained)
        except CorruptImage:
            return None

    sample = evenly_spaced(_SAMPLE, len(images))
    found = list(zip(sample, in_threads(beyond, sample, usable_cores(), "image data"), strict=True))
    others = [Path(images.names(position)).name for position, is_beyond in found if is_beyond]
    if 2 * len(others) >= sum(is_beyond is not None for _, is_beyond in found):
        return bool(others)
    if others:
        say(
            f"densepath: warning: {first_few(others)} {'goes' if len(others) == 1 else 'go'} beyond the window of the "
            f"training images, 0 to {trained.window[1]:g}, and most images do not; one window is for all, in which "
            "higher values are white: put images of other bits into a folder of their own"
        )
    return False


def _is_beyond(pixels: npt.NDArray[Any], spec: PixelSpec) -> bool:
    return bool((pixels > spec.window[1]).mean() > _BEYOND)


def _say_window(spec: PixelSpec, trained: PixelSpec) -> None:
    low, high = spec.window
    say(
        f"densepath: the images have {spec.file_bits} bits, and the training images were read with "
        f"{trained.file_bits} and the window {trained.window[0]:g} to {trained.window[1]:g}; the window of these is "
        f"{low:g} to {high:g}"
    )


@cache
def _warn_once(line: str) -> None:
    say(f"densepath: warning: {line}")


def _is_full(spec: PixelSpec) -> bool:
    return spec.window == (0, np.iinfo(spec.image_dtype).max)
