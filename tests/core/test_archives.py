"""Files of torch that hold more than they have: refused by one line, before any memory is taken for it."""

import copy
import struct
import zipfile

import pytest
import torch

from densepath.core.archives import refuse_swelling
from densepath.core.errors import UserError
from densepath.nets.weights import read_weights
from densepath.runs import checkpoints
from densepath.runs.checkpoints import read_checkpoint

SWELLING = 2**27  # 128 MiB, of which the files have less than one


def bomb(kind, path):
    """A file of torch that swells as it is loaded."""
    parts, method = (1, zipfile.ZIP_DEFLATED) if "deflated" in kind else (256, zipfile.ZIP_STORED)
    weights = {f"layer{i}.weight": torch.zeros(SWELLING // 4 // parts) for i in range(parts)}
    torch.save({"format": "densepath checkpoint 1", "step": 1, "state_dict": weights}, path)
    stored = None
    with zipfile.ZipFile(path) as old:
        content = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for name, data in content.items():
            if name.endswith("data.pkl") and kind == "deflated pickle":
                # What stands behind the end of a pickle is never looked at, but read.
                new.writestr(name, data + bytes(SWELLING), zipfile.ZIP_DEFLATED, 1)
            elif "/data/" not in name:
                new.writestr(name, data)
            elif stored is None or method == zipfile.ZIP_DEFLATED:
                new.writestr(name, data if "weights" in kind or parts > 1 else data[:16], method, 1)
                stored = new.filelist[-1]
            else:
                listed = copy.copy(stored)
                listed.filename = listed.orig_filename = name
                new.filelist.append(listed)
    if "two lists" in kind:
        list_harmless_entries(path)


def list_harmless_entries(path):
    """Put a second list of the entries, none of them compressed, where Python looks for it and torch does not."""
    data = path.read_bytes()
    size, place = struct.unpack_from("<II", data, len(data) - 22 + 12)
    harmless, at = bytearray(data[place : place + size]), 0
    while at < size:
        (packed,) = struct.unpack_from("<I", harmless, at + 20)
        struct.pack_into("<H", harmless, at + 10, zipfile.ZIP_STORED)
        struct.pack_into("<I", harmless, at + 24, packed)
        at += 46 + sum(struct.unpack_from("<HHH", harmless, at + 28))
    path.write_bytes(data[: place + size] + harmless + data[place + size :])
    with zipfile.ZipFile(path) as archive:
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}


@pytest.mark.parametrize("reader", ["weights", "checkpoint"])
@pytest.mark.parametrize(
    "kind", ["deflated weights", "deflated pickle", "overlapping weights", "deflated weights, two lists"]
)
def test_what_swells_takes_no_memory(kind, reader, tmp_path, bounded_memory):
    path = tmp_path / "swells.pth"
    bomb(kind, path)
    if reader == "checkpoint":
        checkpoints._seal(path)
    assert path.stat().st_size < 2**20
    with bounded_memory(40), pytest.raises(UserError, match=r"swells\.pth is (compressed|damaged)"):
        (read_weights if reader == "weights" else read_checkpoint)(path)


@pytest.mark.parametrize("count", [1, 300])
def test_what_torch_writes_is_let_through(count, tmp_path):
    torch.save([torch.zeros(i) for i in range(count)], tmp_path / "whole.pt")
    refuse_swelling(tmp_path / "whole.pt")
    checkpoints._seal(tmp_path / "whole.pt")
    refuse_swelling(tmp_path / "whole.pt")


def test_the_list_of_an_archive_must_be_where_its_end_says(tmp_path):
    """Torch believes a record that says where the wide end is; another place than Python's may hold another list."""
    path = tmp_path / "moved.pt"
    torch.save({"a": torch.zeros(3)}, path)
    whole = path.read_bytes()
    wide = whole.rfind(b"PK\6\6")
    assert wide == len(whole) - 98  # torch writes it
    for place, form, value in [(wide + 48, "<Q", 0), (wide + 76 - 12, "<Q", 0), (wide, "<I", 0)]:
        data = bytearray(whole)
        struct.pack_into(form, data, place, value)
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"moved\.pt is damaged"):
            refuse_swelling(path)


def test_a_torchscript_program_is_named_as_such(tmp_path):
    path = tmp_path / "program.pt"
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(path)
    with pytest.raises(UserError, match="TorchScript program"):
        refuse_swelling(path)


def test_a_bytearray_that_asks_for_memory_is_refused(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"weight": torch.zeros(2), "room": Room()}, path)
    with pytest.raises(UserError, match="bytearray"):
        refuse_swelling(path)
    path.write_bytes(path.read_bytes().replace(b"bytearray", b"bytes\0\0\0\0"))  # a wrong checksum is torch's affair
    refuse_swelling(path)


class Room:
    """Comes back as a bytearray of the size it asks for."""

    def __reduce__(self):
        return bytearray, (SWELLING,)
