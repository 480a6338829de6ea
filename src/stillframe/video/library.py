"""What differs between the releases of PyAV that this package works with, 17 to 19."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av

__all__ = ["TAGS_AS_BYTES", "fraction", "side_data"]

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


def side_data(frame: av.VideoFrame, kind: str) -> Any:
    """What a frame has beside its pixels of a kind by PyAV's name; None if nothing.

    Up to 18, a kind that PyAV does not know (Exif, of JPEG and TIFF) hides all others.
    """
    try:
        found: Any = frame.side_data
        return found.get(kind)
    except ValueError:
        return None
