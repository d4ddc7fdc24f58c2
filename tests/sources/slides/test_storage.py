"""What a tiled TIFF says of its pixels: transparency, colors, orientation, stacks. Most holds for slides and images."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from slide_files import APERIO, JPEG, RGB, YCBCR, Pixels, halves, jpeg, jpeg_2000, write_tiles

from densepath.sources.corrupt import CorruptImage
from densepath.sources.decode import read_image
from densepath.sources.image_reader import open_file
from densepath.sources.slides.open import open_slide
from densepath.sources.slides.slide import Slide
from densepath.sources.slides.table import list_slides
from densepath.sources.slides.tile_codecs import TileFormat
from densepath.sources.tiff_parts import TiffParts
from densepath.sources.tiles.overview import read_overview
from densepath.sources.tiles.tile import tile

_PALETTE: dict[str, Any] = {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)}
_TURNED = [(274, 3, 1, 3, True)]


def _whole(slide: Slide, level: int = 0) -> Pixels:
    return slide.read(level, (0, 0, *slide.levels[level].size))


@pytest.mark.parametrize("tags", [(), _TURNED], ids=["Pillow", "tifffile"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_colors_that_were_multiplied_by_alpha_are_blended_once(
    dtype: type, tags: list[Any], tissue: Pixels, tmp_path: Path
) -> None:
    most, alpha = np.iinfo(dtype).max, np.linspace(0, 1, 517)[None, :, None]
    stored = np.concatenate([tissue / 255 * alpha, np.broadcast_to(alpha, (333, 517, 1))], axis=2)
    options: dict[str, Any] = {"photometric": "rgb", "extrasamples": ["assocalpha"], "tile": (64, 64)}
    tifffile.imwrite(tmp_path / "a.tiff", np.rint(stored * most).astype(dtype), extratags=tags, **options)
    expected = (tissue / 255 * alpha + 1 - alpha) * most
    assert np.abs(read_image(tmp_path / "a.tiff", dtype=dtype) - expected).max() <= 2.5
    if dtype == np.uint8:
        assert np.abs(_whole(open_slide(tmp_path / "a.tiff")) - expected).max() <= 1.5


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_fourth_channel_that_is_not_transparency_is_ignored_in_slides_and_refused_in_images(
    compression: str | None, tissue: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"photometric": "rgb", "extrasamples": ["unspecified"], "compression": compression}
    tifffile.imwrite(tmp_path / "a.tiff", np.dstack([tissue, tissue[:, :, 0]]), tile=(64, 64), **options)
    slide = open_slide(tmp_path / "a.tiff")
    assert slide.file.problems == ("its fourth channel is not marked as transparency, and is ignored; save it as RGB",)
    np.testing.assert_array_equal(_whole(slide), tissue)
    monkeypatch.setattr("densepath.sources.image_reader._IN_PARTS", 0)
    for read in (read_image, lambda path: open_file(path).read(0, 0, 1, 1)):
        with pytest.raises(CorruptImage, match="of its 4 channels the last is not marked as transparency"):
            read(tmp_path / "a.tiff")


@pytest.mark.parametrize("tags", [(), _TURNED], ids=["Pillow", "tifffile"])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_tiles_that_were_left_out_are_white(photometric: str, tags: list[Any], tmp_path: Path) -> None:
    stored = np.full((64, 96), 90, np.uint8)
    tifffile.imwrite(tmp_path / "a.tiff", stored, tile=(32, 32), photometric=photometric, extratags=tags)
    with tifffile.TiffFile(tmp_path / "a.tiff", mode="r+b") as tiff:
        for tag in (tiff.pages[0].tags[code] for code in (324, 325)):
            tag.overwrite([*tag.value[:1], 0, *tag.value[2:]])
    expected = np.full((64, 96, 3), 90 if photometric == "minisblack" else 165, np.uint8)
    expected[:32, 32:64] = 255
    np.testing.assert_array_equal(_whole(open_slide(tmp_path / "a.tiff")), expected)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tiff"), expected)
    np.testing.assert_array_equal(TiffParts(tmp_path / "a.tiff").read(0, 0, 64, 96), expected)


def test_ycbcr_of_jpeg_2000_is_converted_by_its_decoder_or_after_it(tissue: Pixels, tmp_path: Path) -> None:
    def kept(pixels: Pixels) -> bytes:
        return jpeg_2000(np.asarray(Image.fromarray(pixels).convert("YCbCr")), mct=0)

    for encode in (kept, lambda pixels: jpeg_2000(pixels, mct=1)):
        path = write_tiles(tmp_path / "a.tiff", [tissue], encode, 34712, YCBCR)
        assert np.abs(_whole(open_slide(path)).astype(int) - tissue).mean() < 2


def test_planes_of_ycbcr_are_refused(tissue: Pixels, tmp_path: Path) -> None:
    path = write_tiles(tmp_path / "a.tiff", [tissue], jpeg, JPEG, YCBCR)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages[0].tags["PlanarConfiguration"].overwrite(2)
    with pytest.raises(CorruptImage, match="its colors are stored as YCBCR and cannot be converted"):
        open_slide(path)


def test_a_level_with_a_palette_is_left_out(tissue: Pixels, tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tiff") as tiff:
        tiff.write(tissue, tile=(64, 64), photometric="rgb")
        tiff.write(halves(tissue, 2)[:, :, 0], tile=(64, 64), subfiletype=1, **_PALETTE)
    slide = open_slide(tmp_path / "a.tiff")
    assert len(slide.levels) == 1
    assert slide.file.problems[0].startswith("level 1 of 258 x 166 px is left out: its colors are stored as PALETTE")


def test_a_level_of_a_mask_is_left_out(tissue: Pixels, tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tiff") as tiff:
        tiff.write(tissue, tile=(64, 64), photometric="rgb")
        tiff.write(halves(tissue, 2)[:, :, 0], tile=(64, 64), photometric="minisblack", subfiletype=1)
    slide = open_slide(tmp_path / "a.tiff")
    assert slide.file.problems == ("level 1 of 258 x 166 px is left out: it is grey (a mask?), and level 0 is RGB",)
    assert len(slide.levels) == 1


def test_a_compression_that_nobody_knows_is_named(tissue: Pixels, tmp_path: Path) -> None:
    path = write_tiles(tmp_path / "a.tiff", [tissue], jpeg, 34925, RGB)
    with pytest.raises(CorruptImage, match="its compression 34925 of 3 channels is unknown; save it as RGB with JPEG"):
        open_slide(path)


def test_an_orientation_tag_is_a_problem(tissue: Pixels, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tiff", tissue, tile=(64, 64), photometric="rgb", extratags=_TURNED)
    slide = open_slide(tmp_path / "a.tiff")
    assert slide.file.problems == ("it is read as stored, without its orientation tag (3); save it turned",)
    np.testing.assert_array_equal(_whole(slide), tissue)


@pytest.mark.parametrize("ome", [False, True])
def test_of_a_stack_of_rgb_the_first_page_is_a_slide(ome: bool, tissue: Pixels, tmp_path: Path) -> None:
    path, axes = tmp_path / ("a.ome.tiff" if ome else "a.tiff"), {"axes": "ZYXS"} if ome else None
    options: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb"}
    with tifffile.TiffWriter(path, ome=ome) as tiff:
        tiff.write(np.stack([tissue, 255 - tissue]), metadata=axes, **options)
        tiff.write(255 - halves(tissue, 2), subfiletype=1, metadata=None, **options)  # of the second page
    slide = open_slide(path)
    assert slide.file.problems == ("it has several pages of the size of level 0, of which the first is read",)
    assert len(slide.levels) == 1
    np.testing.assert_array_equal(_whole(slide), tissue)


def test_all_levels_are_those_of_the_first_slice_or_scene(tissue: Pixels, tmp_path: Path) -> None:
    """Aperio's slices follow each other level by level; the scenes of other files have levels of their own."""
    options: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb", "metadata": None}
    aperio = {"description": APERIO.format(mpp="0.5")} | options
    other = np.ascontiguousarray(255 - tissue[:240, :372])  # of the same proportions
    with tifffile.TiffWriter(tmp_path / "a.svs") as slices, tifffile.TiffWriter(tmp_path / "b.tiff") as scenes:
        for level in (tissue, halves(tissue, 4)):
            for pixels in (level, 255 - level):
                slices.write(pixels, **aperio)
        for scene in (tissue, other):
            for factor in (1, 2):
                scenes.write(halves(scene, factor), subfiletype=factor - 1, **options)
    slide = open_slide(tmp_path / "a.svs")
    assert slide.file.problems == ("it has several pages of the size of level 0, of which the first is read",)
    assert [level.downsample for level in slide.levels] == [(1, 1), (4, 4)]
    np.testing.assert_array_equal(slide.at_mpp(0.5).read(0, 0, 333, 517), tissue)
    np.testing.assert_array_equal(_whole(slide, 1), halves(tissue, 4))
    slide = open_slide(tmp_path / "b.tiff")
    assert [level.size for level in slide.levels] == [(333, 517), (166, 258)]
    np.testing.assert_array_equal(_whole(slide, 1), halves(tissue, 2))
    (problem,) = slide.file.problems
    assert problem.startswith(
        "its first image of 517 x 333 px is read, and not a further one, with levels, of 372 x 240"
    )


