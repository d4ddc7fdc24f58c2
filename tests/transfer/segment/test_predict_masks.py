"""``densepath predict`` with a segmenter in a folder that has results: what is done again, and the table of all."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from filelock import FileLock, Timeout
from PIL import Image

from densepath.core.errors import UserError
from densepath.datasets.volumes.conversion import FolderConversion
from densepath.datasets.volumes.folder import convert_folder
from densepath.sources.pixel_source import PixelSpec
from densepath.transfer.predict import predict
from densepath.transfer.segment import predict_masks as module
from densepath.transfer.segment.legend import legend_of
from densepath.transfer.segment.predict_masks import predict_masks
from densepath.transfer.segment.segmenter import SegmenterNotes, save_segmenter
from densepath.transfer.segment.sliding import SlidingWindow
from densepath.transfer.segment.trained import load_segmenter
from densepath.transfer.segment.volume_inputs import VolumeInput

from .conftest import write_images, write_store

CPU: dict[str, Any] = {"devices": "cpu", "precision": "32"}


def write_segmenter(path: Path, ndim: int) -> Path:
    backbone, channels, window = ("test_resnet", 3, (0.0, 255.0)) if ndim == 2 else ("resnet10_3d_w4", 1, (0.0, 1.0))
    spec = PixelSpec.default(channels, window, ndim=ndim).record()
    legend = legend_of(("0:background", "1:red"))
    notes = SegmenterNotes(backbone, "unet", "group", legend, (32,) * ndim, 0.5, spec, own_window=ndim == 3)
    save_segmenter(path, notes.build(), notes)
    return path


def two_images(folder: Path) -> tuple[Path, Path]:
    images = write_images(folder, 2, 1) / "images"
    return images, images / "P0_0.png"


def two_volumes(folder: Path) -> tuple[Path, Path]:
    folder.mkdir()
    for name in ("a", "b"):
        fields = "ObjectType = Image\nNDims = 3\nDimSize = 8 8 8\nElementType = MET_SHORT\nElementSpacing = 1 1 1\n"
        (folder / f"{name}.mhd").write_text(f"{fields}ElementDataFile = {name}.raw\n")
        (folder / f"{name}.raw").write_bytes(np.arange(512, dtype=np.int16).tobytes())
    return folder, folder / "a.raw"


def two_in_a_store(folder: Path) -> tuple[Path, Path]:
    store = write_store(folder, 2)
    return store, min((store / "volumes").iterdir())


@pytest.mark.parametrize(("write", "ndim"), [(two_images, 2), (two_volumes, 3), (two_in_a_store, 3)])
def test_only_an_image_that_changed_is_done_again(write: Any, ndim: int, tmp_path: Path) -> None:
    data, changed = write(tmp_path / "data")
    run, out = write_segmenter(tmp_path / "segmenter.safetensors", ndim), tmp_path / "out"

    def times(part: str, pictures: int) -> dict[str, int]:
        predict_masks(run, data=data, out=out, pictures=pictures, **CPU)
        return {path.name: path.stat().st_mtime_ns for path in sorted((out / part).iterdir())}

    assert len(before := times("labels", 0)) == 2 and not (out / "pictures").exists()
    drawn = times("pictures", 2)  # pictures that are asked for later
    assert len(drawn) == (2 if ndim == 2 else 4)
    before = times("labels", 2)
    assert times("pictures", 0) == drawn
    os.utime(changed, ns=(0, 0))
    first, second = times("labels", 0).items()
    assert first not in before.items() and second in before.items()
    assert dict(list(drawn.items())[len(drawn) // 2 :]) == times("pictures", 0)  # none of the former image


@pytest.mark.parametrize("stored", [False, True])
def test_a_label_map_lies_where_other_programs_see_its_volume(
    stored: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file with a spacing but no affine map gets such a label map."""
    image = nibabel.Nifti1Image(np.arange(512, dtype=np.int16).reshape(8, 8, 8), None)
    image.header.set_zooms((1, 1, 2))
    data = tmp_path / "data"
    data.mkdir()
    nibabel.save(image, data / "a.nii")
    if stored:
        data = convert_folder(FolderConversion(data, tmp_path / "S", window="volume"))
    run, out = write_segmenter(tmp_path / "segmenter.safetensors", 3), tmp_path / "out"
    assert predict_masks(run, data=data, out=out, **CPU)["damaged"] == 0
    (path,) = (out / "labels").iterdir()
    found = nibabel.load(path)
    assert np.array_equal(found.affine, nibabel.load(tmp_path / "data/a.nii").affine)
    assert [int(found.header[code]) for code in ("sform_code", "qform_code")] == [0, 0]
    assert "a has no affine map" in capsys.readouterr().err.replace("a.nii has", "a has")
    (record,) = (out / "records").iterdir()  # of a version that gave the label map an affine map
    identity, _, facts = record.read_text().partition("\n")
    assert json.loads(identity)[-1] == 0
    record.write_text(f"{json.dumps(json.loads(identity)[:-1])}\n{facts}")
    before = path.stat().st_mtime_ns
    predict_masks(run, data=data, out=out, **CPU)
    assert path.stat().st_mtime_ns > before


