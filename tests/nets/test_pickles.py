"""Pickles of arrays are read; whatever else a pickle asks for is refused by its name, and nothing of it runs."""

from __future__ import annotations

import codecs
import os
import pickle
import struct
import subprocess
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densepath.core.errors import UserError
from densepath.nets.weights.pickles import read_pickle

ARRAYS: dict[str, Any] = {
    "plain": np.arange(6, dtype=np.float32).reshape(2, 3),
    "half": np.array([1.5, -2], np.float16),
    "double": np.array([[np.pi]]),
    "by columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "a cut": np.arange(12, dtype=np.int16).reshape(3, 4)[:, ::2],
    "of the other byte order": np.array([1, 2, 3], ">i4"),
    "bytes": np.arange(3, dtype=np.uint8),
    "true": np.array([True, False]),
    "one number": np.array(7),
    "a scalar": np.float32(2.5),
    "nothing": np.zeros((0, 3), np.float32),
}


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_all_kinds_come_as_they_were(protocol: int, tmp_path: Path) -> None:
    content = {
        "model": OrderedDict(ARRAYS),
        "again": ARRAYS,
        "notes": ["text", 1, 2.5, None, True, (1, 2, 3, 4)],
        5: {},
    }
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol))
    found = read_pickle(tmp_path / "a.pkl")
    assert found["notes"] == content["notes"] and found[5] == {}
    for kind, array in ARRAYS.items():
        for tensor in (found["model"][kind], found["again"][kind]):
            assert tensor.dtype == torch.from_numpy(np.zeros(1, array.dtype.newbyteorder("="))).dtype
            assert tensor.shape == array.shape
            np.testing.assert_array_equal(tensor.numpy(), array)


def test_what_python_2_wrote_is_read(tmp_path: Path) -> None:
    """Texts of bytes, and arrays whose bytes are such a text."""
    raw = np.array([1, -2], "<f4").tobytes()
    text = b"U" + bytes([len(raw)]) + raw
    dtype = b"cnumpy\ndtype\n(U\x02f4K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    path = tmp_path / "old.pkl"
    path.write_bytes(
        b"\x80\x02}U\x05modelccollections\nOrderedDict\n(]](U\x06weight"
        + made
        + b"(K\x01(K\x02t"
        + dtype
        + b"\x89"
        + text
        + b"tbeatRs."
    )
    np.testing.assert_array_equal(read_pickle(path)["model"]["weight"], [1, -2])


