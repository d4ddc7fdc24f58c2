"""DICOM series: slices in the right order and place, gaps, duplicates, tilted gantries, several series."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from densepath.core.errors import UserError
from densepath.sources.corrupt import CorruptImage
from densepath.sources.volumes import volume
from densepath.sources.volumes.dicom_series import find_series
from densepath.sources.volumes.dicom_volume import read_series
from densepath.sources.volumes.volume import spacing_of

VALUES = np.random.default_rng(0).integers(0, 2000, (8, 5, 6)).astype(np.int16)  # slices, rows, columns
STEP = 2.5


def write_slice(path: Path, pixels: np.ndarray, z: float, series: str, **changes: Any) -> None:
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    content = pydicom.Dataset()
    content.file_meta = meta
    content.SOPClassUID, content.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    content.SeriesInstanceUID, content.Modality = series, "CT"
    content.PatientID, content.PatientName, content.PatientBirthDate = "MRN4711", "Doe^Jane", "19610203"
    content.Rows, content.Columns = pixels.shape
    content.SamplesPerPixel, content.PhotometricInterpretation = 1, "MONOCHROME2"
    content.BitsAllocated, content.BitsStored, content.HighBit, content.PixelRepresentation = 16, 16, 15, 1
    content.PixelSpacing = [0.8, 0.7]  # between rows, between columns
    content.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    content.ImagePositionPatient = [-100, -120, z]
    content.RescaleSlope, content.RescaleIntercept = 1, -1024
    content.PixelData = pixels.astype("<i2").tobytes()
    for name, value in changes.items():
        setattr(content, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    content.save_as(path, enforce_file_format=True)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a series: file names and instance numbers are in no order."""

    def write_series(
        places: Any, values: np.ndarray = VALUES, series: str = "", folder: str = "in", **changes: Any
    ) -> Path:
        series = series or generate_uid()
        for number in np.random.default_rng(1).permutation(len(places)).tolist():
            own = {name: change(number) if callable(change) else change for name, change in changes.items()}
            name = f"{(7 * number) % 11}_{generate_uid()}"
            write_slice(tmp_path / folder / name, values[number], places[number], series, **own)
        return tmp_path / folder

    return write_series


def test_slices_are_ordered_by_place(write: Callable[..., Path]) -> None:
    folder = write(STEP * np.arange(8) - 50)
    (folder / "report.txt").write_text("not an image")
    (series,), passed = find_series(folder)
    volume = read_series(series)
    (channel,) = volume.channels
    assert np.array_equal(channel.values, VALUES.transpose(2, 1, 0)) and channel.values.dtype == np.int16
    assert (channel.slope, channel.intercept) == (1, -1024) and volume.notes == ()
    assert passed.describe() == "1 file of other formats"
    assert np.allclose(spacing_of(volume.affine), (0.7, 0.8, STEP))
    # LPS of the file: column 2, row 1, slice 3
    assert np.allclose((volume.affine @ [2, 1, 3, 1])[:3], [100 - 2 * 0.7, 120 - 0.8, -50 + 3 * STEP])


def test_a_gap_is_refused_by_name_or_interpolated(write: Callable[..., Path]) -> None:
    places = STEP * np.arange(9)
    whole = np.linspace(0, 800, 9)[:, None, None] + np.arange(6)
    values = np.broadcast_to(whole, (9, 5, 6)).astype(np.int16)
    keep = [0, 1, 2, 4, 5, 6, 7, 8]
    (series,), _ = find_series(write(places[keep], values[keep]))
    with pytest.raises(CorruptImage, match=rf"{series.name}: 1 step .* not 2\.5 mm, first 5 mm after slice 3 of 8"):
        read_series(series)
    volume = read_series(series, "resample")
    assert np.array_equal(volume.channels[0].values, values.transpose(2, 1, 0))  # linear along z
    assert np.allclose(spacing_of(volume.affine), (0.7, 0.8, STEP)) and "resampled" in volume.notes[0]


@pytest.mark.parametrize("step", [STEP * 1.005, STEP * 1.02])
def test_steps_may_differ_by_one_percent(write: Callable[..., Path], step: float) -> None:
    (series,), _ = find_series(write(np.cumsum([0, STEP, STEP, step, STEP, STEP, STEP, STEP])))
    if step < STEP * 1.01:
        assert read_series(series).shape == (6, 5, 8)
    else:
        with pytest.raises(CorruptImage, match=r"1 step between slices is not 2\.5 mm"):
            read_series(series)


