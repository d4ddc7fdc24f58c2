"""ZIP archives that others wrote, looked over before a reader takes memory for what they hold."""

from __future__ import annotations

import os
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

from densepath.core.errors import UserError

_LIST_END, _WIDE_END, _WIDE_PLACE = b"PK\5\6", b"PK\6\6", b"PK\6\7"  # the records at an archive's end
_LIST_END_BYTES, _WIDE_BYTES, _PLACE_BYTES = 22, 56, 20
_MOST_COMMENT = 2**16 - 1
_HEAD_BYTES = 30  # before an entry's name and what else its writer noted, whose lengths it ends with


def refuse_swelling(path: Path) -> None:
    """Refuse an archive that takes more memory than it has bytes: compressed, overlapping, or with a bytearray.

    ``torch.save`` stores its entries as they are, but ``torch.load`` inflates others too, at any rate, and makes a
    bytearray as large as it is told to.

    Raises:
        UserError: it does, or it is no whole archive.
    """
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            entries, listed_at = archive.infolist(), archive.start_dir
    except Exception as error:  # broken bytes fail wherever the reader happens to be
        raise UserError(f"{path} is damaged or is no torch file; copy or export it again") from error
    if listed_at != _list_place(path, size):
        raise UserError(f"{path} is damaged: its list of entries is not where it should be; copy or export it again")
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise UserError(f"{path} is a TorchScript program, not weights; save its state_dict() by torch.save")
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if packed or sum(entry.file_size for entry in entries) > size:
        raise UserError(f"{path} is compressed, or its parts overlap, which torch.save never does; save it with that")
    with path.open("rb") as file:
        if any(b"bytearray" in _stored(file, entry) for entry in entries if entry.filename.endswith(".pkl")):
            raise UserError(f"{path} holds a bytearray, which weights do not; save its state_dict() alone")


def _stored(file: BinaryIO, entry: zipfile.ZipInfo) -> bytes:
    """The bytes of an entry that is not compressed. Its checksum does not matter: torch may be told to leave it out."""
    file.seek(entry.header_offset)
    head = file.read(_HEAD_BYTES)
    file.seek(sum(struct.unpack_from("<HH", head, _HEAD_BYTES - 4)) if len(head) == _HEAD_BYTES else 0, os.SEEK_CUR)
    return file.read(entry.file_size)


def _list_place(path: Path, size: int) -> int | None:
    """Where an archive says that the list of its entries is.

    Python looks for it before the records at the end, torch where these say that it is. Only where both are the same
    place is it known that torch reads the list that was looked over.
    """
    with path.open("rb") as file:
        file.seek(max(0, size - _MOST_COMMENT - _LIST_END_BYTES - _PLACE_BYTES - _WIDE_BYTES))
        start, tail = file.tell(), file.read()
    end = tail.rfind(_LIST_END, 0, len(tail) - _LIST_END_BYTES + len(_LIST_END))
    place, wide = end - _PLACE_BYTES, end - _PLACE_BYTES - _WIDE_BYTES
    if place < 0 or not tail.startswith(_WIDE_PLACE, place):
        return int(struct.unpack_from("<I", tail, end + 16)[0])
    whole = wide >= 0 and tail.startswith(_WIDE_END, wide)
    if not whole or struct.unpack_from("<Q", tail, place + 8)[0] != start + wide:
        return None
    return int(struct.unpack_from("<Q", tail, wide + 48)[0])
