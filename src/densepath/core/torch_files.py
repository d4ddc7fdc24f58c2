"""Reading the files of ``torch.save``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

_ASKED = re.compile(r"tried to allocate (\d+) bytes")


def load_whole(path: Path) -> Any:
    """What ``torch.load`` returns, with tensors on the CPU, for a file that holds all bytes that it declares.

    Raises:
        EOFError: it declares more than it has; older files allocate them before they are read.
        Exception: of any type, if it is damaged or holds more than tensors and settings.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except RuntimeError as error:
        asked = _ASKED.search(str(error))
        if asked is None or int(asked[1]) <= path.stat().st_size:
            raise
        raise EOFError(f"it is damaged: it declares {int(asked[1]) / 2**30:,.0f} GiB, more than it has") from error
