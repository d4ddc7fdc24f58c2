"""Slides of every layout, written tile by tile."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image

Pixels = npt.NDArray[np.uint8]
Encode = Callable[[Pixels], bytes]
JPEG, YCBCR, RGB = 7, 6, 2
APERIO = "Aperio Image Library v12\nsynthetic (128x128)|AppMag = 20|MPP = {mpp}|User = x"


def jpeg(pixels: Pixels, **options: Any) -> bytes:
    """A JPEG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **{"quality": 80, **options})
    return file.getvalue()


def tables() -> bytes:
    """The tag JPEGTables of tiles that :func:`aperio_tile` makes."""
    return jpeg(np.zeros((16, 16, 3), np.uint8), streamtype=1, keep_rgb=True)


def aperio_tile(pixels: Pixels) -> bytes:
    """A tile as Aperio stores it: RGB without tables, with the channels numbered as if they were YCbCr."""
    data = jpeg(pixels, streamtype=2, keep_rgb=True, subsampling=0)
    adobe = data.index(b"\xff\xee")
    data = data[:adobe] + data[adobe + 2 + int.from_bytes(data[adobe + 2 : adobe + 4], "big") :]
    frame, scan = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
    changed = bytearray(data)
    for number in range(3):
        changed[frame + 10 + 3 * number] = changed[scan + 5 + 2 * number] = number + 1
    return bytes(changed)


