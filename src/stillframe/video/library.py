"""What differs between the releases of PyAV that this package works with, 17 to 19."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av

__all__ = ["TAGS_AS_BYTES", "fraction"]

#: Keywords of ``av.open`` that keep tags in whatever encoding byte for byte. From 19 on there are
#: none, because it always does.
TAGS_AS_BYTES: dict[str, Any] = (
    {"metadata_errors": "surrogateescape"} if int(av.__version__.partition(".")[0]) < 19 else {}
)


def fraction(value: Any) -> Fraction | None:
    """A rate, ratio or time base of PyAV's; None if it is not known.

    Up to 18 these are a ``Fraction`` or None. From 19 on they are PyAV's own numbers, and 0/1
    stands for unknown.
    """
    return Fraction(value.numerator, value.denominator) if value else None
