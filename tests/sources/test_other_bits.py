"""In which window a network sees files of 16 bits of which they, or its training images, use fewer."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densepath.core.errors import UserError
from densepath.sources.image_files import ImageFiles
from densepath.sources.other_bits import prediction_spec, seen_as
from densepath.sources.packing import open_store, write_store
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


@pytest.mark.parametrize(
    ("trained", "own", "wanted"),
    [
        ((-1000, 1000), (0, 1), "values of the window -1000 to 1000"),
        ((0, 1), (-1000, 1000), "each volume as shares of its own window"),
        ((-900, 900), (-1000, 1000), None),
        ((-0.2, 1.5), (0, 1), None),
        ((0, 1), (-0.2, 1.5), None),
    ],
)
def test_windows_of_volumes_of_their_own_and_those_with_a_unit_do_not_mix(
    trained: tuple[float, float],
    own: tuple[float, float],
    wanted: str | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spec = PixelSpec.default(1, trained, ndim=3).override(mean=[0.25])  # as of weights
    data = [np.zeros((4, 4, 4, 1), np.float32)]
    write_store(tmp_path / "s.safetensors", data, ["a"], PixelSpec.default(1, own, ndim=3))
    volumes = open_store(tmp_path / "s.safetensors")
    assert seen_as(spec, volumes) == (spec if wanted is None else spec.override(window=own))
    assert ("shares of each volume's own window" in capsys.readouterr().err) == (wanted is not None)
    if wanted is None:
        assert prediction_spec(spec, volumes) == spec
    else:
        with pytest.raises(UserError, match=f"of S are not those of the training; write it again with {wanted}$"):
            prediction_spec(spec, volumes, data="S", own_window=trained == (0, 1))
