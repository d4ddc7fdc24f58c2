"""Features of slides: a file for each, the same for any number of processes, and files of other software."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
import torch
from disks import Disk, fail_in_part, paint, write_levels

import densepath
from densepath.core.errors import UserError
from densepath.nets.backbones.timm_backbone import build_backbone
from densepath.nets.weights.saving import save_backbone
from densepath.nets.weights.trained_on import slide_notes
from densepath.sources.slides.open import open_slide
from densepath.sources.tiles.coords import read_coords
from densepath.sources.tiles.slide_tiles import SlideTiles
from densepath.sources.tiles.tile_files import read_tile_folder
from densepath.transfer.embed import embed_slides
from densepath.transfer.embed.embed import embed
from densepath.transfer.embed.encoder import load_encoder
from densepath.transfer.embed.slide_features import read_slide_features
from densepath.transfer.mil.leaks import REMEDY
from densepath.transfer.slides.slide_work import last_problem

NETWORK: dict[str, Any] = {"weights": "random", "backbone": "test_resnet", "devices": "cpu", "precision": "32"}
DISKS, TISSUE = [Disk(60, 60, 20), Disk(120, 150, 30), Disk(200, 90, 12)], (10.0, 10.0, 230.0, 230.0)
FOLDER = "features_random_test_resnet"


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    for number in range(2):
        write_levels(folder / f"{number}.tiff", paint((520 + 64 * number, 600), 0.5, DISKS, TISSUE), 0.5, (1, 4))
    return folder


@pytest.fixture(scope="module")
def tiles(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tiles") / "T"
    densepath.tile(data=slides, out=out, mpp=0.7, size=64, workers=0)
    return out


@pytest.fixture(scope="module")
def made(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("features") / "F"
    embed(data=tiles, out=out, batch_size=16, **NETWORK)
    return out


def test_features_are_those_of_the_tiles(tiles: Path, made: Path) -> None:
    encoder, _ = load_encoder("random", "test_resnet")
    for tiling in read_tile_folder(tiles):
        found = read_slide_features(made / FOLDER / f"{tiling.name}.h5")
        source = SlideTiles([tiling])
        pixels = torch.from_numpy(np.stack([source.read(position) for position in range(len(tiling))]))
        with torch.inference_mode():
            expected = encoder(pixels).numpy()
        np.testing.assert_allclose(found.features, expected, atol=1e-5)
        np.testing.assert_array_equal(found.corners, tiling.corners)
        np.testing.assert_allclose(found.boxes_um(), tiling.boxes_um())
        assert (found.unit, found.spacing, found.notes["tiles"]) == ("px", (0.5, 0.5), len(tiling))
        with h5py.File(made / FOLDER / f"{tiling.name}.h5") as file, h5py.File(_patches(tiles, tiling.name)) as patches:
            assert file["features"].chunks is None
            own, theirs = dict(file["coords"].attrs), dict(patches["coords"].attrs)
            assert own | {"savetodir": ""} == theirs | {"savetodir": ""}
            assert len(json.loads(file.attrs["densepath"])["weights_digest"]) > 8
        heat = open_slide(made / "heat_maps" / f"{tiling.name}.tif")
        assert heat.size[0] * heat.mpp[0] == pytest.approx(tiling.extent[0] * 0.5, abs=heat.mpp[0])


def _patches(tiles: Path, name: str) -> Path:
    return next(tiles.glob("*overlap")) / "patches" / f"{name}_patches.h5"


def test_only_what_is_missing_or_changed_is_made_again(tiles: Path, made: Path) -> None:
    before = {path: path.read_bytes() for path in made.rglob("*.h5")}
    times = {path: path.stat().st_mtime_ns for path in before}
    (made / FOLDER / "1.h5").unlink()
    lost = made / "heat_maps" / "1.tif"
    lost.unlink()
    again = embed(data=tiles, out=made, batch_size=16, **NETWORK)
    numbers = {"tiles": again["tiles"], "dim": again["dim"]}
    assert dict(again) == {"slides": 2, "damaged": 0, "failed": 0, "left": 0, **numbers}
    for path in before:
        assert (path.stat().st_mtime_ns == times[path]) == (path.stem == "0")
    assert read_slide_features(made / FOLDER / "1.h5").features.tobytes() in before[made / FOLDER / "1.h5"]
    lost.unlink()
    assert embed(data=tiles, out=made, batch_size=8, **NETWORK)["slides"] == 2  # on a GPU with less memory
    assert lost.is_file()
    with pytest.raises(UserError, match="other values of dtype"):
        embed(data=tiles, out=made, dtype="float16", **NETWORK)
    with pytest.raises(UserError, match="begun with --precision 32"):
        embed(data=tiles, out=made, batch_size=16, **NETWORK | {"precision": "bf16-mixed"})


def test_features_that_cannot_be_made_again_are_not_counted(
    slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """But those of a slide of which only the heat map cannot be made again are, and the end names it."""
    densepath.tile(data=shutil.copytree(slides, tmp_path / "slides"), out=tmp_path / "T", mpp=0.7, size=64, workers=0)
    options = {**NETWORK, "data": tmp_path / "T", "out": tmp_path / "F"}
    first = embed(**options)
    for path in (first / FOLDER / "0.h5", first / "heat_maps" / "1.png"):
        path.unlink()
    (tmp_path / "slides").rename(tmp_path / "moved")
    capsys.readouterr()
    again = embed(**options)
    assert (again["slides"], again["failed"], again["left"]) == (1, 1, 0)
    said = capsys.readouterr().err
    assert "of 1 slide are in" in said and "; 1 slide passed over: 0: " in said
    assert "; missing files of 1 slide could not be made: 1: " in said
    assert (first / FOLDER / "1.h5").exists()
    (tmp_path / "moved").rename(tmp_path / "slides")
    assert dict(embed(**options)) == dict(first)


def test_a_share_says_what_it_leaves(tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And features say which slides their weights have seen."""
    backbone, run = build_backbone("test_resnet"), tmp_path / "run"
    save_backbone(run / "exported" / "backbone.safetensors", backbone, metadata=slide_notes(["a/0", "7"]))
    options = {**NETWORK, "data": tiles, "out": tmp_path / "F", "weights": run, "backbone": None}
    first = embed(**options, shard="1/2")
    assert (first["slides"], first["left"]) == (1, 1)
    told = capsys.readouterr().err
    assert "this process is done, 1 of 2 slides left to other processes" in told and "next:" not in told
    second = embed(**options, shard="2/2")
    told = capsys.readouterr().err
    assert (second["slides"], second["left"]) == (2, 0) and "are left" not in told
    assert "next: densepath mil" in told and "--splits SPLITS.json" in told
    assert (
        f"1 slide was in the pre-training of the weights: 0. densepath mil refuses them as test slides: {REMEDY}"
        in (told)
    )
    notes = read_slide_features(tmp_path / "F" / "features_run" / "0.h5").notes
    assert notes["pretraining_slides"] == ["a/0", "7"]


