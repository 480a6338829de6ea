"""Findings as one Markdown page, for the documentation: words and tables, no videos.

Knows Markdown, not experiments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stillframe.evaluation.findings import Findings, Table

__all__ = ["results_page"]


def results_page(
    title: str,
    command: str,
    facts: Mapping[str, str],
    notes: Sequence[str],
    findings: Sequence[Findings],
) -> str:
    """The whole page.

    Args:
        title: its heading.
        command: what made it.
        facts: what was run, on what, name and value.
        notes: what to bear in mind about all of it.
        findings: sections, in order.
    """
    parts = [
        f"# {title}",
        f"What this command printed:\n\n    {command}",
        *(f"**{note}**" for note in notes),
        _markdown(Table("", ("what", "value"), [[_cell(k), _cell(v)] for k, v in facts.items()])),
        *map(_section, findings),
    ]
    return "\n\n".join(parts) + "\n"


def _section(found: Findings) -> str:
    parts = [f"## {found.title}", found.question, f"**{found.headline}**"]
    parts += found.words
    if found.papers:
        parts.append(f"*The papers:* {found.papers}")
    parts += [f"{table.caption}\n\n{_markdown(table)}" for table in found.tables if table.rows]
    for head, lines in (("To bear in mind:", found.caveats), ("Left out:", found.missing)):
        if lines:
            parts.append(f"{head}\n\n" + "\n".join(f"- {line}" for line in lines))
    return "\n\n".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _markdown(table: Table) -> str:
    # numbers to the right, words to the left
    side = "---:" if len(table.columns) > 2 else "---"
    rows = [table.columns, ["---", *[side] * (len(table.columns) - 1)], *table.rows]
    return "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in rows)
