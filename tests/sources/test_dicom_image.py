"""Radiographs in DICOM files: windows, inversion, what is refused, and what never leaves a file."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.pixels.decoders import JPEGLosslessSV1Decoder
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, JPEGLosslessSV1, generate_uid

from densepath.annotations.patients import NUMBERED, owners_by_name
from densepath.sources.corrupt import CorruptImage
from densepath.sources.decode import read_header, read_image
from densepath.sources.dicom_image import undecodable
from densepath.sources.image_files import ImageFiles
from densepath.sources.open import find_source
from densepath.sources.packing import pack
from densepath.sources.slides.find import holds_slides
from densepath.transfer.probe.labelled import Labels, Listed, owners_of

STORED = np.random.default_rng(0).integers(0, 4096, (48, 40)).astype(np.uint16)
SECRETS = ("MRN4711", "Doe^Jane", "19610203", "General Hospital")


def write(path: Path, pixels: np.ndarray = STORED, **changes: Any) -> Path:
    """A radiograph of 12 bits without a window; a change to None leaves an element out."""
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPInstanceUID = ExplicitVRLittleEndian, generate_uid()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    content = pydicom.Dataset()
    content.file_meta = meta
    content.SOPClassUID, content.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    content.Modality, content.SamplesPerPixel, content.PhotometricInterpretation = "DX", 1, "MONOCHROME2"
    content.PatientID, content.PatientName, content.PatientBirthDate, content.InstitutionName = SECRETS
    content.Rows, content.Columns = pixels.shape[:2]
    content.BitsAllocated, content.BitsStored, content.HighBit, content.PixelRepresentation = 16, 12, 11, 0
    content.PixelData = pixels.tobytes()
    for name, value in changes.items():
        setattr(content, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    content.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.skipif(JPEGLosslessSV1Decoder.is_available, reason="a package that decodes it is installed")
def test_packages_that_a_compression_needs_are_named(tmp_path: Path) -> None:
    content = pydicom.dcmread(write(tmp_path / "a.dcm"))
    content.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    content.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xc3\xff\xd9"])
    content["PixelData"].is_undefined_length = True
    content.save_as(tmp_path / "a.dcm")
    message = r"a\.dcm: cannot be decoded: JPEG Lossless, .*needs more packages, pip install 'pylibjpeg\[all\]'$"
    with pytest.raises(CorruptImage, match=message):
        read_image(tmp_path / "a.dcm", channels=1)


def test_packages_are_named_without_the_name_of_the_compression() -> None:
    why = undecodable(RuntimeError("Unable to decode: missing dependencies"))
    assert why == "cannot be decoded: its compression needs more packages, pip install 'pylibjpeg[all]'"


def lut(values: np.ndarray, bits: int, first: int = 0) -> pydicom.Sequence:
    item = pydicom.Dataset()
    item.LUTDescriptor, item.LUTData = [len(values), first, bits], values.astype(np.uint16).tobytes()
    return pydicom.Sequence([item])


V = STORED.astype(np.float64)
TABLE = np.minimum(np.arange(4096) ** 2 // 4096, 1023)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, V / 4095),
        ({"PhotometricInterpretation": "MONOCHROME1"}, 1 - V / 4095),
        ({"WindowCenter": 2000, "WindowWidth": 1001}, ((V - 1999.5) / 1000 + 0.5).clip(0, 1)),
        ({"WindowCenter": [2000, 5], "WindowWidth": [1001, 9]}, ((V - 1999.5) / 1000 + 0.5).clip(0, 1)),
        (
            {"WindowCenter": 0, "WindowWidth": 1000, "VOILUTFunction": "LINEAR_EXACT", "RescaleIntercept": -2000}
            | {"RescaleSlope": 2},
            ((2 * V - 2000) / 1000 + 0.5).clip(0, 1),
        ),
        (
            {"WindowCenter": 2000, "WindowWidth": 800, "VOILUTFunction": "SIGMOID"},
            1 / (1 + np.exp(-4 * (V - 2000) / 800)),
        ),
        ({"RescaleSlope": -1, "RescaleIntercept": 4095}, 1 - V / 4095),
        ({"VOILUTSequence": lut(TABLE, 10)}, TABLE[STORED] / 1023),
        ({"ModalityLUTSequence": lut(TABLE, 10)}, TABLE[STORED] / 1023),
        ({"VOILUTSequence": lut(TABLE, 16)}, TABLE[STORED] / 1023),
        ({"VOILUTSequence": lut(TABLE, 8)}, TABLE[STORED] / 1023),
        (
            {"VOILUTSequence": lut(TABLE, 10, 2**16 - 2048), "RescaleIntercept": -2048, "RescaleSlope": 1},
            TABLE[STORED] / 1023,
        ),
        (
            {"PixelRepresentation": 1, "PixelData": (STORED.astype(np.int16) - 2048).tobytes()},
            V / 4095,
        ),
    ],
    ids=[
        "bits",
        "inverted",
        "window",
        "windows",
        "exact",
        "sigmoid",
        "negative",
        "voi",
        "modality",
        "few_bits",
        "many_bits",
        "signed_voi",
        "signed",
    ],
)
def test_pixels_are_rescaled_windowed_and_inverted(tmp_path: Path, changes: dict[str, Any], expected: Any) -> None:
    path = write(tmp_path / "a.dcm", **changes)
    made = read_image(path, channels=1, dtype=np.uint16)
    assert made.shape == (48, 40, 1) and np.abs(made[..., 0] / 65535 - expected).max() < 1e-4
    header = read_header(path)
    assert (header.height, header.width, header.grey, header.bits) == (48, 40, True, 16)
    of_8_bits = read_image(path, channels=3)
    assert of_8_bits.shape == (48, 40, 3) and (of_8_bits[..., 1] == made[..., 0] // 256).all()


def test_eight_bits_stay_eight_bits(tmp_path: Path) -> None:
    pixels = (STORED // 16).astype(np.uint8)
    path = write(tmp_path / "a.dicom", pixels, BitsAllocated=8, BitsStored=8, HighBit=7)
    assert read_header(path).bits == 8 and (read_image(path, channels=1)[..., 0] == pixels).all()


@pytest.mark.parametrize(
    ("pixels", "changes", "message"),
    [
        (np.zeros((48, 40), np.uint16), {}, "all of its pixels have the value 0"),
        (STORED[:1], {}, r"it has 1 x 40 px \(rows x columns\)"),
        (
            np.zeros((48, 40, 3), np.uint8),
            {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
            | {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7},
            r"it has 3 channels \(RGB\); a radiograph has one",
        ),
        (STORED, {"PhotometricInterpretation": "PALETTE COLOR"}, "interpretation is PALETTE COLOR, not MONOCHROME1 or"),
        (STORED, {"NumberOfFrames": 7}, "it has 7 frames; export them as single images"),
        (STORED, {"Modality": "CT"}, "it is a slice of a volume; convert its series with densepath data dicom"),
        (STORED, {"PixelData": b"\0\0"}, "cannot be decoded"),
        (STORED, {"WindowCenter": 50000, "WindowWidth": 100}, "its window shows all pixels alike; correct the window"),
        (STORED, {"WindowCenter": 9, "WindowWidth": 0, "VOILUTFunction": "SIGMOID"}, "its window has the width 0"),
    ],
    ids=["black", "row", "channels", "palette", "frames", "slice", "short", "outside", "width"],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, pixels: np.ndarray, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "a.dcm", pixels, **changes)
    with pytest.raises(CorruptImage, match=message) as caught:
        read_image(path, channels=1)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_damaged_length_takes_no_memory(
    tmp_path: Path, bounded_memory: Callable[..., AbstractContextManager[None]]
) -> None:
    whole = write(tmp_path / "a.dcm").read_bytes()
    length = whole.index(b"\xe0\x7f\x10\0OW") + 8
    (tmp_path / "b.dcm").write_bytes(whole[:length] + b"\xf0\xff\xff\xff" + whole[length + 4 :])
    expected = read_image(tmp_path / "a.dcm", channels=1)
    with bounded_memory(60, most=2**10):
        assert np.array_equal(read_image(tmp_path / "b.dcm", channels=1), expected)


def test_a_folder_of_radiographs_is_a_source_and_no_identifier_leaves_it(tmp_path: Path) -> None:
    for number in range(4):
        write(tmp_path / f"in/{number}.dcm", np.roll(STORED, number, 0))
    Image.fromarray((STORED // 16).astype(np.uint8)).save(tmp_path / "in/4.png")
    images = find_source(tmp_path / "in")
    assert isinstance(images, ImageFiles) and len(images) == 5 and not holds_slides(tmp_path / "in")
    assert images.spec.channels == 1 and images.spec.window == (0, 65535)
    pack(tmp_path / "in", tmp_path / "packed.safetensors")
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name != "in"]
    assert written
    for path in written:
        assert not [secret for secret in SECRETS if secret.encode() in path.read_bytes()]


def test_patients_of_files_are_numbers(tmp_path: Path) -> None:
    """Divisions by patient need to know whose a file is, and nothing that they give says who that is."""
    paths = [str(write(tmp_path / f"{n}.dcm", PatientID=f"MRN{9 - n // 2}")) for n in range(4)]
    paths.append(str(write(tmp_path / "4.dcm", PatientID="")))
    paths += [str(tmp_path / "00001280_004.png"), str(tmp_path / "patient00003/study1/view1_frontal.jpg")]
    paths.append(str(write(tmp_path / "mislabelled.png", PatientID="MRN8")))
    numbers = ["patient_0002"] * 2 + ["patient_0001"] * 2
    expected = [*numbers, paths[4], "00001280", "patient00003", "patient_0001"]
    assert owners_by_name(tmp_path, paths) == (expected, "")
    assert owners_by_name(tmp_path, paths[:4]) == (numbers, NUMBERED)
    below = [Path(path).name for path in paths[:4]]
    assert owners_of(below, Listed(below), Labels("folders"), None, tmp_path) == (numbers, NUMBERED)
