"""The code and the commands in the README and the docs work."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from densepath.cli import VERBS, main
from densepath.methods import METHODS
from densepath.synthetic.tissue import write_tiles

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: str, language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    return [code for name, code in fenced if name == language]


def commands() -> list[str]:
    """Every densepath command in the code blocks of the pages."""
    text = "".join(block for page in PAGES for block in blocks(str(page.relative_to(ROOT)), ""))
    text = re.sub(r"\\\n\s*", " ", text)  # continued lines
    return [line.split("#")[0].strip() for line in text.splitlines() if line.startswith("densepath ")]


def test_the_training_loop_of_the_readme_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = blocks("README.md", "python")
    for large, small in {"batch_size=64": "batch_size=2", "size=96": "size=64", "epochs=20": "epochs=3"}.items():
        assert large in code
        code = code.replace(large, small)
    monkeypatch.chdir(tmp_path)
    write_tiles("tiles", 4, size=64)
    names: dict[str, object] = {}
    exec(code, names)
    assert set(names["losses"].terms) == {"instance_loss", "concept_loss"}  # type: ignore[attr-defined]
    assert load_file("weights.safetensors")["conv1.weight"].shape == (64, 3, 7, 7)


def test_the_method_of_the_docs_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = blocks("docs/adding_a_method.md", "python")
    monkeypatch.chdir(tmp_path)
    Path("simsiam.py").write_text(code)
    write_tiles(tmp_path / "tiles", 4, size=64)
    small = "--max_steps 2 --batch_size 4 --view_size 64 --devices cpu --method simsiam:SimSiam --method.dim 16"
    assert main(["pretrain", "--data", f"{tmp_path}/tiles", "--out", f"{tmp_path}/run", *small.split()]) == 0
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["method_options"] == {"dim": 16, "hidden_dim": 512}
    assert main(["pretrain", "--method", "simsiam:SimSiam", "--help", "all"]) == 0
    assert "dimension of the embeddings" in capsys.readouterr().out


@pytest.mark.parametrize("line", commands())
def test_a_command_of_the_pages_is_valid(line: str) -> None:
    """Its verb exists, and its options are parsed."""
    words = shlex.split(line)[1:]
    name = next(" ".join(words[:n]) for n in (1, 2) if " ".join(words[:n]) in VERBS)
    rest = words[len(name.split()) :]
    command = VERBS[name].command(name)
    if "--help" in rest:
        assert command.help(rest)
    elif "FILE" not in rest:
        assert command.parse([word for word in rest if word != "--print_config"], complete="--print_config" not in rest)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_the_pages_are_valid(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_method_is_described() -> None:
    page = (ROOT / "docs" / "methods.md").read_text()
    table = page[: page.index("**Which one?**")]
    assert [name for name in METHODS if f"`{name}`" not in table] == []
