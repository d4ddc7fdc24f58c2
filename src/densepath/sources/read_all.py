"""All images of a source, one after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy.typing as npt

from densepath.core.system import usable_cores, with_progress
from densepath.core.threads import in_threads
from densepath.sources.corrupt import SHOWN, CorruptImage, CorruptLog, can_pass, refuse_passing
from densepath.sources.pixel_source import PixelSource

_MOST_THREADS = 32


def read_all(
    images: PixelSource,
    corrupt: CorruptLog,
    what: str,
    positions: Sequence[int] | None = None,
    *,
    all_of_them: bool = False,
) -> Iterator[npt.NDArray[Any] | None]:
    """Read a source, or its images at some positions, with threads, in order; None for a corrupt image.

    A progress bar is labelled ``what``.

    Raises:
        UserError: too many images are corrupt, or one cannot be read in time; with ``all_of_them`` in the end, a later
            attempt may read some.
    """

    def read(position: int) -> npt.NDArray[Any] | CorruptImage:
        try:
            return images.read(position)
        except CorruptImage as error:
            return error

    positions = range(len(images)) if positions is None else positions
    read_ones = in_threads(read, positions, min(_MOST_THREADS, usable_cores()), "image data")
    for position, image in zip(positions, with_progress(read_ones, len(positions), what), strict=True):
        if isinstance(image, CorruptImage):
            corrupt.add(position, str(image), can_pass(image))
            if len(corrupt.found) >= SHOWN:  # with fewer, read on to complete the list
                corrupt.check()
            yield None
        else:
            yield image
    if all_of_them:
        refuse_passing([corrupt.found[position] for position in sorted(corrupt.passing)])
    corrupt.check()