def test_whatever_is_wrong_with_a_slide_costs_a_line(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(stem: Path, *given: Any, **options: Any) -> None:
        raise OSError(5, f"reading {stem.name}")

    monkeypatch.setattr("densepath.transfer.embed.embed_slides.write_heat_map", failing)
    with pytest.raises(UserError, match=r"none of 2 slides can be read \(0: .*reading 0"):
        embed(data=tiles, out=tmp_path / "F", **NETWORK)
    passed = [line for line in capsys.readouterr().err.splitlines() if "Errno" in line]
    assert passed == [f"densepath: {name}: [Errno 5] reading {name}" for name in "01"]


def test_a_step_names_no_next_command(slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    embed(data=slides, out=tmp_path / "F", mpp=0.7, tile_size=64, **NETWORK)
    assert re.findall(r"(?:next|or): densepath (\w+)", capsys.readouterr().err) == ["mil"]


def test_slides_are_tiled_on_the_fly_and_shared_by_processes(slides: Path, made: Path, tmp_path: Path) -> None:
    """Two processes at once, on slides that are not tiled yet, give the files of one."""
    out = tmp_path / "F"
    options: dict[str, Any] = {"data": slides, "out": out, "mpp": 0.7, "tile_size": 64, "batch_size": 16, **NETWORK}
    other = os.fork()  # which has imported everything already
    if not other:
        code = 1
        try:
            torch.set_num_threads(1)
            embed(**options)
            code = 0
        finally:
            os._exit(code)
    try:
        embed(**options)
    finally:
        assert os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]) == 0
    for name in "01":
        one, two = (read_slide_features(folder / FOLDER / f"{name}.h5") for folder in (made, out))
        np.testing.assert_array_equal(one.corners, two.corners)
        np.testing.assert_allclose(one.features, two.features, atol=1e-5)
    assert not list(out.rglob("*.part"))


