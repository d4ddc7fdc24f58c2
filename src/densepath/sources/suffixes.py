"""Names of files without their suffixes, which may have two parts and are not whatever follows a dot."""

from __future__ import annotations

from densepath.sources import listing
from densepath.sources.slides import find as slides
from densepath.sources.volumes import read as volumes

_OTHER = (".ome.tif", ".ome.tiff", ".gz", ".jp2", ".gif", ".npy", ".mat", ".h5", ".hdf5", ".pt", ".json", ".geojson")
_KNOWN = tuple(sorted({*listing.SUFFIXES, *slides.SUFFIXES, *volumes.SUFFIXES, *_OTHER}, key=len))


def stems_of(name: str) -> list[str]:
    """A name or path without suffixes of images, slides, volumes and what is known of them, the shortest last.

    Of ``v0.nii.gz`` these are ``v0.nii`` and ``v0``; ``case.1`` has none.
    """
    low = name.lower()
    return [name[: -len(end)] for end in _KNOWN if low.endswith(end)] if low.endswith(_KNOWN) else []
