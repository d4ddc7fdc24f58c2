"""Sections as one HTML file."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from densepath.core.errors import UserError
from densepath.core.files import atomic_write
from densepath.report.blocks import Chart, Embedding, Section
from densepath.report.values import finite
from densepath.version import __version__

_TEMPLATES = "templates"


def write_page(
    out: Path, title: str, subtitle: str, sections: Sequence[Section], *, reload: float | None = None
) -> Path:
    """Write a page. The file is replaced at once: a browser never sees a part of it.

    Args:
        out: the file.
        title, subtitle: of the page.
        sections: what it shows.
        reload: seconds after which the page reloads itself; None for never.

    Raises:
        UserError: the file cannot be written, or a package is missing.
    """
    text = (
        _environment()
        .get_template("page.html.j2")
        .render(
            title=title,
            subtitle=subtitle,
            sections=sections,
            nonce=secrets.token_urlsafe(16),
            version=__version__,
            date=f"{datetime.now().astimezone():%Y-%m-%d %H:%M}",
            style=_asset("style.css"),
            script=_asset("script.js"),
            plotly=_plotly() if any(map(_has_chart, sections)) else "",
            reload=reload,
        )
    )
    with atomic_write(out) as part:
        part.write_bytes(text.encode("utf-8", "backslashreplace"))
    return out


def _has_chart(section: Section) -> bool:
    return any(isinstance(block, Chart | Embedding) for block in section.blocks) or any(map(_has_chart, section.parts))


@cache
def _environment() -> Any:
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError:
        raise UserError("a report needs Jinja2; install it: pip install 'densepath[report]'") from None
    environment = Environment(
        loader=PackageLoader("densepath.report", _TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["finite"] = finite
    return environment


@cache
def _asset(name: str) -> str:
    return (resources.files("densepath.report") / _TEMPLATES / name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    """Plotly's bundle for browsers, which comes with its Python package."""
    try:
        found = resources.files("plotly") / "package_data" / "plotly.min.js"
        return found.read_text(encoding="utf-8")
    except (ImportError, OSError):
        raise UserError("a report needs Plotly; install it: pip install 'densepath[report]'") from None