def test_a_folder_of_dicom_is_refused_with_the_command_that_converts_it(tmp_path: Path) -> None:
    run = write_segmenter(tmp_path / "segmenter.safetensors", 3)
    (tmp_path / "in/series").mkdir(parents=True)
    (tmp_path / "in/series/IM0001").write_bytes(bytes(128) + b"DICM")
    with pytest.raises(UserError, match=r"no volume .*, or convert DICOM with densepath data dicom .*in STORE"):
        predict_masks(run, data=tmp_path / "in", out=tmp_path / "out", **CPU)


def test_a_damaged_image_keeps_no_map_of_a_former_one(tmp_path: Path) -> None:
    data, changed = two_images(tmp_path / "data")
    run, out = write_segmenter(tmp_path / "segmenter.safetensors", 2), tmp_path / "out"
    predict_masks(run, data=data, out=out, **CPU)
    changed.write_bytes(b"no image")
    assert predict_masks(run, data=data, out=out, **CPU)["damaged"] == 1
    assert [len(list((out / part).iterdir())) for part in ("labels", "pictures")] == [1, 1]
    assert [line.partition(",")[0] for line in (out / "sizes.csv").read_text().splitlines()] == ["image", "P1_1"]


def test_a_label_map_that_is_lost_and_cannot_be_made_again_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, _ = two_images(tmp_path / "data")
    run, out = write_segmenter(tmp_path / "segmenter.safetensors", 2), tmp_path / "out"
    predict_masks(run, data=data, out=out, **CPU)
    (out / "labels" / "P0_0.png").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(SlidingWindow, "classes", None)
        assert predict_masks(run, data=data, out=out, **CPU)["damaged"] == 1
    assert len((out / "sizes.csv").read_text().splitlines()) == 2
    assert predict_masks(run, data=data, out=out, **CPU)["damaged"] == 0


def test_images_are_segmented_again_if_others_change_their_window(tmp_path: Path) -> None:
    data, _ = two_images(tmp_path / "data")
    run, out = write_segmenter(tmp_path / "segmenter.safetensors", 2), tmp_path / "out"
    predict_masks(run, data=data, out=out, **CPU)
    before = (out / "labels" / "P0_0.png").stat().st_mtime_ns
    Image.fromarray(np.full((32, 32), 4000, np.uint16)).save(data / "z.png")
    predict_masks(run, data=data, out=out, **CPU)
    assert (out / "labels" / "P0_0.png").stat().st_mtime_ns > before


def test_results_of_other_images_are_kept(tmp_path: Path) -> None:
    run, out = write_segmenter(tmp_path / "segmenter.safetensors", 2), tmp_path / "out"
    predict_masks(run, data=two_images(tmp_path / "data")[0], out=out, **CPU)
    before = (out / "sizes.csv").read_text()
    other = write_images(tmp_path / "other", 2, 1, letter="Q") / "images"
    with pytest.raises(UserError, match=r"out holds results of other images \(P0_0, P1_1\); use another folder"):
        predict_masks(run, data=other, out=out, **CPU)
    assert (out / "sizes.csv").read_text() == before


