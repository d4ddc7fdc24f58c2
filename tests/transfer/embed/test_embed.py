"""Features of images: their values, names and files; damaged images; stops; several processes."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import timm
import torch
from PIL import Image
from pyarrow import parquet
from torchvision.transforms import v2

import densepath
from densepath.cli import main
from densepath.core.errors import UserError
from densepath.core.locks import sole_writer
from densepath.datasets.volumes.conversion import FolderConversion
from densepath.datasets.volumes.folder import convert_folder
from densepath.nets.backbones import build_backbone
from densepath.sources import image_files, patience
from densepath.sources.corrupt import CorruptImage
from densepath.sources.packing import pack
from densepath.sources.pixel_source import PixelSpec
from densepath.training.hardware import choose_hardware
from densepath.transfer.embed import blocks as blocks_module
from densepath.transfer.embed import embed as embed_module
from densepath.transfer.embed.blocks import Blocks
from densepath.transfer.embed.embed import embed
from densepath.transfer.embed.encoder import Encoder, load_encoder
from densepath.transfer.embed.feature_file import Shape, read_features, write_features
from densepath.transfer.embed.inputs import Inputs, center, open_source
from densepath.transfer.probe.probe import probe

SMALL: dict[str, Any] = {
    "weights": "random",
    "backbone": "test_resnet",
    "devices": "cpu",
    "precision": "32",
    "batch_size": 4,
}


def write_images(folder: Path, count: int = 10) -> dict[str, npt.NDArray[np.uint8]]:
    """Tiles of two sizes and names that repeat: a/0.png, b/0.png, a/1.png, ..."""
    rng = np.random.default_rng(0)
    images = {}
    for number in range(count):
        name = f"{'ab'[number % 2]}/{number // 2}.png"
        images[name] = rng.integers(0, 256, (40 if number % 3 else 64, 64, 3), dtype=np.uint8)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[name]).save(folder / name)
    return images


def normalized(image: npt.NDArray[Any], spec: PixelSpec) -> torch.Tensor:
    x = torch.from_numpy(image.astype(np.float32)).movedim(2, 0)[None] / 255
    return (x - torch.tensor(spec.mean).view(3, 1, 1)) / torch.tensor(spec.std).view(3, 1, 1)


def names_and_values(path: Path) -> dict[str, npt.NDArray[Any]]:
    found = read_features(path)
    return dict(zip(found.names, found.values, strict=True))


@pytest.mark.parametrize("suffix", [".safetensors", ".h5", ".parquet"])
def test_features_are_those_of_a_plain_loop(tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip({".h5": "h5py", ".parquet": "pyarrow"}.get(suffix, "safetensors"))
    images = write_images(tmp_path / "data")
    (tmp_path / "data" / "broken.png").write_bytes(b"\x89PNG\r\n")
    (tmp_path / "data" / "scan.nii").touch()
    result = embed(data=tmp_path / "data", out=tmp_path / f"f{suffix}", **SMALL)
    assert "11 images, 96 numbers each; passed over: 1 .nii file" in capsys.readouterr().err
    encoder, _ = load_encoder("random", "test_resnet")
    found = result.load()
    assert sorted(found.names) == sorted(images) and (result["images"], result["dim"]) == found.values.shape
    assert [Path(line.partition(":")[0]).name for line in result.damaged] == ["broken.png"]
    for name, row in zip(found.names, found.values, strict=True):
        with torch.no_grad():
            expected = encoder.backbone(normalized(images[name], encoder.spec))[5].mean((0, 2, 3))
        assert np.allclose(row, expected, atol=1e-5)
    assert found.values.dtype == np.float32 and found.notes["damaged"] == 1
    assert {"weights_digest", "backbone", "pool", "pixels", "date", "densepath_version"} <= found.notes.keys()
    assert sorted(os.listdir(tmp_path)) == sorted(["data", f"f{suffix}"])


def test_stages_and_halves(tmp_path: Path) -> None:
    write_images(tmp_path / "data", 3)
    whole = embed(data=tmp_path / "data", out=tmp_path / "a.safetensors", stage=3, **SMALL).load()
    half = embed(data=tmp_path / "data", out=tmp_path / "b.safetensors", stage=3, dtype="float16", **SMALL).load()
    encoder, _ = load_encoder("random", "test_resnet", stage=3)
    assert whole.values.shape[1] == encoder.backbone.channels[3]
    assert half.values.dtype == np.float16 and np.array_equal(half.values, whole.values.astype(np.float16))


def test_numbers_too_large_for_float16_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "data", 2)
    images = embed_module.Inputs(embed_module.open_source(tmp_path / "data"), tmp_path / "data", PixelSpec(), None)
    parts = blocks_module.Blocks(tmp_path, images, 4, "float16")
    parts.write(0, blocks_module.Block([0, 1], np.array([[6e4], [np.nan]]), []))
    with pytest.raises(UserError, match="use --dtype float32"):
        parts.write(0, blocks_module.Block([0, 1], np.array([[6e4], [7e4]]), []))


def test_features_of_replaced_images_are_awaited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of an earlier command that another process computes again is not taken."""
    write_images(tmp_path / "data", 2)
    images = embed_module.Inputs(embed_module.open_source(tmp_path / "data"), tmp_path / "data", PixelSpec(), None)
    parts = blocks_module.Blocks(tmp_path, images, 4, "float32")
    done = blocks_module.Block([0, 1], np.zeros((2, 3)), [])
    parts.write(0, done)
    Image.new("RGB", (48, 48)).save(tmp_path / "data" / "a" / "0.png")
    waits = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        parts.write(0, done)

    monkeypatch.setattr(embed_module.time, "sleep", sleep)
    embed_module._await_blocks(parts, [])
    assert len(waits) == 1 and parts.is_done(0)


