"""The precision of predictions in one folder, which processes on different machines make together."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from densepath.core.errors import UserError
from densepath.runs.folder import read_config
from densepath.training.hardware import Precision


def begun_precision(out: Path, asked: Precision, chosen: Literal["32", "bf16-mixed"]) -> Literal["32", "bf16-mixed"]:
    """The precision with which the results in a folder were begun: all of them have the same.

    Args:
        out: the folder, with its record.
        asked: by the user.
        chosen: what "auto" is on this machine, or what was asked for.

    Raises:
        UserError: another one was asked for.
    """
    begun: Literal["32", "bf16-mixed"] = (read_config(out) or {}).get("precision", chosen)
    if asked not in ("auto", begun):
        raise UserError(f"{out} was begun with --precision {begun}; use that, or another folder")
    return begun
