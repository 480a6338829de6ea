"""``stillframe styles``: the styles that a model has learnt."""

from __future__ import annotations

from stillframe.cli.command import Given, takes
from stillframe.cli.options import MODEL
from stillframe.cli.screen import names_table, say

__all__ = ["styles"]


@takes(MODEL)
def styles(given: Given) -> None:
    """List the styles that a model has learnt."""
    from stillframe.loading.load import model_styles

    known = model_styles(given["model"])
    if not known:
        say(f"{given['model']} has no table of styles: it takes any prompt")
        return
    rows = [(entry.name, entry.prompt, entry.summary) for entry in known]
    names_table(("style", "prompt", "looks like"), rows)
