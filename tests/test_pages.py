"""Pages hang together: links lead somewhere, and what can be installed is what is listed."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/*.md", "examples/*.md", "integrations/*/*.md", "training/*.md")
    for page in ROOT.glob(pattern)
)


@cache
def anchors(page: Path) -> set[str]:
    """Of a page's headings, as the repository's host and mkdocs make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ +(.+?) *$", text, re.M)
    return {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


def links(page: Path) -> list[str]:
    """Targets of a page's links and pictures, but for other sites."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    text = re.sub(r"`[^`]*`|^    .*$", "", text, flags=re.M)
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    # indices of an equation in the text look like links, too: F[A](x)
    return [t for t in found if not re.match(r"[a-z]+:", t) and ("." in t or t[0] == "#")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(page):
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.exists(), f"{target} is not there"
        if anchor:
            assert anchor in anchors(there), f"{there.name} has no heading {anchor!r}"


def test_every_page_has_its_place_in_the_site() -> None:
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    placed = set(re.findall(r": ([\w-]+\.md)$", site.split("\nnav:")[1], re.M))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= placed


def extras() -> set[str]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return set(tomllib.load(file)["project"]["optional-dependencies"])


def test_the_install_page_lists_every_extra_and_no_other() -> None:
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    section = page.split("## What is optional")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.M)) == extras()


def test_extras_that_pages_name_exist() -> None:
    named = {
        extra
        for page in PAGES
        for found in re.findall(r"'(?:stillframe|\.)\[([\w,]+)\]'", page.read_text("utf-8"))
        for extra in found.split(",")
    }
    assert "serve" in named
    assert named <= extras()
