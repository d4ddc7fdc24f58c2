"""NIfTI files that readers get wrong: each is read as its header says, or refused in one line."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from densepath.sources.corrupt import CorruptImage
from densepath.sources.volumes.nifti import NO_MAP
from densepath.sources.volumes.read import on_voxels_of, read_volume
from densepath.sources.volumes.volume import Channel, Volume, from_ras, spacing_of, to_ras, whole_labels

VALUES = np.random.default_rng(0).integers(-1000, 1000, (5, 6, 7)).astype(np.int16)
AFFINE = np.array([[0.7, 0, 0, 1], [0, 0.8, 0, -2], [0, 0, 2.5, 3], [0, 0, 0, 1.0]])


def write(path: Path, values: Any = VALUES, affine: Any = AFFINE, **changes: Any) -> str:
    image = nibabel.Nifti1Image(values, affine)
    for name, change in changes.items():
        getattr(image.header, name)(*change)
    image.to_filename(path)
    return str(path)


def changed(path: str, start: int, data: bytes) -> str:
    content = bytearray(Path(path).read_bytes())
    content[start : start + len(data)] = data
    Path(path).write_bytes(content)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64, ">i2", ">f4"])
def test_a_file_is_read_as_nibabel_reads_it(tmp_path: Path, suffix: str, kind: Any) -> None:
    image = nibabel.Nifti1Image(VALUES.clip(0, 255).astype(kind), AFFINE)
    image = nibabel.Nifti1Image(image.dataobj, AFFINE, image.header.as_byteswapped(">" if str(kind)[0] == ">" else "<"))
    image.to_filename(tmp_path / f"a{suffix}")
    volume = read_volume(tmp_path / f"a{suffix}")
    (channel,) = volume.channels
    assert np.array_equal(channel.values, np.asarray(nibabel.load(tmp_path / f"a{suffix}").dataobj))
    assert channel.values.dtype == np.dtype(kind).newbyteorder("=") and (channel.slope, channel.intercept) == (1, 0)
    assert np.allclose(volume.affine, AFFINE) and volume.notes == ()


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.95, 0.999])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str, share: float) -> None:
    path = Path(write(tmp_path / f"a{suffix}"))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(CorruptImage, match=r"truncated|empty|damaged|not a NIfTI"):
        read_volume(path)


def test_a_flipped_bit_is_found_wherever_it_is(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "a.nii.gz"))
    whole, found = path.read_bytes(), 0
    places = range(10, len(whole), max(1, len(whole) // 60))
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        try:
            assert np.array_equal(read_volume(path).channels[0].values, VALUES)  # a bit that no value depends on
        except CorruptImage:
            found += 1
    assert found > 0.9 * len(places)


def test_slope_and_intercept_are_carried_and_values_stay_16_bits(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", set_slope_inter=(1, 0))
    changed(path, 112, np.array([0.5, -3], "<f4").tobytes())
    (channel,) = read_volume(path).channels
    assert channel.values.dtype == np.int16 and np.array_equal(channel.values, VALUES)
    assert (channel.slope, channel.intercept) == (0.5, -3)
    assert np.array_equal(nibabel.load(path).get_fdata(), 0.5 * VALUES - 3.0)


def test_the_sform_counts_and_a_different_qform_is_noted(tmp_path: Path) -> None:
    other = AFFINE @ np.diag([1, 1, 1.2, 1])
    path = write(tmp_path / "a.nii", set_sform=(AFFINE, 1), set_qform=(other, 1))
    volume = read_volume(path)
    assert np.allclose(volume.affine, AFFINE) and "qform and sform differ" in volume.notes[0]
    only = read_volume(changed(path, 254, bytes(2)))  # the code of the sform
    assert np.allclose(only.affine, other, atol=1e-5) and only.notes == ()


def test_a_damaged_qform_beside_an_sform_is_noted(tmp_path: Path) -> None:
    for quaternion in ((0.9, 0.9, 0.1), (0.0, 0.0, 1.00001), (np.nan, 0.0, 0.0)):
        path = write(tmp_path / "a.nii", set_sform=(AFFINE, 1), set_qform=(AFFINE, 1))
        volume = read_volume(changed(path, 256, np.array(quaternion, "<f4").tobytes()))
        assert np.allclose(volume.affine, AFFINE) and volume.notes == ("a damaged qform; the sform counts",)
        with pytest.raises(CorruptImage, match="affine map is"):
            read_volume(changed(path, 254, bytes(2)))  # the code of the sform


@pytest.mark.parametrize("sform", [1, 0])
def test_a_negative_spacing_is_read_as_nibabel_reads_it(tmp_path: Path, sform: int) -> None:
    path = write(tmp_path / "a.nii", set_qform=(AFFINE, 1), set_sform=(AFFINE, sform))
    volume = read_volume(changed(path, 80, np.array(-0.7, "<f4").tobytes()))
    assert np.allclose(volume.affine, AFFINE, atol=1e-5) and volume.notes == ()
    assert np.allclose(nibabel.load(path).affine, AFFINE, atol=1e-5)


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1000.0), ("mm", 1.0), ("micron", 0.001)])
def test_the_unit_of_the_header_counts(tmp_path: Path, unit: str, factor: float) -> None:
    affine = AFFINE.copy()
    affine[:3] /= factor
    volume = read_volume(write(tmp_path / "a.nii", affine=affine, set_xyzt_units=(unit,)))
    assert np.allclose(spacing_of(volume.affine), (0.7, 0.8, 2.5))
    assert np.allclose(volume.affine[:3, 3], (1, -2, 3))


def test_a_file_that_does_not_say_where_its_voxels_are_needs_a_spacing(tmp_path: Path) -> None:
    unplaced = write(tmp_path / "a.nii", affine=None)
    zero = changed(write(tmp_path / "b.nii", affine=None), 80, bytes(12))
    turned = changed(write(tmp_path / "c.nii", set_qform=(AFFINE, 1)), 254, bytes(2))
    changed(turned, 80, bytes(12))
    for path in (unplaced, zero, turned):
        with pytest.raises(CorruptImage, match=r"--spacing X Y Z"):
            read_volume(path)
        volume = read_volume(path, (0.5, 0.6, 3.0))
        assert spacing_of(volume.affine) == (0.5, 0.6, 3.0) and "no affine map" in volume.notes[0]
    spaced = write(tmp_path / "d.nii", affine=None, set_zooms=((0.5, 0.5, 2.0),))
    assert spacing_of(read_volume(spaced, (9.0, 9.0, 9.0)).affine) == (0.5, 0.5, 2.0)  # it names a spacing
    far = write(tmp_path / "e.nii", affine=np.diag([700, 700, 1000, 1.0]))
    flat = write(tmp_path / "f.nii", affine=np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]))
    for path, why in ((far, "mm apart"), (flat, "lie in a plane")):
        with pytest.raises(CorruptImage, match=why):
            read_volume(path)


@pytest.mark.parametrize("kind, place", [(nibabel.Nifti1Image, 108), (nibabel.Nifti2Image, 168)])
def test_an_offset_within_the_header_is_that_of_the_length(tmp_path: Path, kind: Any, place: int) -> None:
    kind(VALUES, AFFINE).to_filename(tmp_path / "a.nii")
    whole = Path(changed(str(tmp_path / "a.nii"), place, bytes(8 if place == 168 else 4))).read_bytes()
    start = len(whole) - VALUES.nbytes
    for gap in (4, 0):  # with and without the four bytes that announce extensions
        (tmp_path / "b.nii").write_bytes(whole[: start - 4 + gap] + whole[start:])
        assert np.array_equal(read_volume(tmp_path / "b.nii").channels[0].values, VALUES)
    for data in (whole + b"ab", whole[:-2]):
        (tmp_path / "b.nii").write_bytes(data)
        with pytest.raises(CorruptImage, match="vox_offset lies within the header"):
            read_volume(tmp_path / "b.nii")


def test_other_dimensions_and_kinds_of_numbers(tmp_path: Path) -> None:
    series = np.stack([VALUES, 2 * VALUES], axis=-1)
    path = write(tmp_path / "a.nii", values=series)
    with pytest.raises(CorruptImage, match=r"4 dimensions \(5 x 6 x 7 x 2\)"):
        read_volume(path)
    assert np.array_equal(read_volume(path, channels=True).channels[1].values, 2 * VALUES)
    assert read_volume(write(tmp_path / "b.nii", values=VALUES[..., None, None])).shape == VALUES.shape
    for values, why in ((VALUES[0], "2 dimensions"), (VALUES.astype(np.complex64), "complex"), (VALUES[:0], "empty")):
        with pytest.raises(CorruptImage, match=why):
            read_volume(write(tmp_path / "c.nii", values=values))
    colors = np.zeros((2, 2, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(CorruptImage, match="colors"):
        read_volume(write(tmp_path / "d.nii", values=colors))
    (tmp_path / "e.nii").touch()
    with pytest.raises(CorruptImage, match="empty"):
        read_volume(tmp_path / "e.nii")
    (tmp_path / "f.nii").write_bytes(b"\x89PNG" * 200)
    with pytest.raises(CorruptImage, match="not a NIfTI file"):
        read_volume(tmp_path / "f.nii")
    with pytest.raises(CorruptImage, match="cannot be read"):
        read_volume(tmp_path / "missing.nii.gz")


def test_numbers_that_are_not_finite_become_the_smallest_or_the_largest(tmp_path: Path) -> None:
    values = VALUES.astype(np.float32)
    values[0, 0, :3] = np.nan, np.inf, -np.inf
    volume = read_volume(write(tmp_path / "a.nii", values=values))
    assert "NaN or Inf" in volume.notes[0]
    read = volume.channels[0].values
    low, high = (end(values[np.isfinite(values)]) for end in (np.min, np.max))
    assert np.array_equal(read[0, 0, :3], [low, high, low])
    assert np.array_equal(read[1:], values[1:])
    with pytest.raises(CorruptImage, match="none of its values is finite"):
        read_volume(write(tmp_path / "b.nii", values=np.full((2, 2, 2), np.nan)))


def test_the_content_decides_whether_a_file_is_compressed(tmp_path: Path) -> None:
    plain, packed = Path(write(tmp_path / "a.nii")), tmp_path / "b.nii"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    plain.rename(tmp_path / "c.nii.gz")
    for path in (packed, tmp_path / "c.nii.gz"):
        assert np.array_equal(read_volume(path).channels[0].values, VALUES)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LPI", "SAR", "AIL", "PSR"])
def test_turning_to_ras_and_back_changes_no_bit(codes: str) -> None:
    start = nibabel.orientations.axcodes2ornt(codes)
    turn = nibabel.orientations.ornt_transform(start, nibabel.orientations.axcodes2ornt("RAS"))
    affine = AFFINE @ nibabel.orientations.inv_ornt_aff(turn, VALUES.shape) if codes != "RAS" else AFFINE
    turned, own, found = to_ras(VALUES, affine)
    assert found == "".join(nibabel.aff2axcodes(affine)) and nibabel.aff2axcodes(own) == tuple("RAS")
    assert np.array_equal(from_ras(turned, found), VALUES)
    expected = nibabel.as_closest_canonical(nibabel.Nifti1Image(VALUES, affine))
    assert np.array_equal(turned, np.asarray(expected.dataobj)) and np.allclose(own, expected.affine)


def test_a_spacing_without_an_affine_map_has_its_unit_and_is_checked(tmp_path: Path) -> None:
    meters = write(tmp_path / "a.nii", affine=None, set_zooms=((0.0007, 0.0008, 0.003),), set_xyzt_units=("meter",))
    assert np.allclose(spacing_of(read_volume(meters).affine), (0.7, 0.8, 3.0))
    for number, (bad, why) in enumerate(((np.nan, "--spacing"), (np.inf, "--spacing"), (7e4, "mm apart"))):
        path = write(tmp_path / f"{number}.nii", affine=None, set_zooms=((0.7, 0.8, 3.0),))
        with pytest.raises(CorruptImage, match=why):
            read_volume(changed(path, 80, np.float32(bad).tobytes()))


def test_an_sform_of_zeros_counts_as_none(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", set_qform=(AFFINE, 1))
    assert np.allclose(read_volume(changed(path, 280, bytes(48))).affine, AFFINE, atol=1e-6)
    bare = changed(changed(write(tmp_path / "b.nii", set_zooms=((1.0, 1.0, 1.0),)), 280, bytes(48)), 252, bytes(2))
    assert spacing_of(read_volume(bare, (0.5, 0.6, 3.0)).affine) == (0.5, 0.6, 3.0)


def oblique(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0, 5], [s, c, 0, -3], [0, 0, 2, 1], [0, 0, 0, 1.0]])


@pytest.mark.parametrize("degrees", [0, 20, 45])
@pytest.mark.parametrize("codes", ["RAS", "LAS", "AIL"])
def test_labels_in_other_axes_are_turned_and_an_offset_is_measured_in_voxels(codes: str, degrees: float) -> None:
    values = np.arange(24).reshape(2, 3, 4)
    volume = Volume((Channel(values),), oblique(degrees))
    turn = nibabel.orientations.axcodes2ornt(codes)
    turned = nibabel.orientations.apply_orientation(values, turn)
    affine = volume.affine @ nibabel.orientations.inv_ornt_aff(turn, values.shape)
    found = on_voxels_of("labels", Volume((Channel(turned),), affine), "v", volume)
    assert np.array_equal(found.channels[0].values, values) and np.allclose(found.affine, volume.affine)
    for share in (0.45, 0.55):
        moved = affine.copy()
        moved[:3, 3] += share * volume.affine[:3, 0]
        off = Volume((Channel(turned),), moved)
        if share < 0.5:
            on_voxels_of("labels", off, "v", volume)
        else:
            with pytest.raises(CorruptImage, match=r"it lies up to 0\.55 mm from v; correct its position"):
                on_voxels_of("labels", off, "v", volume)


def test_volumes_of_other_sizes_are_refused_with_their_axes_if_these_differ() -> None:
    one, other = (Volume((Channel(np.zeros(shape)),), np.eye(4)) for shape in ((2, 3, 4), (2, 3, 5)))
    with pytest.raises(CorruptImage, match="it has 2 x 3 x 4 voxels, and v 2 x 3 x 5"):
        on_voxels_of("labels", one, "v", other)
    turned = Volume(one.channels, np.eye(4)[[1, 0, 2, 3]])
    with pytest.raises(CorruptImage, match=r"2 x 3 x 4 voxels \(axes ARS\), and v 2 x 3 x 5 \(axes RAS\)"):
        on_voxels_of("labels", turned, "v", other)
    far = Volume(other.channels, np.diag([1, 1, 3, 1.0]), (NO_MAP,))
    with pytest.raises(CorruptImage, match="it lies up to 8 mm from v; it has no affine map; save both with one"):
        on_voxels_of("labels", far, "v", other)


@pytest.mark.parametrize(
    "channel", [Channel(np.ones((32, 32, 64), np.float32)), Channel(np.ones((32, 32, 64), "u1"), 2)]
)
def test_labels_stored_as_other_numbers_never_become_a_volume_of_64_bits(channel: Channel) -> None:
    tracemalloc.start()
    try:
        found = whole_labels("labels", [channel], 16)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (found == channel.slope).all() and peak < 6 * found.size  # bytes


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ([0, 1, 1e12], "they range from 0 to 1e\\+12, beyond 32 bits"),
        ([-(2.0**31), 0, 1], "from -2.14748e\\+09 to 1, beyond 32 bits"),
        ([0, 1e12, 0.5], "not whole"),
        ([0, 1, np.nan], "not whole"),
    ],
)
def test_labels_that_are_no_numbers_of_32_bits_are_refused(values: list[float], why: str) -> None:
    with pytest.raises(CorruptImage, match=why):
        whole_labels("labels", [Channel(np.array(values).reshape(1, 1, 3))], 32)
