from dataclasses import dataclass
from pathlib import Path

import yaml

from densepath.core.plain import plain


@dataclass
class Part:
    sizes: tuple[int, int]
    file: Path


def test_what_is_plain_comes_back_from_yaml():
    value = plain({"part": Part((3, 4), Path("a/b")), "list": [(1.5, None), "x"]})
    assert value == {"part": {"sizes": [3, 4], "file": "a/b"}, "list": [[1.5, None], "x"]}
    assert yaml.safe_load(yaml.safe_dump(value)) == value
