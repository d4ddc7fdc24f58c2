"""The files of the project around its code: they agree with each other, and with what they describe."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from densepath.cli import main
from densepath.version import __version__

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_changelog_keeps_its_format() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    assert versions[0].startswith("[Unreleased]\n")
    assert all(re.match(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d\n", version) for version in versions[1:])
    assert __version__ in [version[1 : version.index("]")] for version in versions]
    order = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
    for version in versions:
        sections = re.findall(r"^### (.*)$", version, re.MULTILINE)
        assert sections == [name for name in order if name in sections]


def test_the_licences_of_all_dependencies_are_listed() -> None:
    """Those that pyproject.toml names; what these need in turn depends on the platform."""
    listed = re.findall(r"^\| ([\w.-]+) \| \S.* \| .* \|$", (ROOT / "docs" / "licences.md").read_text(), re.MULTILINE)
    texts = sum(PROJECT["optional-dependencies"].values(), PROJECT["dependencies"])
    assert {canonicalize_name(Requirement(text).name) for text in texts} <= set(listed)
    assert listed == sorted(set(listed), key=listed.index) and "package" not in listed[1:]


def test_dependencies_are_found_through_others() -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "licences.py"))
    found = tool["needed"]({"densepath": ["torchvision"], "dev": ["pytest"]})
    assert found["torchvision"] == ["densepath"] and "densepath" in found["pillow"] and found["pluggy"] == ["dev"]
    assert tool["licence"]("pytest") == "MIT" and "BSD-3-Clause" in tool["licence"]("torch")
    with pytest.raises(SystemExit, match="no-such-package is not installed"):
        tool["needed"]({"densepath": ["no-such-package"]})


def test_the_page_of_a_package_index_has_no_relative_links() -> None:
    index_page = runpy.run_path(str(ROOT / "setup.py"), run_name="setup")["index_page"]
    readme = (ROOT / "README.md").read_text()
    for repository in (None, "https://example.org/densepath"):
        links = re.findall(r"\]\(([^)]*)\)", index_page(readme, repository))
        assert all(link.startswith(("https://", "#")) for link in links)
    assert "(https://example.org/densepath/raw/main/docs/pictures/demo.png)" in index_page(readme, repository)
    text = "![Tiles](a.png)\n\n*Tiles.*\n\nSee [data](docs/data.md#glas), [A.md](A.md) and [x](https://x.org)."
    assert index_page(text) == "See data (`docs/data.md`), `A.md` and [x](https://x.org)."


def test_the_workflow_runs_what_exists_on_every_python_that_is_claimed() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "checks.yml").read_text())["jobs"]
    claimed = [c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if re.fullmatch(r".*Python :: 3\.\d+", c)]
    assert jobs["smoke"]["strategy"]["matrix"]["python"] == claimed
    assert PROJECT["requires-python"] == f">={claimed[0]}"
    lines = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    scripts = {match[0] for line in lines for match in re.finditer(r"\.ci/\w+", line)}
    assert {".ci/run", ".ci/smoke"} == scripts
    assert all((ROOT / script).stat().st_mode & 0o111 for script in scripts)


def test_a_source_distribution_takes_all_files_that_exist() -> None:
    listed = [line.split() for line in (ROOT / "MANIFEST.in").read_text().splitlines()]
    named = {name for verb, *names in listed if verb in ("graft", "include") for name in names}
    assert [name for name in named if not (ROOT / name).exists()] == []
    # setuptools adds these itself.
    own = {"LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py", "src"}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    assert {name.partition("/")[0] for name in tracked} <= named | own


def test_citations_lead_to_the_papers() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == __version__
    assert [paper["title"] for paper in citation["references"] if not paper.get("url", "").startswith("https://")] == []


def test_windows_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("densepath.cli.sys.platform", "win32")
    assert main(["data", "tissue", "T"]) == 2
    monkeypatch.undo()
    assert re.fullmatch(r"densepath: error: .*WSL.*\n", capsys.readouterr().err)


def test_windows_gets_as_far_as_that_line() -> None:
    """Its Python has neither SIGHUP nor locks of POSIX; under that name Python 3.14 imports shutil only there."""
    code = (
        "import shutil, signal, sys; del signal.SIGHUP; sys.modules['fcntl'] = None; sys.platform = 'win32'\n"
        "from densepath.cli import main; sys.exit(main(['pretrain']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "WSL" in done.stderr


def test_all_extras_are_described() -> None:
    page = (ROOT / "docs" / "getting_started.md").read_text()
    line = page[page.index("Extras: ") :].split(", e.g.")[0]
    assert set(re.findall(r"`(\w+)`", line)) == set(PROJECT["optional-dependencies"])


def test_objects_that_hold_tensors_or_arrays_compare_by_identity() -> None:
    """A comparison of their fields has no single truth value."""
    for path in (ROOT / "src").rglob("*.py"):
        for node in (each for each in ast.walk(ast.parse(path.read_text())) if isinstance(each, ast.ClassDef)):
            made = "".join(map(ast.unparse, node.decorator_list))
            fields = " ".join(ast.unparse(each.annotation) for each in node.body if isinstance(each, ast.AnnAssign))
            compared = "dataclass" in made and "eq=False" not in made
            assert not (compared and re.search(r"\bTensor\b|NDArray|ndarray", fields)), (path, node.name)
