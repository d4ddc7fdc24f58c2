"""One spelling for texts that look the same."""

from __future__ import annotations

import unicodedata


def composed(text: str) -> str:
    """A text with composed letters: macOS writes those with accents in names of files as two characters."""
    return unicodedata.normalize("NFC", text)
