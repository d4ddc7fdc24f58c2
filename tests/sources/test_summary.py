"""What is said of the images before they are used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densepath.core.errors import UserError
from densepath.sources.image_files import ImageFiles
from densepath.sources.open import cache_images, find_source, open_images
from densepath.sources.packing import pack
from densepath.sources.summary import summarize
from densepath.transfer.embed.encoder import load_encoder
from densepath.transfer.trainings import pixels_of_run


def tissue(path: Path, size: tuple[int, int], channels: int = 3) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (*size, channels), dtype=np.uint8)
    Image.fromarray(pixels.squeeze()).save(path)


def mask(path: Path, values: int, indexed: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray((np.arange(64 * 64).reshape(64, 64) % values).astype(np.uint8))
    if indexed:
        image.putpalette([level for color in range(256) for level in (color, 0, 255 - color)])
    image.save(path)


def lines(source: Path | str, **options: object) -> list[str]:
    files = find_source(source, **options)  # type: ignore[arg-type]
    assert isinstance(files, ImageFiles)
    return summarize(cache_images(files), files)


def test_one_line_says_what_is_read(tmp_path: Path) -> None:
    for number in range(3):
        tissue(tmp_path / "a" / f"{number}.png", (40, 50))
    tissue(tmp_path / "b" / "c" / "x.png", (77, 60))
    (tmp_path / "notes.csv").write_text("x")
    (tmp_path / "a" / "slide.svs").write_text("x")
    assert lines(tmp_path) == ["4 images in 2 folders, 40-77 px, kept in memory; passed over: 1 .svs file, 1 .csv file"]
    assert lines(tmp_path, exclude=["b"]) == [
        "3 images in 1 folder, 40-50 px, kept in memory; passed over: 1 excluded file, 1 .svs file, 1 .csv file"
    ]
    files = open_images(tmp_path / "a", cache="none")
    assert isinstance(files, ImageFiles)
    assert summarize(files, files) == ["3 images in 1 folder, 40-50 px, read each time; passed over: 1 .svs file"]
    store = pack(tmp_path, tmp_path / "s.safetensors")
    assert summarize(open_images(store)) == [f"4 images in 2 folders, 40-77 px, packed in {store}"]
    with pytest.raises(UserError, match="--exclude has no effect on a packed store"):
        find_source(store, exclude=["b"])


def test_large_images_that_are_reduced_are_reported(tmp_path: Path) -> None:
    tissue(tmp_path / "large.png", (120, 840))
    tissue(tmp_path / "small.png", (120, 160))
    line, reduced = lines(tmp_path, max_side=400)
    assert "40-280 px" in line
    assert reduced.startswith(f"1 image is larger than 400 px and reduced, e.g. {tmp_path}/large.png; cut them")


@pytest.mark.parametrize(("size", "warned"), [((20, 300), True), ((40, 50), True), ((64, 64), False)])
def test_thumbnails_among_images_are_reported(tmp_path: Path, size: tuple[int, int], warned: bool) -> None:
    for number in range(5):
        tissue(tmp_path / f"{number}.png", (200, 200))
    tissue(tmp_path / "preview.png", size)
    _, *warnings = lines(tmp_path)
    shown = f"{tmp_path}/preview.png ({size[1]} x {size[0]} px); leave them out with --exclude PATTERN"
    assert warnings == [f"warning: many images look like thumbnails, with few pixels: {shown}"] * warned
    assert lines(tmp_path, exclude=["preview*"])[1:] == []


@pytest.mark.parametrize(("values", "indexed"), [(2, False), (40, False), (5, True)])
def test_masks_among_images_are_reported(tmp_path: Path, values: int, indexed: bool) -> None:
    for number in range(5):
        tissue(tmp_path / f"{number}.png", (64, 64))
        mask(tmp_path / f"{number}_anno.png", values, indexed)
    warning = lines(tmp_path)[1]
    assert warning.startswith("warning: many images look like masks, with one channel of few values:")
    assert "_anno.png" in warning and "--exclude PATTERN" in warning
    assert len(lines(tmp_path, exclude=["*_anno.png"])) == 1


def test_masks_are_found_wherever_they_lie(tmp_path: Path) -> None:
    for number in range(40):
        if number < 30:
            tissue(tmp_path / f"{number:02d}.png", (16, 16), channels=1)
        else:
            mask(tmp_path / f"{number}.png", 2)
    assert "look like masks, with one channel of few values" in lines(tmp_path)[1]


def test_grey_images_and_blank_tiles_are_not_masks(tmp_path: Path) -> None:
    for number in range(5):
        tissue(tmp_path / f"grey{number}.png", (64, 64), channels=1)
        Image.new("RGB", (64, 64), "white").save(tmp_path / f"blank{number}.png")
    assert len(lines(tmp_path)) == 1


@pytest.mark.parametrize(
    ("highest", "is_told"), [((4095,), True), ((2**14 - 1, 3), True), ((31713,), False), ((3, 65535), False)]
)
def test_images_of_12_bits_among_images_of_8_are_reported(
    highest: tuple[int, ...],
    is_told: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They share a window, in which those of 12 bits are dark; a blank image among brighter ones is not one."""
    tissue(tmp_path / "a.png", (48, 48), 1)
    for name, most in zip("bc", highest, strict=False):
        pixels = np.linspace(0, most, 48 * 48).reshape(48, 48).astype(np.uint16)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    told = "only some of 16 bits, and other images have 8; one window is for all, in which these are"
    assert [f"{told} dark: put them" in line for line in lines(tmp_path) if told in line] == [True] * is_told
    images = find_source(tmp_path)
    pixels_of_run("random", images, None)
    load_encoder("random", "test_resnet", images)
    assert capsys.readouterr().err.count(told) == 2 * is_told
    monkeypatch.setenv("RANK", "1")
    load_encoder("random", "test_resnet", images)
    assert told not in capsys.readouterr().err
