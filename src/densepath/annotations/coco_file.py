"""Reading of a COCO instances JSON: its lists, their keys and types, whatever a tool's spelling of numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from densepath.core.errors import UserError
from densepath.core.json_files import load_json
from densepath.core.spelling import composed

_NEEDED: dict[str, dict[str, type]] = {
    "images": {"id": int, "file_name": str, "width": int, "height": int},
    "annotations": {"image_id": int, "category_id": int},
    "categories": {"id": int},
}
_KINDS: dict[type, str] = {int: "a whole number", str: "text"}


def read_coco(path: Path) -> dict[str, Any]:
    """Read a COCO instances JSON. Boxes and outlines are not checked.

    Returns:
        Its content; ids and sizes are integers, every annotation has ``iscrowd``, every category a ``name``: its
        id if it has none.

    Raises:
        UserError: it cannot be read, or is not a COCO instances JSON.
    """
    return check_keys(load_json(path, "a COCO instances JSON"), path)


def holds_instances(content: Any) -> bool:
    """Whether the content of a JSON file has the lists of COCO instances."""
    return isinstance(content, dict) and all(isinstance(content.get(part), list) for part in _NEEDED)


def check_keys(truth: Any, path: Path) -> dict[str, Any]:
    """The content of a COCO instances JSON as :func:`read_coco` returns it; arguments and errors as there."""
    for part, keys in _NEEDED.items():
        entries = truth.get(part) if isinstance(truth, dict) else None
        if not isinstance(entries, list):
            raise UserError(f"{path} is not a COCO instances JSON: it has no list {part!r}; see cocodataset.org")
        for number, entry in enumerate(entries):
            missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
            if missing:
                raise UserError(f"{path} is not a COCO instances JSON: {part}[{number}] has no {missing[0]!r}; add it")
            for key, kind in keys.items():
                if kind is int:
                    entry[key] = _whole(entry[key])
                if not _has_type(kind, entry[key]):
                    raise UserError(
                        f"{path} is not a COCO instances JSON: {key!r} of {part}[{number}] is not {_KINDS[kind]}; "
                        "correct it"
                    )
    checked: dict[str, Any] = truth
    for entry in checked["annotations"]:
        crowd = entry.get("iscrowd", 0)
        entry["iscrowd"] = int(crowd) if isinstance(crowd, bool) else _whole(crowd)
        if entry.get("area", 0) is None:
            del entry["area"]
    for entry in checked["categories"]:
        name = str(entry.get("name") or "")
        entry["name"] = composed(name if name.strip() else str(entry["id"]))
    return checked


def _whole(value: Any) -> Any:
    """A whole number in another spelling, 1.0 or "1", as an integer; anything else unchanged."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 19:
        return int(value)
    return value


def _has_type(kind: type, value: Any) -> bool:
    """Whether a value has a type and, if it is a number, is small enough to be an index."""
    if kind is int:
        return type(value) is int and abs(value) < 2**63
    return isinstance(value, str) and "\0" not in value
