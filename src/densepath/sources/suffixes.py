"""Names of files without their suffixes, which may have two parts and are not whatever follows a dot."""

from __future__ import annotations

import os

from densepath.sources import listing
from densepath.sources.slides import find as slides
from densepath.sources.volumes import read as volumes

_TWO_PARTS = (".ome.tif", ".ome.tiff", ".ome.btf")
_KNOWN = tuple(sorted({*listing.SUFFIXES, *slides.SUFFIXES, *volumes.SUFFIXES, *_TWO_PARTS}, key=len))


def stems_of(name: str) -> list[str]:
    """A name or path without suffixes, those of images, slides and volumes or any that begins with a letter, the
    shortest last.

    Of ``v0.nii.gz`` these are ``v0.nii`` and ``v0``, of ``a.xml`` it is ``a``; ``case.1`` has none.
    """
    low, last = name.lower(), os.path.splitext(name)[1]
    lengths = {len(end) for end in _KNOWN if low.endswith(end)}
    if last[1:2].isalpha() and last[1:].isalnum():
        lengths.add(len(last))
    return [name[:-length] for length in sorted(lengths)]
