"""MetaImage files, as LUNA16 has them."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest

from densepath.sources.corrupt import CorruptImage
from densepath.sources.volumes.read import read_volume

VALUES = np.random.default_rng(0).integers(-1000, 1000, (5, 6, 7)).astype(np.int16)  # x, y, z
HEAD = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": "0 1 0 1 0 0 0 0 1",
    "Offset": "-10 20 -300",
    "ElementSpacing": "0.7 0.8 2.5",
    "DimSize": "5 6 7",
    "ElementType": "MET_SHORT",
}


def write(path: Path, data: bytes, file: str = "a.raw", **changes: str) -> Path:
    head = "".join(f"{key} = {value}\n" for key, value in {**HEAD, **changes, "ElementDataFile": file}.items() if value)
    path.write_bytes(head.encode() + (data if file == "LOCAL" else b""))
    if file != "LOCAL":
        (path.parent / file).write_bytes(data)
    return path


@pytest.mark.parametrize("file", ["a.raw", "LOCAL", "a.zraw"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_values_and_places_are_those_of_the_header(tmp_path: Path, file: str, order: str) -> None:
    data = VALUES.astype(f"{order}i2").tobytes(order="F")
    packed = file == "a.zraw"
    order_name, compressed = str(order == ">"), str(packed)
    path = write(
        tmp_path / ("a.mha" if file == "LOCAL" else "a.mhd"),
        zlib.compress(data) if packed else data,
        file,
        BinaryDataByteOrderMSB=order_name,
        CompressedData=compressed,
    )
    volume = read_volume(path)
    assert np.array_equal(volume.channels[0].values, VALUES)
    # LPS of the file: x runs along its second axis, y along its first
    place = volume.affine @ [1, 2, 3, 1]
    assert np.allclose(place[:3], [-(-10 + 2 * 0.8), -(20 + 0.7), -300 + 3 * 2.5])


@pytest.mark.parametrize("yes", ["TRUE", "true", "T", "1"])
def test_yes_has_several_spellings(tmp_path: Path, yes: str) -> None:
    data = zlib.compress(VALUES.astype(">i2").tobytes(order="F"))
    flags = dict.fromkeys(("BinaryData", "BinaryDataByteOrderMSB", "CompressedData"), yes)
    assert np.array_equal(read_volume(write(tmp_path / "a.mhd", data, **flags)).channels[0].values, VALUES)


def test_a_single_time_point_is_no_dimension(tmp_path: Path) -> None:
    data, four = VALUES.tobytes(order="F"), "0 1 0 0 1 0 0 0 0 0 1 0 0 0 0 1"
    fourth = {"NDims": "4", "DimSize": "5 6 7 1", "TransformMatrix": four, "Offset": "-10 20 -300 0"}
    three = read_volume(write(tmp_path / "a.mha", data, "LOCAL"))
    for sides in ("0.7 0.8 2.5 1", ""):
        path = write(tmp_path / "b.mha", data, "LOCAL", **fourth, ElementSpacing=sides)
        volume = read_volume(path, None if sides else (0.7, 0.8, 2.5))
        assert np.array_equal(volume.channels[0].values, VALUES) and np.array_equal(volume.affine, three.affine)
    with pytest.raises(CorruptImage, match=r"not a volume \(5 x 6 x 7 x 2 voxels\)"):
        read_volume(write(tmp_path / "c.mha", 2 * data, "LOCAL", **{**fourth, "DimSize": "5 6 7 2"}))


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    data = VALUES.tobytes(order="F")
    cases = [
        (write(tmp_path / "a.mhd", data[:-2]), "418 bytes of voxels instead of 420"),
        (write(tmp_path / "b.mhd", zlib.compress(data)[:-3], "b.zraw", CompressedData="True"), "damaged or truncated"),
        (write(tmp_path / "c.mhd", data, "c.raw", ElementSpacing=""), "--spacing"),
        (write(tmp_path / "d.mhd", data, "d.raw", ElementSpacing="0 0 0"), "mm apart"),
        (write(tmp_path / "e.mhd", data, "e.raw", DimSize="5 6"), "not a volume"),
        (write(tmp_path / "f.mhd", data, "f.raw", ElementType="MET_OTHER"), "MET_OTHER"),
        (write(tmp_path / "g.mhd", data, "slice_%03d.raw"), "files of their own"),
        (write(tmp_path / "j.mhd", data, "j.raw", BinaryData="False"), "text"),
        (write(tmp_path / "l.mhd", data, "l.raw", BinaryData="0"), "text"),
    ]
    for number, (name, value) in enumerate(
        (("ElementNumberOfChannels", "two"), ("HeaderSize", "x"), ("DimSize", "5 six 7"), ("DimSize", "nan 6 7"))
    ):
        path = write(tmp_path / f"t{number}.mhd", data, f"t{number}.raw", **{name: value})
        cases.append((path, f"no valid {name}"))
    (tmp_path / "h.mhd").write_text("NDims = 3\n")
    (tmp_path / "k.mhd").write_text("NDims = 3\nDimSize = 5 6 7\nElementType = MET_CHAR\nElementDataFile = k\0.raw\n")
    cases += [(tmp_path / "h.mhd", "names no ElementDataFile"), (tmp_path / "k.mhd", "its ElementDataFile is damaged")]
    missing = write(tmp_path / "i.mhd", data, "i.raw")
    (tmp_path / "i.raw").unlink()
    for path, why in [*cases, (missing, "i.raw, cannot be read")]:
        with pytest.raises(CorruptImage, match=why):
            read_volume(path)
    assert read_volume(tmp_path / "c.mhd", (1.0, 2.0, 3.0)).shape == (5, 6, 7)