@pytest.mark.parametrize("pool", ["cls", "mean", "cls_mean"])
def test_tokens_are_those_of_timm(tmp_path: Path, pool: Any) -> None:
    """A vision transformer sees the size of its positions, by torchvision's transform."""
    data = tmp_path / "data"
    data.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (200, 301, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(data / "0.png")
    options = SMALL | {"backbone": "test_vit"}
    found = embed(data=data, out=tmp_path / "f.safetensors", pool=pool, **options).load().values[0]
    encoder, _ = load_encoder("random", "test_vit", pool=pool)
    model = timm.create_model("test_vit", num_classes=0).eval()
    model.load_state_dict(encoder.backbone.net.model.state_dict())
    side = model.patch_embed.img_size[0]
    transform = v2.Compose([v2.Resize(side, v2.InterpolationMode.BICUBIC), v2.CenterCrop(side)])
    seen = np.asarray(transform(Image.fromarray(pixels)))
    with torch.no_grad():
        tokens = model.forward_features(normalized(seen, encoder.spec))[0]
    cls, mean = tokens[0], tokens[model.num_prefix_tokens :].mean(0)
    expected = {"cls": cls, "mean": mean, "cls_mean": torch.cat((cls, mean))}[pool]
    assert np.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(50, 81, 3), (81, 50, 3), (33, 32, 1), (32, 32, 3)])
def test_the_center_is_torchvisions(shape: tuple[int, int, int]) -> None:
    pixels = np.random.default_rng(0).integers(80, 176, shape, dtype=np.uint8)  # nothing is clipped
    transform = v2.Compose([v2.Resize(32, v2.InterpolationMode.BICUBIC), v2.CenterCrop(32)])
    image = Image.fromarray(pixels[..., 0] if shape[2] == 1 else pixels)
    expected = np.asarray(transform(image)).reshape(32, 32, shape[2])
    assert np.array_equal(center(pixels, 32), expected)
    sixteen = center(pixels.astype(np.uint16) * 257, 32)
    assert sixteen.dtype == np.uint16 and np.abs(sixteen / 257 - expected).max() < 1.6  # 8 bits are rounded twice