def test_um_per_pixel_that_were_missing_are_given_in_the_same_folder(slides: Path, tmp_path: Path) -> None:
    (tmp_path / "S").mkdir()
    shutil.copy(slides / "0.tiff", tmp_path / "S")
    pixels = paint((520, 600), 0.5, DISKS, TISSUE)
    tifffile.imwrite(tmp_path / "S/no_um.tiff", pixels, tile=(64, 64), photometric="rgb")
    given: dict[str, Any] = {"data": tmp_path / "S", "out": tmp_path / "F", "mpp": 1.0, "tile_size": 64, **NETWORK}
    with pytest.raises(UserError, match="cannot be read"):
        embed(**given, mpp_table=tmp_path / "missing.csv")
    assert embed(**given)["slides"] == 1
    assert embed(**given, default_mpp=0.5)["slides"] == 2
    made = {path: path.read_bytes() for path in (tmp_path / "F" / FOLDER).glob("*.h5")}
    with pytest.raises(UserError, match="other values of default_mpp"):
        embed(**given)
    assert len(made) == 2 and all(path.read_bytes() == data for path, data in made.items())
    assert "default_mpp: 0.5\n" in (tmp_path / "F/config.yaml").read_text()


def test_four_commands_of_which_two_are_killed_do_each_slide_once(
    slides: Path, tmp_path: Path, four_processes: Callable[..., list[str]]
) -> None:
    names = [f"s{number}" for number in range(6)]
    (tmp_path / "slides").mkdir()
    for number, name in enumerate(names):
        shutil.copy(slides / f"{number % 2}.tiff", tmp_path / "slides" / f"{name}.tiff")
    densepath.tile(data=tmp_path / "slides", out=tmp_path / "T", mpp=0.7, size=64, workers=0)
    options: dict[str, Any] = {"data": tmp_path / "T", "batch_size": 16, **NETWORK}
    done = four_processes(
        lambda: embed(out=tmp_path / "F", **options),
        begins=(embed_slides, "_embed", lambda work, slide, *rest: slide.name),
        ends=(embed_slides, "write_heat_map", lambda stem, *rest: Path(stem).name),
    )
    assert sorted(done) == names and not list((tmp_path / "F").rglob("*.part"))
    embed(out=tmp_path / "G", **options)
    for name in names:
        one, other = (read_slide_features(tmp_path / out / FOLDER / f"{name}.h5") for out in "FG")
        np.testing.assert_array_equal(one.corners, other.corners)
        np.testing.assert_allclose(one.features, other.features, atol=1e-5)
        assert (tmp_path / "F" / "heat_maps" / f"{name}.tif").exists()


def test_damaged_tiles_are_left_out(tmp_path: Path) -> None:
    slide = write_levels(tmp_path / "slides" / "a.tiff", paint((512, 512), 0.5, DISKS, TISSUE), 0.5)
    (tmp_path / "slides" / "b.tiff").write_bytes(slide.read_bytes())
    densepath.tile(data=tmp_path / "slides", out=tmp_path / "T", mpp=0.5, size=64, workers=0)
    shutil.rmtree(tmp_path / "T" / "records")  # which know that this small file is not the same any more
    data = bytearray(slide.read_bytes())
    table = open_slide(slide).file.tables[0]
    start = table._offsets.one(table.file, 8 * 4 + 3)
    data[start : start + 16] = bytes(16)
    slide.write_bytes(data)
    (tmp_path / "slides" / "b.tiff").unlink()
    found = embed(data=tmp_path / "T", out=tmp_path / "F", dtype="float16", **NETWORK)
    a, b = read_tile_folder(tmp_path / "T")
    features = read_slide_features(tmp_path / "F" / FOLDER / "a.h5")
    assert 0 < found["damaged"] < len(a) and found["tiles"] == len(features) == len(a) - found["damaged"]
    assert features.features.dtype == np.float16 and np.isfinite(features.features).all()
    kept = {tuple(corner) for corner in features.corners.tolist()}
    lost = [corner for corner in a.corners.tolist() if tuple(corner) not in kept]
    assert all(x + 63 >= 192 and x < 256 and y + 63 >= 256 and y < 320 for x, y in lost)
    assert (found["slides"], found["failed"]) == (1, 1) and len(b)


