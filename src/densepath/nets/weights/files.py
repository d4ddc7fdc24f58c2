"""Reading the tensors of untrusted files: safetensors, torch's, or a pickle of arrays; no code of a file is run."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from densepath.core.errors import UserError, errors_as
from densepath.core.streams import say
from densepath.core.torch_files import load_whole
from densepath.nets.weights.pickles import read_pickle

# Keys under which checkpoints store their tensors. As in timm, the moving average (EMA) of weights comes before them;
# but released PCRL checkpoints have their network in state_dict, and its momentum encoder in model_ema.
_HOLDERS = ("state_dict_ema", "state_dict", "model_ema", "model")
_EMA = "_ema"
_SETTINGS = re.compile(
    r"(?:argparse|lightning|mmcv|mmengine|numpy|omegaconf|pathlib|pytorch_lightning|typing)\.[\w.]+|"
    r"builtins\.(?:bool|dict|float|int|list|str|tuple)"
)
# A view may repeat a few stored numbers any number of times, which fills the memory when it is copied.
_MOST_SHARED, _FREE = 10, 2**30  # times the file's size, and bytes
_NESTING = 4  # dictionaries within dictionaries that are searched for tensors
_ZIP_START = b"PK\3\4"
_TORCH_STARTS = (_ZIP_START, b"\x80\2\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")  # of torch.save, now and until 1.5


def read_tensors(path: Path, holders: tuple[str, ...] = _HOLDERS) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file under their names there, and its metadata.

    Nested dictionaries of tensors are flattened, with names joined by dots. If one of the ``holders`` is among the keys
    of a checkpoint, only the tensors under that key are read: the first of them that has any.

    Raises:
        UserError: the file is damaged, or contains more than tensors and settings.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(64)
    # The length of the header, and its first character; other files have other suffixes, too
    if path.suffix == ".safetensors" or (int.from_bytes(start[:8], "little") < size and start[8:9] == b"{"):
        return _read_safetensors(path)
    content = load_torch(path) if start.startswith(_TORCH_STARTS) else read_pickle(path)
    found = _tensors(content, holders, path)
    if sum(tensor.numel() * tensor.element_size() for tensor in found.values()) > _MOST_SHARED * size + _FREE:
        raise UserError(f"{path} is damaged: its tensors are far larger than the file; copy or export it again")
    return found, _notes(content)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged or not a safetensors file; copy or export it again") from error


def load_torch(path: Path) -> Any:
    """What a file of ``torch.save`` holds, with tensors on the CPU.

    Raises:
        UserError: the file is damaged, or contains more than tensors and settings.
    """
    with path.open("rb") as file:
        zipped = file.read(len(_ZIP_START)) == _ZIP_START
    if zipped:
        _refuse_compressed(path)
    with errors_as(lambda error: _refusal(path, error)):
        harmless: Any = [(_Setting, name) for name in _settings(path)]
        with (
            warnings.catch_warnings(action="ignore"),  # torch warns about files that it then refuses
            torch.serialization.safe_globals(harmless),
        ):
            return load_whole(path)


def _refusal(path: Path, error: Exception) -> UserError:
    if isinstance(error, pickle.UnpicklingError):
        return UserError(
            f"{path} holds more than tensors, or is not a torch file, and could run code if it were loaded; "
            "save only its state_dict()"
        )
    return UserError(f"{path} is damaged or not a torch file; copy or export it again")


def _refuse_compressed(path: Path) -> None:
    """Refuse compressed files, which may expand to any size; ``torch.save`` never writes them."""
    with errors_as(lambda error: _refusal(path, error)), zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise UserError(f"{path} is a TorchScript program, not weights; save its state_dict() with torch.save")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise UserError(f"{path} is compressed, which torch.save never does; save it again with torch.save")


class _Setting:
    """Replaces a setting that a trainer stores with the tensors; it is empty."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _settings(path: Path) -> list[str]:
    """The classes of settings that a torch file names; they are never imported."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except ValueError:  # written before torch 1.6
        return []
    return [name for name in names if _SETTINGS.fullmatch(name)]


@cache  # a command may read a file several times
def _say_once(line: str) -> None:
    say(line)


def _tensors(content: Any, holders: tuple[str, ...], path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, those of nested dictionaries under joined names; without the optimizer's."""
    if not isinstance(content, dict):
        return {}
    held = {key: found for key in holders if isinstance(content.get(key), dict) and (found := _below(content[key]))}
    if not held:
        return _below(content)
    first, *others = held
    if first.endswith(_EMA) and others:
        _say_once(f"densepath: of the weights in {path}, the moving average ({first}) is used, not {others[0]}")
    return held[first]


def _below(content: dict[Any, Any]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    rest, seen = [("", content)], {id(content)}
    for prefix, holder in rest:
        for key, value in holder.items():
            name = f"{prefix}{key}" if isinstance(key, str | int) else None
            if name is None or "optimizer" in name:
                continue
            if isinstance(value, Tensor):
                found[name] = value
            elif isinstance(value, dict) and id(value) not in seen and prefix.count(".") < _NESTING:
                seen.add(id(value))
                rest.append((f"{name}.", value))
    return found


def _notes(content: Any) -> dict[str, str]:
    """The metadata of a checkpoint, as texts; of a foreign one the name of its network, if it is recorded."""
    if not isinstance(content, dict):
        return {}
    notes, arch = content.get("metadata"), content.get("arch")
    plain = notes.items() if isinstance(notes, dict) else [("arch", arch)] if isinstance(arch, str) else ()
    return {key: str(value) for key, value in plain if isinstance(key, str) and isinstance(value, str | int | float)}
