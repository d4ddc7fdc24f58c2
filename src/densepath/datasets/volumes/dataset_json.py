"""The ``dataset.json`` of nnU-Net and of the Medical Segmentation Decathlon."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from densepath.core.errors import UserError, fault_of
from densepath.core.json_files import load_json

DATASET_JSON = "dataset.json"


@contextmanager
def reading(path: Path, what: str) -> Iterator[Any]:
    """The content of a JSON file, in a block that reads values from it.

    Args:
        path: the file.
        what: what it should be, for messages.

    Raises:
        UserError: it cannot be read, is not JSON, or the block finds values of other types or misses some.
    """
    content = load_json(path, what)
    try:
        yield content
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is not {what} ({fault_of(error)}); restore it, or give another one") from error


def channels_of(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the channels, in their order."""
    named = facts.get("channel_names") or facts.get("modality") or {}
    return tuple(str(name) for _, name in sorted(named.items(), key=lambda item: int(item[0])))


def labels_of(facts: Mapping[str, Any]) -> dict[int, str]:
    """The labels, code -> name: the file has them as name -> code (nnU-Net) or code -> name (MSD)."""
    found: dict[int, str] = {}
    for key, value in (facts.get("labels") or {}).items():
        code, name = (key, value) if str(key).isdigit() else (value, key)
        if isinstance(code, int) or str(code).isdigit():  # regions of several codes have no code of their own
            found[int(code)] = str(name)
    return found
