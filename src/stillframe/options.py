"""Options as data: one declaration, from which command line, server messages and Python are made.

A declaration is a literal, so that it can be read from a file's source by `Registry.catalogue`
without running it: ``stillframe edit --help`` shows the options of every control and imports no
torch. Knows numbers, texts and bounds; not what an option is for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Kind", "Option"]

Kind = Literal["int", "float", "str", "bool", "path"]

_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "path": "a file name",
}


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        kind: of its value.
        help: one sentence; begins with a verb or a noun, ends with a full stop.
        default: what it is where nobody says; None for "not asked for".
        least, most: bounds of a number, both allowed; of a text's length.
        above: a bound that is not allowed itself.
        choices: the only values there are.
        metavar: what stands for the value in help.
        group: heading in help.
        live: whether a client of the server may set it and change it while a session runs.
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

    def checked(self, name: str, value: Any) -> Any:
        """The value of the option ``name``, converted to its kind where nothing is lost.

        Raises:
            ValueError: it is of another kind or out of bounds.
        """
        if value is None:
            return None
        if self.kind == "bool":
            good = isinstance(value, bool)
        elif self.kind in ("int", "float"):
            good = isinstance(value, int if self.kind == "int" else int | float)
            good = good and not isinstance(value, bool) and self._within(value)
        else:
            good = isinstance(value, str) or (self.kind == "path" and hasattr(value, "__fspath__"))
            good = good and (not self.choices or value in self.choices)
        if not good:
            raise ValueError(f"{name} is {self.described}, got {value!r}")
        return float(value) if self.kind == "float" else value

    def _within(self, value: float) -> bool:
        return (
            math.isfinite(value)
            and (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
        )

    @property
    def described(self) -> str:
        """Its values in words: "a whole number from 1 to 65536"."""
        if self.choices:
            return " or ".join(self.choices)
        words = _WORDS[self.kind]
        if self.least is not None:
            words += f" from {self.least:g}"
        if self.above is not None:
            words += f" above {self.above:g}"
        if self.most is not None:
            words += f" {'to' if self.least is not None else 'up to'} {self.most:g}"
        return words
