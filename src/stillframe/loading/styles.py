"""The styles a model knows, and placing of a free prompt among them.

A model folder may hold ``styles.json``, a list of {name, prompt, summary, keywords}. A folder
without one belongs to a model that takes any prompt. Placing only tells whether a model has
probably learnt what the prompt asks for; the prompt itself goes to the text encoder unchanged.

This file knows nothing of models, captions or how the styles were trained.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from stillframe.errors import ModelError
from stillframe.untrusted.small_files import parse_json, read_bounded

__all__ = [
    "PICTURES_FILE",
    "STYLES_FILE",
    "Match",
    "Style",
    "find",
    "load_styles",
    "match",
    "place",
]

STYLES_FILE = "styles.json"
#: Pictures of the styles in a table's order, below each other and of one size; may be missing.
PICTURES_FILE = "styles.webp"

# of a table: some hundred styles of some hundred bytes, many times over
_MOST_BYTES = 2**20

_FUZZY_LENGTH = 8
"""Letters a word must have for a typing error in it to be forgiven; shorter words that differ by a
letter are too often other words (carton, cartoon)."""

_FUZZY_RATIO = 0.88
"""Least similarity of a mistyped word: one wrong or missing letter in eight."""

_AMERICAN = (("olour", "olor"), ("grey", "gray"), ("ise", "ize"), ("ising", "izing"))

_SUFFIXES = ("ings", "ing", "ishes", "ish", "ed", "es", "s", "e")

_LITTLE_WORDS = (
    "a an and as at by for from in into it its like look make of on or style the this to"
)
"""Words that say nothing of a look."""

_STEM_LENGTH = 4
"""Letters that must be left of a word when its ending is cut."""


@dataclass(frozen=True)
class Style:
    """One style of a model.

    Args:
        name: short name, unique in its table.
        prompt: the caption that stands for the style.
        summary: what it looks like, in a few words.
        keywords: words and phrases by which a prompt is recognised.
    """

    name: str
    prompt: str
    summary: str = ""
    keywords: tuple[str, ...] = ()


@dataclass(frozen=True)
class Match:
    """The style that a prompt was matched to.

    Args:
        style: the one.
        score: share of the prompt's words that are keywords of the style, above 0 up to 1; little
            words such as "in the" do not count.
    """

    style: Style
    score: float


def load_styles(folder: Path) -> tuple[Style, ...]:
    """The style table of a model folder, in its own order; empty where there is none.

    Raises:
        ModelError: ``styles.json`` is there and cannot be read or is not a style table.
    """
    path = folder / STYLES_FILE
    if not path.is_file():
        return ()
    try:
        entries = parse_json(read_bounded(path, _MOST_BYTES))
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"cannot read {path}: {error}") from error
    if not isinstance(entries, list):
        raise ModelError(f"{path} holds a {type(entries).__name__}, not a list of styles")
    styles = tuple(_style(entry, number, path) for number, entry in enumerate(entries))
    if len({_words(style.name) for style in styles}) < len(styles):
        raise ModelError(f"{path} gives two of its {len(styles)} styles the same name")
    return styles


def _style(entry: Any, number: int, path: Path) -> Style:
    """A checked entry of ``styles.json``."""
    if not isinstance(entry, dict):
        raise ModelError(f"style {number} of {path} is not an object")
    keywords = entry.get("keywords", [])
    texts = [entry.get("name"), entry.get("prompt"), entry.get("summary", "")]
    if not isinstance(keywords, list) or not all(isinstance(t, str) for t in texts + keywords):
        raise ModelError(f"style {number} of {path} needs a name, a prompt and a list of keywords")
    return Style(texts[0], texts[1], texts[2], tuple(keywords))


def _stem(word: str) -> str:
    """A word in American spelling without its ending: painting, paints, painted -> paint."""
    for british, american in _AMERICAN:
        word = word.replace(british, american)
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= _STEM_LENGTH:
            return word[: -len(suffix)]
    return word


@lru_cache(maxsize=4096)  # the keywords of a table are asked for again with every prompt
def _words(text: str) -> tuple[str, ...]:
    """Stems of a text's words, without case, diacritics and punctuation."""
    plain = unicodedata.normalize("NFKD", text).casefold().replace("&", " and ")
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    plain = re.sub(r"['’]s?\b", "", plain)
    return tuple(_stem(word) for word in re.findall(r"[^\W_]+", plain))


def _same(word: str, key: str) -> bool:
    """Whether a stem is that of a keyword, but for a typing error in a long word."""
    if word == key:
        return True
    if min(len(word), len(key)) < _FUZZY_LENGTH or word[0] != key[0]:
        return False
    return difflib.SequenceMatcher(None, word, key).ratio() >= _FUZZY_RATIO


def _covered(words: Sequence[str], style: Style) -> set[int]:
    """Which of a prompt's words belong to a keyword of the style."""
    covered: set[int] = set()
    for keyword in style.keywords:
        key = _words(keyword)
        for start in range(len(words) - len(key) + 1):
            if key and all(map(_same, words[start : start + len(key)], key)):
                covered.update(range(start, start + len(key)))
    return covered


def place(prompt: str, styles: Sequence[Style]) -> Style | None:
    """The style that a prompt asks for, or None if its words tell of none; see `match`."""
    found = match(prompt, styles)
    return None if found is None else found.style


def match(prompt: str, styles: Sequence[Style]) -> Match | None:
    """The style that a prompt asks for and how surely, or None if its words tell of none.

    A prompt that is a style's name or canonical prompt is that style. Else the style wins whose
    keywords cover most words of the prompt; of equals the one named first, except that the first
    style of the table, the plain one, yields to all others ("a photo in sepia").
    """
    words = _words(prompt)
    if not words:
        return None
    for style in styles:
        if words in (_words(style.name), _words(style.prompt)):
            return Match(style, 1.0)
    best, best_rank, best_covered = None, (0, False, 0), set[int]()
    for number, style in enumerate(styles):
        covered = _covered(words, style)
        if covered:
            rank = (len(covered), number > 0, -min(covered))
            if rank > best_rank:
                best, best_rank, best_covered = style, rank, covered
    if best is None:
        return None
    little = _words(_LITTLE_WORDS)
    told = {at for at, word in enumerate(words) if word not in little} | best_covered
    return Match(best, len(best_covered) / len(told))


def find(name: str, styles: Sequence[Style]) -> Style:
    """The style of that name; case, spelling (colour, color) and hyphens do not matter.

    Raises:
        ValueError: there is none; the message names those there are, and the closest.
    """
    words = _words(name)
    for style in styles:
        if words == _words(style.name):
            return style
    if not styles:
        raise ValueError(f"unknown style {name!r}: this model has no table of styles")
    names = [style.name for style in styles]
    placed = place(name, styles)
    close = [placed.name] if placed else difflib.get_close_matches(name.casefold(), names, 1, 0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"unknown style {name!r}, known are {', '.join(names)}{hint}")
