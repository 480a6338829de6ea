"""What mkdocs adds to docs/: pages that lie elsewhere, the reference, links within the site.

A page's links are those of the repository, so that it reads well there, too. Here one to a file
that is a page leads to that page; one to any other file becomes its name.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
#: Pages from outside of docs/, by their place in the site.
PAGES = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "changelog.md": "CHANGELOG.md",
    "examples.md": "examples/README.md",
    "comfyui.md": "integrations/comfyui/README.md",
    "diffusers.md": "integrations/diffusers/README.md",
    "scope.md": "integrations/scope/README.md",
}
# F[A](x) of an equation in the text is no link
_EQUATION = re.compile(r"\]\((?=[^)\s.#:(]*[()])")
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages, and the reference of every public name."""
    for place, source in PAGES.items():
        content = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, place, content=content))
    files.append(File.generated(config, "reference.md", content=reference()))
    return files


def reference() -> str:
    """A section for each public name, in alphabetical order, and for the hooks."""
    sys.path.insert(0, str(ROOT / "src"))
    import stillframe

    homes = {name: home for home, names in stillframe._HOMES.items() for name in names}
    assert set(homes) == set(stillframe.__all__)
    lines = ["# Reference", "", "What `stillframe` exports; everything else may change.", ""]
    for name in sorted(homes, key=str.lower):
        lines += [f"::: stillframe.{homes[name]}.{name}", "    options: {heading_level: 2}", ""]
    lines += ["## Stock pipelines", ""]
    for name in ("apply", "remove", "hold"):
        lines += [f"::: stillframe.hooks.{name}", "    options: {heading_level: 3}", ""]
    return "\n".join(lines)


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links of the repository as links of the site."""
    place = page.file.src_uri
    here = (ROOT / PAGES.get(place, f"docs/{place}")).parent
    pages = {(ROOT / source).resolve(): site for site, source in PAGES.items()}

    def moved(match: re.Match[str]) -> str:
        picture, text, target = match.groups()
        name, _, anchor = target.partition("#")
        if not name or ":" in name:
            return match[0]
        there = (here / name).resolve()
        docs = ROOT / "docs"
        site = pages.get(there) or (
            there.relative_to(docs).as_posix() if there.is_relative_to(docs) else None
        )
        if site is None:
            return text
        link = os.path.relpath(site, Path(place).parent)
        return f"{picture}[{text}]({link}{'#' + anchor if anchor else ''})"

    parts = re.split(r"(^```.*?^```|^    .*?$)", markdown, flags=re.M | re.S)
    return "".join(
        part if n % 2 else _LINK.sub(moved, _EQUATION.sub(r"]\(", part))
        for n, part in enumerate(parts)
    )
