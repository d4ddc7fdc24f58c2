"""Training on a part of the data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from densepath.core.errors import UserError
from densepath.sources.image_files import ImageFiles
from densepath.sources.names import AllNames
from densepath.sources.open import cache_images, find_source
from densepath.sources.packing import open_store, write_store
from densepath.sources.pixel_source import PixelSource, PixelSpec
from densepath.sources.restrict import restrict, take
from densepath.sources.tiles.slide_tiles import SlideTiles
from densepath.sources.tiles.tile_files import SlideTiling, tiling_folder, tiling_path, write_tiling

COUNT = 12


def tile_folder(root: Path) -> Path:
    """The tiles of slides in several folders, which are never opened here."""
    rows = []
    for k in range(COUNT):
        name = f"{'ab'[k % 2]}/s{k}"
        tiling = SlideTiling(name, f"{root}/{name}.svs", np.zeros((k + 1, 2), np.int64), 0.5, 64, (0.5, 0.5), (99, 99))
        write_tiling(tiling_path(root / tiling_folder(0.5, 64, 0), name), tiling)
        rows.append(f"{name},{tiling.path},0.5,99,99,{k + 1},1,\n")
    (root / "config.yaml").write_text("# densepath 0.1\n")
    (root / "slides.csv").write_text("slide,path,mpp,width,height,tiles,tissue_mm2,problem\n" + "".join(rows))
    return root


@pytest.fixture
def tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SlideTiles:
    monkeypatch.setattr(SlideTiles, "check", lambda self: None)
    found = find_source(tile_folder(tmp_path / "T"))
    assert isinstance(found, SlideTiles)
    return found


def names(images: PixelSource) -> list[str]:
    return list(AllNames(images))


def test_a_smaller_fraction_of_the_slides_is_part_of_a_larger_one(tiles: SlideTiles) -> None:
    taken = [restrict(tiles, fraction=share, seed=3) for share in (0.01, 0.1, 0.5, 1.0)]
    slides = [{tiling.name for tiling in part.tilings} for part in taken]  # type: ignore[attr-defined]
    assert [len(each) for each in slides] == [1, 1, 6, 12]
    assert slides[0] <= slides[1] <= slides[2] <= slides[3]
    others = {tiling.name for tiling in restrict(tiles, fraction=0.5, seed=4).tilings}  # type: ignore[attr-defined]
    assert others != slides[2]
    # Neither other slides nor their order change which are taken first
    assert [each.name for each in taken[2].tilings] == sorted(slides[2], key=lambda name: int(name[3:]))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "text",
    [
        "# chosen\na/s0\ns3.svs\n\nb/s5.svs\n",
        "case_id,slide_id,label\n1,s0,x\n2,s3,y\n3,s5,x\n",
        "Slide\na/s0\nb/s3\nb/s5\n",
        "s5,late\ns3,early\ns0,early\n",
        "case;slide\n1;a/s0\n2;s3\n3;s5\n",
        "slide_id,slide,image\n7,a/s0,x\n8,s3,y\n9,s5,z\n",
        "file_name,name\nx.svs,a/s0\ny.svs,s3\nz.svs,s5\n",
    ],
)
def test_a_list_of_slides(text: str, tiles: SlideTiles, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(text)
    taken = restrict(tiles, tmp_path / "list.csv")
    assert [tiling.name for tiling in taken.tilings] == ["a/s0", "b/s3", "b/s5"]  # type: ignore[attr-defined]


def test_the_first_column_of_a_list_may_be_empty(tiles: SlideTiles, tmp_path: Path) -> None:
    (tmp_path / "list.tsv").write_text("case\tslide\n1\ta/s0\n\ts3\n")
    taken = restrict(tiles, tmp_path / "list.tsv")
    assert [tiling.name for tiling in taken.tilings] == ["a/s0", "b/s3"]  # type: ignore[attr-defined]


def test_names_in_a_text_list_are_whole_lines_in_any_normal_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SlideTiles, "check", lambda self: None)
    folder = tile_folder(tmp_path / "T")
    table, wanted = folder / "slides.csv", ["a/s0, left", "#1", "caf\u00e9"]
    rows = table.read_text().splitlines()
    for k, name in enumerate(wanted):
        (old, path), new = rows[k + 1].split(",")[:2], name.replace("/", "_")
        tiling_path(folder / tiling_folder(0.5, 64, 0), old).rename(
            tiling_path(folder / tiling_folder(0.5, 64, 0), new)
        )
        rows[k + 1] = f'"{new}",{path},0.5,99,99,{k + 1},1,'
        wanted[k] = new
    table.write_text("\n".join(rows) + "\n")
    (tmp_path / "list.txt").write_text("# chosen\na_s0, left\n#1\ncafe\u0301\n")
    taken = restrict(find_source(folder), tmp_path / "list.txt")
    assert [tiling.name for tiling in taken.tilings] == wanted  # type: ignore[attr-defined]


def test_a_name_in_a_list_is_of_one_slide(tiles: SlideTiles, tmp_path: Path) -> None:
    """Slides x, a/x and b/y, c/y: "x" is the first, and "y" may be either of two."""
    folder = tiles.folder
    assert folder is not None
    table = folder / "slides.csv"
    head, *rows = table.read_text().splitlines()
    places = [tiling_path(folder / tiling_folder(0.5, 64, 0), name) for name in ("a/s0", "x", "a/x", "b/y", "c/y")]
    for place in places[1:]:
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(places[0].read_bytes())
    more = [f"{name},/slides/{name}.svs,0.5,99,99,1,1," for name in ("x", "a/x", "b/y", "c/y")]
    table.write_text("\n".join([head, *rows, *more]) + "\n")
    found, chosen = find_source(folder), tmp_path / "list.txt"
    for text, expected in (("x\nc/y\n", ["x", "c/y"]), ("a/x.svs\nb/y.svs\n", ["a/x", "b/y"])):
        chosen.write_text(text)
        assert [tiling.name for tiling in restrict(found, chosen).tilings] == expected  # type: ignore[attr-defined]
    chosen.write_text("x\ny.svs\n")
    with pytest.raises(UserError, match=r"has several slides of a name: y\.svs; write their folders before it"):
        restrict(found, chosen)


def test_tiles_of_slides_are_not_cached_as_if_they_were_files(tiles: SlideTiles) -> None:
    assert cache_images(tiles) is cache_images(tiles, "none") is tiles
    with pytest.raises(UserError, match="--cache ram is for images in files; pack tiles of slides"):
        cache_images(tiles, "ram")


def test_a_list_of_excluded_slides_only_is_refused(tiles: SlideTiles, tmp_path: Path) -> None:
    assert tiles.folder is not None
    (tmp_path / "list.tsv").write_text("case\tslide\n1\ta/s0\n")
    with pytest.raises(UserError, match=r"--exclude leaves out all slides of .*list\.tsv; narrow it"):
        restrict(find_source(tiles.folder, exclude=["a/*"]), tmp_path / "list.tsv")


@pytest.mark.parametrize("text", ["s0\nnobody\n", "slide\na/s99\n", "", "# nothing\n"])
def test_a_list_with_unknown_slides_is_refused(text: str, tiles: SlideTiles, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(UserError, match=r"nobody|a/s99|has no names"):
        restrict(tiles, tmp_path / "list.csv")
    with pytest.raises(UserError, match="cannot be read"):
        restrict(tiles, tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1,s3,x\n", "line 6 of .* has 3 fields, its header 2; quote fields that contain the delimiter"),
        ('1,"s3\n', r"cannot be read \(line 6 has a quote that is not closed.*\); correct it"),
    ],
)
def test_a_damaged_row_of_a_list_is_named_by_its_line(
    row: str, message: str, tiles: SlideTiles, tmp_path: Path
) -> None:
    (tmp_path / "list.csv").write_text(f"# chosen\n\ncase,slide\n1,s0,,\n# others\n{row}")
    with pytest.raises(UserError, match=message):
        restrict(tiles, tmp_path / "list.csv")


@pytest.mark.parametrize("bright", [60000, 4000])
def test_a_part_of_image_files_has_the_pixels_that_it_has_in_the_whole(tmp_path: Path, bright: int) -> None:
    Image.fromarray(np.full((8, 8), bright, np.uint16)).save(tmp_path / "0.png")
    Image.new("RGB", (8, 8), (200, 0, 0)).save(tmp_path / "1.png")
    Image.new("L", (8, 8), 200).save(tmp_path / "2.png")
    whole = ImageFiles(find_source(tmp_path).paths, max_side=4)  # type: ignore[attr-defined]
    for chosen in ([2], [1, 2], [0]):
        part = take(take(whole, torch.tensor([*chosen, 1])), torch.arange(len(chosen)))
        assert (part.dtype, part.spec) == (whole.dtype, whole.spec)
        assert all(np.array_equal(part.read(k), whole.read(position)) for k, position in enumerate(chosen))


def test_a_fraction_of_images_in_files_and_in_a_store(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (8 + k % 3, 9, 3), dtype=np.uint8) for k in range(40)]
    (tmp_path / "png").mkdir()
    for k, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "png" / f"{k:02}.png")
    spacing = np.arange(1, 81, dtype=np.float32).reshape(40, 2)
    path = write_store(tmp_path / "s.safetensors", images, (f"{k:02}.png" for k in range(40)), PixelSpec(), spacing)
    kept = {}
    for share in (0.1, 0.5):
        files, store = (restrict(find_source(each), fraction=share, seed=7) for each in (tmp_path / "png", path))
        assert isinstance(files, ImageFiles) and len(files) == len(store) == round(40 * share)
        assert [Path(name).name for name in names(files)] == names(store)
        kept[share] = names(store)
        assert kept[share] == sorted(kept[share])
        numbers = [int(name[:2]) for name in names(store)]
        gathered = store.gather(torch.arange(len(store)))
        for row, number in enumerate(numbers):
            assert np.array_equal(store.read(row), images[number]) and np.array_equal(files.read(row), images[number])
            assert np.array_equal(gathered.pixels[row, : len(images[number])].numpy(), images[number])
        assert np.array_equal(store.spacing(torch.arange(len(store))).numpy(), spacing[numbers])  # type: ignore[union-attr]
    assert set(kept[0.1]) < set(kept[0.5])
    parts = [restrict(open_store(path), fraction=0.5, seed=seed).digest(tmp_path / "c") for seed in (7, 7, 8)]
    assert parts[0] == parts[1] != parts[2] and parts[0] != open_store(path).digest(tmp_path / "c")
    with pytest.raises(UserError, match="--slides needs tiles of slides"):
        restrict(open_store(path), tmp_path / "png")