def test_one_batch_of_one_size_or_many_of_several(tmp_path: Path) -> None:
    """Passes of the network are bounded in pixels, and images of different sizes are not padded."""
    images = write_images(tmp_path / "data", 7)
    whole = names_and_values(embed(data=tmp_path / "data", out=tmp_path / "a.safetensors", **SMALL))
    single = SMALL | {"batch_size": 1}
    for name, row in names_and_values(embed(data=tmp_path / "data", out=tmp_path / "b.safetensors", **single)).items():
        assert np.allclose(row, whole[name], atol=1e-5)
    assert whole.keys() == images.keys()


def test_a_store_a_list_and_a_glob_are_sources(tmp_path: Path) -> None:
    images = write_images(tmp_path / "data", 4)
    store = pack(tmp_path / "data", tmp_path / "store.safetensors")
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"data/{name}\n" for name in sorted(images)))
    whole = names_and_values(embed(data=tmp_path / "data", out=tmp_path / "a.safetensors", **SMALL))
    for number, source in enumerate([store, listed, tmp_path / "data" / "*" / "*.png"]):
        found = names_and_values(embed(data=source, out=tmp_path / f"{number}.safetensors", **SMALL))
        assert found.keys() == whole.keys() == images.keys()
        assert all(np.allclose(found[name], whole[name], atol=1e-5) for name in whole)


def test_blocks_are_those_of_the_images_that_a_store_has_now(tmp_path: Path) -> None:
    write_images(tmp_path / "data", 2)
    tiles = pack(tmp_path / "data", tmp_path / "store.safetensors")
    (tmp_path / "scans").mkdir()
    nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)).to_filename(tmp_path / "scans" / "a.nii.gz")
    volumes = convert_folder(FolderConversion(tmp_path / "scans", tmp_path / "V"))

    def stamp(source: Path) -> str:
        images = open_source(source)
        return Inputs(images, source, images.spec, None).stamp(range(1))

    for source, file in ((tiles, tiles), (volumes, next((volumes / "volumes").iterdir()))):
        before = stamp(source)
        os.utime(file, (1, 1))  # it was written again
        assert stamp(source) != before


def test_features_of_volumes_carry_the_patients_and_splits_of_their_store(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    for name in ("P1_a", "P1_b", "P2_a", "P2_b"):
        (scans / name).parent.mkdir(exist_ok=True)
        nibabel.Nifti1Image(np.arange(512, dtype=np.int16).reshape(8, 8, 8), np.eye(4)).to_filename(
            scans / f"{name}.nii"
        )
    volumes = convert_folder(FolderConversion(scans, tmp_path / "V", patient_regex=r"^(P\d)"))
    index = json.loads((volumes / "volumes.json").read_text())
    for row, split in zip(index["volumes"], ("train", "train", "test", "test"), strict=True):
        row["split"] = split
    (volumes / "volumes.json").write_text(json.dumps(index))
    out = embed(data=volumes, weights="random", backbone="resnet10_3d_w4", out=tmp_path / "F.h5", devices="cpu")
    (tmp_path / "l.csv").write_text("file,label\nP1_a,x\nP1_b,y\nP2_a,x\nP2_b,y\n")
    options: dict[str, Any] = {"labels": tmp_path / "l.csv", "neighbors": 1, "out": tmp_path / "probe.json"}
    for source in ("notes", "store"):
        if source == "notes":
            volumes.rename(tmp_path / "moved")
            found = probe(features=out, **options)
        else:
            found = probe(
                data=tmp_path / "moved", weights="random", backbone="resnet10_3d_w4", devices="cpu", **options
            )
        assert found.images.patient_names == ["P1", "P2"] and found.images.by_patient, source
        assert [found.images.names[k] for k in found.tested] == ["P2_a", "P2_b"], source
    assert "P1_a" not in (tmp_path / "probe.json").read_text()  # the record names no volumes


def test_grey_and_16_bit_images_are_read_as_the_weights_need_them(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    for name, image in {
        "grey": Image.fromarray(grey),
        "rgb": Image.fromarray(np.repeat(grey[..., None], 3, axis=2)),
        "deep": Image.fromarray(grey.astype(np.uint16) * 16),  # 12 bits
    }.items():
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / "0.png")
    rows = {
        name: embed(data=tmp_path / name, out=tmp_path / f"{name}.safetensors", **SMALL).load().values[0]
        for name in ("grey", "rgb", "deep")
    }
    assert np.allclose(rows["grey"], rows["rgb"], atol=1e-5)
    assert np.allclose(rows["deep"], rows["rgb"], atol=0.05 * np.abs(rows["rgb"]).max())  # 4080 of 4095


@pytest.mark.parametrize(("number", "waits"), [(errno.ESTALE, patience.PAUSES), (errno.EACCES, ())])
def test_images_that_a_later_attempt_may_read_are_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, waits: tuple[float, ...]
) -> None:
    """The features of the others would look complete; a failure of a moment is waited for."""
    write_images(tmp_path / "images", 4)
    fails, read, pauses = [9], image_files.read_image, list[float]()

    @patience.patient
    def read_image(path: Any, *given: Any) -> Any:
        if str(path).endswith("a/1.png") and fails[0]:
            fails[0] -= 1
            raise CorruptImage(str(path), "cannot be decoded") from OSError(number, os.strerror(number))
        return read(path, *given)

    monkeypatch.setattr(image_files, "read_image", read_image)
    monkeypatch.setattr(patience.time, "sleep", pauses.append)
    monkeypatch.setattr(patience, "_failures", patience._Failures())
    given: dict[str, Any] = {"data": tmp_path / "images", "out": tmp_path / "a.safetensors", **SMALL, "batch_size": 2}
    monkeypatch.setattr(blocks_module, "_LEAST", 1)
    with pytest.raises(UserError, match=r"1 image cannot be read now: .*a/1\.png: cannot be decoded"):
        embed(**given)
    assert not given["out"].exists() and pauses == list(waits)
    done = sorted(path.stem for path in (tmp_path / ".a.safetensors.parts").glob("*.safetensors"))
    assert done == ["00000001"]  # not the first one, with that image
    fails[0] = len(waits[:1])
    monkeypatch.setattr(patience, "_failures", patience._Failures())
    assert embed(**given)["damaged"] == 0


