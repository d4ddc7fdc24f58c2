"""In which window a network sees files of 16 bits of which they, or its training images, use fewer."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densepath.sources.image_files import ImageFiles
from densepath.sources.other_bits import seen_as
from densepath.sources.pixel_source import PixelSpec

BRIGHT, DIM = (np.linspace(0, most, 400).reshape(20, 20).astype(np.uint16) for most in (65535, 4095))
MARKED = np.where(np.arange(400).reshape(20, 20) < 4, 65535, DIM).astype(np.uint16)


@pytest.mark.parametrize(
    ("trained", "images", "seen", "says"),
    [
        (4095, [BRIGHT, BRIGHT, DIM], 65535, "the window of these is 0 to 65535"),
        (4095, [DIM, BRIGHT, DIM], 4095, "warning: 1.png goes beyond the window of the training images, 0 to 4095"),
        (4095, [MARKED], 4095, ""),
        (65535, [DIM], 65535, "warning: the images have values up to 4095 (a sample of them)"),
        (4095, [DIM], 4095, ""),
        (2000, [BRIGHT], 2000, ""),  # not of whole bits
    ],
)
def test_the_window_of_16_bits_is_that_of_the_images_if_most_go_beyond_it(
    trained: int, images: list[np.ndarray], seen: int, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    found = seen_as(PixelSpec.default(1, (0, trained)), ImageFiles(sorted(tmp_path.iterdir())))
    assert found == PixelSpec.default(1, (0, seen))
    lines = capsys.readouterr().err
    assert says in lines and lines.count("\n") == bool(says)
