"""Work on one of many items: what ends it is described in a phrase, so that it does not end the others."""

from __future__ import annotations

import traceback

from densepath.core.errors import shortage
from densepath.core.log import log


def describe_failure(error: Exception) -> str:
    """Why the work on an item failed. The traceback of a fault of this program goes to the log."""
    if isinstance(error, OSError) or shortage(error):
        return str(error) or "out of memory"
    log("".join(traceback.format_exception(error)).rstrip())
    return f"a bug in densepath, please report it: {type(error).__name__}: {error}"