def test_a_stop_keeps_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    write_images(tmp_path / "data", 12)
    monkeypatch.setattr(blocks_module, "_LEAST", 4)
    whole = embed(data=tmp_path / "data", out=tmp_path / "whole.safetensors", **SMALL).load()
    real, passes = embed_module.encode, []

    def stopped(*args: Any) -> Any:
        for number, part in enumerate(real(*args)):
            if number == 2:
                raise KeyboardInterrupt
            yield part

    def counted(*args: Any) -> Any:
        for part in real(*args):
            passes.append(part)
            yield part

    words = ["embed", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "f.safetensors")]
    words += [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(embed_module, "encode", stopped)
    assert main(words) == 130
    assert "the same command continues" in capfd.readouterr().err
    assert not (tmp_path / "f.safetensors").exists()
    with pytest.raises(UserError, match="other values of stage"):
        embed(data=tmp_path / "data", out=tmp_path / "f.safetensors", stage=4, **SMALL)
    Image.new("RGB", (64, 64)).save(tmp_path / "data" / "new.png")
    with pytest.raises(UserError, match=r"begun for other images; remove it"):
        embed(data=tmp_path / "data", out=tmp_path / "f.safetensors", **SMALL)
    (tmp_path / "data" / "new.png").unlink()
    (tmp_path / "data" / "a" / "0.png").write_bytes((tmp_path / "data" / "b" / "0.png").read_bytes())
    monkeypatch.setattr(embed_module, "encode", counted)
    embed(data=tmp_path / "data", out=tmp_path / "f.safetensors", **SMALL | {"batch_size": 2})
    assert len(passes) == 4  # the third block, and the first, of which an image has been replaced
    again = read_features(tmp_path / "f.safetensors")
    assert again.names == whole.names and np.allclose(again.values[1:], whole.values[1:], atol=1e-5)
    assert not np.array_equal(again.values[0], whole.values[0])
    with pytest.raises(UserError, match="already exists"):
        embed(data=tmp_path / "data", out=tmp_path / "f.safetensors", **SMALL)


def test_processes_write_the_file_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "data", 10)
    (tmp_path / "data" / "broken.png").write_bytes(b"\x89PNG\r\n")
    given: dict[str, Any] = SMALL | {"batch_size": 3, "weights": "random", "data": tmp_path / "data"}
    monkeypatch.setattr("densepath.transfer.embed.blocks._LEAST", 3)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        embed(**given | {"out": tmp_path / "cpu.safetensors", "devices": "cpu"})
    finally:
        torch.set_num_threads(threads)
    shared = given | {"out": tmp_path / "cpu:2.safetensors", "devices": "cpu:2"}
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    start = "import densepath.transfer.embed.blocks as b; b._LEAST = 3; from densepath.cli import main; import sys; "
    script = tmp_path / "run.py"
    script.write_text(f"{start} sys.exit(main(sys.argv[1:]))\n")
    command = [sys.executable, script, "embed", *(f"--{name}={value}" for name, value in shared.items())]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    one, two = (read_features(tmp_path / f"{devices}.safetensors") for devices in ("cpu", "cpu:2"))
    assert one.names == two.names and np.array_equal(one.values, two.values)
    assert one.notes["damaged_images"] == two.notes["damaged_images"] != []


