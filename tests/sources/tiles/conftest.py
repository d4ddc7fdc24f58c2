"""Slides that several tests tile."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile

from densepath.synthetic.slide import write_slide


@pytest.fixture(scope="session")
def painted_slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two slides of 1 µm per pixel and tiles of 64 px, one of which is of Aperio, in a subfolder."""
    folder = tmp_path_factory.mktemp("painted")
    write_slide(folder / "a.tiff", size=(640, 768), mpp=1.0, tile=64, levels=(1, 4), seed=3)
    (folder / "sub").mkdir()
    write_slide(folder / "sub/b.svs", size=(600, 640), mpp=1.0, tile=64, levels=(1, 4), layout="aperio", seed=3)
    return folder


@pytest.fixture
def folder(painted_slides: Path, tmp_path: Path) -> Path:
    """The slides, to change them."""
    return Path(shutil.copytree(painted_slides, tmp_path / "slides"))


@pytest.fixture
def slide_of(tmp_path: Path) -> Callable[..., Path]:
    """Writes pixels as a slide."""

    def write(name: str, pixels: npt.NDArray[np.uint8], mpp: float | tuple[float, float] | None = 1.0) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        given: dict[str, Any] = {}
        if mpp is not None:  # or along y and x
            y, x = (mpp, mpp) if isinstance(mpp, float) else mpp
            given = {"resolution": (1e4 / x, 1e4 / y), "resolutionunit": "centimeter"}
        tifffile.imwrite(path, pixels, tile=(64, 64), photometric="rgb", compression="zlib", metadata=None, **given)
        return path

    return write


@pytest.fixture
def damage() -> Callable[..., None]:
    """Overwrites the middle of a tile of a slide."""

    def overwrite(path: Path, index: int, page: int = 0) -> None:
        with tifffile.TiffFile(path) as tiff:
            start, count = tiff.pages[page].dataoffsets[index], tiff.pages[page].databytecounts[index]
        with path.open("r+b") as file:
            file.seek(start + count // 3)
            file.write(bytes(count // 3))

    return overwrite
