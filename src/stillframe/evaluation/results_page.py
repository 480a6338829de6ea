"""Findings as one Markdown page, for the documentation: words and tables, no videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stillframe.evaluation.findings import Findings, Table
from stillframe.untrusted.printable import markdown_text, printable

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
        f"# {markdown_text(title)}",
        f"What this command printed:\n\n    {printable(command)}",
        *(f"**{markdown_text(note)}**" for note in notes),
        _markdown(Table("", ("what", "value"), [[k, v] for k, v in facts.items()])),
        *map(_section, findings),
    ]
    return "\n\n".join(parts) + "\n"


def _section(found: Findings) -> str:
    parts = [f"## {markdown_text(found.title)}", markdown_text(found.question)]
    parts += [f"**{markdown_text(found.headline)}**", *map(markdown_text, found.words)]
    if found.papers:
        parts.append(f"*The papers:* {markdown_text(found.papers)}")
    for table in found.tables:
        if table.rows:
            parts.append(f"{markdown_text(table.caption)}\n\n{_markdown(table)}")
    for head, lines in (("To bear in mind:", found.caveats), ("Left out:", found.missing)):
        if lines:
            parts.append(f"{head}\n\n" + "\n".join(f"- {markdown_text(line)}" for line in lines))
    return "\n\n".join(parts)


def _markdown(table: Table) -> str:
    # numbers to the right, words to the left
    side = "---:" if len(table.columns) > 2 else "---"
    rows = [table.columns, ["---", *[side] * (len(table.columns) - 1)], *table.rows]
    return "\n".join(f"| {' | '.join(map(markdown_text, row))} |" for row in rows)
