"""``stillframe methods``: methods and recoveries, as their files declare them."""

from __future__ import annotations

from stillframe.cli.command import Given, takes
from stillframe.cli.screen import names_table, say
from stillframe.registry import catalogue

__all__ = ["methods"]


@takes({})
def methods(given: Given) -> None:
    """List the methods, and the recoveries that stand in for what they prune."""
    for heading, package in (("method", "stillframe.methods"), ("recovery", "stillframe.recovery")):
        rows = []
        for name, declared in catalogue(package).items():
            paper = declared.attributes.get("paper")
            row = (name, declared.attributes["summary"], f"arXiv {paper}" if paper else "")
            rows.append(row if heading == "method" else row[:2])
        names_table((heading, "", "paper")[: len(rows[0])], rows)
        say("")
