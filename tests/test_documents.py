"""The code and the commands in the README and the docs work."""

from __future__ import annotations

import itertools
import re
import shlex
import tomllib
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaml
from safetensors.torch import load_file

import densepath
from densepath.benchmark.steps import STEPS, TASKS
from densepath.cli import main
from densepath.core.errors import UserError
from densepath.methods import METHODS
from densepath.nets.backbones import build_backbone
from densepath.nets.weights.pixels import pixels_of_weights
from densepath.runs.metrics import read_metrics
from densepath.sources.decode import read_image
from densepath.synthetic.tissue import write_tiles
from densepath.training.recipes import load_recipe, recipe_names
from densepath.verbs import VERBS

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
METHOD_PAGES = sorted(page for page in (ROOT / "docs" / "methods").glob("*.md") if page.name != "README.md")
_FENCED = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)


def blocks(page: str | Path, language: str) -> list[str]:
    return [code for _, name, code in _FENCED.findall((ROOT / page).read_text()) if name == language]


def lines_of_shells() -> list[str]:
    """Every line in the code blocks of shells, without comments, continued lines as one."""
    text = "".join(block for page in PAGES for language in ("", "sh", "bash") for block in blocks(page, language))
    return [line.split(" #")[0].strip() for line in re.sub(r"\\\n\s*", " ", text).splitlines()]


def commands() -> list[str]:
    """Every densepath command in the code blocks of the pages, also those that another program starts."""
    starts = r"^(?:srun .* |torchrun .* |docker run .* )?(?:python -m |-m )?(densepath .*)"
    return [match[1] for line in lines_of_shells() if (match := re.match(starts, line))]


def inline_commands() -> list[str]:
    """Every densepath command within the text of the pages: verbs and options, maybe not all that are required."""
    text = "".join(_FENCED.sub("", page.read_text()) for page in PAGES if page.name != "CHANGELOG.md")
    return sorted(set(re.findall(r"`(densepath [a-z][^`]*)`", " ".join(text.split()))))


def test_the_training_loop_of_the_readme_works_for_images_of_16_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = blocks("README.md", "python")
    for large, small in {"batch_size=64": "batch_size=2", "size=96": "size=64", "epochs=20": "epochs=3"}.items():
        assert large in code
        code = code.replace(large, small)
    monkeypatch.chdir(tmp_path)
    for path in write_tiles(tmp_path / "tiles", 4, size=64).glob("*.png"):
        tifffile.imwrite(path.with_suffix(".tif"), read_image(path).astype(np.uint16) * 257, photometric="rgb")
        path.unlink()
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["views"]["query"].pixels.std() > 0.3  # not all white
    assert pixels_of_weights("weights.safetensors").window == (0, 65535)
    assert set(names["losses"].terms) == {"instance_loss", "concept_loss"}
    assert load_file("weights.safetensors")["conv1.weight"].shape == (64, 3, 7, 7)


def test_the_method_of_the_docs_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, changed = blocks("docs/adding_a_method.md", "python")
    monkeypatch.chdir(tmp_path)
    Path("simsiam.py").write_text(code)
    Path("inverted.py").write_text(changed)
    write_tiles(tmp_path / "tiles", 4, size=64)
    small = "--max_steps 2 --batch_size 4 --view_size 64 --devices cpu --method simsiam:SimSiam --method.dim 16"
    assert main(["pretrain", "--data", f"{tmp_path}/tiles", "--out", f"{tmp_path}/run", *small.split()]) == 0
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["method_options"] == {"dim": 16, "hidden_dim": 512}
    assert main(["pretrain", "--method", "simsiam:SimSiam", "--help", "all"]) == 0
    assert "dimension of the embeddings" in capsys.readouterr().out
    own = small.replace("simsiam:SimSiam", "inverted:InvertedSimSiam")
    assert main(["pretrain", "--data", f"{tmp_path}/tiles", "--out", f"{tmp_path}/own", *own.split()]) == 0
    losses = [read_metrics(tmp_path / run / "metrics.csv")[0]["loss"] for run in ("run", "own")]
    assert losses[0] != losses[1]  # of the first step: the views differ


def rows_of(page: str, head: str) -> list[tuple[str, set[str]]]:
    """The rows of the table with a heading: the first cell, and the names in backticks of the others."""
    lines = (ROOT / page).read_text().partition(f"| {head} |")[2].splitlines()
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines[2:])
    cells = [row.split("|", 2)[1:] for row in rows]
    return [(first.strip(), set(re.findall(r"`([^`]+)`", rest))) for first, rest in cells]


def test_every_public_name_is_on_the_page_of_functions() -> None:
    page, head = "docs/api.md", "verb | function of `densepath`"
    functions = {first: names for first, names in rows_of(page, head)}
    assert functions == {f"`densepath {name}`": {verb.function.split(":")[1]} for name, verb in VERBS.items()}
    described = " ".join(first for first, _ in rows_of(page, "name in `densepath` | what it is"))
    named = {*re.findall(r"`(\w+)`", described), *set().union(*functions.values())}
    assert named == {name for name in densepath.__all__ if name != "__version__"}


def test_the_metrics_of_tables_are_listed() -> None:
    listed: dict[str, set[str]] = {}
    for verbs, metrics in rows_of("docs/benchmark_tables.md", "verb | metrics"):
        for verb in re.findall(r"`([^`]+)`", verbs):
            listed.setdefault(verb, set()).update(metrics)
    steps = {verb: STEPS[verb] for verb in TASKS}
    assert listed == {v: {*step.metrics, *(f"{prefix}CLASS" for prefix in step.families)} for v, step in steps.items()}