def jpeg_2000(pixels: Pixels, **options: Any) -> bytes:
    """A JPEG 2000 codestream."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG2000", no_jp2=True, irreversible=True, **options)
    return file.getvalue()


def write_tiles(
    path: Path,
    levels: Sequence[Pixels],
    encode: Encode,
    compression: int,
    photometric: int = RGB,
    *,
    tile: int = 128,
    jpeg_tables: bytes | None = None,
    description: str | None = None,
    reduced: bool = True,
    **options: Any,
) -> Path:
    """Write levels (H, W, 3) as a tiled TIFF, with tiles that are encoded here: tifffile knows few codecs."""
    with tifffile.TiffWriter(path) as tiff:
        for number, pixels in enumerate(levels):
            extra: list[Any] = [(347, 7, len(jpeg_tables), jpeg_tables, True)] if jpeg_tables else []
            extra += [(530, 3, 2, (2, 2), True)] * (photometric == YCBCR)
            tiff.write(
                (encode(each) for each in _cut(pixels, tile)),
                shape=pixels.shape,
                dtype=np.uint8,
                tile=(tile, tile),
                photometric="rgb",
                compression="zlib",
                subfiletype=int(number > 0 and reduced),
                description=description,
                metadata=None,
                software=False,
                extratags=extra,
                **options,
            )
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        for page in tiff.pages:
            page.tags["Compression"].overwrite(compression)
            page.tags["PhotometricInterpretation"].overwrite(photometric)
    return path


def _cut(pixels: Pixels, tile: int) -> Any:
    height, width = pixels.shape[:2]
    padded = np.pad(pixels, ((0, -height % tile), (0, -width % tile), (0, 0)), mode="edge")
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            yield np.ascontiguousarray(padded[top : top + tile, left : left + tile])


def halves(pixels: Pixels, factor: int) -> Pixels:
    """Means of squares; the last pixels are left out where they are not a whole square."""
    rows, columns = (length // factor for length in pixels.shape[:2])
    squares = pixels[: rows * factor, : columns * factor].reshape(rows, factor, columns, factor, 3)
    return np.rint(squares.mean((1, 3))).astype(np.uint8)


def damage_tile(path: Path, index: int, page: int = 0) -> None:
    """Overwrite the middle of a tile."""
    with tifffile.TiffFile(path) as tiff:
        start, count = tiff.pages[page].dataoffsets[index], tiff.pages[page].databytecounts[index]
    with path.open("r+b") as file:
        file.seek(start + count // 3)
        file.write(bytes(count // 3))


def write_dicom(folder: Path, levels: Sequence[Pixels], mpp: float, patient: str = "DOE^JANE", tile: int = 128) -> Path:
    """Write a DICOM slide: a file for each level, with JPEG tiles of 4:2:2; the first one's path."""
    import pydicom
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit, VLWholeSlideMicroscopyImageStorage, generate_uid

    def item(**values: Any) -> Dataset:
        made = Dataset()
        for name, value in values.items():
            setattr(made, name, value)
        return made

    series, study, frame = generate_uid(), generate_uid(), generate_uid()
    for number, pixels in enumerate(levels):
        (height, width), factor = pixels.shape[:2], levels[0].shape[0] // pixels.shape[0]
        spacing = mpp * factor / 1000  # mm
        kind = ["DERIVED" if number else "ORIGINAL", "PRIMARY", "VOLUME", "RESAMPLED" if number else "NONE"]
        tiles = [jpeg(each, subsampling=1, quality=95) for each in _cut(pixels, tile)]
        code = item(CodeValue="111744", CodingSchemeDesignator="DCM", CodeMeaning="Brightfield illumination")
        groups = item(
            PixelMeasuresSequence=[item(PixelSpacing=[spacing, spacing], SliceThickness=0.001)],
            WholeSlideMicroscopyImageFrameTypeSequence=[item(FrameType=kind)],
            OpticalPathIdentificationSequence=[item(OpticalPathIdentifier="0")],
        )
        made = item(
            SOPClassUID=VLWholeSlideMicroscopyImageStorage,
            SOPInstanceUID=generate_uid(),
            StudyInstanceUID=study,
            SeriesInstanceUID=series,
            FrameOfReferenceUID=frame,
            Modality="SM",
            PatientName=patient,
            PatientID=patient,
            AccessionNumber=patient[:16],
            AcquisitionDateTime="20200101000000",
            ContentDate="20200101",
            ContentTime="000000",
            InstanceNumber=number + 1,
            Manufacturer="synthetic",
            ManufacturerModelName="synthetic",
            DeviceSerialNumber="1",
            SoftwareVersions="1",
            ImageType=kind,
            Rows=tile,
            Columns=tile,
            TotalPixelMatrixRows=height,
            TotalPixelMatrixColumns=width,
            TotalPixelMatrixFocalPlanes=1,
            NumberOfOpticalPaths=1,
            DimensionOrganizationType="TILED_FULL",
            DimensionOrganizationSequence=[item(DimensionOrganizationUID=generate_uid())],
            SamplesPerPixel=3,
            PhotometricInterpretation="YBR_FULL_422",
            PlanarConfiguration=0,
            BitsAllocated=8,
            BitsStored=8,
            HighBit=7,
            PixelRepresentation=0,
            ImagedVolumeWidth=width * spacing,
            ImagedVolumeHeight=height * spacing,
            ImagedVolumeDepth=0.001,
            FocusMethod="AUTO",
            ExtendedDepthOfField="NO",
            VolumetricProperties="VOLUME",
            SpecimenLabelInImage="NO",
            BurnedInAnnotation="NO",
            LossyImageCompression="01",
            SharedFunctionalGroupsSequence=[groups],
            OpticalPathSequence=[item(OpticalPathIdentifier="0", IlluminationTypeCodeSequence=[code])],
            TotalPixelMatrixOriginSequence=[item(XOffsetInSlideCoordinateSystem=20, YOffsetInSlideCoordinateSystem=40)],
            ImageOrientationSlide=[0, -1, 0, -1, 0, 0],
            ContainerIdentifier="c",
            NumberOfFrames=len(tiles),
            PixelData=encapsulate(tiles),
        )
        made["PixelData"].is_undefined_length = True
        made.file_meta = FileMetaDataset()
        made.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
        made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
        pydicom.dcmwrite(folder / f"{patient[:3]}{number}.dcm", made, enforce_file_format=True)
    return folder / f"{patient[:3]}0.dcm"