def test_a_duplicate_slice_is_used_once_and_another_image_at_its_place_refused(write: Callable[..., Path]) -> None:
    places, values = STEP * np.array([0, 1, 2, 2, 3]), VALUES[[0, 1, 2, 2, 3]]
    (series,), _ = find_series(write(places, values))
    volume = read_series(series)
    assert np.array_equal(volume.channels[0].values, VALUES[:4].transpose(2, 1, 0))
    assert np.isclose(spacing_of(volume.affine)[2], STEP) and "duplicate" in volume.notes[0]
    (other,), _ = find_series(write(places, VALUES[:5], folder="other"))
    with pytest.raises(CorruptImage, match="different images lie at one place"):
        read_series(other)


def test_equal_pixels_of_different_scales_are_not_duplicates(write: Callable[..., Path]) -> None:
    places, values = STEP * np.array([0, 1, 2, 2, 3]), VALUES[[0, 1, 2, 2, 3]]
    (series,), _ = find_series(write(places, values, RescaleSlope=lambda k: 40 if k == 3 else 1))
    with pytest.raises(CorruptImage, match=r"different images lie at one place \(5\.00 mm\)"):
        read_series(series)


@pytest.mark.parametrize("tag", ["AcquisitionNumber", "TemporalPositionIdentifier", "EchoNumbers"])
@pytest.mark.parametrize("offset", [0.0, 0.4, 0.5])
def test_acquisitions_that_overlap_are_not_blended(write: Callable[..., Path], tag: str, offset: float) -> None:
    places = STEP * np.array([*range(4), *(np.arange(4) + offset)])
    (series,), _ = find_series(write(places, **{tag: lambda k: 1 + k // 4}))
    for gaps in ("error", "resample"):
        with pytest.raises(CorruptImage, match=rf"{tag} 1 and 2 overlap in depth .*; convert .* or .* remove {tag}"):
            read_series(series, gaps)


@pytest.mark.parametrize("tag", ["AcquisitionNumber", "TemporalPositionIdentifier", "EchoNumbers"])
@pytest.mark.parametrize("passes", [2, 3])
def test_interleaved_slices_are_joined_where_the_header_states_their_step(
    write: Callable[..., Path], tag: str, passes: int
) -> None:
    places, numbers = STEP * np.arange(8), {tag: lambda k: 1 + k % passes}
    (series,), _ = find_series(write(places, SpacingBetweenSlices=STEP * 1.001, **numbers))
    volume = read_series(series)
    assert np.array_equal(volume.channels[0].values, VALUES.transpose(2, 1, 0))
    assert volume.notes == (f"interleaved slices of different {tag}, joined",)
    stated = {"double": STEP * passes, "none": None, "some": lambda k: STEP if k else None}
    for name, step in stated.items():
        (series,), _ = find_series(write(places, folder=name, SpacingBetweenSlices=step, **numbers))
        with pytest.raises(CorruptImage, match="overlap in depth"):
            read_series(series)
    places[5:] += 0.3 * STEP
    (series,), _ = find_series(write(places, folder="uneven", SpacingBetweenSlices=STEP, **numbers))
    with pytest.raises(CorruptImage, match="overlap in depth"):
        read_series(series, "resample")


@pytest.mark.parametrize("order", [[1, 2, 3, 4, 5, 6, 1, 7], [1, 2, 3, 4, 5, 6, 1, 2], [1, 2, 3, 4, 1, 2, 3, 4]])
def test_numbers_of_slices_may_repeat(write: Callable[..., Path], order: list[int]) -> None:
    (series,), _ = find_series(write(STEP * np.arange(8), AcquisitionNumber=lambda k: order[k]))
    volume = read_series(series)
    assert np.array_equal(volume.channels[0].values, VALUES.transpose(2, 1, 0)) and volume.notes == ()


def test_adjoining_acquisitions_and_numbered_slices_are_one_volume(write: Callable[..., Path]) -> None:
    places, expected = STEP * np.arange(8), VALUES.transpose(2, 1, 0)
    (joined,), _ = find_series(write(places, AcquisitionNumber=lambda k: 1 + k // 4))
    volume = read_series(joined)
    assert np.array_equal(volume.channels[0].values, expected)
    assert volume.notes == ("adjoining slices of different AcquisitionNumber, joined",)
    order = [1, 3, 5, 7, 2, 4, 6, 8]  # interleaved
    (numbered,), _ = find_series(write(places, folder="b", AcquisitionNumber=lambda k: order[k], EchoNumbers=None))
    volume = read_series(numbered)
    assert np.array_equal(volume.channels[0].values, expected) and volume.notes == ()
    doubled = VALUES[[0, 1, 2, 3, 0, 1, 2, 3]]  # a copy of all slices under another number
    (copied,), _ = find_series(write(places % (4 * STEP), doubled, folder="c", AcquisitionNumber=lambda k: 1 + k // 4))
    volume = read_series(copied)
    assert np.array_equal(volume.channels[0].values, expected[..., :4])
    assert volume.notes == ("duplicate slices, used once",)


def test_a_copy_of_a_file_is_passed_over(write: Callable[..., Path]) -> None:
    folder = write(STEP * np.arange(8))
    first = next(folder.iterdir())
    (folder / "copy").write_bytes(first.read_bytes())
    (series,), passed = find_series(folder)
    assert len(series.slices) == 8 and passed.kinds == {"repeated files": 1}


def test_a_tilted_gantry_keeps_its_shear(write: Callable[..., Path]) -> None:
    tilt = np.tan(np.radians(20)) * STEP
    folder = write(STEP * np.arange(8), ImagePositionPatient=lambda k: [-100, -120 + k * tilt, STEP * k])
    (series,), _ = find_series(folder)
    volume = read_series(series)
    assert np.allclose(volume.affine[:3, 2], [0, -tilt, STEP]) and "20.0 degrees" in volume.notes[0]
    assert np.isclose(np.dot(volume.affine[:3, 2], [0, 0, 1]), STEP)  # between the planes


def test_two_series_two_sizes_and_a_localizer_are_told_apart(write: Callable[..., Path]) -> None:
    one, other = generate_uid(), generate_uid()
    write(STEP * np.arange(8), series=one)
    write(STEP * np.arange(8) + 1.25, values=VALUES[::-1], series=other, PatientID="MRN4712")
    write([0.0, 5.0], values=VALUES[:2, :4, :4], series=one)
    folder = write([0.0], values=VALUES[:1], series=one, ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    found, passed = find_series(folder)
    assert sorted(len(series.slices) for series in found) == [2, 8, 8] and len({s.name for s in found}) == 3
    assert passed.kinds == {"images outside of a volume": 1}
    assert {series.patient for series in found} == {"patient_0001", "patient_0002"}
    assert all(np.isclose(spacing_of(read_series(s).affine)[2], STEP) for s in found if len(s.slices) == 8)


def test_an_oblique_series_lies_where_its_slices_do(write: Callable[..., Path]) -> None:
    angle = np.radians(30)
    row, column = np.array([np.cos(angle), np.sin(angle), 0]), np.array([0, 0, -1.0])
    normal = np.cross(row, column)
    places = [np.array([1.0, 2.0, 3.0]) + STEP * k * normal for k in range(8)]
    folder = write(
        STEP * np.arange(8),
        ImageOrientationPatient=[*row, *column],
        ImagePositionPatient=lambda k: places[k].round(6).tolist(),
    )
    (series,), _ = find_series(folder)
    volume = read_series(series)
    expected = places[5] + 2 * 0.7 * row + 3 * 0.8 * column
    assert np.allclose((volume.affine @ [2, 3, 5, 1])[:3] * [-1, -1, 1], expected, atol=1e-4)
    assert volume.notes == () and np.array_equal(volume.channels[0].values[2, 3, 5], VALUES[5, 3, 2])


def test_noise_of_the_orientation_does_not_divide_a_series(write: Callable[..., Path]) -> None:
    """Around 0.0005, where cosines rounded to three digits differ."""

    def axes(k: int) -> list[float]:
        sine = 0.0005 + (-1) ** k * 1e-6
        return [1.0, sine, 0.0, -sine, 1.0, 0.0]

    (series,), _ = find_series(write(STEP * np.arange(8), ImageOrientationPatient=axes))
    assert np.allclose(spacing_of(read_series(series).affine), (0.7, 0.8, STEP), rtol=1e-4)
    turned = write(
        STEP * np.arange(8), folder="b", ImageOrientationPatient=lambda k: [1, s := k // 4 / 500, 0, -s, 1, 0]
    )
    assert [len(each.slices) for each in find_series(turned)[0]] == [4, 4]


@pytest.mark.parametrize("other", [[1.6, 1.4], None])
def test_slices_that_differ_in_the_spacing_of_their_pixels_are_refused(write: Callable[..., Path], other: Any) -> None:
    (series,), _ = find_series(write(STEP * np.arange(8), PixelSpacing=lambda k: [0.8, 0.7] if k != 5 else other))
    with pytest.raises(CorruptImage, match=r"differ in PixelSpacing \(0\.8 x 0\.7 mm and (1\.6 x 1\.4 mm|none)\)"):
        read_series(series)


def test_slices_with_scales_of_their_own_become_values(write: Callable[..., Path]) -> None:
    (series,), _ = find_series(write(STEP * np.arange(8), RescaleSlope=lambda k: 1 + k, RescaleIntercept=3))
    (channel,) = read_series(series).channels
    assert np.array_equal(channel.values, (VALUES.transpose(2, 1, 0) * (1.0 + np.arange(8)) + 3).astype(np.float32))
    assert (channel.slope, channel.intercept) == (1, 0)


def test_a_damaged_slice_costs_its_series(write: Callable[..., Path]) -> None:
    folder = write(STEP * np.arange(8))
    path = sorted(folder.iterdir())[3]
    path.write_bytes(path.read_bytes()[:-20])
    (series,), _ = find_series(folder)
    with pytest.raises(CorruptImage, match=r"slice \d cannot be decoded"):
        read_series(series)
    path.write_bytes(path.read_bytes()[:300])
    (series,), passed = find_series(folder)
    assert passed.kinds == {"DICOM files without an image": 1} and len(series.slices) == 7


def test_a_large_gap_is_named_as_such(write: Callable[..., Path]) -> None:
    (series,), _ = find_series(write([0, 2.5, 5, 7.5, 400, 402.5, 405]))
    with pytest.raises(CorruptImage, match=r"1 step .* not 2\.5 mm, first 392\.5 mm after slice 4 of 7"):
        read_series(series)


def test_files_without_a_patient_are_of_unknown_ones(write: Callable[..., Path]) -> None:
    write(STEP * np.arange(3), PatientID="")
    write(STEP * np.arange(3), PatientID=" ")
    found, _ = find_series(write(STEP * np.arange(3), PatientID="MRN1"))
    assert sorted(str(series.patient) for series in found) == ["None", "None", "patient_0001"]


def test_folders_are_read_once_and_pipes_not_at_all(write: Callable[..., Path]) -> None:
    folder = write(STEP * np.arange(3))
    for name in ("up", "again"):
        (folder / name).symlink_to("..")
    os.mkfifo(folder / "pipe")
    (series,), passed = find_series(folder)
    assert len(series.slices) == 3
    assert passed.kinds == {"special files": 1, "links to folders that are read already": 2}


def test_a_folder_that_cannot_be_read_is_refused(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(STEP * np.arange(3))
    (folder / "closed").mkdir()
    whole = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return whole(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=r"the folder .*closed cannot be read \(Permission denied\)"):
        find_series(folder)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"SeriesInstanceUID": ""}, "images without SeriesInstanceUID"),
        ({"ImagePositionPatient": None}, "images without ImagePositionPatient"),
        ({"Rows": None}, "DICOM files without an image"),
        ({"SamplesPerPixel": 3}, "images with colors"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 1]}, "damaged DICOM files"),
        ({"ImagePositionPatient": [1, 2]}, "damaged DICOM files"),
    ],
)
def test_what_an_image_lacks_is_named(write: Callable[..., Path], changes: dict[str, Any], kind: str) -> None:
    found, passed = find_series(write(STEP * np.arange(3), **changes))
    assert not found and passed.kinds == {kind: 3}


def test_a_spacing_is_that_of_files_that_name_none(write: Callable[..., Path]) -> None:
    """It is along the axes of the patient: the columns of these sagittal slices are along y, their rows along z."""
    folder = write(
        STEP * np.arange(3),
        PixelSpacing=None,
        ImageOrientationPatient=[0, 1, 0, 0, 0, -1],
        ImagePositionPatient=lambda k: [STEP * k, 0, 0],
    )
    (series,), _ = find_series(folder)
    with pytest.raises(CorruptImage, match="no PixelSpacing; give it with --spacing"):
        read_series(series)
    assert np.allclose(spacing_of(read_series(series, spacing=(9.0, 0.5, 0.25)).affine), (0.5, 0.25, STEP))


def test_slices_at_equal_steps_must_fit_into_memory(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (series,), _ = find_series(write([0, 0.002, 0.004, 100, 100.002, 100.004]))
    monkeypatch.setattr(volume, "available_memory", lambda: 10**6)
    with pytest.raises(CorruptImage, match=r"6 x 5 x 50,003 voxels, too many for .*; leave out --gaps resample"):
        read_series(series, "resample")
