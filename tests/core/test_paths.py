"""Weights that are called like a keyword or like weights of timm."""

from pathlib import Path

import pytest

from densepath.core import keywords
from densepath.core.keywords import is_on_disk
from densepath.core.paths import as_path, as_texts


def test_random_is_not_the_folder_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keywords._say.cache_clear()  # other tests of this process may have seen the line
    monkeypatch.chdir(tmp_path)
    (tmp_path / "random").mkdir()
    assert not is_on_disk("random") and is_on_disk("./random") and is_on_disk(tmp_path / "random")
    assert "for the folder of this name, write ./random" in capsys.readouterr().err
    assert as_path(Path("random")) == "./random" and as_texts(["random", Path("random")]) == ["random", "./random"]


@pytest.mark.parametrize("name", ["resnet18", "resnet18.a1_in1k"])
def test_a_folder_is_meant_rather_than_weights_of_timm(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keywords._say.cache_clear()
    monkeypatch.chdir(tmp_path)
    assert not is_on_disk(name)
    (tmp_path / name).mkdir()
    assert is_on_disk(name) and as_path(Path(name)) == Path(name)
    assert f"{name} is taken as the folder of this name, not as timm's weights" in capsys.readouterr().err
