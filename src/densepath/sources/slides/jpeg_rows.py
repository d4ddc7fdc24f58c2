"""Decoding only the first rows of a JPEG, by a header that says that it has no others.

A sequential JPEG stores its blocks row by row. A decoder stops after the rows that the header has, and their pixels are
those of the whole image. For windows that do not lie on a slide's tiles that saves a quarter of the work: of the
lowest tiles only the upper part is needed.
"""

from __future__ import annotations

_SEQUENTIAL = (0xC0, 0xC1)  # frames whose blocks are stored once, in rows
_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD9))
_SCAN, _FILL = 0xDA, 0xFF
_BLOCK = 8


def shortened(jpeg: bytes, size: tuple[int, int], rows: int) -> tuple[bytes, int]:
    """The JPEG with a header of fewer rows, and how many it now has; those that are needed are decoded as before.

    Args:
        jpeg: a JPEG with its headers.
        size: the height and width that it should have.
        rows: rows that are needed, at most that height.

    Returns:
        As many rows as are needed or some more, in whole rows of blocks. The JPEG as it is, with that height, if
        its header has another size, it stores its blocks in another order or channel after channel, or it is needed
        nearly whole.
    """
    frame, (height, width) = _frame(jpeg), size
    if frame is None or jpeg[frame : frame + 4] != height.to_bytes(2, "big") + width.to_bytes(2, "big"):
        return jpeg, height
    # After the height: width (2 bytes), the number of components, and 3 bytes for each: id, sampling factors, table.
    factors = jpeg[frame + 6 : frame + 5 + 3 * jpeg[frame + 4] : 3]
    tallest = max((factor & 15 for factor in factors), default=1)
    blocks = _BLOCK * max(tallest, 1)
    kept = -(-rows // blocks) * blocks
    if tallest > 1:
        kept += blocks  # coarser colors are interpolated between rows of blocks
    if kept >= height:
        return jpeg, height
    return jpeg[:frame] + kept.to_bytes(2, "big") + jpeg[frame + 2 :], kept


def _frame(jpeg: bytes) -> int | None:
    """Where the height of a sequential frame is; None if the JPEG has no such frame, or stores each channel apart."""
    at, frame = 2, None
    while at + 9 < len(jpeg) and jpeg[at] == 0xFF:
        marker = jpeg[at + 1]
        if marker in _SEQUENTIAL:
            frame = at + 5
        if marker == _SCAN:  # with the number of channels after its length
            return frame if frame is not None and jpeg[at + 4] == jpeg[frame + 4] else None
        if marker == _FILL:
            at += 1
        elif marker in _WITHOUT_LENGTH:
            at += 2
        else:
            at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return None