def test_a_command_that_was_stopped_before_it_removed_the_parts_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "data", 3)
    (tmp_path / "data" / "broken.png").write_bytes(b"\x89PNG\r\n")
    given: dict[str, Any] = SMALL | {"data": tmp_path / "data", "out": tmp_path / "f.safetensors"}
    with monkeypatch.context() as patch:
        patch.setattr(Blocks, "remove", lambda blocks: None)
        first = embed(**given)
    before = (tmp_path / "f.safetensors").read_bytes()
    said = capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(UserError, match="already exists"):
        embed(**given | {"seed": 1, "weights": "random", "pool": "mean", "dtype": "float16"})
    (tmp_path / "f.safetensors").rename(tmp_path / "kept")
    (tmp_path / "f.safetensors").write_bytes(b"of somebody else")
    with pytest.raises(UserError, match="already exists"):
        embed(**given)
    assert (tmp_path / "f.safetensors").read_bytes() == b"of somebody else"
    (tmp_path / "kept").replace(tmp_path / "f.safetensors")
    capsys.readouterr()
    again = embed(**given)
    assert capsys.readouterr().err.splitlines() == [said]
    assert again == first and again.scores == first.scores and again.damaged == first.damaged != ()
    assert (tmp_path / "f.safetensors").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["data", "f.safetensors"]


