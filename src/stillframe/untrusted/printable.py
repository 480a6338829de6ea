"""Strings of others - names, tags, prompts, error sentences - made fit to be shown.

Used at the edges, where text reaches a terminal, a table file or a page; inside, strings stay as
they are. What could move a cursor, end a line or turn the direction of writing becomes a visible
escape, as Python writes it. Knows nothing of where strings come from.
"""

from __future__ import annotations

import html
import math
import re
from typing import Any

__all__ = ["csv_cell", "html_text", "markdown_text", "printable"]

#: Letters of a string that are shown, unless somebody says otherwise.
_MOST = 2000
# Controls (C0, DEL, C1), lone surrogates, line and paragraph separators, marks and overrides of the
# direction of writing, what is invisible and changes what follows (byte order mark, tags). Joiners
# stay: they belong to words and emoji.
_UNFIT = re.compile(
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff"
    "\ufff9-\ufffb\U000e0000-\U000e0fff]"
)
# What a spreadsheet may take for a formula. Source: OWASP, "CSV Injection".
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?%?", re.IGNORECASE)
_MARKDOWN = re.compile(r"([\\`*_\[\]<>|~&])")


def printable(text: str, most: int = _MOST) -> str:
    """The text in one line, with controls as visible escapes; the middle of a long one is left out.

    Args:
        text: anything, lone surrogates included.
        most: letters, at least 16.
    """
    if len(text) > most:
        # the end says what is the matter, in a sentence, and what kind it is, in a name
        last = most // 2
        left_out = len(text) - (most - last) - last
        text = f"{text[: most - last]}[... {left_out} more ...]{text[-last:]}"
    return _UNFIT.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    return found.group().encode("unicode_escape", "surrogatepass").decode()


def html_text(text: str) -> str:
    """For HTML, between tags and in attributes."""
    return html.escape(printable(text), quote=True)


def markdown_text(text: str) -> str:
    """For Markdown, in a table and elsewhere: nothing in it is markup or HTML."""
    return _MARKDOWN.sub(r"\\\1", printable(text))


def csv_cell(value: Any) -> Any:
    """A field of a table: nothing for what was not measured, numbers untouched, text as text.

    Text that begins like a formula gets an apostrophe before it, unless it is a number.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if not isinstance(value, str):
        return value
    is_formula = value.startswith(_FORMULA) and _NUMBER.fullmatch(value) is None
    return ("'" if is_formula else "") + printable(value)
