"""Arrays in a plain pickle, as detectron2 ships its weights: the instructions are read one by one and none is run."""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from densepath.core.errors import UserError

_MOST_STEPS = 10**6  # each instruction may take some memory; a ResNet-152 has 30,000
_NUMBERS = re.compile(r"f[248]|[iu][1248]|b1")
_VALUES = re.compile(  # instructions that put one value onto the stack
    r"(?:BIN)?(?:INT|FLOAT|STRING|UNICODE)|BININT[12]|LONG[14]?|SHORT_BIN(?:STRING|UNICODE|BYTES)|BINUNICODE8|"
    r"BINBYTES8?|BYTEARRAY8"
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


def read_pickle(path: Path) -> Any:
    """What a pickle of plain containers, numbers, texts and arrays holds; the arrays come as tensors.

    The memory that it takes is a small multiple of the file's size, whatever sizes the file declares.

    Raises:
        UserError: the file is damaged, or asks for anything else; the message names what it asks for.
    """
    try:
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
            return _Reader(len(content)).read(content)
    except _Foreign as error:
        raise UserError(
            f"{path} holds more than arrays ({error}) and could run code if it were loaded; save its state_dict() alone"
        ) from error
    except Exception as error:  # a damaged file fails wherever the reader happens to be
        raise UserError(f"{path} is damaged or holds no weights; copy or export it again") from error


class _Foreign(Exception):
    """Something else than arrays and plain containers."""


class _Dtype:
    """What ``numpy.dtype`` stands for: a kind of numbers and the order of their bytes."""

    def __init__(self, kind: str) -> None:
        if not _NUMBERS.fullmatch(kind):
            raise _Foreign(f"an array of type {kind[:20]}")
        self.numpy = np.dtype(kind)


class _Array:
    """An array that is filled later."""

    tensor: Tensor | None = None


class _Reader:
    """Follows the instructions of a pickle as far as arrays need them.

    Args:
        size: bytes of the file, which bounds what its arrays can hold.
    """

    def __init__(self, size: int) -> None:
        self._left = 2 * size  # bytes that may yet be made: once as they stand in the file, once as arrays
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # a mark begins a stack of its own
        self._memo: dict[int, Any] = {}
        self._calls: dict[str, Callable[..., Any]] = {
            "__builtin__.bytes": lambda: b"",  # how the protocols before 3 tell no bytes at all
            "collections.OrderedDict": self._dictionary,
            "_codecs.encode": lambda text, _: self._encode(text),
            "numpy.dtype": lambda kind, *_: _Dtype(kind),
            "numpy.ndarray": lambda *_: _Array(),
            "numpy._core.multiarray._reconstruct": lambda *_: _Array(),
            "numpy._core.multiarray.scalar": lambda dtype, data: self._tensor((), dtype, False, data),
            "numpy._core.numeric._frombuffer": lambda data, dtype, shape, order: self._tensor(
                shape, dtype, order == "F", data
            ),
        }

    def read(self, content: Any) -> Any:
        """The object that the pickle describes, arrays as tensors, keys of dictionaries as texts."""
        for step, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            if step == _MOST_STEPS:
                raise ValueError("too many instructions")
            self._follow(opcode.name, argument)
        return _finished(self._stack.pop())

    def _follow(self, name: str, argument: Any) -> None:
        stack = self._stack
        if _VALUES.fullmatch(name):
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name.endswith("PUT"):
            self._memo[argument] = stack[-1]
        elif name.endswith("GET"):
            stack.append(self._memo[argument])
        else:
            self._build(name, argument)

    def _build(self, name: str, argument: Any) -> None:
        """The instructions that make something out of what lies on the stack."""
        match name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "MEMOIZE":
                self._memo[len(self._memo)] = self._stack[-1]
            case "MARK":
                self._below.append(self._stack)
                self._stack = []
            case "EMPTY_LIST" | "EMPTY_DICT":
                self._stack.append([] if name == "EMPTY_LIST" else {})
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self._stack.append(tuple(self._pop(int(name[-1]))))
            case "TUPLE" | "LIST":
                values = self._marked()
                self._stack.append(tuple(values) if name == "TUPLE" else values)
            case "DICT":
                values = self._marked()
                self._stack.append(self._dictionary(_pairs(values)))
            case "APPEND" | "APPENDS":
                values = self._marked() if name == "APPENDS" else self._pop(1)
                _expect(self._stack[-1], list).extend(values)
            case "SETITEM" | "SETITEMS":
                values = self._marked() if name == "SETITEMS" else self._pop(2)
                _expect(self._stack[-1], dict).update(self._dictionary(_pairs(values)))
            case "GLOBAL":
                self._name(*argument.split(" ", 1))
            case "STACK_GLOBAL":
                self._name(*self._pop(2))
            case "REDUCE":
                function, arguments = self._pop(2)
                self._stack.append(_expect(function, _Call).function(*_expect(arguments, tuple)))
            case "BUILD":
                (state,) = self._pop(1)
                self._fill(self._stack[-1], state)
            case _:
                raise _Foreign(f"the instruction {name}")

    def _pop(self, count: int) -> list[Any]:
        if count > len(self._stack):
            raise ValueError("nothing to take")
        values = self._stack[-count:]
        del self._stack[-count:]
        return values

    def _marked(self) -> list[Any]:
        """Take what lies above the last mark, and the mark."""
        values, self._stack = self._stack, self._below.pop()
        return values

    def _name(self, module: str, name: str) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise ValueError("a name that is no text")
        place = re.sub(r"^numpy\.core\.", "numpy._core.", f"{module}.{name}")
        if place not in self._calls:
            raise _Foreign(f"{module}.{name}"[:80])
        self._stack.append(_Call(self._calls[place]))

    def _charge(self, count: int) -> None:
        """Refuse what would make more than the file has, by naming the same part of it many times."""
        self._left -= count
        if self._left < 0:
            raise ValueError("more bytes than the file has")

    def _encode(self, text: str) -> bytes:
        self._charge(len(text))
        return text.encode("latin1")

    def _dictionary(self, pairs: Any = ()) -> dict[str, Any]:
        self._charge(len(pairs))
        made = {}
        for key, value in pairs:
            if not isinstance(key, str | int):  # to hash nested tuples can take for ever
                raise _Foreign("a dictionary whose keys are no names")
            made[str(key)] = value
        return made

    def _fill(self, target: Any, state: tuple[Any, ...]) -> None:
        """Give an array its content, or a kind of numbers the order of its bytes."""
        if isinstance(target, _Dtype):
            target.numpy = target.numpy.newbyteorder(state[1])
        else:
            _, shape, dtype, by_columns, data = state
            _expect(target, _Array).tensor = self._tensor(shape, dtype, by_columns, data)

    def _tensor(self, shape: Any, dtype: Any, by_columns: Any, data: Any) -> Tensor:
        if isinstance(data, str):  # Python 2 kept no bytes
            data = self._encode(data)
        self._charge(len(data))
        if not all(type(side) is int and side >= 0 for side in _expect(shape, tuple)):
            raise ValueError("no shape")
        kind = _expect(dtype, _Dtype).numpy
        array = np.frombuffer(_expect(data, bytes, bytearray), kind).reshape(shape, order="F" if by_columns else "C")
        return torch.from_numpy(array.astype(kind.newbyteorder("="), order="C"))


class _Call:
    """A function that the pickle may name; it is one of this module, whatever its name."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function


def _pairs(values: list[Any]) -> list[tuple[Any, Any]]:
    return list(zip(values[::2], values[1::2], strict=True))


def _expect(value: Any, *kinds: type) -> Any:
    if not isinstance(value, kinds):
        raise ValueError(f"{type(value).__name__} in the place of {kinds[0].__name__}")
    return value


def _finished(value: Any) -> Any:
    """Arrays as tensors, in dictionaries at any depth."""
    rest, seen = [value], {id(value)}
    while rest:
        holder = rest.pop()
        for key, inner in holder.items() if isinstance(holder, dict) else ():
            if isinstance(inner, _Array):
                holder[key] = inner.tensor
            elif id(inner) not in seen:
                seen.add(id(inner))
                rest.append(inner)
    return value
