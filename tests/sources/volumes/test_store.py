"""The store of volumes: what is stored, which boxes are read, and what a damaged volume costs."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import nibabel
import numpy as np
import pytest
import torch

from densepath.core.errors import UserError
from densepath.datasets.volumes.conversion import FolderConversion
from densepath.datasets.volumes.folder import convert_folder
from densepath.sources.corrupt import CorruptImage
from densepath.sources.fingerprint import fingerprint
from densepath.sources.loader import ImageBatches
from densepath.sources.open import find_source, open_images
from densepath.sources.restrict import restrict
from densepath.sources.summary import summarize
from densepath.sources.volumes import mapped
from densepath.sources.volumes.encode import encode
from densepath.sources.volumes.open_store import open_volumes
from densepath.sources.volumes.prepare import _LIKE_LABELS
from densepath.sources.volumes.remeasure import remeasure
from densepath.sources.volumes.store import VolumeStore
from densepath.sources.volumes.volume import Channel
from densepath.sources.volumes.volume_file import read_header
from densepath.training.pretrain import pretrain
from densepath.views.crops import Crop
from densepath.views.declarations import RandomView
from densepath.views.maker import ViewMaker

RNG = np.random.default_rng(0)
SIZES = [(40, 35, 33), (64, 20, 31), (33, 34, 65), (20, 40, 36)]  # x, y, z
LPS = np.diag([-0.7, -0.8, 2.5, 1.0])


def smooth(size: tuple[int, ...]) -> np.ndarray:
    x, y, z = np.meshgrid(*(np.linspace(0, 3, n) for n in size), indexing="ij")
    return 500 * np.sin(x) + 300 * np.cos(2 * y) + 100 * z + RNG.normal(0, 20, size)


@pytest.fixture(scope="module")
def volumes() -> list[np.ndarray]:
    return [smooth(size).round().astype(np.int16) for size in SIZES]


def write(folder: Path, volumes: Any, affine: np.ndarray = LPS) -> Path:
    (folder / "images").mkdir(parents=True)
    for number, values in enumerate(volumes):
        nibabel.Nifti1Image(values, affine).to_filename(folder / "images" / f"case_{number}.nii.gz")
    return folder


@pytest.fixture
def ct(tmp_path: Path, volumes: list[np.ndarray]) -> Path:
    return convert_folder(
        FolderConversion(write(tmp_path / "in", volumes), tmp_path / "S", window=(-500, 800), images="images")
    )


def in_store(values: np.ndarray) -> np.ndarray:
    """What a store holds of a volume with LPS axes: (D, H, W, 1)."""
    return values[::-1, ::-1].transpose(2, 1, 0)[..., None]


def test_whole_numbers_are_stored_as_they_are(ct: Path, volumes: list[np.ndarray]) -> None:
    store = open_images(ct)
    assert isinstance(store, VolumeStore) and store.dtype == torch.int16
    for position, values in enumerate(volumes):
        assert np.array_equal(store.read(position), in_store(values))
    index = torch.arange(4)
    assert store.sizes(index).tolist() == [list(size[::-1]) for size in SIZES]
    assert torch.allclose(store.spacing(index), torch.tensor([2.5, 0.8, 0.7]))
    assert (store.spec.ndim, store.spec.channels, store.spec.window) == (3, 1, (-500.0, 800.0))
    assert store.smallest() == (1, 20) and store.names(2) == "case_2"
    (line,) = summarize(store)
    assert "4 volumes of 31-65 x 20-40 x 20-64 voxels (D x H x W), 2.5 x 0.8 x 0.7 mm" in line
    row = store.rows[0]
    assert row["origin"] == {"shape": list(SIZES[0]), "affine": LPS.astype(np.float32).tolist(), "codes": "LPS"}


def test_boxes_are_those_of_the_volumes(ct: Path, volumes: list[np.ndarray]) -> None:
    store = open_volumes(ct)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        index = torch.from_numpy(rng.permutation(4)[:3])
        sizes = store.sizes(index).numpy()
        low = (rng.random((3, 3)) * (sizes - 1)).astype(int)
        high = low + 1 + (rng.random((3, 3)) * (sizes - low)).astype(int).clip(0, sizes - low - 1)
        boxes = torch.from_numpy(np.stack([low, high], axis=1))
        got = store.gather(index, boxes)
        assert got.pixels.shape[1:] == (*(high - low).max(axis=0), 1) and torch.equal(got.index, index)
        assert got.boxes is not None and torch.equal(got.boxes, boxes)
        for pixels, position, (a, b) in zip(got.pixels.numpy(), index.tolist(), boxes.tolist(), strict=True):
            part = in_store(volumes[position])[tuple(map(slice, a, b))]
            assert np.array_equal(pixels[tuple(map(slice, part.shape))], part)  # around it lies anything
    whole = store.gather(torch.tensor([3, 0]))
    assert np.array_equal(whole.pixels[0, :36, :40, :20].numpy(), in_store(volumes[3]))
    assert whole.pixels[0, 36:].count_nonzero() == 0 and whole.boxes is None


def test_views_are_those_of_whole_volumes(ct: Path) -> None:
    store = open_volumes(ct)
    maker = ViewMaker({"view": RandomView(Crop(scale=(0.1, 0.6), rotation=20.0))}, (8, 12, 12), 0, store.spec)
    options: Any = {"batch_size": 4, "seed": 0, "max_steps": 3}
    for some, whole in zip(
        ImageBatches(store, draw=maker.draw, **options), ImageBatches(store, **options), strict=True
    ):
        assert some.boxes is not None and some.pixels.numel() < whole.pixels.numel()
        one, other = (maker(batch)["view"].pixels for batch in (some, whole))
        assert torch.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.uint16, np.int32])
@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (0.25, 7.0)])
def test_other_numbers_lose_at_most_half_a_step(kind: Any, slope: float, intercept: float) -> None:
    values = (smooth((9, 8, 7)) * 1000 + 2e6).astype(kind)
    stored, a, b = encode(Channel(values, slope, intercept))
    real = values * np.float64(slope) + intercept
    assert stored.dtype == np.int16 and abs(a * stored + b - real).max() <= 7.7e-6 * np.ptp(real)


def test_which_numbers_are_stored_exactly() -> None:
    whole = smooth((9, 8, 7)).round()
    for kind in (np.int16, np.int32, np.float32, np.float64):
        for slope, intercept in ((1.0, 0.0), (2.0, -1024.0), (0.3, 0.0)):
            stored, a, b = encode(Channel(whole.astype(kind), slope, intercept))
            assert np.array_equal(a * stored + b, slope * whole + intercept)
            assert (a, b) == ((1.0, 0.0) if slope != 0.3 else (0.3, 0.0))
    for kind, low, high in ((np.uint16, 30000, 50000), (np.int32, -40000, 25535), (np.float32, 10**6, 10**6 + 65535)):
        wide = np.linspace(low, high, 9 * 8 * 7).round().astype(kind).reshape(9, 8, 7)
        for slope, intercept in ((1.0, 0.0), (0.5, -1024.0)):
            stored, a, b = encode(Channel(wide, slope, intercept))
            assert a == slope and np.array_equal(a * stored + b, slope * wide.astype(np.float64) + intercept)
    constant, a, b = encode(Channel(np.full((2, 2, 2), 0.3)))
    assert np.allclose(a * constant + b, 0.3)


def test_mr_has_the_window_of_each_volume(tmp_path: Path, volumes: list[np.ndarray]) -> None:
    shifted = [(values + 900.0) * 10.5**number for number, values in enumerate(volumes)]
    store = open_volumes(convert_folder(FolderConversion(write(tmp_path / "in", shifted), tmp_path / "S")))
    assert store.dtype == torch.float32 and store.spec.window == (0.0, 1.0)
    for position, values in enumerate(shifted):
        low, high = np.percentile(values, (0.5, 99.5))
        expected = (in_store(values) - low) / (high - low)
        assert np.allclose(store.read(position), expected, atol=2e-3)
        scale = store.rows[position]["scales"][0]
        assert np.allclose(scale["window"], (low, high), rtol=1e-2, atol=1e-3 * (high - low))
    both = FolderConversion(tmp_path / "in", tmp_path / "T", window="shared")
    values_of = open_volumes(convert_folder(both))
    assert np.allclose(values_of.read(1), in_store(shifted[1]), atol=0.1)


@pytest.mark.parametrize("window", ["volume", "shared"])
def test_a_window_is_of_all_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: str) -> None:
    monkeypatch.setattr("densepath.sources.volumes.prepare._NUMBERS", 256)
    monkeypatch.setattr("densepath.sources.windows._NUMBERS", 256)
    number = np.arange(16 * 16 * 12, dtype=np.int16).reshape(16, 16, 12)
    number[..., 0] = number[0] = number[..., -1] = number[-1] = 0
    store = convert_folder(FolderConversion(write(tmp_path / "in", [number]), tmp_path / "S", window=window))
    images = open_volumes(store)
    low, high = images.spec.window if window == "shared" else images.rows[0]["scales"][0]["window"]
    assert low == 0 and high == pytest.approx(np.percentile(number, 99.5), rel=0.02)


def test_a_shared_window_is_of_more_than_a_few_volumes(tmp_path: Path) -> None:
    """Every second volume has other values, as where scans of chests and of abdomens alternate."""
    lungs, liver = np.arange(-1000, 0, dtype=np.int16), np.arange(0, 1000, dtype=np.int16)
    volumes = [(liver if number % 2 else lungs).reshape(10, 10, 10) for number in range(16)]
    images = open_volumes(convert_folder(FolderConversion(write(tmp_path / "in", volumes), tmp_path / "S")))
    assert images.spec.window == pytest.approx(np.percentile(volumes, (0.5, 99.5)), abs=2)


def test_a_shared_window_is_computed_once_and_its_change_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "in", [np.arange(-1000, k * 1000, dtype=np.int16).reshape(10, 10, -1) for k in (1, 2)])
    how = FolderConversion(source, tmp_path / "S")
    window = open_volumes(convert_folder(how)).spec.window
    with monkeypatch.context() as patch:
        patch.setattr("densepath.datasets.volumes.convert.shared_window", None)
        assert open_volumes(convert_folder(how)).spec.window == window
    path = tmp_path / "S" / "volumes.json"
    index = json.loads(path.read_text())
    assert index.pop("window_sample") == 64  # which an earlier version, of eight volumes, did not note
    path.write_text(json.dumps(index | {"window": [-1000.1234567, 1234567.0]}))
    capsys.readouterr()
    assert open_volumes(convert_folder(how)).spec.window == window
    said = (
        "the window was -1000.12 to 1.23457e+06 before; to keep it, start again with --window -1000.1234567 1234567.0"
    )
    assert said in capsys.readouterr().err
    convert_folder(how)
    assert "before" not in capsys.readouterr().err
    convert_folder(FolderConversion(source, tmp_path / "S", window=(0, 1)))
    assert open_volumes(convert_folder(how)).spec.window == window  # the given one was not of the volumes


@pytest.mark.parametrize("replaced", [True, False])
def test_a_changed_window_is_reported_after_stops(
    replaced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether a volume is replaced, or its windows are computed again."""
    numbers = np.arange(-1000, 1000, dtype=np.int16).reshape(10, 10, -1)
    how = FolderConversion(write(tmp_path / "in", [numbers, numbers]), tmp_path / "S")
    path = convert_folder(how) / "volumes.json"
    index = json.loads(path.read_text()) | {"window": [-900.0, 900.0], "window_sample": 8}  # of an earlier version
    path.write_text(json.dumps(index))
    if replaced:
        nibabel.save(nibabel.Nifti1Image(numbers + 1, LPS), next((tmp_path / "in").rglob("*_0.nii*")))
    else:
        monkeypatch.setattr("densepath.datasets.volumes.convert.is_measured", lambda header: False)
    for _ in range(2):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("densepath.datasets.volumes.convert.shared_window", MagicMock(side_effect=KeyboardInterrupt))
            convert_folder(how)
        with pytest.raises(UserError, match="unfinished; continue with the same"):
            open_volumes(tmp_path / "S")
    capsys.readouterr()
    window = open_volumes(convert_folder(how)).spec.window
    assert window != (-900, 900) and "the window was -900 to 900 before" in capsys.readouterr().err
    assert sorted(p.name for p in (tmp_path / "S").glob("volumes*")) == ["volumes", "volumes.json"]


