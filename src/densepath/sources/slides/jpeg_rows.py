"""Decoding only the first rows of a JPEG, by a header that says that it has no others.

A sequential JPEG stores its blocks row by row. A decoder that is told of fewer rows stops after them, and their pixels
are those of the whole image. For windows that do not lie on a slide's tiles that saves a quarter of the work: of the
lowest tiles only the upper part is needed.
"""

from __future__ import annotations

_SEQUENTIAL = (0xC0, 0xC1)  # frames whose blocks are stored once, in rows
_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD9))
_SCAN, _FILL = 0xDA, 0xFF
_BLOCK = 8


def shortened(jpeg: bytes, height: int, rows: int) -> tuple[bytes, int]:
    """The JPEG with a header of fewer rows, and how many it now has; those that are needed are decoded as before.

    Args:
        jpeg: a JPEG with its headers.
        height: rows that it has.
        rows: rows that are needed, at most ``height``.

    Returns:
        As many rows as are needed or some more, in whole rows of blocks. The JPEG as it is, with ``height``, if its
        header has another height, it stores its blocks in another order, or it is needed nearly whole.
    """
    frame = _frame(jpeg)
    if frame is None or int.from_bytes(jpeg[frame : frame + 2], "big") != height:
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
    """Where the height of a sequential frame is; None if the JPEG has no such frame."""
    at = 2
    while at + 9 < len(jpeg) and jpeg[at] == 0xFF:
        marker = jpeg[at + 1]
        if marker in _SEQUENTIAL:
            return at + 5
        if marker == _SCAN:
            return None
        if marker == _FILL:
            at += 1
        elif marker in _WITHOUT_LENGTH:
            at += 2
        else:
            at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return None