def test_the_batch_norms_and_backbones_of_methods_are_as_described() -> None:
    text = " ".join((ROOT / "docs" / "pretraining.md").read_text().split())
    for_transformers = set()
    for name, method in METHODS.items():
        try:
            method(build_backbone("test_resnet"))
        except UserError:
            for_transformers.add(name)
    only = re.search(r"32 px; ([^;.]*) train only these", text)
    assert only and set(re.findall(r"`(\w+)`", only[1])) == for_transformers
    over = re.search(r"as in the method's paper: `per_process` for ([^;|]*);", text)
    per_process = {name for name, method in METHODS.items() if method.batch_norm == "per_process"}
    assert over and set(re.findall(r"`(\w+)`", over[1])) == per_process - for_transformers
    recipes = {name: load_recipe(name) for name in recipe_names()}
    groups = re.search(r"The recipes ([^;]*) but those that are small or for volumes have 32", text)
    patterns = re.findall(r"`([\w*]+)`", groups[1]) if groups else []
    described = {n for n in recipes if not re.search("_small|_3d", n) and any(fnmatch(n, p) for p in patterns)}
    assert {name for name, recipe in recipes.items() if recipe.get("batch_norm_group", 0)} == described
    assert {recipes[name]["batch_norm_group"] for name in described} == {32}


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


def test_slides_of_the_pages_are_not_tested_by_what_was_trained_on_them() -> None:
    """`mil` refuses them, after the longest step of all."""
    found = 0
    for block in (block for page in PAGES for block in blocks(page, "") if "densepath mil" in block):
        trained, embedded = (set(re.findall(rf"densepath {v} .*?--data (\S+)", block)) for v in ("pretrain", "embed"))
        assert not trained & embedded, block
        found += bool(trained)
    assert found


@cache
def full_help(verb: str) -> str:
    return VERBS[verb].command(verb).help(["--help", "all"])


@pytest.mark.parametrize("line", inline_commands())
def test_a_command_within_the_text_is_valid(line: str) -> None:
    """Its verb exists, or is a group of verbs, and its options belong to it."""
    words = [word for word in shlex.split(line)[1:] if word != "..."]
    name = next((" ".join(words[:n]) for n in (2, 1) if " ".join(words[:n]) in VERBS), None)
    if name is None:
        assert words in (["VERB"], ["VERB", "--help"]) or [v for v in VERBS if v.startswith(f"{words[0]} ")], line
        return
    for option in (word for word in words if word.startswith("--")):
        assert option in full_help(name), option


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", _FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_between_the_pages_are_valid(page: Path) -> None:
    for target, _, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(#([^)]*))?\)", page.read_text()):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), f"{target}#{anchor}"


@pytest.mark.parametrize(("index", "folders"), [("README.md", (".", "how_to")), ("methods/README.md", (".",))])
def test_every_page_is_in_the_index_and_on_the_site(index: str, folders: tuple[str, ...]) -> None:
    page = ROOT / "docs" / index
    found = {
        path.relative_to(page.parent).as_posix() for folder in folders for path in (page.parent / folder).glob("*.md")
    }
    assert [name for name in sorted(found) if f"({name})" not in page.read_text()] == ["README.md"]
    places = {(page.parent / name).relative_to(ROOT / "docs").as_posix() for name in found}
    assert places <= set(re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text()))


def test_programs_and_extras_that_the_pages_name_exist() -> None:
    text = "".join(page.read_text() for page in PAGES)
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"(?:^|`)make (\w+)", text, re.MULTILINE)) <= set(targets)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(r"(?:densepath|'\.|`\.)\[([a-z,]+)\]", text)
    assert named and {extra for names in named for extra in names.split(",")} <= extras.keys()
    for module in set(re.findall(r"python -m (benchmarks\.\w+)", text)):
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file(), module
    for file in set(re.findall(r"(?:^|[` ])((?:\.ci|tools|docs|\.github)/[\w./-]*\w)", text, re.MULTILINE)):
        assert (ROOT / file).exists(), file


def test_every_method_has_a_page() -> None:
    index = (ROOT / "docs" / "methods" / "README.md").read_text()
    table = index[: index.index("**Which one?**")]
    assert [name for name in METHODS if f"`{name}`" not in table] == []
    text = "".join(page.read_text() for page in METHOD_PAGES)
    recipes = {path.stem for path in (ROOT / "src" / "densepath" / "recipes").glob("*.yaml")}
    unknown = {name for name in recipes if f"`{name}`" not in text and f"`{name.removesuffix('_small')}`" not in text}
    assert unknown == set()


@pytest.mark.parametrize("page", METHOD_PAGES, ids=lambda page: page.stem)
def test_a_page_on_a_method_is_complete(page: Path) -> None:
    text = page.read_text()
    for row in ("recipes", "views", "cost per image", "needs", "use it", "source"):
        assert f"\n| {row} | " in text, row
    assert "\n```\n" in text or page.stem == "hipt"  # its equation
    assert "## Differences from the paper and the released code" in text
    pictures = [page.parent / name for name in re.findall(r"!\[.+\]\((.+\.png)\)", text)]
    assert any(picture.parent.name == "methods" for picture in pictures)
    assert all(picture.stat().st_size < 150_000 for picture in pictures)
