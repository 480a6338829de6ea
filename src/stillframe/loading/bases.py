"""How the bases of published models are built: `bases.toml` beside this file is the table.

It is what their configurations on the hub say, for plans that need neither the network nor a disk.
It does not know recipes, and loads nothing.
"""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from stillframe.untrusted.small_files import parse_toml

__all__ = ["known_base"]


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = parse_toml(Path(__file__).with_suffix(".toml").read_text("utf-8"))
    return table


def known_base(repo: str) -> dict[str, dict[str, Any]]:
    """Configurations of a base's ``transformer``, ``text_encoder`` and ``vae``.

    Args:
        repo: its hub id, of its latest commit.

    Returns:
        a copy; empty for a base that is not in the table.
    """
    table = _table()
    if repo not in table["transformer"]:
        return {}
    return deepcopy({**table, "transformer": table["transformer"][repo]})
