"""Reading of JSON files, also compressed ones."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

from densepath.core.errors import UserError

_GZIP = b"\x1f\x8b"


def load_json(path: Path, what: str) -> Any:
    """The content of a JSON file, which may be compressed by gzip.

    Args:
        path: the file.
        what: what it should be, for messages.

    Raises:
        UserError: it cannot be read, or is not JSON.
    """
    try:
        data = path.read_bytes()
        return json.loads(gzip.decompress(data) if data.startswith(_GZIP) else data)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give the path of {what}") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is a damaged gzip file ({error}); copy it again") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give {what}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); give {what}") from None
