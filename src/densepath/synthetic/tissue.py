"""Procedural colon tissue with exact gland masks: the built-in data of the demo and of the tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from densepath.annotations.coco_writing import Outlined, write_coco
from densepath.core.errors import UserError, counted
from densepath.core.files import atomic_write, require_new_folder
from densepath.core.random import check_seed
from densepath.core.single_values import take_single_values
from densepath.core.streams import write_line
from densepath.synthetic.tissue_layout import Style, gland_field, number_glands
from densepath.synthetic.tissue_paint import Painter, develop

MARGIN = 14.0  # µm drawn beyond each border, so that cells cross the border
SMALLEST = 200.0  # µm²; glands with a smaller visible area are removed
_TRAIN, _TEST, _TILES = range(3)  # independent streams of seeds


def tissue_image(
    seed: int,
    size: int | tuple[int, int] = 256,
    *,
    microns_per_pixel: float = 1.0,
    grade: float | None = None,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """Draw an image of H&E-stained colon mucosa, and the outlines of its glands.

    Glands consist of a lumen and an epithelium with palisading nuclei and, in healthy glands, goblet cells; they are
    embedded in a stroma of fibres, fibroblasts, round immune cells and blood. Shapes, crowding, cells, stain, light and
    focus vary with the seed. No two glands touch.

    Args:
        seed: it determines every pixel, together with the other arguments.
        size: side, or height and width, in pixels.
        microns_per_pixel: 1.0 is about a 10x objective, 0.5 a 20x one.
        grade: 0 for healthy crypts, 0.5 for crowded adenomatous glands, 1 for irregular carcinoma; None for random.

    Returns:
        image uint8 (H, W, 3); instances int32 (H, W), 0 outside, 1..N the glands, each a lumen with its epithelium.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    height, width = (size, size) if isinstance(size, int | np.integer) else size
    px = 1 / microns_per_pixel
    margin = int(np.ceil(MARGIN * px))
    style = Style.draw(rng, grade)
    field = gland_field(rng, style, (height + 2 * margin, width + 2 * margin), px)
    field, labels = number_glands(field, margin, smallest=max(int(SMALLEST * px * px), 32))
    image = develop(rng, Painter(rng, style, field, px).paint())
    shown = slice(margin, -margin), slice(margin, -margin)
    return image[shown].copy(), labels[shown].copy()


@take_single_values
def write_tissue(
    dest: str | Path,
    *,
    train: int = 60,
    test: int = 20,
    tiles: int = 0,
    size: int = 256,
    microns_per_pixel: float = 1.0,
    seed: int = 0,
) -> Path:
    """Write a data set of procedural tissue for ``detect`` and ``probe``, and tiles without outlines for ``pretrain``.

    Args:
        dest: a new folder: train/, test/, annotations/train.json, annotations/test.json, tiles/.
        train: number of training images.
        test: number of test images.
        tiles: number of images without outlines, in DEST/tiles; none of them is a training or test image.
        size: side of the images in pixels.
        microns_per_pixel: 1.0 is about a 10x objective, 0.5 a 20x one.
        seed: seed of all images.

    Returns:
        ``dest``.

    Raises:
        UserError: ``dest`` is not empty, or a number is invalid.
    """
    dest = require_new_folder(dest, "the tissue")
    _check(seed, size, microns_per_pixel, train=train, test=test)
    if tiles < 0:
        raise UserError(f"tiles is {tiles}; give 0 or more")

    def outlined(stream: int, count: int) -> Iterator[Outlined]:
        for index in range(count):
            image, labels = tissue_image(_derive(seed, stream, index), size, microns_per_pixel=microns_per_pixel)
            yield Outlined(f"tissue_{index:05d}", image, labels)

    with atomic_write(dest) as folder:
        counts = write_coco(folder, {"train": outlined(_TRAIN, train), "test": outlined(_TEST, test)})
        if tiles:
            write_tiles(folder / "tiles", tiles, size, seed, microns_per_pixel=microns_per_pixel)
    for split, (images, instances) in counts.items():
        write_line(f"{split}: {counted(images, 'image')}, {counted(instances, 'gland')}", sys.stdout)
    return dest


def write_tiles(
    dest: str | Path, count: int, size: int = 256, seed: int = 0, *, microns_per_pixel: float = 1.0
) -> Path:
    """Write a folder of procedural tissue without outlines.

    Args:
        dest: a new folder for the PNG files.
        count: number of files.
        size: side in pixels.
        seed: seed of all images.
        microns_per_pixel: as for :func:`tissue_image`.

    Returns:
        ``dest``.

    Raises:
        UserError: ``dest`` is not empty, or a number is invalid.
    """
    dest = require_new_folder(dest, "the tiles")
    _check(seed, size, microns_per_pixel, count=count)
    with atomic_write(dest) as folder:
        folder.mkdir()
        for index in range(count):
            image, _ = tissue_image(_derive(seed, _TILES, index), size, microns_per_pixel=microns_per_pixel)
            Image.fromarray(image).save(folder / f"tile_{index:06d}.png", compress_level=1)
    return dest


def _derive(seed: int, stream: int, index: int) -> int:
    """The seed of one of many images; images of different streams or indices are independent."""
    return int(np.random.SeedSequence((seed, stream, index)).generate_state(1, np.uint64)[0])


def _check(seed: int, size: int, microns_per_pixel: float, **counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise UserError(f"{name} is {count}; give at least 1")
    check_seed(seed)
    if size < 32:
        raise UserError(f"size is {size}; give at least 32 pixels, as smaller images show no glands")
    if not 0.2 <= microns_per_pixel <= 4:
        raise UserError(f"microns_per_pixel is {microns_per_pixel}; give a number from 0.2 to 4")
