"""Arrays in a plain pickle, the format of detectron2's weights, read without running any code that the file names."""

from __future__ import annotations

import pickle
import pickletools
import re
from collections import OrderedDict
from collections.abc import Callable
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from densepath.core.errors import UserError, errors_as

_MOST_STEPS = 10**6  # each instruction may take some memory; a ResNet-152 has 30,000
_NUMBERS = re.compile(r"f[248]|[iu][1248]|b1")


def read_pickle(path: Path) -> Any:
    """The content of a pickle of plain containers, numbers, texts and arrays; the arrays become tensors.

    The memory use is a small multiple of the file's size, whatever sizes the file declares.

    Raises:
        UserError: the file is damaged, or needs any other class or function; the message names it.
    """
    with (
        errors_as(lambda error: _refusal(path, error)),
        path.open("rb") as file,
        mmap(file.fileno(), 0, access=ACCESS_READ) as content,
    ):
        _check(content)
        return _finished(_ArrayUnpickler(content).load(), set())


class _Unsupported(Exception):
    """A pickle contains more than arrays and plain containers."""


def _refusal(path: Path, error: Exception) -> UserError:
    if not isinstance(error, _Unsupported):
        return UserError(f"{path} is damaged or contains no weights; copy or export it again")
    holds = f"{path} holds more than arrays ({error}) and could run code if it were loaded"
    return UserError(f"{holds}; save only its state_dict()")


def _check(content: Any) -> None:
    """Refuse instructions that would take too much memory, before any is executed."""
    argument: Any
    for step, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if step == _MOST_STEPS or (opcode.name.endswith("PUT") and int(argument) > _MOST_STEPS):
            raise ValueError("too many instructions")
    content.seek(0)


class _Dtype:
    """Replaces ``numpy.dtype``: a type of numbers and their byte order."""

    def __init__(self, kind: str, *_: Any) -> None:
        if not _NUMBERS.fullmatch(kind):
            raise _Unsupported(f"an array of type {kind[:20]}")
        self.numpy = np.dtype(kind)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.numpy = self.numpy.newbyteorder(state[1])


class _Array:
    """Replaces ``numpy.ndarray``: an array whose content is set later."""

    tensor: Tensor | None = None

    def __init__(self, reader: _ArrayUnpickler) -> None:
        self.reader = reader

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, by_columns, data = state
        self.tensor = self.reader.tensor(data, dtype, shape, "F" if by_columns else "C")


class _ArrayUnpickler(pickle.Unpickler):
    """An unpickler that maps a few names to replacements in this module: nothing that a file names is imported."""

    def __init__(self, content: mmap) -> None:
        super().__init__(content, encoding="latin1")  # Python 2 stored bytes as texts
        self._left = 2 * len(content)  # bytes that may still be created: once as in the file, once as arrays
        self._known: dict[str, Callable[..., Any]] = {
            "__builtin__.bytes": lambda: b"",  # empty bytes in protocols before 3
            "_codecs.encode": self._encode,
            "collections.OrderedDict": self._dictionary,
            "numpy.dtype": _Dtype,
            "numpy.ndarray": _Array,
            "numpy.core.multiarray._reconstruct": lambda *_: _Array(self),
            "numpy.core.multiarray.scalar": lambda dtype, data: self.tensor(data, dtype, (), "C"),
            "numpy.core.numeric._frombuffer": self.tensor,
        }

    def find_class(self, module: str, name: str) -> Any:
        known = re.sub(r"^numpy\._core\.", "numpy.core.", f"{module}.{name}")
        if known not in self._known:
            raise _Unsupported(repr(f"{module}.{name}"[:80])[1:-1])
        return self._known[known]

    def tensor(self, data: Any, dtype: _Dtype, shape: tuple[int, ...], order: Any) -> Tensor:
        """An array from the bytes of the file, in this machine's byte order."""
        data = self._encode(data) if isinstance(data, str) else data
        self._count_bytes(len(data))
        if not all(type(side) is int and side >= 0 for side in shape):
            raise ValueError("not a shape")
        array = np.frombuffer(data, dtype.numpy).reshape(shape, order=order)
        return torch.from_numpy(array.astype(dtype.numpy.newbyteorder("="), order="C"))

    def _count_bytes(self, count: int) -> None:
        """Refuse to create more bytes than the file has, as by naming the same part of it many times."""
        self._left -= count
        if self._left < 0:
            raise ValueError("more bytes than the file has")

    def _encode(self, text: str, _: str = "latin1") -> bytes:
        self._count_bytes(len(text))
        return text.encode("latin1")

    def _dictionary(self, pairs: Any = ()) -> OrderedDict[Any, Any]:
        self._count_bytes(len(pairs))
        return OrderedDict(pairs)


def _finished(value: Any, seen: set[int]) -> Any:
    """Arrays as tensors, in dictionaries at any depth."""
    if isinstance(value, dict) and id(value) not in seen:
        seen.add(id(value))
        for key, inner in value.items():
            value[key] = _finished(inner, seen)
    return value.tensor if isinstance(value, _Array) else value
