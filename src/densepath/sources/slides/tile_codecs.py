"""Decoding the tiles of a TIFF: JPEG and JPEG 2000, also reduced, and what Pillow's libtiff knows."""

from __future__ import annotations

import io
import math
import re
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from densepath.core.errors import UserError
from densepath.sources.conversion import on_white, straight
from densepath.sources.slides.jpeg_2000 import coding_style
from densepath.sources.slides.jpeg_rows import shortened

NONE, JPEG, DEFLATE = 1, 7, (8, 32946)
JPEG_2000 = (33003, 33005, 34712)
CONVERTED = (JPEG, *JPEG_2000)  # compressions of which YCbCr is converted to RGB here
_APERIO_YCBCR, _APERIO_RGB = 33003, 33005
CODECS = {NONE: "none", 5: "LZW", JPEG: "JPEG", 32773: "PackBits"}
CODECS |= dict.fromkeys(JPEG_2000, "JPEG 2000") | dict.fromkeys(DEFLATE, "Deflate")
_UNCHANGED, _DIFFERENCES = 1, 2  # Predictor
_WHITE_IS_ZERO, _RGB, _YCBCR = 0, 2, 6  # PhotometricInterpretation
_SCALES = {"JPEG": (1, 2, 4, 8), "JPEG 2000": (1, 2, 4)}
_START, _END, _JFIF = b"\xff\xd8", b"\xff\xd9", b"\xff\xe0"
_PADDING = 8  # bytes between the pixels and the end of a JPEG that do not mean damage
_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0xd([0-79])")  # a restart, or the end

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class TileFormat:
    """How the tiles of a level are stored.

    Args:
        compression, photometric, predictor: TIFF's numbers.
        height, width: of a tile in pixels.
        samples: channels of a tile: 1 or 3, or 4 with transparency.
        jpeg_start: the beginning of each JPEG: its tables, and the marker that says whether it is RGB or YCbCr.
        premultiplied: whether colors were multiplied by a fourth channel.
        padded: whether a fourth channel is not transparency, and is ignored.
        halvings: how often a tile can at most be halved while it is decoded.
    """

    compression: int
    photometric: int
    predictor: int
    height: int
    width: int
    samples: int
    jpeg_start: bytes = b""
    premultiplied: bool = False
    padded: bool = False
    halvings: int = 3

    @property
    def codec(self) -> str:
        """The name of the compression; empty if it is unknown."""
        return CODECS.get(self.compression, "")

    @property
    def scales(self) -> tuple[int, ...]:
        """Factors by which a tile can be reduced while it is decoded."""
        scales = _SCALES.get(self.codec, (1,))[: self.halvings + 1]
        return tuple(scale for scale in scales if self.height % scale == 0 == self.width % scale)

    def decode(self, data: bytes, scale: int = 1, rows: int | None = None) -> Pixels:
        """A tile (height / scale, width / scale, 1 or 3), or its first rows where others need not be decoded.

        Args:
            data: the tile as it is stored.
            scale: one of ``scales``.
            rows: how many rows of the reduced tile are needed, from the top; None for all.

        Raises:
            Exception: of nearly any type, if the data is corrupt.
        """
        if self.compression == JPEG:
            pixels = self._jpeg(data, scale, rows)
        elif self.compression in JPEG_2000:
            pixels = self._jpeg_2000(data, scale)
        elif self.compression == NONE and self.predictor == _UNCHANGED:
            pixels = np.frombuffer(data, np.uint8).reshape(self.height, self.width, self.samples)
        elif self.compression in DEFLATE and self.predictor in (_UNCHANGED, _DIFFERENCES):
            pixels = self._deflate(data)
        else:
            pixels = self._libtiff(data)
        if pixels.shape[0] not in (rows, self.height // scale) or pixels.shape[1] != self.width // scale:
            raise ValueError(f"{pixels.shape[1]} x {pixels.shape[0]} px")
        if self.photometric == _WHITE_IS_ZERO:
            pixels = np.invert(pixels)
        if pixels.shape[2] < 4:
            return pixels
        if self.padded:
            return np.ascontiguousarray(pixels[:, :, :3])
        return on_white(straight(pixels) if self.premultiplied else pixels)

    def _jpeg(self, data: bytes, scale: int, rows: int | None) -> Pixels:
        decode_jpeg = _simplejpeg().decode_jpeg
        body = data[2:]
        if self.photometric == _RGB and body.startswith(_JFIF):  # it would mean YCbCr, whatever else is said
            body = body[2 + int.from_bytes(body[2:4], "big") :]
        jpeg, full_height = self.jpeg_start + body, self.height
        if rows is not None:
            jpeg, full_height = shortened(jpeg, (self.height, self.width), rows * scale)
        height, width, channels = full_height // scale, self.width // scale, 1 if self.samples == 1 else 3
        given: dict[str, Any] = {"colorspace": "GRAY" if channels == 1 else "RGB"}
        given["buffer"] = np.empty((height, width, channels), np.uint8)  # a larger image is refused
        if scale > 1:
            given |= {"min_height": height, "min_width": width, "min_factor": scale}
        try:
            pixels = decode_jpeg(jpeg, **given)
        except ValueError as error:
            unread = _EXTRANEOUS.search(str(error))  # it is the first problem: all rows were decoded without another
            if unread is None or (full_height == self.height and int(unread[1]) > _PADDING):
                raise
            short = full_height < self.height
            pixels = given["buffer"] if short else decode_jpeg(jpeg, strict=False, **given)
        return pixels if full_height == self.height else pixels[:rows]  # the colors of others may be wrong

    def _jpeg_2000(self, data: bytes, scale: int) -> Pixels:
        image: Any = Image.open(io.BytesIO(data), formats=("JPEG2000",))
        if image.size != (self.width, self.height):  # before memory is allocated
            raise ValueError(f"{image.size[0]} x {image.size[1]} px")
        image.reduce = scale.bit_length() - 1
        pixels = np.asarray(image)
        if image.mode != "L" and self._keeps_ycbcr(data):
            pixels = np.asarray(Image.fromarray(pixels, "YCbCr").convert("RGB"))
        return pixels.reshape(*pixels.shape[:2], -1)

    def _keeps_ycbcr(self, data: bytes) -> bool:
        """Whether the decoder of JPEG 2000 leaves the colors of a tile as YCbCr."""
        ycbcr = self.photometric == _YCBCR and self.compression != _APERIO_RGB
        return self.compression == _APERIO_YCBCR or (ycbcr and not coding_style(data).converts)

    def _deflate(self, data: bytes) -> Pixels:
        """Decode by zlib; bytes after those of the tile are ignored, but only if the checksum is right."""
        size = self.height, self.width, self.samples
        count, decoder, surplus = math.prod(size), zlib.decompressobj(), False
        pixels = np.frombuffer(decoder.decompress(data, count), np.uint8).reshape(size)
        while decoder.decompress(decoder.unconsumed_tail, count):  # up to the checksum, in little memory
            surplus = True
        if surplus and not decoder.eof:
            raise ValueError("more bytes than a tile has, and no checksum")
        return pixels if self.predictor == _UNCHANGED else np.cumsum(pixels, axis=1, dtype=np.uint8)

    def _libtiff(self, data: bytes) -> Pixels:
        """Decode by Pillow's libtiff, which is given the tile as an image of one strip."""
        with Image.open(io.BytesIO(self._as_file(data)), formats=("TIFF",)) as image:
            pixels = np.asarray(image)
        if self.photometric == _WHITE_IS_ZERO:  # Pillow has inverted it
            pixels = np.invert(pixels)
        return pixels.reshape(*pixels.shape[:2], -1)

    def _as_file(self, data: bytes) -> bytes:
        tags = [(256, 4, 1, self.width), (257, 4, 1, self.height), (258, 3, self.samples, 8)]
        tags += [(259, 3, 1, self.compression), (262, 3, 1, self.photometric), (273, 4, 1, 0)]
        tags += [
            (277, 3, 1, self.samples),
            (278, 4, 1, self.height),
            (279, 4, 1, len(data)),
            (317, 3, 1, self.predictor),
        ]
        tags += [(338, 3, 1, 2)] * (self.samples == 4)
        bits = 8 + 2 + 12 * len(tags) + 4
        values = {258: bits if self.samples > 2 else 0x00080008, 273: bits + 8}
        entries = b"".join(struct.pack("<HHII", t, kind, count, values.get(t, v)) for t, kind, count, v in tags)
        head = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
        return head + entries + struct.pack("<I4H", 0, *(8,) * 4) + data


def jpeg_start(tables: bytes, photometric: int) -> bytes:
    """What a JPEG tile of a TIFF begins with instead of its own start marker.

    A decoder takes a JPEG of three channels for YCbCr; an Adobe marker says what the TIFF's tag says.

    Args:
        tables: the tag JPEGTables, a JPEG without pixels; may be empty.
        photometric: the tag PhotometricInterpretation.
    """
    adobe = b"\xff\xee" + struct.pack(">H5sHHHB", 14, b"Adobe", 100, 0, 0, int(photometric == _YCBCR))
    body = tables.removeprefix(_START).removesuffix(_END)
    return _START + (adobe if photometric in (_RGB, _YCBCR) else b"") + body


def _simplejpeg() -> Any:
    try:
        import simplejpeg
    except ImportError as error:
        raise UserError('slides with JPEG tiles need simplejpeg; pip install "densepath[slides]"') from error
    return simplejpeg