def test_all_processes_find_that_the_features_are_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process than the first finds the same, also if the first has removed the parts before."""
    write_images(tmp_path / "data", 3)
    given: dict[str, Any] = SMALL | {"data": tmp_path / "data", "out": tmp_path / "f.safetensors"}
    with monkeypatch.context() as patch:
        patch.setattr(Blocks, "remove", lambda blocks: None)
        whole = embed(**given)

    def second(devices: Any, precision: Any) -> Any:
        return replace(choose_hardware(devices, precision), rank=1)

    def check_second() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(embed_module, "choose_hardware", second)
            patch.setattr(embed_module, "encode", None)
            found = embed(**given)
            assert found == whole and found.scores == whole.scores
            with pytest.raises(UserError, match="already exists"):
                embed(**given | {"dtype": "float16"})

    check_second()
    assert embed(**given).scores == whole.scores
    assert sorted(os.listdir(tmp_path)) == ["data", "f.safetensors"]
    check_second()


def test_two_commands_do_not_write_one_file(tmp_path: Path) -> None:
    write_images(tmp_path / "data", 2)
    with sole_writer(tmp_path / ".f.safetensors.parts"), pytest.raises(UserError, match="writes to"):
        embed(data=tmp_path / "data", out=tmp_path / "f.safetensors", **SMALL)


def test_a_file_that_another_command_has_written_meanwhile_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "data", 2)

    def load(*args: Any, **options: Any) -> Any:
        (tmp_path / "f.safetensors").write_bytes(b"of the other")
        return load_encoder(*args, **options)

    monkeypatch.setattr(embed_module, "load_encoder", load)
    with pytest.raises(UserError, match="already exists"):
        embed(data=tmp_path / "data", out=tmp_path / "f.safetensors", **SMALL)
    assert (tmp_path / "f.safetensors").read_bytes() == b"of the other"
    assert sorted(os.listdir(tmp_path)) == ["data", "f.safetensors"]


def test_mistakes_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "data", 2)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "0.png").write_bytes(b"\x89PNG\r\n")
    before = sorted(os.listdir(tmp_path))

    def refused(match: str, **options: Any) -> None:
        asked: dict[str, Any] = {"data": tmp_path / "data", "out": tmp_path / "f.safetensors", **SMALL, **options}
        with pytest.raises(UserError, match=match):
            embed(**asked)
        assert sorted(os.listdir(tmp_path)) == before

    refused("none of 1 image can be read", data=tmp_path / "bad")
    refused("does not end in one of", out=tmp_path / "f.csv")
    refused("slidse does not exist", data=tmp_path / "slidse", out=tmp_path / "f", default_mpp=0.5)
    refused("no class token", pool="cls")
    refused("use --pool auto", pool="attention")
    refused("no stage f9", stage=9)
    refused("size is -1", size=-1)
    refused("batch_size is 0", batch_size=0)
    refused("not a multiple", backbone="test_vit", size=100)
    monkeypatch.setitem(sys.modules, "h5py", None)
    refused(r"install 'densepath\[embed\]'", out=tmp_path / "f.h5")


def test_a_file_may_have_any_name_of_an_image(tmp_path: Path) -> None:
    names = ["a/ä.png", os.fsdecode(b"b/\xff.png"), "c d.png"]
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    size = sum(len(os.fsencode(name)) for name in names)
    parts = [(names[:1], values[:1]), (names[1:], values[1:])]
    for suffix, module in ((".safetensors", "safetensors"), (".h5", "h5py"), (".parquet", "pyarrow")):
        pytest.importorskip(module)
        write_features(tmp_path / f"f{suffix}", parts, Shape(3, 2, "float32", size), {"pool": "mean"})
        found = read_features(tmp_path / f"f{suffix}")
        assert found.names == (names if suffix != ".parquet" else ["a/ä.png", "b/\\xff.png", "c d.png"])
        assert np.array_equal(found.values, values) and found.notes["pool"] == "mean"
    (tmp_path / "other.safetensors").write_bytes(b"{}")
    for name, match in (("other.safetensors", "not a file of features"), ("none.h5", "there are no features")):
        with pytest.raises(UserError, match=match):
            read_features(tmp_path / name)


@pytest.mark.parametrize(
    ("names", "rows"),
    [
        (["a", "b", "c"], [[1.0, 2.0, 3.0], None, [4.0, 5.0, 6.0]]),  # as many numbers as three rows of two
        (["a", "b"], [[1.0, 2.0], [3.0, 4.0, 5.0, 6.0]]),
        (["a", None], [[1.0, 2.0], [3.0, 4.0]]),
        (["a", "a"], [[1.0, 2.0], [3.0, 4.0]]),
        ([], []),
    ],
)
def test_a_table_of_others_needs_a_name_and_a_vector_in_each_row(tmp_path: Path, names: list[Any], rows: Any) -> None:
    features = pa.array(rows, pa.list_(pa.float32()))
    parquet.write_table(pa.table({"name": names, "features": features}), tmp_path / "f.parquet")
    with pytest.raises(
        UserError, match=r"f\.parquet (is not a file of features|names twice: a|does not hold one vector)"
    ):
        read_features(tmp_path / "f.parquet")


def test_the_encoder_of_a_volume() -> None:
    spec = PixelSpec.default(1, (0.0, 100.0), ndim=3)
    encoder = Encoder(build_backbone("resnet10_3d", 1), spec).eval()
    with torch.no_grad():
        assert encoder(torch.rand(2, 16, 16, 16, 1) * 255).shape == (2, encoder.dim)
    assert densepath.embed is embed
