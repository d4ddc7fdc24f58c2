"""Trained networks as one file: weights, and notes from which the network is built."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, TypeVar

from safetensors import SafetensorError, safe_open
from torch import nn

from densepath.core.errors import UserError
from densepath.core.files import atomic_write
from densepath.nets.weights.checks import require_numbers_in
from densepath.nets.weights.saving import write_tensors


class Notes(Protocol):
    """The metadata of a network."""

    def build(self) -> nn.Module:
        """The network with random weights."""
        ...


N = TypeVar("N", bound=Notes)


def network_path(run: str | Path, file: Path) -> Path:
    """The file of a network, given by it or by the folder of its run, in which it is ``file``."""
    return Path(run) / file if Path(run).is_dir() else Path(run)


def save_network(path: Path, key: str, model: nn.Module, notes: Any) -> None:
    """Write a network of pixels as a safetensors file.

    Args:
        path: of the file.
        key: of its notes in the metadata.
        model: the network.
        notes: a dataclass with ``backbone`` and ``pixels``, which are also written as those of backbones.
    """
    with atomic_write(path) as part:
        state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
        known = {name: json.dumps(value) for name, value in notes.pixels.items()}
        write_tensors(state, part, known | {"format": "pt", "backbone": notes.backbone, key: json.dumps(asdict(notes))})


def holds_network(path: Path, key: str) -> bool:
    """Whether a file holds a network whose notes have this key. Raises UserError if it may not be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return key in (file.metadata() or {})
    except PermissionError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); change its permissions") from error
    except (OSError, SafetensorError):
        return False


def read_network(path: Path, key: str, what: str, verb: str, notes_from: Callable[[Any], N]) -> tuple[Any, N]:
    """The network of a file, on the CPU and in evaluation mode, and its notes.

    Args:
        path: of the file.
        key: of its notes in the metadata.
        what: what it is, for messages.
        verb: the verb that trains one.
        notes_from: makes the notes from plain values; raises ValueError or TypeError if these make no sense.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    if not path.is_file():
        raise UserError(f"there is no trained {what} {path}; train one with densepath {verb}")
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            values = json.loads(file.metadata()[key])
        notes = notes_from(values)
        model = notes.build()
        model.load_state_dict(state)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); check the file") from error
    except UserError as error:
        raise UserError(f"the {what} {path} cannot be built: {error}") from error
    except (SafetensorError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is not a {what} of this version of densepath; train it again") from error
    require_numbers_in(model, path)
    return model.eval(), notes
