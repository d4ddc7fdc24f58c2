"""``densepath slides``: facts and problems, a line each, and nothing of a patient."""

from __future__ import annotations

import csv
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from slide_files import APERIO, JPEG, RGB, YCBCR, Pixels, aperio_tile, halves, jpeg, tables, write_tiles

from densepath.cli import main
from densepath.core.errors import UserError
from densepath.sources.corrupt import CorruptImage
from densepath.sources.listing import Passed
from densepath.sources.slides.find import find_slides
from densepath.sources.slides.open import open_slide
from densepath.sources.slides.table import COLUMNS, list_slides


def _many(folder: Path, slides: dict[str, Path], tissue: Pixels) -> None:
    """A folder of good slides, and one of each damage."""
    good = slides["RGB without a marker"].read_bytes()
    (folder / "good.svs").write_bytes(good)
    (folder / "empty.svs").touch()
    (folder / "junk.ndpi").write_bytes(bytes(range(256)) * 9)
    (folder / "short.svs").write_bytes(good[: len(good) // 2])
    with tifffile.TiffFile(folder / "good.svs") as tiff:
        (folder / "first.svs").write_bytes(good[: tiff.pages[1].offset])
    (folder / "head.tiff").write_bytes(b"II*\0\x08")
    plain = write_tiles(folder / "no mpp.tiff", [tissue], jpeg, JPEG, YCBCR)
    write_tiles(folder / "levels.tiff", [tissue, halves(tissue, 4)[:, :60]], jpeg, JPEG, YCBCR)
    beyond = folder / "beyond.tiff"
    beyond.write_bytes(plain.read_bytes())
    with tifffile.TiffFile(beyond) as tiff:
        place = tiff.pages[0].tags[324].valueoffset + 4 * 3
    with beyond.open("r+b") as file:
        file.seek(place)
        file.write(struct.pack("<I", 2**31))
    tifffile.imwrite(folder / "deep.tiff", tissue.astype(np.float32), tile=(64, 64), photometric="rgb")
    Image.fromarray(tissue[:90]).save(folder / "label.tif")
    Image.fromarray(tissue[:90]).save(folder / "label.ndpi", "TIFF")
    Image.fromarray(tissue[:90]).save(folder / "thumbnail.png")
    (folder / "link.svs").symlink_to("good.svs")
    (folder / "pyramid.ndpi").write_bytes(slides["YCbCr"].read_bytes())


EXPECTED = {
    "good.svs": "",
    "empty.svs": "the file is empty",
    "junk.ndpi": "not a slide of a format that OpenSlide knows",
    "short.svs": "truncated: it ends before its last pages; copy it again; truncated: 8 of 15 tiles of level 0 lie",
    "first.svs": "truncated: it ends before its last pages; copy it again",
    "head.tiff": "a TIFF that is truncated or damaged; copy it again",
    "no mpp.tiff": "no µm per pixel; give them by --mpp_table slides.csv (columns wsi,mpp) or --default_mpp",
    "levels.tiff": "level 1 of 60 x 83 px has other proportions than level 0 and is left out",
    "beyond.tiff": "truncated: 1 of 15 tiles of level 0 lie beyond its end",
    "deep.tiff": "3 channels of float32, not 8-bit RGB or grey",
    "label.tif": "not a slide: a TIFF without tiles",
    "label.ndpi": "not a slide: a TIFF without tiles",
    "pyramid.ndpi": "no µm per pixel",
}


def test_a_slide_is_found_once(slides: dict[str, Path], tmp_path: Path) -> None:
    for folder in ("S/a", "S/b", "other", "T"):
        (tmp_path / folder).mkdir(parents=True)
    for place in ("S/a/x.tiff", "S/b/x.tiff", "other/y.tiff"):  # equal names, and equal bytes, are not one slide
        (tmp_path / place).write_bytes(slides["YCbCr"].read_bytes())
    for link, target in (("a/0.tiff", "../b/x.tiff"), ("b/y.tiff", "../../other/y.tiff"), ("b/z.tiff", "y.tiff")):
        (tmp_path / "S" / link).symlink_to(target)
    (tmp_path / "T" / "all").symlink_to("../S")
    passed = Passed()
    found = find_slides(tmp_path / "S", passed=passed)
    assert found == [str(tmp_path / "S" / name) for name in ("a/x.tiff", "b/x.tiff", "b/y.tiff")]
    assert passed.describe() == "2 repeated slides"
    assert len(find_slides(tmp_path / "T")) == 3
    (tmp_path / "list.txt").write_text("S/b/y.tiff\nS/a/x.tiff\nS/../S/a/x.tiff\nother/y.tiff\nS/a/x.tiff\n")
    assert find_slides(tmp_path / "list.txt") == [str(tmp_path / name) for name in ("S/a/x.tiff", "other/y.tiff")]


def test_each_problem_is_a_line_and_none_ends_the_list(
    slides: dict[str, Path], tissue: Pixels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder := tmp_path / "S").mkdir()
    _many(folder, slides, tissue)
    (tmp_path / "mpp.csv").write_text("wsi,mpp\nlevels.tiff,0.23\ngone.svs,1\nbeyond,0.25\n")
    words = ["--data", str(folder), "--mpp_table", str(tmp_path / "mpp.csv"), "--out", str(tmp_path / "t.csv")]
    assert main(["slides", *words]) == 0
    shown = capsys.readouterr()
    with (tmp_path / "t.csv").open(newline="") as file:
        rows = {row["slide"]: row for row in csv.DictReader(file)}
    assert sorted(rows) == sorted(EXPECTED)
    for name, problem in EXPECTED.items():
        assert rows[name]["problem"].startswith(problem) and bool(problem) == bool(rows[name]["problem"])
        assert (f"{name}: {problem}" in shown.out) == bool(problem)
        assert list(rows[name]) == list(COLUMNS)
    assert rows["pyramid.ndpi"]["reader"] == "tiles"
    assert rows["good.svs"] | {"problem": ""} == {
        "slide": "good.svs",
        "vendor": "aperio",
        "width": "517",
        "height": "333",
        "levels": "1 4",
        "mpp": "0.499",
        "codec": "JPEG",
        "reader": "tiles",
        "associated": "",
        "problem": "",
    }
    assert rows["levels.tiff"]["mpp"] == "0.23" and rows["levels.tiff"]["levels"] == "1"
    assert "mpp.csv names 1 slide not in the data: gone.svs" in shown.out
    assert "13 slides, 12 with problems; passed over: 1 .png file, 1 repeated slide" in shown.err
    good = next(line for line in shown.out.splitlines() if line.startswith("good.svs"))
    assert all(value in good for value in ("aperio", "517", "333", "1 4", "0.499", "JPEG", "tiles"))
    with pytest.raises(CorruptImage, match=r"beyond\.tiff.*copy it again"):
        open_slide(folder / "beyond.tiff").read(0, (0, 384, 50, 50))
    assert open_slide(folder / "beyond.tiff").read(0, (0, 0, 128, 128)).std() > 5


def test_only_unreadable_slides_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.svs").touch()
    assert main(["slides", "--data", str(tmp_path)]) == 2
    assert "none of 1 slide can be read (empty.svs: the file is empty)" in capsys.readouterr().err
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="contain no slide"):
        list_slides(data=tmp_path / "none")


def test_nothing_of_the_patient_is_shown_or_stored(
    tissue: Pixels,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The name is in the description, in the names of pages, and in a path of the scanner."""
    (folder := tmp_path / "S").mkdir()
    secret = "DOE^JANE A-1234567"
    description = APERIO.format(mpp=0.5) + f"|Filename = {secret}|Patient = {secret}|ScanScope ID = {secret}"
    write_tiles(folder / "a.svs", [tissue], aperio_tile, JPEG, RGB, jpeg_tables=tables(), description=description)
    with tifffile.TiffWriter(folder / "a.svs", append=True) as tiff:
        for name in ("label", "macro", secret):
            note = f"Aperio Image Library v12\n{name} 99x33 {secret}"
            tiff.write(tissue[:33, :99], photometric="rgb", description=note, metadata=None, software=secret)
    write_tiles(folder / "b.tiff", [tissue], jpeg, JPEG, YCBCR, description=secret)
    data = (folder / "a.svs").read_bytes()
    (folder / "c.svs").write_bytes(data[: len(data) - 1000])
    assert main(["slides", "--data", str(folder), "--out", str(tmp_path / "t.csv")]) == 0
    shown, stored = capfd.readouterr(), (tmp_path / "t.csv").read_text()
    assert "label macro thumbnail" in stored and "aperio" in shown.out
    for text in (shown.out, shown.err, caplog.text, stored):
        assert not any(word in text for word in ("DOE", "JANE", "1234567"))
    slide = open_slide(folder / "a.svs")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)  # level 0 has many more than Pillow takes at once
    np.testing.assert_array_equal(slide.associated_image("label"), tissue[:33, :99])
    with pytest.raises(UserError, match="has no image map; it has: label, macro, thumbnail"):
        slide.associated_image("map")
    assert secret not in repr(slide)


def test_the_table_does_not_replace_what_it_is_made_of(slides: dict[str, Path], tmp_path: Path) -> None:
    slide, given = tmp_path / "a.svs", tmp_path / "slides.csv"
    slide.write_bytes(slides["RGB without a marker"].read_bytes())
    given.write_text("wsi,mpp\na,0.25\n")
    for out, inputs in ((given, {"data": tmp_path, "mpp_table": given}), (slide, {"data": tmp_path})):
        before = out.read_bytes()
        with pytest.raises(UserError, match="is read, and the result would replace it"):
            list_slides(out=out, **inputs)  # type: ignore[arg-type]
        assert out.read_bytes() == before


def test_a_table_that_cannot_be_written_is_refused_before_slides_are_opened(tmp_path: Path) -> None:
    (tmp_path / "S").mkdir()
    (tmp_path / "S" / "a.svs").touch()  # it would be refused when it is opened
    with pytest.raises(UserError, match=r"a\.svs is not a folder; use another path"):
        list_slides(data=tmp_path / "S", out=tmp_path / "S" / "a.svs" / "t.csv")


def test_a_missing_package_costs_the_slides_that_need_it(
    tmp_path: Path, tissue: Pixels, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiles(tmp_path / "jpeg.tiff", [tissue], jpeg, JPEG, YCBCR)
    tifffile.imwrite(tmp_path / "plain.tiff", tissue, tile=(64, 64), photometric="rgb")
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    rows = {row["slide"]: row for row in list_slides(data=tmp_path)}
    assert rows["plain.tiff"]["codec"] and "simplejpeg" not in rows["plain.tiff"]["problem"]
    assert rows["jpeg.tiff"]["problem"].startswith('slides with JPEG tiles need simplejpeg; pip install "densepath[')
    assert "jpeg.tiff: slides with JPEG tiles" in capsys.readouterr().out