class Call:
    """Unpickling this calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.what = function, arguments

    def __reduce__(self) -> Any:
        return self.what


class Plain:
    """Unpickling this makes an object."""


def by_name(text: bytes) -> bytes:
    return b"\x80\x04" + text + b"."


OBJECTS = np.array([Call(os.system, "touch owned")], object)
HOSTILE: dict[str, tuple[Any, str]] = {
    "os.system": (Call(os.system, "touch owned"), r"(posix|nt)\.system"),
    "eval": (Call(eval, "open('owned', 'w')"), r"(builtins|__builtin__)\.eval"),
    "exec": (Call(exec, "open('owned', 'w')"), r"(builtins|__builtin__)\.exec"),
    "getattr": (Call(getattr, Path, "touch"), "getattr"),
    "subprocess": (Call(subprocess.call, ["touch", "owned"]), r"(subprocess|commands)\.call"),
    "an object of this test": (Plain(), r"\.Plain|copy_reg\._reconstructor"),
    "an array of objects": (OBJECTS, r"system|array of type O8"),
    "an empty array of objects": (np.array([], object), "array of type O8"),
    "a structure": (np.zeros(1, [("a", "f4"), ("b", "O")]), "array of type V"),
    "a loader of numpy": (Call(np.load, "owned.npy"), r"numpy.*\.load"),
    "a torch storage": ({"model": {"a": torch.zeros(2)}}, r"torch\._utils"),
    "a class of this project": (UserError("x"), r"densepath\.core\.errors\.UserError"),
}
BYTES: dict[str, tuple[bytes, str]] = {
    "an object by INST": (b"(S'touch owned'\nios\nsystem\n.", r"os\.system"),
    "an object by OBJ": (b"(cos\nsystem\nS'touch owned'\no.", r"os\.system"),
    "a name joined on the way": (by_name(b"\x8c\x02os\x8c\x06system\x93\x8c\x0btouch owned\x85R"), r"os\.system"),
    "a dotted name": (by_name(b"\x8c\x05numpy\x8c\x11testing.os.system\x93"), r"numpy\.testing\.os"),
    "a submodule of an allowed one": (by_name(b"cnumpy.core.multiarray\nos.system\n"), r"numpy\.core\.multiarray\.os"),
    "a name with a line feed": (by_name(b"\x8c\x03o\ns\x8c\x06system\x93"), r"o\\ns\.system"),
}


@pytest.mark.parametrize("kind", [*HOSTILE, *BYTES])
def test_objects_are_refused_by_name_and_nothing_runs(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    thing, name = HOSTILE[kind] if kind in HOSTILE else BYTES[kind]
    model = {"model": {"conv1.weight": thing}}
    for content in [thing] if kind in BYTES else [pickle.dumps(model, protocol) for protocol in range(6)]:
        Path("w.pkl").write_bytes(content)
        message = rf"w\.pkl holds more than arrays \(.*{name}.*\) and could run code"
        with pytest.raises(UserError, match=message) as error:
            read_pickle(Path("w.pkl"))
        assert "\n" not in str(error.value)
        assert os.listdir() == ["w.pkl"]


def frombuffer(data: bytes, *shape: int) -> Call:
    """An array that claims a shape for the bytes that it stands on."""
    return Call(np._core.numeric._frombuffer, data, np.dtype("u1"), shape, "C")  # type: ignore[attr-defined]


MEGABYTE, LONG = bytes(2**20), "a" * 2**20
PAIRS = [(str(number), None) for number in range(1000)]
ABSURD: dict[str, Any] = {
    "a shape beyond the file": frombuffer(b"abcd", 2**40),
    "a shape that overflows": frombuffer(b"abcd", 2**62, 4),
    "a negative shape": frombuffer(b"abcd", -(2**40), 4),
    "too many axes": frombuffer(b"a", *[1] * 100),
    "a shape that is not numbers": frombuffer(b"abcd", "4"),  # type: ignore[arg-type]
    "the same bytes as many arrays": {number: frombuffer(MEGABYTE, 2**20) for number in range(1000)},
    "the same text as many bytes": [Call(codecs.encode, LONG, "latin1") for _ in range(1000)],
    "the same list as many dictionaries": [Call(OrderedDict, PAIRS) for _ in range(10**4)],
    "a text of absurd length": b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"abc.",
    "bytes of absurd length": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"abc.",
    "a byte array of absurd length": b"\x80\x05\x96" + struct.pack("<Q", 2**34) + b"abc.",
    "a frame of absurd length": b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"N",
    "a number of absurd length": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"abc.",
    "a memo that lacks the place": b"\x80\x02]r" + struct.pack("<I", 2**32 - 1) + b"j" + struct.pack("<I", 5) + b".",
    "millions of lists": b"\x80\x02" + b"]" * (10**7) + b".",
    "millions of marks": b"\x80\x02" + b"(" * (10**7) + b".",
    "no end": b"\x80\x04N",
    "nothing to take": b"\x80\x04\x86.",
    "no mark": b"\x80\x04t.",
    "a call of a text": b"\x80\x04\x8c\x01a)R.",
    "a text filled as an array": b"\x80\x04\x8c\x01a)b.",
    "nothing": b"",
    "a new object": by_name(b"ccollections\nOrderedDict\n)\x81"),
    "an extension of copyreg": by_name(b"\x82\x01"),
    "a persistent id": by_name(b"Pos.system\n"),
}


@pytest.mark.parametrize("kind", ABSURD)
def test_absurd_sizes_and_needless_instructions_are_refused_in_little_memory(
    kind: str, tmp_path: Path, bounded_memory: Callable[..., AbstractContextManager[None]]
) -> None:
    path = tmp_path / "w.pkl"
    path.write_bytes(ABSURD[kind] if isinstance(ABSURD[kind], bytes) else pickle.dumps(ABSURD[kind], 4))
    with bounded_memory(250), pytest.raises(UserError, match=r"w\.pkl is damaged or contains no weights") as error:
        read_pickle(path)
    assert "\n" not in str(error.value)


def read_bytes(folder: Path, content: bytes) -> Any:
    (folder / "w.pkl").write_bytes(content)
    return read_pickle(folder / "w.pkl")


def test_whatever_the_bytes_are_they_are_read_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bounded_memory: Callable[..., AbstractContextManager[None]]
) -> None:
    monkeypatch.chdir(tmp_path)
    content = {"model": {name: value for name, value in ARRAYS.items()}, "__author__": "torchvision"}
    whole = [pickle.dumps(content, protocol) for protocol in range(6)]

    @settings(max_examples=300, deadline=None)
    @given(
        protocol=st.integers(0, 5),
        changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4),
        keep=st.just(1.0) | st.floats(0, 1),
    )
    def fuzz(protocol: int, changes: list[tuple[float, int]], keep: float) -> None:
        changed = bytearray(whole[protocol])
        for place, value in changes:
            changed[int(place * len(changed))] = value
        try:
            read_bytes(tmp_path, bytes(changed[: round(keep * len(changed))]))
        except UserError as error:
            assert "w.pkl" in str(error) and "\n" not in str(error)

    with bounded_memory(100):
        fuzz()
    assert os.listdir() == ["w.pkl"]
