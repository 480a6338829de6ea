"""What is asked for and what is tested with: lower bounds, and the versions that are pinned."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PINNED = {
    canonicalize_name(name): version
    for name, _, version in (
        line.strip().partition("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line.strip() and not line.startswith("#")
    )
}
ALWAYS = [Requirement(text) for text in PROJECT["project"]["dependencies"]]
OTHERS = [
    Requirement(text)
    for lists in (PROJECT["project"]["optional-dependencies"], PROJECT["dependency-groups"])
    for texts in lists.values()
    for text in texts
]


@pytest.mark.parametrize("wanted", [*ALWAYS, *OTHERS], ids=str)
def test_the_pinned_version_is_one_that_is_asked_for(wanted: Requirement) -> None:
    name = canonicalize_name(wanted.name)
    assert {part.operator for part in wanted.specifier} == {">="}
    if name in PINNED:
        assert wanted.specifier.contains(PINNED[name])


@pytest.mark.parametrize(
    "name", ["av", "diffusers", "numpy", "pillow", "safetensors", "torch", "transformers"]
)
def test_what_parses_files_of_others_has_a_lower_bound(name: str) -> None:
    """Installed by itself, none of them is brought along in a version with known faults."""
    assert name in {canonicalize_name(wanted.name) for wanted in ALWAYS}
    assert name in PINNED
