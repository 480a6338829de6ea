"""What of a file could not be read, kept as counts and times, told in one sentence.

Knows nothing of containers or decoders: the reader tells it what happened and when.
"""

from __future__ import annotations

__all__ = ["Damage"]


class _Tally:
    """How often something happened, and between which times in seconds."""

    def __init__(self) -> None:
        self.count = 0
        self._first: float | None = None
        self._last: float | None = None

    def add(self, seconds: float | None, count: int = 1) -> None:
        self.count += count
        if seconds is not None:
            self._first = seconds if self._first is None else min(self._first, seconds)
            self._last = seconds if self._last is None else max(self._last, seconds)

    def where(self) -> str:
        if self._first is None or self._last is None:
            return ""
        first, last = f"{self._first:.2f}", f"{self._last:.2f}"
        return f" at {first} s" if first == last else f" between {first} s and {last} s"


class Damage:
    """Collects losses while a file is read.

    Attributes:
        undecoded: packets of video that the decoder refused.
        torn: packets that arrived incomplete.
        concealed: frames that were decoded with parts missing.
        unread: interruptions of the file itself, where the container made no sense.
        skipped_bytes: bytes that belonged to nothing readable.
        early_end: (seconds read, seconds promised) if the file stops before its own header says.
    """

    def __init__(self) -> None:
        self.undecoded = _Tally()
        self.torn = _Tally()
        self.concealed = _Tally()
        self.unread = _Tally()
        self.skipped_bytes = _Tally()
        self.early_end: tuple[float, float] | None = None

    def sentence(self) -> str | None:
        """One sentence without a full stop, or None if nothing was lost."""
        parts = []
        for tally, one, many in (
            (self.undecoded, "packet could not be decoded", "packets could not be decoded"),
            (self.torn, "packet is incomplete", "packets are incomplete"),
            (self.concealed, "frame is partly guessed", "frames are partly guessed"),
            (self.unread, "stretch could not be read", "stretches could not be read"),
            (self.skipped_bytes, "byte made no sense", "bytes made no sense"),
        ):
            if tally.count:
                parts.append(f"{tally.count} {one if tally.count == 1 else many}{tally.where()}")
        if self.early_end is not None:
            read, promised = self.early_end
            parts.append(f"the file ends at {read:.2f} s of {promised:.2f} s")
        return "; ".join(parts) or None
