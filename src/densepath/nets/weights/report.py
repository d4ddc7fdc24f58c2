"""Where each tensor of a network came from, as lines of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor


def tensor_report(
    own: Mapping[str, Tensor], found: Mapping[str, Tensor], state: Mapping[str, Tensor], unused: Sequence[str]
) -> list[str]:
    """A line for each tensor of a network, and for each one of a file that it does not use.

    Args:
        own: the network's tensors.
        found: those that the file has, under the network's names, as they are in the file.
        state: the file's tensors, under its names.
        unused: the names of the others.
    """
    names = {id(value): name for name, value in state.items()}
    lines = []
    for name, value in own.items():
        if name not in found:
            lines.append(f"{name} {_shape(value)}: not in the file, stays as it was initialized")
            continue
        there = found[name]
        adapted = "" if there.shape == value.shape else f", adapted from {_shape(there)}"
        lines.append(f"{name} {_shape(value)}: from {names.get(id(there), name)}{adapted}")
    return lines + [f"not used: {name} {_shape(state[name])}" for name in unused if name in state]


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "scalar"
