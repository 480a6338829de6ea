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

__all__ = ["known_base", "stored_sizes"]


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
    base = table["base"].get(repo)
    if base is None:
        return {}
    return deepcopy(
        {
            "transformer": base["transformer"],
            "text_encoder": table["text_encoder"],
            "vae": table["vae"][base["vae"]],
        }
    )


def stored_sizes(repo: str) -> dict[str, int]:
    """About how many bytes the files of a base and of a model made from it have.

    Args:
        repo: see `known_base`.

    Returns:
        of ``weights`` (the model's), ``text_encoder``, ``vae`` and ``tiny``; empty for a base that
        is not in the table.
    """
    table = _table()
    base = table["base"].get(repo)
    if base is None:
        return {}
    numbers, kind = table["numbers"], base["vae"]
    counts = {
        "weights": base["numbers"],
        "text_encoder": numbers["text_encoder"],
        "vae": numbers["vae"][kind],
        "tiny": numbers["tiny"][kind],
    }
    return {part: count * base["stored"][part] for part, count in counts.items()}
