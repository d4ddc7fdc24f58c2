"""Models from the Hugging Face hub, fetched and loaded without the messages of its libraries."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from densepath.core.errors import UserError

HUB = "hf-hub:"
_PREFIX = re.compile("hf[-_]hub:")  # timm takes both
FETCHED = ("*.json", "*.safetensors")


def is_hub_name(name: object) -> bool:
    """Whether weights or a backbone are named as a model of the hub, "hf-hub:OWNER/NAME"."""
    return isinstance(name, str) and _PREFIX.match(name) is not None


@contextmanager
def quiet(transformers: Any = None) -> Iterator[None]:
    """Suppress messages about fetching and loading; errors are raised anyway.

    Downloads keep their progress bars.

    Args:
        transformers: the module, if it loads a model: disables its progress bar, which would show for a second.
    """
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "transformers")]
    levels = [logger.level for logger in loggers]
    bars = transformers is not None and transformers.logging.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    if bars:
        transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            transformers.logging.enable_progress_bar()


def fetch(name: str, files: Sequence[str] = FETCHED) -> Path:
    """The folder of "OWNER/NAME" or "hf-hub:OWNER/NAME", from the cache of the Hugging Face hub if it is there.

    Args:
        name: name of the model.
        files: patterns of the files to fetch.

    Raises:
        UserError: it cannot be fetched.
    """
    from huggingface_hub import snapshot_download

    try:
        with quiet():
            return Path(snapshot_download(_PREFIX.sub("", name, count=1), allow_patterns=list(files)))
    except Exception as error:  # each kind of failure raises another exception
        repository = _PREFIX.sub("", name, count=1)
        raise UserError(
            f"{name} could not be fetched ({type(error).__name__}); check the name and the "
            f"network, or run 'hf download {repository} --local-dir FOLDER' on a machine with a network (for a gated "
            "model ask for access on its page and run 'hf auth login' first) and give FOLDER"
        ) from error
