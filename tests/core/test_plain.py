from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from densepath.core.plain import plain
from densepath.core.records import record_text


@dataclass
class Part:
    sizes: tuple[int, int]
    file: Path


def test_what_is_plain_comes_back_from_yaml():
    value = plain({"part": Part((3, 4), Path("a/b")), "list": [(1.5, None), "x"]})
    assert value == {"part": {"sizes": [3, 4], "file": "a/b"}, "list": [[1.5, None], "x"]}
    assert yaml.safe_load(record_text({"batch_size": np.int64(4)})) == {"batch_size": 4}
    assert plain([np.int64(3), np.float32(0.5), np.array([1, 2])]) == [3, 0.5, [1, 2]]
    assert yaml.safe_load(yaml.safe_dump(value)) == value
