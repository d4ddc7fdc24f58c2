"""Weights that are called like a keyword: NAME is the keyword, and ./NAME the path."""

from pathlib import Path

import pytest

from densepath.core.keywords import is_keyword, is_on_disk
from densepath.core.paths import as_path, as_texts


@pytest.mark.parametrize("name", ["random", "resnet18", "resnet18.a1_in1k"])
def test_a_keyword_is_not_the_folder_of_its_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    assert is_keyword(name) and not is_on_disk(name) and is_on_disk(f"./{name}") and is_on_disk(tmp_path / name)
    assert f"for the folder of this name, write ./{name}" in capsys.readouterr().err
    assert as_path(Path(name)) == f"./{name}" and as_texts([name, Path(name)]) == [name, f"./{name}"]


@pytest.mark.parametrize("name", ["", ".", "..", "resnet18.pth", "runs/random", "missing"])
def test_other_names_are_paths(name: str) -> None:
    assert not is_keyword(name)
