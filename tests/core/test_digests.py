"""Digests: equal for equal contents only, and computed once."""

import torch

from densepath.core import digests
from densepath.core.digests import cached_text, digest_of, digest_of_file, digest_of_files, digest_of_tensors


def test_a_digest_separates_its_parts():
    texts = [["ab", "c"], ["a", "bc"], ["abc"], ["abc", ""], [b"ab", "d"], ["c", "ab"]]
    assert len({digest_of(parts) for parts in texts}) == len(texts)
    assert digest_of(["ab", "c"]) == digest_of([b"ab", b"c"])


def test_a_digest_of_tensors_depends_on_names_dtypes_and_shapes():
    x = torch.arange(4.0)
    states = [{"a": x}, {"b": x}, {"a": x.double()}, {"a": x.view(2, 2)}, {"a": x + 1}, {"a": x, "b": x}]
    assert len({digest_of_tensors(state) for state in states}) == len(states)
    assert digest_of_tensors({"a": x, "b": x + 1}) == digest_of_tensors({"b": x + 1, "a": x})
    assert digest_of_tensors({"a": x.view(2, 2).T.contiguous().T}) == digest_of_tensors({"a": x.view(2, 2)})


def test_a_text_is_kept_until_a_file_changes(tmp_path):
    file, made = tmp_path / "a", []

    def read():
        made.append(digest_of_file(file))
        return made[-1], True

    file.write_text("one")
    assert cached_text("digest", [file], tmp_path, read) == cached_text("digest", [file], tmp_path, read) == made[0]
    assert len(made) == 1
    assert cached_text("another kind", [file], tmp_path, read) == made[0] and len(made) == 2
    file.write_text("two, longer")
    assert cached_text("digest", [file], tmp_path, read) == made[-1] != made[0] and len(made) == 3


def test_the_digest_of_many_files_takes_little_memory(tmp_path, bounded_memory):
    """50,000 names; a list of them and their digests would take 8 MiB."""

    def names():
        return (f"/nowhere/{number:09d}.png" for number in range(50_000))

    with bounded_memory(5):
        digest_of_files(names, 50_000, tmp_path)


def test_what_could_not_be_read_is_not_remembered(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("a")
    cache = tmp_path / "cache"

    def fails(*_):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(digests.hashlib, "file_digest", fails)
        wrong = digest_of_files(lambda: [tmp_path / "a"], 1, cache)
    right = digest_of_files(lambda: [tmp_path / "a"], 1, cache)
    assert right != wrong
    with monkeypatch.context() as patched:
        patched.setattr(digests.hashlib, "file_digest", fails)
        assert digest_of_files(lambda: [tmp_path / "a"], 1, cache) == right