def test_features_without_what_a_disk_failed_to_give_are_not_written(
    slides: Path, tiles: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would look complete; the same command makes them."""
    out = tmp_path / "F"
    with monkeypatch.context() as patched:
        fail_in_part(patched, slides / "1.tiff", 10 * 3 + 3)
        found = embed(data=tiles, out=out, batch_size=16, **NETWORK)
    assert (found["slides"], found["failed"], found["damaged"]) == (1, 1, 0)
    assert "cannot be read (Input/output error)" in last_problem(out, "1") and not list(out.rglob("1.h5"))
    assert embed(data=tiles, out=out, batch_size=16, **NETWORK)["slides"] == 2
    whole, again = (read_slide_features(each / FOLDER / "1.h5").features for each in (made, out))
    np.testing.assert_allclose(whole, again, atol=1e-5)


def test_no_file_of_a_former_slide_stays(tmp_path: Path) -> None:
    """Where its tiles cannot be read, and where it is not even tiled."""
    whole = write_levels(tmp_path / "whole.tiff", paint((512, 512), 0.5, DISKS, TISSUE), 0.5).read_bytes()
    (tmp_path / "slides").mkdir()
    for name in "abc":
        (tmp_path / "slides" / f"{name}.tiff").write_bytes(whole)
    options: dict[str, Any] = {"data": tmp_path / "slides", "out": tmp_path / "F", "mpp": 0.5, "tile_size": 64}
    assert embed(**options, **NETWORK)["slides"] == 3
    other = write_levels(tmp_path / "slides" / "a.tiff", paint((576, 576), 0.5, DISKS, TISSUE), 0.5, (1, 2))
    level = open_slide(other).file.tables[0]
    data = bytearray(other.read_bytes())
    for number in range(81):
        start = level._offsets.one(level.file, number)
        data[start : start + 16] = bytes(16)
    other.write_bytes(data)
    (tmp_path / "slides" / "b.tiff").write_bytes(whole[:900])
    assert embed(**options, **NETWORK)["slides"] == 1
    assert [path.name for path in (tmp_path / "F" / FOLDER).iterdir()] == ["c.h5"]
    assert {path.stem for path in (tmp_path / "F" / "heat_maps").iterdir()} == {"c"}
    assert "none of" in last_problem(tmp_path / "F", "a") and not last_problem(tmp_path / "F", "c")


def test_files_of_other_software_are_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(5, 7)).astype(np.float32)
    corners = np.array([[0, 0], [512, 0], [1024, 0], [0, 512], [512, 1024]])
    blank = np.zeros((2304, 2304, 3), np.uint8)

    def write(name: str, data: dict[str, Any], on_file: dict[str, Any], on_coords: dict[str, Any]) -> Path:
        with h5py.File(tmp_path / name, "w") as file:
            for key, value in data.items():
                file.create_dataset(key, data=value)
            file.attrs.update(on_file)
            if "coords" in file:
                file["coords"].attrs.update(on_coords)
        return tmp_path / name

    trident = {"patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40, "name": "s"}
    clam = {"patch_size": 256, "patch_level": 1, "downsample": [2.0, 2.0], "name": "s"}
    stamp = {"unit": "um", "tile_size_um": 256.0, "tile_size_px": 224, "extractor": "x", "feat_type": "tile"}
    both = {"features": values, "coords": corners}
    expected = [
        (write("trident.h5", both, {}, trident), "px", 512.0),
        (write("clam.h5", both, {}, clam), "px", 512.0),
        (write("bare.h5", {"features": values[None], "coords": corners}, {}, {}), "px", None),
        (write("column.h5", {"features": values[:, None], "coords": corners}, {}, {}), "px", None),
        (write("stamp.h5", {"feats": values.astype(np.float16), "coords": corners / 2}, stamp, {}), "um", 256.0),
        (
            write("whole.h5", {"feats": values, "coords": corners / 2.0}, {**stamp, "tile_size_um": 256}, {}),
            "um",
            256.0,
        ),
    ]
    for path, unit, side in expected:
        found = read_slide_features(path)
        np.testing.assert_allclose(found.features, values, atol=2e-3)
        assert (found.unit, found.side, found.name, len(found)) == (unit, side, path.stem, 5)
        assert len(read_slide_features(path, features=False)) == 5
        boxes = found.boxes_um((0.25, 0.25) if unit == "px" else None)
        np.testing.assert_allclose(boxes[1], [0, 128, 128, 128] if unit == "px" else [0, 256, 256, 256])
    torch.save(torch.from_numpy(values), tmp_path / "clam.pt")
    torch.save({"features": torch.from_numpy(values), "coords": torch.from_numpy(corners)}, tmp_path / "both.pt")
    for name, unit, more in (("old", {"unit": "um"}, {"tile_size": 256}), ("no_unit", {}, {"tile_size_um": 256})):
        path = write(f"{name}.h5", {"feats": values, "coords": corners}, unit | more, {})
        found, slide = read_slide_features(path), open_slide(write_levels(tmp_path / "s.tiff", blank, 0.5))
        assert (found.unit, found.side) == ("um", 256.0)
        tiles = read_coords(str(path), slide)  # the same rule
        assert tiles.side == (512.0, 512.0) and (tiles.corners == 2 * corners).all()
    bag, located = read_slide_features(tmp_path / "clam.pt"), read_slide_features(tmp_path / "both.pt")
    assert bag.corners is None and (bag.features == values).all() and (located.corners == corners).all()
    for found, why in ((bag, "the places of its tiles"), (located, "µm per pixel")):
        with pytest.raises(UserError, match=why):
            found.boxes_um()
    wrong = write("wrong.h5", {"coords": corners}, {}, {}), write("odd.h5", {**both, "coords": corners[:2]}, {}, {})
    (tmp_path / "text.h5").write_text("no")
    for path, why in ((wrong[0], "instead of features"), (wrong[1], "2 places"), (tmp_path / "text.h5", "no features")):
        with pytest.raises(UserError, match=why):
            read_slide_features(path)


@pytest.mark.parametrize(("kind", "grad"), [(torch.bfloat16, True), (torch.float8_e4m3fn, False)])
@pytest.mark.parametrize("nested", [False, True])
def test_torch_files_may_have_types_that_numpy_lacks(
    nested: bool, kind: torch.dtype, grad: bool, tmp_path: Path
) -> None:
    values = torch.randn(3, 4).to(kind).requires_grad_(grad)
    corners = torch.tensor([[0, 0], [64, 0], [128, 64]]).to(kind).requires_grad_(grad)
    torch.save({"features": values, "coords": corners} if nested else values, tmp_path / "bag.pt")
    found = read_slide_features(tmp_path / "bag.pt")
    assert found.features.dtype == np.float32 and (found.features == values.detach().float().numpy()).all()
    assert not nested or (found.corners == [[0, 0], [64, 0], [128, 64]]).all()


def test_torch_files_may_have_lists_of_tensors(tmp_path: Path) -> None:
    values, corners = torch.randn(2, 4), [torch.tensor([0, 0]), torch.tensor([64, 0])]
    for features in (values, list(values)):
        torch.save({"features": features, "coords": corners}, tmp_path / "bag.pt")
        found = read_slide_features(tmp_path / "bag.pt")
        assert (found.features == values.numpy()).all() and found.corners is not None
        assert found.corners.tolist() == [[0, 0], [64, 0]]


def test_bad_options(tiles: Path, slides: Path, tmp_path: Path) -> None:
    for data, options, why in (
        (tiles, {"out": tmp_path / "f.h5"}, "a folder"),
        (tiles, {"mpp": 0.5}, "mpp: only for slides that are not tiled"),
        (tiles, {"default_mpp": 0.5}, "tiled before"),
        (slides, {"shard": "0/2"}, "shard is"),
        (slides, {"out": slides / "F", "mpp": 0.5}, "would lie among the images"),
    ):
        with pytest.raises(UserError, match=why):
            embed(**{"data": data, "out": tmp_path / "F", **options}, **NETWORK)
