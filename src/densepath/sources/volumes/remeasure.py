"""Volumes of an earlier version in a store, whose windows are computed again from the stored voxels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from densepath.sources.volumes.prepare import MEASURED, measured
from densepath.sources.volumes.store import VOLUMES, VolumeStore
from densepath.sources.volumes.volume_file import SUFFIX, write_volume


def is_measured(header: Mapping[str, Any]) -> bool:
    """Whether the windows of a volume were computed as they are now, by the header of its file."""
    return header.get("measured") == MEASURED


def remeasure(store: Path, header: Mapping[str, Any]) -> dict[str, Any]:
    """Compute what a volume's values show again, and write its file with it. Its source is not read.

    Args:
        store: the folder of the store.
        header: of the volume's file.

    Returns:
        The header that was written.

    Raises:
        CorruptImage: a checksum is wrong.
    """
    file = f"{header['name']}{SUFFIX}"
    as_stored = [{"slope": 1.0, "intercept": 0.0}] * len(header["scales"])
    index = {"window": None, "channels": len(as_stored)}
    volume = VolumeStore(store, index, [{**header, "file": file, "scales": as_stored}])
    values, labels = volume.read(0), volume.labels(0)
    channels = [values[..., channel] for channel in range(len(as_stored))]
    return write_volume(store / VOLUMES / file, measured(header, channels), channels, labels)