@pytest.mark.parametrize("other", [halves, lambda pixels, _: pixels[:128, :128]])
def test_a_tiled_thumbnail_or_label_does_not_end_the_levels(
    other: Callable[[Pixels, int], Pixels], tissue: Pixels, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(tmp_path / "a.tiff") as tiff:
        tiff.write(tissue, **options)
        tiff.write(np.ascontiguousarray(other(tissue, 8)), **options)
        for factor in (2, 4):
            tiff.write(halves(tissue, factor), subfiletype=1, **options)
    slide = open_slide(tmp_path / "a.tiff")
    assert [level.downsample for level in slide.levels] == [(1, 1), (2, 2), (4, 4)] and not slide.file.problems


def test_levels_of_two_slices_are_listed_once_where_only_the_first_page_has_alpha(
    tissue: Pixels, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb", "metadata": None}
    opaque = np.concatenate([tissue, np.full_like(tissue[:, :, :1], 255)], 2)
    with tifffile.TiffWriter(tmp_path / "a.tiff") as tiff:
        tiff.write(opaque, extrasamples=["unassalpha"], **options)
        for pixels in (tissue, 255 - tissue):
            tiff.write(halves(pixels, 2), subfiletype=1, **options)
    slide = open_slide(tmp_path / "a.tiff")
    assert [level.downsample for level in slide.levels] == [(1, 1), (2, 2)]
    np.testing.assert_array_equal(_whole(slide, 1), halves(tissue, 2))


def test_a_level_that_cannot_be_read_is_not_replaced_by_that_of_another_slice(tissue: Pixels, tmp_path: Path) -> None:
    options: dict[str, Any] = {"tile": (64, 64), "metadata": None, "description": APERIO.format(mpp="0.5")}
    with tifffile.TiffWriter(tmp_path / "a.svs") as tiff:
        for pixels in (tissue, 255 - tissue):
            tiff.write(pixels, photometric="rgb", **options)
        for pixels, colors in ((halves(tissue, 4), "cielab"), (255 - halves(tissue, 4), "rgb")):
            tiff.write(pixels, photometric=colors, **options)
    slide = open_slide(tmp_path / "a.svs")
    assert len(slide.levels) == 1 and "level 2 of 129 x 83 px is left out" in slide.file.problems[1]


def test_a_larger_image_after_the_first_is_a_problem(tissue: Pixels, tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.ome.tiff", ome=True) as tiff:
        for pixels in (halves(tissue, 4), tissue):  # an overview, and the slide
            tiff.write(pixels, tile=(64, 64), photometric="rgb")
    (problem,) = open_slide(tmp_path / "a.ome.tiff").file.problems
    assert problem.startswith("its first image of 129 x 83 px is read, and not its largest of 517 x 333 px")


@pytest.mark.parametrize("aperio", [False, True])
def test_a_macro_larger_than_the_slide_is_no_problem(aperio: bool, tissue: Pixels, tmp_path: Path) -> None:
    description = APERIO.format(mpp="0.5") if aperio else ""
    with tifffile.TiffWriter(tmp_path / "a.svs") as tiff:
        tiff.write(halves(tissue, 4), tile=(64, 64), photometric="rgb", metadata=None, description=description)
        tiff.write(tissue, photometric="rgb", metadata=None)
    assert not open_slide(tmp_path / "a.svs").file.problems


def test_a_border_that_qupath_leaves_out_is_reported_once_and_is_no_problem(
    tissue: Pixels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A Leica slide whose scanned area begins 20 and 30 pixels from the corner of its collection."""
    options: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb", "metadata": None, "software": False}
    side = 'sizeX="{}" sizeY="{}"'
    view = f'{side.format(258500, 166500)} offsetX="10000" offsetY="15000" spacingZ="0"'  # nm
    image = (
        '<image name="a" uuid="b"><creationDate>2020-01-01T00:00:00</creationDate><device model="m" version="v"/>'
        f'<pixels {side.format(517, 333)}><dimension {side.format(517, 333)} r="0" ifd="0"/></pixels><view {view}/>'
        "<scanSettings><objectiveSettings><objective>20</objective></objectiveSettings><illuminationSettings>"
        "<numericalAperture>0.4</numericalAperture><illuminationSource>brightfield</illuminationSource>"
        "</illuminationSettings></scanSettings></image>"
    )
    space = "http://www.leica-microsystems.com/scn/2010/10/01"
    xml = f'<scn xmlns="{space}"><collection name="c" uuid="d" {side.format(400000, 300000)}>{image}</collection></scn>'
    tifffile.imwrite(tmp_path / "a.scn", tissue, bigtiff=True, description=xml, **options)
    slide = open_slide(tmp_path / "a.scn")
    assert slide.vendor == "leica" and slide.size == (600, 800)
    np.testing.assert_array_equal(slide.read(0, (30, 20, 333, 517)), tissue)
    (tmp_path / "b.scn").write_bytes((tmp_path / "a.scn").read_bytes())
    rows = list_slides(data=tmp_path, default_mpp=0.5)
    assert [row["problem"] for row in rows] == ["", ""]
    lines = capsys.readouterr().err.splitlines()
    assert "the empty border of 2 slides (a.scn begins at x 20, y 30 of level 0, b.scn" in lines[-2]
    assert "2 slides, 0 with problems" in lines[-1]
    tile(data=tmp_path, out=tmp_path / "T", size=64, default_mpp=0.5, workers=0)
    lines = capsys.readouterr().err.splitlines()
    assert sum("the empty border of 2 slides" in line for line in lines) == 1
    assert not any("with problems" in line for line in lines)


def test_a_stack_of_grey_is_refused(tissue: Pixels, tmp_path: Path) -> None:
    stack = np.stack([tissue[:, :, 0], tissue[:, :, 1]])
    tifffile.imwrite(tmp_path / "a.tiff", stack, tile=(64, 64), photometric="minisblack", metadata=None)
    with pytest.raises(CorruptImage, match="it has several pages of 517 x 333 px"):
        open_slide(tmp_path / "a.tiff")


@pytest.mark.parametrize(("first", "mask"), [("rgb", np.uint8), ("rgb", np.uint16), ("minisblack", np.uint16)])
def test_a_mask_of_the_size_of_level_0_may_follow(first: str, mask: type, tissue: Pixels, tmp_path: Path) -> None:
    pixels = tissue if first == "rgb" else tissue[:, :, 0]
    with tifffile.TiffWriter(tmp_path / "a.tiff") as tiff:
        tiff.write(pixels, tile=(64, 64), photometric=first, metadata=None)
        tiff.write(tissue[:, :, 2].astype(mask), tile=(64, 64), photometric="minisblack", metadata=None)
        tiff.write(pixels[::2, ::2], tile=(64, 64), photometric=first, subfiletype=1, metadata=None)
    slide = open_slide(tmp_path / "a.tiff")
    assert slide.file.problems == () and [level.downsample for level in slide.levels] == [(1, 1), (2, 2)]
    expected = np.broadcast_to(pixels.reshape(333, 517, -1), tissue.shape)
    np.testing.assert_array_equal(_whole(slide), expected)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tiff"), expected)


@pytest.mark.parametrize(("resolutions", "scales"), [(1, (1,)), (2, (1, 2)), (3, (1, 2, 4)), (6, (1, 2, 4))])
def test_jpeg_2000_is_halved_as_often_as_it_can_be(
    resolutions: int, scales: tuple[int, ...], tissue: Pixels, tmp_path: Path
) -> None:
    path = write_tiles(
        tmp_path / "a.tiff", [tissue], lambda pixels: jpeg_2000(pixels, num_resolutions=resolutions), 33005, RGB
    )
    slide = open_slide(path, mpp=1.0)
    assert slide.levels[0].scales == scales
    for scale in scales:
        assert slide.read(0, (0, 0, 64, 64), scale).std() > 5
    assert not read_overview(slide).damaged


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_colors_are_the_same_grey_in_parts_as_in_the_whole(dtype: type, tissue: Pixels, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tiff", tissue, tile=(64, 64), photometric="rgb")
    parts = TiffParts(tmp_path / "a.tiff", channels=1, dtype=dtype).read(0, 0, 333, 517)
    np.testing.assert_array_equal(parts, read_image(tmp_path / "a.tiff", channels=1, dtype=dtype))


@pytest.mark.parametrize("predictor", [1, 2])
def test_wrong_bytes_of_a_deflated_tile_are_damage(predictor: int, tissue: Pixels) -> None:
    """They may become more bytes than a tile has, or have another checksum; if that is right, more bytes are none."""
    stored = tissue[:64, :64]
    tile_format = TileFormat(8, 2, predictor, 64, 64, 3)
    changes = stored if predictor == 1 else np.diff(stored, axis=1, prepend=np.zeros((64, 1, 3), np.uint8))
    data = zlib.compress(changes.tobytes())
    np.testing.assert_array_equal(tile_format.decode(data), stored)
    for more in (1, stored.nbytes, 3 * stored.nbytes + 1):
        longer = zlib.compress(changes.tobytes() + bytes(more))
        np.testing.assert_array_equal(tile_format.decode(longer), stored)
        for wrong in (longer[:-1] + bytes([longer[-1] ^ 1]), longer[:-4], longer[:-1]):
            with pytest.raises((ValueError, zlib.error)):
                tile_format.decode(wrong)
    for wrong in (data[:-1] + bytes([data[-1] ^ 1]), data[: len(data) // 2]):
        with pytest.raises((ValueError, zlib.error)):
            tile_format.decode(wrong)


def test_a_slide_without_pixels_is_damaged(tissue: Pixels, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", tissue, tile=(128, 128), photometric="rgb", compression="zlib")
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as tiff:
        tiff.pages.first.tags["ImageWidth"].overwrite(0)  # type: ignore[union-attr]
    with pytest.raises(CorruptImage, match="it has 0 x 333 px; copy it again"):
        open_slide(tmp_path / "a.tif")
