"""Findings as one HTML page: words, tables, plots drawn inline, videos beside it by relative path.

The page loads nothing from elsewhere and follows the reader's light or dark theme. Knows HTML, not
experiments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from urllib.parse import quote

from stillframe.evaluation.findings import Exhibit, Findings, Plot, Table
from stillframe.evaluation.plots import draw
from stillframe.untrusted.printable import html_text

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
    here = files("stillframe.evaluation")
    style, script = (
        here.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js")
    )
    body = [
        f"<h1>{html_text(title)}</h1>",
        f"<p>{html_text(intro)}</p>",
        _note(notes),
        _contents(findings),
        "<h3>What was run</h3>",
        _facts(facts),
        *map(_section, findings),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html_text(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + f"\n</main>\n<script>\n{script}</script>\n</body>\n</html>\n"
    )


def _note(sentences: Sequence[str], head: str = "") -> str:
    if not sentences:
        return ""
    top = f"<p><strong>{html_text(head)}</strong></p>" if head else ""
    return f'<div class="note">{top}{_list(sentences)}</div>'


def _list(sentences: Iterable[str]) -> str:
    lines = [html_text(sentence) for sentence in sentences]
    if len(lines) == 1:
        return f"<p>{lines[0]}</p>"
    return "<ul>" + "".join(f"<li>{line}</li>" for line in lines) + "</ul>"


def _contents(findings: Sequence[Findings]) -> str:
    if len(findings) < 2:
        return ""
    lines = [
        f'<li><a href="#{f.name}">{html_text(f.title)}</a><br>{html_text(f.headline)}</li>'
        for f in findings
    ]
    return f'<h3>In short</h3><ul class="contents">{"".join(lines)}</ul>'


def _facts(facts: Mapping[str, str]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{html_text(name)}</th><td>{html_text(value)}</td></tr>'
        for name, value in facts.items()
    )
    return f'<div class="scroll"><table class="facts"><tbody>{rows}</tbody></table></div>'


def _section(found: Findings) -> str:
    parts = [
        f"<h2>{html_text(found.title)}</h2>",
        f'<p class="soft">{html_text(found.question)}</p>',
        f'<p class="headline">{html_text(found.headline)}</p>',
        *(f"<p>{html_text(word)}</p>" for word in found.words),
    ]
    if found.papers:
        parts.append(f'<p class="soft">What the papers report: {html_text(found.papers)}</p>')
    parts.append(_note(found.caveats, "What to bear in mind"))
    parts += [_table(table) for table in found.tables]
    plots = [_plot(plot) for plot in found.plots]
    if any(plots):
        parts.append(f'<div class="plots">{"".join(plots)}</div>')
    parts += [_exhibit(exhibit) for exhibit in found.exhibits]
    if found.missing:
        parts.append(f"<h3>Left out</h3>{_list(found.missing)}")
    return f'<section id="{found.name}">\n' + "\n".join(p for p in parts if p) + "\n</section>"


def _table(table: Table) -> str:
    if not table.rows:
        return ""
    head = "".join(f'<th scope="col">{html_text(name)}</th>' for name in table.columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html_text(cell)}</td>" for cell in row) + "</tr>"
        for row in table.rows
    )
    return (
        f'<figure><figcaption>{html_text(table.caption)}</figcaption><div class="scroll"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></figure>"
    )


def _plot(plot: Plot) -> str:
    drawn = draw(plot)
    caption = f"<figcaption>{html_text(plot.caption)}</figcaption>"
    return f"<figure>{drawn}{caption}</figure>" if drawn else ""


def _exhibit(exhibit: Exhibit) -> str:
    # from a moment after the start: browsers then show a picture before anybody presses play
    videos = "".join(
        f'<figure><video src="{html_text(quote(path))}#t=0.01" controls muted loop playsinline '
        f'preload="metadata"></video><figcaption>{html_text(label)}</figcaption></figure>'
        for label, path in exhibit.videos
    )
    return (
        f'<div class="exhibit"><h3>{html_text(exhibit.caption)}</h3>'
        '<button class="together" hidden>Play or stop all together</button>'
        f'<div class="videos">{videos}</div></div>'
    )