def test_windows_of_an_earlier_version_are_computed_again_without_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A store of both kinds, as after a stop, cannot be opened."""
    source = write(tmp_path / "in", [np.arange(k * 1000, dtype=np.int16).reshape(10, 10, -1) for k in (1, 2)])
    how = FolderConversion(source, tmp_path / "S", window="volume")
    fresh = open_volumes(convert_folder(FolderConversion(source, tmp_path / "T", window="volume")))

    def old(facts: Any, channels: Any) -> Any:
        scales = [{**scale, "window": [0.0, 9.0]} for scale in facts["scales"]]
        return {**facts, "scales": scales, "values": 10, "notes": [*facts["notes"], _LIKE_LABELS]}

    with monkeypatch.context() as patch:
        patch.setattr("densepath.sources.volumes.prepare.measured", old)
        convert_folder(how)
    assert [row["scales"][0]["window"] for row in open_volumes(tmp_path / "S").rows] == [[0, 9], [0, 9]]
    monkeypatch.setattr("densepath.datasets.volumes.convert.prepare", None)
    monkeypatch.setattr("densepath.datasets.volumes.convert._THREADS", 1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stopped = MagicMock(side_effect=[remeasure, KeyboardInterrupt])
        patch.setattr("densepath.datasets.volumes.convert.remeasure", lambda *given: stopped()(*given))
        convert_folder(how)
    with pytest.raises(UserError, match="unfinished; continue with the same"):
        open_volumes(tmp_path / "S")
    capsys.readouterr()
    assert open_volumes(convert_folder(how)).rows == fresh.rows
    assert "the windows of 1 volume of an earlier version were computed again" in capsys.readouterr().err
    convert_folder(how)
    assert "computed again" not in capsys.readouterr().err


def test_a_truncated_volume_is_named_once_and_costs_one_volume(
    ct: Path, volumes: list[np.ndarray], caplog: pytest.LogCaptureFixture
) -> None:
    path = ct / "volumes" / "case_1.vol"
    path.write_bytes(path.read_bytes()[:-5000])
    with caplog.at_level(logging.WARNING):
        store = open_volumes(ct)
        batches = list(ImageBatches(store, batch_size=4, seed=0, max_steps=3))
        assert [record.message for record in caplog.records] == [f"damaged image: {store.corrupt[1]}"]
    assert "case_1.vol: it has" in store.corrupt[1]
    assert all(sorted(set(batch.index.tolist())) == [0, 2, 3] for batch in batches)
    with pytest.raises(CorruptImage):
        store.read(1)


@pytest.mark.parametrize("damage", [{"labels": 1}, {"affine": [[1], [1, 2]]}, {"size": [4, "a", 4]}, {"file": "a\0b"}])
def test_an_index_whose_values_have_other_forms_is_damaged(ct: Path, damage: dict[str, Any]) -> None:
    index = json.loads((ct / "volumes.json").read_text())
    index["volumes"][1] |= damage
    (ct / "volumes.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"volumes\.json is damaged; convert the volumes again"):
        open_volumes(ct)


def test_a_header_that_lacks_fields_is_damaged(ct: Path) -> None:
    path = ct / "volumes" / "case_1.vol"
    path.write_bytes(path.read_bytes().replace(b'"start"', b'"stars"', 1))
    with pytest.raises(CorruptImage, match="its header is damaged"):
        read_header(path)


def test_a_volume_that_is_damaged_during_training_costs_one_volume(ct: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = open_volumes(ct)
    (ct / "volumes" / "case_2.vol").write_bytes(b"")
    maker = ViewMaker({"view": RandomView(Crop())}, (8, 8, 8), 0, store.spec)
    with caplog.at_level(logging.WARNING):
        batches = list(ImageBatches(store, batch_size=4, seed=0, max_steps=3, draw=maker.draw))
    assert len(caplog.records) == 1 and "case_2.vol: it is truncated" in caplog.text
    assert all(sorted(set(batch.index.tolist())) == [0, 1, 3] for batch in batches)
    (ct / "volumes" / "case_0.vol").unlink()
    with pytest.raises(UserError, match="2 of 4 images were found damaged"):
        list(ImageBatches(store, batch_size=4, seed=0, max_steps=1, draw=maker.draw))


def test_a_flipped_bit_in_the_store_is_found_when_all_is_read(ct: Path) -> None:
    path = ct / "volumes" / "case_0.vol"
    content = bytearray(path.read_bytes())
    content[-9] ^= 4
    path.write_bytes(content)
    store = open_volumes(ct)
    with pytest.raises(CorruptImage, match="checksum is wrong"):
        store.read(0)
    store.read(1)


def test_few_files_are_mapped_at_a_time_and_what_was_read_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "_MOST", 2)
    monkeypatch.setattr(mapped, "_TOUCHED", 3000)
    contents = [RNG.integers(0, 256, 5000).astype(np.uint8) for _ in range(4)]
    for number, content in enumerate(contents):
        content.tofile(tmp_path / str(number))
    files = mapped.MappedFiles()
    first = files.get(str(tmp_path / "0"), 5000, 1000)
    for number in [0, 1, 2, 3, 3, 0, 2, 1] * 3:
        assert np.array_equal(files.get(str(tmp_path / str(number)), 5000, 1000), contents[number])
        assert len(files._maps) <= 2 and files._touched <= 3000
    assert np.array_equal(first, contents[0])  # also after its file was closed
    with pytest.raises(EOFError):
        files.get(str(tmp_path / "0"), 5001, 0)


def test_a_store_that_is_converted_in_another_way_has_another_identity(tmp_path: Path, volumes: list[Any]) -> None:
    """Only what changes the pixels or their places changes what a resumed run compares."""
    ways: dict[str, dict[str, Any]] = {"ct": {}, "narrow": {"window": (-100, 100)}, "own": {"window": "volume"}}
    wide = LPS @ np.diag([2.0, 2.0, 2.0, 1.0])
    found = {}
    for name, more in (ways | {"wide": {}}).items():
        source = write(tmp_path / name / "in", volumes[:1], wide if name == "wide" else LPS)
        given = {"window": (-500, 800), "images": "images"} | more
        found[name] = open_volumes(convert_folder(FolderConversion(source, tmp_path / name / "S", **given)))
    assert len({store.digest(tmp_path) for store in found.values()}) == 4
    known = {name: fingerprint(store)["conversion"] for name, store in found.items()}
    assert known["ct"] == known["narrow"] and len({*known.values()}) == 3


def test_a_part_of_a_store(ct: Path) -> None:
    half = restrict(find_source(ct), fraction=0.5, seed=3)
    assert isinstance(half, VolumeStore) and len(half) == 2
    rest = open_volumes(ct, exclude=["case_[01]"])
    assert [rest.names(position) for position in range(2)] == ["case_2", "case_3"]
    assert len({fingerprint(store)["names"] for store in (half, rest, open_volumes(ct))}) == 3
    with pytest.raises(UserError, match="--exclude leaves out all"):
        open_volumes(ct, exclude=["*"])
    (ct / "volumes.json").write_text(json.dumps({"format": "other", "version": 1}))
    with pytest.raises(UserError, match="another version"):
        open_volumes(ct)
    (ct / "volumes.json").unlink()
    for path, says in ((ct / "nowhere", "does not exist; give"), (ct.parent, "is not a store of volumes; give")):
        with pytest.raises(UserError, match=says):
            open_volumes(path)
    with pytest.raises(UserError, match="is unfinished; continue"):
        find_source(ct)


def test_a_method_trains_on_a_store(ct: Path, tmp_path: Path) -> None:
    options: Any = {"queue_size": 4, "dim": 4, "hidden_dim": 8}
    run = pretrain(
        data=ct,
        out=tmp_path / "run",
        method="moco_v2",
        method_options=options,
        backbone="resnet10_3d_w4_s122",
        view_size=(16, 16, 16),
        max_steps=2,
        batch_size=2,
        devices="cpu",
        precision="32",
        workers=0,
    )
    assert (run / "exported" / "backbone.safetensors").exists()
    with pytest.raises(UserError, match="densepath data volumes"):
        pretrain(data=tmp_path / "in", out=tmp_path / "other", method="moco_v2")


def test_a_box_is_moved_into_a_smaller_volume_that_replaces_a_damaged_one(ct: Path, volumes: list[np.ndarray]) -> None:
    store = open_volumes(ct)
    store.path(2).unlink()  # 65 x 34 x 33; the next is 36 x 40 x 20
    read = store.gather(torch.tensor([2]), torch.tensor([[[40, 5, 20], [60, 15, 33]]]))
    assert read.index.tolist() == [3] and read.boxes is not None and read.boxes.tolist() == [[[16, 5, 7], [36, 15, 20]]]
    assert np.array_equal(read.pixels[0], in_store(volumes[3])[16:36, 5:15, 7:20])
