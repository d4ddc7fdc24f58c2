"""A GPU that does not exist: tensors say that they are on it, and hold their values in the memory of the host.

Any command of densepath runs on it (``python -m benchmarks.pretended_gpu pretrain --devices 1 ...``): what would fail
on a GPU because it mixes devices fails here too, and the places are counted where the host waits: for values, and for
copies to the GPU that are not ``non_blocking``, among them those of indices. It says nothing about speed, kernels,
memory, streams or mixed precision: autocast changes nothing, so use ``--precision 32``.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from benchmarks.measure import place
from densepath.cli import main as command_line

GPU = torch.device("cuda", 0)
_NAME = "pretended GPU"

_aten = torch.ops.aten
# What may have tensors of both devices: copies, and indices, which the host then copies, and waits for the copy.
_COPIES = (_aten.copy_.default, _aten._to_copy.default)
_READ_AT = (_aten.index.Tensor, _aten._unsafe_index.Tensor)
_WRITE_AT = (_aten.index_put_.default, _aten.index_put.default, _aten._index_put_impl_.default)
# What takes no scalars of the host beside tensors of the device.
_STRICT = ("cat", "stack", "mm", "bmm", "addmm", "gather", "scatter", "index_select", "embedding")
# What waits for the device: values, and shapes that depend on them.
_WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "unique_consecutive", "equal")
_WAITS = (*_WAITS, "is_nonzero")


class OnGpu(Tensor):
    """A tensor on the pretended GPU.

    Attributes:
        held: its values, in the memory of the host.
    """

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnGpu:
        # To torch's own code it is on the "meta" device: a real one would be asked for its stream.
        shape = torch.empty_strided(held.shape, held.stride(), dtype=held.dtype, device="meta")
        made = Tensor._make_subclass(cls, shape, held.requires_grad, device_for_backend_keys=GPU)
        made.held = held.detach()
        return made

    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_meta = is_cpu = property(lambda self: False)

    def __repr__(self, **_: Any) -> str:
        return f"OnGpu({self.held!r})"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.ndim == 0 else repr(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> OnGpu:
        if id(self) not in memo:
            memo[id(self)] = _rebuild(self.held.clone(), self.requires_grad, isinstance(self, torch.nn.Parameter))
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuild, (self.held, self.requires_grad, isinstance(self, torch.nn.Parameter))

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert a tensor of a GPU to numpy; use Tensor.cpu() first")

    __array__ = numpy

    def tolist(self) -> Any:
        return self.detach().to("cpu").tolist()

    def new_tensor(self, data: Any, dtype: torch.dtype | None = None, device: Any = GPU) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype, device=device)

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(_moved_lists(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_moved_lists(index), value)

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _apply(function, args, kwargs or {}, Counter())


def _moved_lists(index: Any) -> Any:
    """Lists in an index as tensors on the GPU: torch would move them to where it takes ours to be."""
    if isinstance(index, tuple):
        return tuple(map(_moved_lists, index))
    return torch.tensor(index).to(GPU) if isinstance(index, list) else index


def _rebuild(held: Tensor, requires_grad: bool, parameter: bool) -> OnGpu:
    made = OnGpu(held).requires_grad_(requires_grad)
    if parameter:
        made._is_param = True
    return made


class _Mode(TorchDispatchMode):
    """Makes tensors on the pretended GPU where its name is asked for, and counts waits."""

    def __init__(self, waits: Counter[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _apply(function, args, kwargs or {}, self.waits)


def _apply(function: Any, args: Any, kwargs: dict[str, Any], waits: Counter[str]) -> Any:
    """An operator, on the values that the host holds."""
    name = function.overloadpacket.__name__
    if name == "_pin_memory":
        return args[0].clone()
    if name == "is_pinned":
        return False
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, OnGpu)]
    others = [tensor for tensor in tensors if not isinstance(tensor, OnGpu)]
    if ours and others:
        _check(function, name, args, others)
    # Inside torch's own code, new tensors are asked for on "meta", where it takes ours to be.
    device = kwargs.get("device")
    kwargs = {key: value for key, value in kwargs.items() if key != "pin_memory"}
    on_gpu = bool(ours) if device is None else torch.device(device).type in ("cuda", "meta")
    if function is _aten.copy_.default:
        on_gpu = isinstance(args[0], OnGpu)
    waited = _waited(function, name, args, kwargs, on_gpu, ours)
    if waited:
        waits[place()] += waited
    result = function(*tree_map(_on_host, args), **{key: tree_map(_on_host, value) for key, value in kwargs.items()})
    if not on_gpu:
        return result
    known = {id(tensor.held): tensor for tensor in ours}

    def back(value: Any) -> Any:
        if not isinstance(value, Tensor) or isinstance(value, OnGpu):
            return value
        own = known.get(id(value))  # changed in place
        if own is not None and own.shape != value.shape:
            with no_dispatch():
                function(*args, **kwargs)  # also changes the shape that torch sees
        return OnGpu(value) if own is None else own

    return tree_map(back, result)


def _waited(function: Any, name: str, args: Any, kwargs: Mapping[str, Any], on_gpu: bool, ours: Sequence[OnGpu]) -> int:
    """How many times a real GPU makes the host wait in an operator."""
    if function in _COPIES:
        to_gpu = on_gpu and not isinstance(args[function is _aten.copy_.default], OnGpu)
        non_blocking = kwargs.get("non_blocking") or (function is _aten.copy_.default and len(args) > 2 and args[2])
        return int(bool(ours) and not on_gpu) or int(to_gpu and not non_blocking)
    if function in (*_READ_AT, *_WRITE_AT) and isinstance(args[0], OnGpu):
        indices = [index for index in args[1] if index is not None]
        masked = function in _READ_AT and any(index.dtype == torch.bool for index in indices)
        return masked + sum(not isinstance(index, OnGpu) for index in indices)
    return int(bool(ours) and name in _WAITS)


def _on_host(value: Any) -> Any:
    if isinstance(value, torch.device) and value.type in ("cuda", "meta"):
        return torch.device("cpu")
    return value.held if isinstance(value, OnGpu) else value


def _check(function: Any, name: str, args: Any, others: Sequence[Tensor]) -> None:
    """Raise RuntimeError where an operator may not have tensors of both devices."""
    if function in _COPIES:
        return
    if function in (*_READ_AT, *_WRITE_AT):
        wrong = not isinstance(args[0], OnGpu)
        if function in _WRITE_AT:
            wrong |= args[2].ndim > 0 and not isinstance(args[2], OnGpu)
    else:
        wrong = name in _STRICT or any(tensor.ndim > 0 for tensor in others)
    if wrong:
        raise RuntimeError(f"Expected all tensors to be on the same device, but {name} has some on cuda:0 and cpu")


class _Stream(nullcontext):
    """A stream or an event: all work is done when it is queued."""

    def elapsed_time(self, _: Any) -> float:
        return 0.0

    def query(self) -> bool:
        return True

    def is_capturing(self) -> bool:
        return False

    def _nothing(self, *_: Any) -> None: ...

    wait_stream = wait_event = record_event = record = wait = synchronize = _nothing


def _replaced(waits: Counter[str]) -> Iterator[AbstractContextManager[Any]]:
    """What torch asks a real driver for."""
    one = SimpleNamespace(name=_NAME, total_memory=80 * 2**30, major=9, minor=0, multi_processor_count=100)
    answers: dict[str, Any] = {
        "is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0, "get_device_name": _NAME,
        "get_device_capability": (9, 0), "get_device_properties": one, "mem_get_info": (60 * 2**30, 80 * 2**30),
        "is_bf16_supported": True, "max_memory_allocated": 2**30, "memory_allocated": 2**30,
        "max_memory_reserved": 2**30, "is_current_stream_capturing": False, "get_sync_debug_mode": 0,
    }  # fmt: skip
    for name, answer in answers.items():
        yield patch.object(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    ignored = ["set_device", "synchronize", "manual_seed", "manual_seed_all", "set_rng_state", "empty_cache"]
    ignored += ["reset_peak_memory_stats", "set_sync_debug_mode", "_lazy_init"]
    # Each has its own function: torch looks functions up by their identity.
    for name in ignored:
        yield patch.object(torch.cuda, name, lambda *_, **__: None)
    for name in ("Stream", "Event", "stream", "current_stream", "default_stream"):
        yield patch.object(torch.cuda, name, lambda *_, **__: _Stream())
    yield patch.object(torch.cuda, "get_rng_state", lambda *_: torch.zeros(16, dtype=torch.uint8))
    yield patch.object(torch.accelerator, "current_stream", lambda *_: _Stream())
    yield patch.object(torch.accelerator, "current_device_index", lambda: 0)
    yield patch.object(torch.nn.RNNBase, "flatten_parameters", lambda _: None)  # a layout of cuDNN
    yield patch.object(Tensor, "record_stream", lambda *_: None)
    yield patch.object(Tensor, "pin_memory", lambda self, *_: self)

    move, run = Tensor.to, threading.Thread.run

    def numbered(value: Any) -> Any:  # else the driver is asked for the number
        return GPU if isinstance(value, str | torch.device) and torch.device(value).type == "cuda" else value

    def to(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return move(self, *map(numbered, args), **{key: numbered(value) for key, value in kwargs.items()})

    yield patch.object(Tensor, "to", to)
    yield patch.object(Tensor, "cuda", lambda self, *_, **__: to(self, GPU))
    for name in ("tensor", "as_tensor"):
        make = getattr(torch, name)

        def made(data: Any, *args: Any, device: Any = None, make: Any = make, **kwargs: Any) -> Tensor:
            if isinstance(data, OnGpu) and device is None:
                device = GPU
            gpu = device is not None and torch.device(device).type == "cuda"
            return to(make(data, *args, **kwargs), GPU) if gpu else make(data, *args, device=device, **kwargs)

        yield patch.object(torch, name, made)

    def run_with_mode(self: threading.Thread) -> None:
        with _Mode(waits):
            run(self)

    yield patch.object(threading.Thread, "run", run_with_mode)
    yield _Mode(waits)


@contextmanager
def pretended_gpu() -> Iterator[Mapping[str, int]]:
    """One GPU, as far as torch and densepath see; gives where the host waited, and how many times."""
    waits: Counter[str] = Counter()
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)  # parameters stay the same objects when they move
    try:
        with ExitStack() as stack:
            for each in _replaced(waits):
                stack.enter_context(each)
            yield waits
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swaps)


def main(words: Sequence[str] | None = None) -> int:
    """Run a command of densepath, then print where the host waited."""
    with pretended_gpu() as waits:
        code = command_line(sys.argv[1:] if words is None else words)
    for where, count in Counter(waits).most_common():
        print(f"{count:6} waits at {where}")
    return code


if __name__ == "__main__":
    sys.exit(main())
