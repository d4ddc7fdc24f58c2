"""Files that take far more memory or time to decode than their size suggests: animations, many scans."""

from __future__ import annotations

import io
import struct
from pathlib import Path

from densepath.sources.corrupt import CorruptImage

_USUAL_PIXELS = 2**24  # of a WebP, however few bytes it has: a blank tile is a hundred bytes
_PIXELS_PER_BYTE = 1000  # of a larger one; photographs have less than 100
_MOST_SCANNED = 2**30  # pixels x scans of a progressive JPEG; a second of decoding
_USUAL_SCANS = 16  # of any size; encoders write about 10
_ANIMATED = 2  # flags of a WebP
_ALPHA = 16


def check_scans(path: str | Path, pixels: int) -> None:
    """Refuse a progressive JPEG whose pixels are refined more often than encoders do.

    Args:
        path: the file.
        pixels: their number.

    Raises:
        CorruptImage: it would take seconds.
    """
    scans = Path(path).read_bytes().count(b"\xff\xda")
    if scans > _USUAL_SCANS and scans * pixels > _MOST_SCANNED:
        raise CorruptImage(str(path), f"{scans} progressive scans of {pixels:,} px; save it as a baseline JPEG")


def still_webp(path: str | Path) -> io.BytesIO | None:
    """The first frame of an animated WebP as a file of its own; None for another file.

    Pillow's decoder allocates three times the canvas before the first frame is decoded.

    Raises:
        CorruptImage: the frame does not cover the canvas, or the file has too few bytes for its pixels.
    """
    with open(path, "rb") as file:
        head = file.read(30)
        if head[:4] != b"RIFF" or head[8:12] != b"WEBP":
            return None
        data = head + file.read()
    canvas = _canvas(head)
    still = None
    if head[12:16] == b"VP8X" and head[20] & _ANIMATED:
        frame = next((content for kind, content in _chunks(data[12:]) if kind == b"ANMF"), b"")
        size = tuple(int.from_bytes(frame[place : place + 3], "little") + 1 for place in (6, 9))
        if size != canvas or any(frame[:6]):
            raise CorruptImage(str(path), "an animation whose first frame is a part of it; save the frame as an image")
        still = _still(dict(_chunks(frame[16:])), head)
    if canvas[0] * canvas[1] > max(_USUAL_PIXELS, _PIXELS_PER_BYTE * len(still.getvalue() if still else data)):
        raise CorruptImage(str(path), f"{canvas[0]} x {canvas[1]} px in {len(data):,} bytes; cut it into tiles first")
    return still


def _canvas(head: bytes) -> tuple[int, int]:
    """Width and height from the first 30 bytes of a WebP; zeros if they are cut off."""
    numbers = head.ljust(30, b"\0")
    if numbers[12:16] == b"VP8X":
        return int.from_bytes(numbers[24:27], "little") + 1, int.from_bytes(numbers[27:30], "little") + 1
    if numbers[12:16] == b"VP8L":
        bits = int.from_bytes(numbers[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(numbers[26:28], "little") & 0x3FFF, int.from_bytes(numbers[28:30], "little") & 0x3FFF


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """The chunks of a RIFF file, by kind, in their order."""
    found, place = [], 0
    while place + 8 <= len(data):
        length = int.from_bytes(data[place + 4 : place + 8], "little")
        found.append((data[place : place + 4], data[place + 8 : place + 8 + length]))
        place += 8 + length + length % 2
    return found


def _still(parts: dict[bytes, bytes], head: bytes) -> io.BytesIO:
    """A WebP file of the bitstream of one frame, and its transparency."""
    body = b"".join(_chunk(kind, parts[kind]) for kind in (b"ALPH", b"VP8 ", b"VP8L") if kind in parts)
    if b"ALPH" in parts:
        body = _chunk(b"VP8X", bytes([_ALPHA, 0, 0, 0]) + head[24:30]) + body
    return io.BytesIO(_chunk(b"RIFF", b"WEBP" + body))


def _chunk(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
