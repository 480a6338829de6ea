"""Findings as one HTML page: words, tables, plots drawn inline, videos beside it by relative path.

The page loads nothing from elsewhere and follows the reader's light or dark theme. It is the
template ``report.html.jinja`` with ``page.css`` and ``page.js`` in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from stillframe.evaluation.findings import Findings
from stillframe.evaluation.plots import draw
from stillframe.untrusted.printable import printable

__all__ = ["page"]


def page(
    title: str,
    intro: str,
    facts: Mapping[str, str],
    notes: Sequence[str],
    findings: Sequence[Findings],
) -> str:
    """The whole page.

    Args:
        title: its heading.
        intro: what it is, for a reader who knows nothing of it.
        facts: what was run, on what, name and value.
        notes: what to bear in mind about all of it.
        findings: sections, in order.
    """
    environment = Environment(
        autoescape=True,
        finalize=_shown,
        keep_trailing_newline=True,
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    return environment.from_string(_file("report.html.jinja")).render(
        title=title,
        intro=intro,
        facts=facts,
        notes=notes,
        findings=findings,
        style=_file("page.css"),
        script=_file("page.js"),
        draw=draw,
    )


def _file(name: str) -> str:
    return files("stillframe.evaluation").joinpath(name).read_text(encoding="utf-8")


def _shown(value: Any) -> Any:
    """Strings of others as one line without controls; the template's own markup as it is."""
    return value if isinstance(value, Markup) else printable(str(value))
