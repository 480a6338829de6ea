"""Options as data: one declaration, from which command line, server messages and Python are made.

A declaration is a literal, so that it can be read from a file's source by `Registry.catalogue`
without running it: ``stillframe edit --help`` shows the options of every control and imports no
torch. Knows numbers, texts and bounds; not what an option is for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

__all__ = ["Kind", "Option"]

Kind = Literal["int", "ints", "float", "floats", "str", "bool", "path"]

_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "ints": "whole numbers between commas",
    "floats": "numbers between commas",
    "str": "a text",
    "bool": "true or false",
    "path": "a file name",
}


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        kind: of its value; "ints" and "floats" are a tuple of numbers, or a text of them between
            commas.
        help: one sentence; begins with a verb or a noun, ends with a full stop.
        default: what it is where nobody says; None for "not asked for".
        least, most: bounds of a number, both allowed.
        above, below: bounds that are not allowed themselves.
        choices: the only values there are.
        metavar: what stands for the value in help.
        group: heading in help.
        live: whether a client of the server may set it and change it while a session runs.
        required: whether the command line does not go without it.
        short: the letter that stands for it on the command line.
        repeats: whether the command line takes it several times; the value is then a list.
        variable: the environment variable that stands in for it on the command line.
    """

    kind: Kind
    help: str
    default: Any = None
    least: float | None = None
    most: float | None = None
    above: float | None = None
    choices: tuple[str, ...] = ()
    metavar: str | None = None
    group: str = ""
    live: bool = False
    below: float | None = None
    required: bool = False
    short: str | None = None
    repeats: bool = False
    variable: str | None = None

    def checked(self, name: str, value: Any) -> Any:
        """The value of the option ``name``, converted to its kind where nothing is lost.

        Raises:
            ValueError: it is of another kind or out of bounds.
        """
        if value is None:
            return None
        if self.repeats:
            return [replace(self, repeats=False).checked(name, one) for one in value]
        if self.kind in ("ints", "floats"):
            return self._numbers(name, value)
        if not self._fits(value):
            raise ValueError(f"{name} is {self.described}, got {value!r}")
        return float(value) if self.kind == "float" else value

    def parsed(self, name: str, text: str) -> Any:
        """The value that a text stands for, as a table's cell; an empty one is not given.

        Raises:
            ValueError: see `checked`.
        """
        word = text.strip()
        if not word:
            return None
        value: Any = text
        if self.kind == "bool":
            value = {"true": True, "false": False}.get(word.lower(), word)
        elif self.kind in ("int", "float"):
            try:
                value = (int if self.kind == "int" else float)(word)
            except ValueError:
                value = word
        return self.checked(name, value)

    def _numbers(self, name: str, value: Any) -> tuple[float, ...]:
        number = int if self.kind == "ints" else float
        try:
            parts = value.split(",") if isinstance(value, str) else value
            numbers = tuple(number(part) for part in parts)
        except (TypeError, ValueError, OverflowError):
            numbers = ()
        if not numbers or not all(map(self._within, numbers)):
            raise ValueError(f"{name} is {self.described}, got {value!r}")
        return numbers

    def _fits(self, value: Any) -> bool:
        match self.kind:
            case "bool":
                return isinstance(value, bool)
            case "int" | "float":
                number = isinstance(value, int if self.kind == "int" else int | float)
                return number and not isinstance(value, bool) and self._within(value)
            case "path":
                return isinstance(value, str) or hasattr(value, "__fspath__")
            case _:
                return isinstance(value, str) and (not self.choices or value in self.choices)

    def _within(self, value: float) -> bool:
        try:
            finite = math.isfinite(value)
        except OverflowError:  # an int that no float holds
            finite = self.kind in ("int", "ints")
        return (
            finite
            and (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    @property
    def _bounded(self) -> bool:
        return any(x is not None for x in (self.least, self.most, self.above, self.below))

    @property
    def described(self) -> str:
        """Its values in words: "a whole number from 1 to 65536"."""
        if self.choices:
            *most, last = self.choices
            return f"{', '.join(most)} or {last}" if most else last
        words = _WORDS[self.kind]
        words += ", each" if self.kind in ("ints", "floats") and self._bounded else ""
        if self.least is not None:
            words += f" from {_shown(self.least)}"
        if self.above is not None:
            words += f" above {_shown(self.above)}"
        if self.most is not None:
            words += f" {'to' if self.least is not None else 'up to'} {_shown(self.most)}"
        if self.below is not None:
            words += f" below {_shown(self.below)}"
        return words


def _shown(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"
