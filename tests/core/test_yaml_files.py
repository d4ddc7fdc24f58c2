"""YAML that users write: its encoding, and names that occur twice."""

from pathlib import Path

import pytest

from densepath.core.errors import UserError
from densepath.core.yaml_files import load_yaml, read_text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", "a in line 1 and again in line 3"),
        ("b:\n  a: 1\n  'a': 2\n", "a in line 2 and again in line 3"),
        ("- {a: 1, a: 1}", "a in line 1 and again in line 1"),
    ],
)
def test_a_name_that_a_mapping_has_twice_is_refused(text: str, said: str) -> None:
    with pytest.raises(UserError, match=f"^mine.yaml has {said}; keep one$"):
        load_yaml(text, "mine.yaml")


def test_equal_names_in_different_mappings_are_read() -> None:
    text = "one: &one {<<: {a: 0}, a: 1}\ntwo: {<<: *one, a: 2, '1': a, 1: a}\n"
    assert load_yaml(text, "it") == {"one": {"a": 1}, "two": {"a": 2, "1": "a", 1: "a"}}


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_text_in_another_encoding_is_named(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "mine.yaml").write_text("out: \xe9t\xe9\n", encoding=encoding)
    with pytest.raises(UserError, match=r"^the recipe is not UTF-8 text .*; save it as UTF-8$"):
        read_text(tmp_path / "mine.yaml", "the recipe")


def test_a_byte_order_mark_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("out: \xe9t\xe9\n", encoding="utf-8-sig")
    assert read_text(tmp_path / "mine.yaml", "the recipe") == "out: \xe9t\xe9\n"