def test_the_table_is_read_and_written_by_one_process_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = two_images(tmp_path / "data")[0], tmp_path / "out"
    run, write_rows, found = write_segmenter(tmp_path / "segmenter.safetensors", 2), module.write_rows, []

    def locked(path: Path, columns: Sequence[str], rows: Any) -> None:
        with pytest.raises(Timeout):
            FileLock(out / ".locks" / "tables").acquire(timeout=0)
        found.append([row["image"] for row in rows])
        write_rows(path, columns, rows)

    monkeypatch.setattr(module, "write_rows", locked)
    assert [predict_masks(run, data=data, out=out, shard=f"{k}/2", **CPU)["left"] for k in (1, 2)] == [1, 0]
    assert found == [["P0_0"], ["P0_0", "P1_1"]]


@pytest.mark.parametrize("step", [1.0, 0.96, 1.04])
def test_a_volume_of_as_many_voxels_at_another_spacing_is_not_stretched(step: float) -> None:
    """12 slices of 5 mm are 12 of 4.8 mm, too (rounded), and the last ones lie half a slice apart."""
    slices, mm = 12, 4.8
    logits = torch.zeros(2, slices, 2, 2)
    logits[1] = (torch.arange(slices) + 0.5).view(-1, 1, 1) * mm
    volume = VolumeInput(np.zeros((slices, 2, 2, 1)), (slices, 2, 2), (step, 1, 1), np.eye(4), "RAS", (mm, 1, 1))
    centers = (np.arange(slices) + 0.5) * mm * step  # in mm, of the file's slices
    inner = (centers >= mm / 2) & (centers <= (slices - 0.5) * mm)  # beyond the outermost centers logits are constant
    for edge in np.linspace(3, 55, 105):
        logits[0] = edge
        found = volume.restored(iter([(0, logits[:, :5]), (5, logits[:, 5:])]))
        sure = inner & (abs(centers - edge) > 1e-3)
        assert (found[sure, 0, 0] == (centers > edge)[sure]).all()


def test_windows_of_one_side_or_of_each_and_none_with_gaps(tmp_path: Path) -> None:
    run = write_segmenter(tmp_path / "segmenter.safetensors", 2)
    segmenter, image = load_segmenter(run), np.random.default_rng(0).integers(0, 256, (70, 90, 3)).astype(np.uint8)
    assert np.array_equal(segmenter.predict(image, window=32), segmenter.predict(image, window=(32, 32)))
    assert np.array_equal(segmenter.predict(image, window=32), segmenter.predict(image, window=np.int64(32)))
    wrong: list[dict[str, Any]] = [{"overlap": -0.5}, {"overlap": 1.0}]
    wrong += [{"window": window} for window in (0, (32,), 32.0, True, (32, 0.5), "32")]
    for options in wrong:
        with pytest.raises(UserError, match=r"1 pixel \(or one for each of the 2 axes\) and an overlap from 0"):
            segmenter.predict(image, **options)
    with pytest.raises(UserError, match="window is 0 and overlap "):
        predict_masks(run, data=two_images(tmp_path / "data")[0], out=tmp_path / "out", window=0, **CPU)


@pytest.mark.parametrize("overlap", [None, 0.25])
def test_the_overlap_is_that_of_the_training_only_if_none_is_given(overlap: float | None, tmp_path: Path) -> None:
    run = write_segmenter(tmp_path / "segmenter.safetensors", 2)  # trained with 0.5; 0.25 is the default of detectors
    data = tmp_path / "data"
    data.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(data / "a.png")
    predict(run, data=data, out=tmp_path / "out", overlap=overlap, pictures=0, **CPU)
    segmenter = load_segmenter(run)
    wanted, other = (segmenter.predict(pixels, overlap=each) for each in (overlap or 0.5, 0.75 - (overlap or 0.5)))
    found = np.asarray(Image.open(tmp_path / "out/labels/a.png"))
    assert np.array_equal(found, wanted) and not np.array_equal(found, other)
