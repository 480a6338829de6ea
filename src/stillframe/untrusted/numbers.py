"""Numbers within bounds, whoever gives them: options, files, fields. Knows no meanings."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["check_number", "number_text", "shortened"]

# letters of a value in a sentence
_LONGEST = 500


def check_number(
    name: str,
    value: Any,
    least: float,
    most: float,
    *,
    whole: bool = False,
    above: bool = False,
) -> None:
    """Refuse what is no finite number from `least` to `most`.

    Args:
        name: what it is, for the sentence.
        value: anything.
        least, most: bounds, allowed themselves.
        whole: whether it must be an integer.
        above: whether `least` itself is refused.

    Raises:
        ValueError: it is refused.
    """
    kinds = int if whole else int | float
    good = isinstance(value, kinds) and not isinstance(value, bool)
    # nan is within no bounds
    if good and least <= value <= most and not (above and value == least):
        return
    kind = "a whole number" if whole else "a number"
    first = "above" if above else "from"
    raise ValueError(
        f"{name} is {kind} {first} {least:.10g} to {most:.10g}, got {number_text(value)}"
    )


def shortened(value: Any) -> str:
    """Any value of a file as it would be written, cut off where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return number_text(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def number_text(value: Any) -> str:
    """A value for a sentence: that of a number, and of anything else its kind."""
    if isinstance(value, str | bool):
        return repr(value)
    if isinstance(value, int) and abs(value) >= 10**15:
        return f"{'-' if value < 0 else ''}10^{math.log10(abs(value)):.0f}"
    return f"{value:.10g}" if isinstance(value, int | float) else type(value).__name__
