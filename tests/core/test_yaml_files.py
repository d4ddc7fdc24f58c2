"""YAML that users write: its encoding, names that occur twice, and values that are read as others."""

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


@pytest.mark.parametrize(("text", "number"), [("010", 8), ("-0_17", -15), ("1:30", 90), ("1:30.5", 90.5)])
def test_numbers_that_yaml_reads_as_others_are_refused(text: str, number: float) -> None:
    with pytest.raises(UserError, match=f"^it has {text} in line 2, which YAML reads as {number}; write the number"):
        load_yaml(f"a: 1\nb: [{text}]\n", "it")
    assert load_yaml(f"[0, -7, 0.5, 1e-3, 1_0, '{text}']", "it")[-1] == text


@pytest.mark.parametrize("text", ["a: &a\n  b: *a\n", "&a [1, {b: [*a]}]"])
def test_an_alias_of_what_it_is_a_part_of_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"^it has an alias of what it is a part of; write"):
        load_yaml(text, "it")
    assert load_yaml("a: &a [1]\nb: [*a, *a]", "it") == {"a": [1], "b": [[1], [1]]}
