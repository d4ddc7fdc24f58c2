"""JSON files, plain and compressed."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from densepath.core.errors import UserError
from densepath.core.json_files import load_json


def test_a_file_may_be_compressed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for data in (b'{"a": [1]}', gzip.compress(b'{"a": [1]}')):
        path.write_bytes(data)
        assert load_json(path, "GeoJSON") == {"a": [1]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "is not JSON"),
        (gzip.compress(b"[]" * 999, mtime=0)[:-9], "is a damaged gzip file"),
        (gzip.compress(b"{", mtime=0), "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
    ],
)
def test_a_damaged_file_is_named(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(UserError, match=rf"a\.json {message}.*"):
        load_json(tmp_path / "a.json", "GeoJSON")
