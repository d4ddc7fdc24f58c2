"""The parts of the demo after detection: DiRL on a slide, PCRL on volumes, and the report on everything."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from densepath.annotations.cells.find import cells
from densepath.api import pretrain
from densepath.core.errors import UserError
from densepath.core.files import atomic_write
from densepath.datasets.volumes.conversion import FolderConversion
from densepath.datasets.volumes.folder import convert_folder
from densepath.report.verb import write_report
from densepath.sources.tiles.tile import tile
from densepath.synthetic.slide import write_slide
from densepath.synthetic.volumes import SyntheticVolumes

FOLDERS = ("slides", "slide_tiles", "slide_cells", "dirl", "scans", "volumes", "pcrl")
REPORT = "report.html"
_TITLE = "A tour of densepath"
_NOTE = """ConCL learns from unlabelled tiles of procedural tissue. A linear probe and a detector of glands start from
its weights and from random ones; the detector then finds glands in new images. After that, some steps of DiRL on the
tiles and cells of a slide, and of PCRL on CT volumes: enough to see what such runs leave. Each part unfolds below."""
_SLIDE, _TILE, _MPP = (1280, 1472), 128, 0.5  # pixels, pixels, µm per pixel
_VOLUMES, _VOLUME = 8, (44, 56, 56)  # their number, and voxels


def pretrain_on_slide(out: Path, console: Console, seed: int, steps: int) -> list[Path]:
    """Write a slide, cover its tissue with tiles, find cells, and pre-train DiRL on the tiles with the cells.

    Returns:
        What a report can show; nothing without the packages that slides need.
    """
    try:
        write_slide(out / "slides" / "slide.tif", size=_SLIDE, mpp=_MPP, seed=seed)
        tile(data=out / "slides", out=out / "slide_tiles", mpp=_MPP, size=_TILE, workers=0)
        cells(data=out / "slide_tiles", out=out / "slide_cells", workers=0)
        options = {"cells": out / "slide_cells", "max_steps": steps, "batch_size": 16, "view_size": 64, "seed": seed}
        pretrain("dirl_small", data=out / "slide_tiles", out=out / "dirl", log_every=2, **options)
    except UserError as error:
        console.print(f"continuing without slides: {error}", markup=False)
        return []
    return [out / "slide_tiles", out / "slide_cells", out / "dirl"]


def pretrain_on_volumes(out: Path, console: Console, seed: int, steps: int) -> list[Path]:
    """Write CT volumes as MetaImages, convert them to a store, and pre-train PCRL on it. Returns as the other."""
    try:
        scans = SyntheticVolumes(_VOLUMES, seed, _VOLUME)
        for number, spacing in enumerate(scans.spacing(torch.arange(len(scans))).tolist()):
            write_metaimage(out / "scans" / f"scan_{number}.mha", scans.read(number)[..., 0], spacing)
        convert_folder(FolderConversion(source=out / "scans", dest=out / "volumes"))
        options = {"max_steps": steps, "batch_size": 8, "seed": seed, "log_every": 2}
        pretrain("pcrl_3d_small", data=out / "volumes", out=out / "pcrl", **options)
    except UserError as error:
        console.print(f"continuing without volumes: {error}", markup=False)
        return []
    return [out / "pcrl"]


def write_metaimage(path: Path, voxels: np.ndarray, spacing: Sequence[float]) -> None:
    """Write a volume (D, H, W) of 16-bit integers as MetaImage; spacing in mm along z, y and x."""
    sides = " ".join(map(str, reversed(voxels.shape)))
    steps = " ".join(f"{step:g}" for step in reversed(spacing))
    head = f"""ObjectType = Image
        NDims = 3
        DimSize = {sides}
        ElementSpacing = {steps}
        ElementType = MET_SHORT
        ElementByteOrderMSB = False
        ElementDataFile = LOCAL
        """
    with atomic_write(path) as part:
        part.write_bytes(inspect.cleandoc(head).encode() + b"\n" + voxels.astype("<i2").tobytes())


def make_report(out: Path, console: Console, shown: Sequence[Path], open_it: bool) -> Path | None:
    """Write the report on what the demo has made; None without the packages that it needs."""
    try:
        paths = [str(path) for path in shown]
        write_report(paths, out=out / REPORT, open=open_it, title=_TITLE, note=" ".join(_NOTE.split()))
    except UserError as error:
        console.print(f"continuing without a report: {error}", markup=False)
        return None
    return out / REPORT
