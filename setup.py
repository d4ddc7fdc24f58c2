"""The page of densepath on a package index: the README, whose relative links would lead nowhere there."""

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent


def index_page(readme: str, repository: str | None = None) -> str:
    """The README with absolute links into the repository; without one, with the names of the files and no pictures."""

    def link(match: re.Match[str]) -> str:
        picture, text, target = match.groups()
        if repository:
            return f"{picture}[{text}]({repository}/{'raw' if picture else 'blob'}/main/{target})"
        return f"`{text}`" if text == target else f"{text} (`{target.partition('#')[0]}`)"

    if not repository:
        readme = re.sub(r"^!\[.*\)\n\n\*.*\*\n\n", "", readme, flags=re.MULTILINE)  # with their captions
    return re.sub(r"(!?)\[([^\]]*)\]\((?!https?://|#)([^)]+)\)", link, readme)


if __name__ == "__main__":
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    readme = (ROOT / "README.md").read_text()
    page = index_page(readme, project.get("urls", {}).get("Repository"))
    setup(long_description=page, long_description_content_type="text/markdown")
