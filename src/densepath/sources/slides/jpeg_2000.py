"""What the header of a JPEG 2000 codestream says of how it was made."""

from __future__ import annotations

from typing import NamedTuple

_START = b"\xff\x4f\xff\x51"  # SOC and SIZ; boxes may come before them
_STYLE = 0x52  # the second byte of COD


class CodingStyle(NamedTuple):
    """How a codestream was made.

    Args:
        converts: whether its decoder converts YCbCr to RGB.
        halvings: how often it can be halved while it is decoded.
    """

    converts: bool
    halvings: int


def coding_style(data: bytes) -> CodingStyle:
    """The coding style in the main header of a codestream.

    Raises:
        ValueError: it has none.
    """
    place = data.find(_START) + 2
    while place >= 2 and data[place : place + 1] == b"\xff":
        if data[place + 1] == _STYLE and place + 10 <= len(data):
            return CodingStyle(bool(data[place + 8]), data[place + 9])
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    raise ValueError("no header of JPEG 2000")
