"""Telemetry of a live session: a record of every block, and statistics of the last ones."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["BlockTelemetry", "Clock", "SystemClock", "Telemetry"]


class Clock(Protocol):
    """A source of time, so that latency can be tested without waiting for it."""

    def now(self) -> float:
        """Seconds since some moment in the past; never falls."""
        ...


class SystemClock:
    """The computer's own clock."""

    def now(self) -> float:
        return time.monotonic()


@dataclass(frozen=True)
class BlockTelemetry:
    """A block that was edited.

    Attributes:
        block: its number in the session, from 0.
        stream: number of its stream; a reset or another size begins a new one.
        time: when its frames were there, by the session's clock.
        frames: how many came out with it.
        kept, tokens: computed tokens and all tokens.
        milliseconds: wall time by stage: fit, encode, mask, denoise, context, decode, deliver.
        waiting: input frames that waited when it was done.
        unread: edited frames that waited to be read then, its own included.
        latency: seconds from arrival to result of its slowest frame; None if none came out.
        dropped: input frames dropped so far.
        fps: frames a second that came out lately, see `Telemetry`; None with the first block.
        keep: (S, h, w) bool, true = recomputed.
        moved: (S, h, w) bool, true = reused from another place; None where nothing was.
        rate, guard: how they do, see ``RunningControl.telemetry``; None without one.
    """

    block: int
    stream: int
    time: float
    frames: int
    kept: int
    tokens: int
    milliseconds: dict[str, float]
    waiting: int
    unread: int
    latency: float | None
    dropped: int
    fps: float | None
    keep: NDArray[np.bool_] = field(repr=False, compare=False)
    moved: NDArray[np.bool_] | None = field(default=None, repr=False, compare=False)
    rate: Mapping[str, Any] | None = None
    guard: Mapping[str, Any] | None = None

    @property
    def kept_share(self) -> float:
        """0 to 1."""
        return self.kept / self.tokens

    @property
    def moved_share(self) -> float:
        """Patches that were reused from another place / all, 0 to 1."""
        return 0.0 if self.moved is None else float(self.moved.mean())

    @property
    def total_milliseconds(self) -> float:
        """Wall time of all stages."""
        return sum(self.milliseconds.values())

    def figures(self) -> dict[str, Any]:
        """All but the masks, as JSON can hold it."""
        names = ("block", "stream", "time", "frames", "kept", "tokens", "kept_share",
                 "moved_share", "milliseconds", "total_milliseconds", "waiting", "unread",
                 "latency", "dropped", "fps", "rate", "guard")  # fmt: skip
        return {name: getattr(self, name) for name in names}


class Telemetry:
    """The latest blocks of a session. Any thread may ask.

    Args:
        length: how many blocks are remembered.
        window: seconds over which frames a second are counted.

    Raises:
        ValueError: if one of them is not positive.
    """

    def __init__(self, length: int = 256, window: float = 5.0) -> None:
        if length < 1 or not window > 0:
            raise ValueError(f"length and window must be positive, got {length} and {window}")
        self._blocks: deque[BlockTelemetry] = deque(maxlen=length)
        self._window = window
        self._outputs: deque[tuple[float, int]] = deque()
        self._lock = threading.Lock()

    def output(self, time: float, frames: int) -> float | None:
        """Count frames that came out at ``time``; returns frames a second over the window.

        It is the frames after the window's first output over the time since that.
        """
        with self._lock:
            self._outputs.append((time, frames))
            while self._outputs[0][0] < time - self._window and len(self._outputs) > 2:
                self._outputs.popleft()
            elapsed = time - self._outputs[0][0]
            return sum(n for _, n in list(self._outputs)[1:]) / elapsed if elapsed > 0 else None

    def add(self, block: BlockTelemetry) -> None:
        """Remember a block."""
        with self._lock:
            self._blocks.append(block)

    @property
    def blocks(self) -> tuple[BlockTelemetry, ...]:
        """The blocks remembered, oldest first."""
        with self._lock:
            return tuple(self._blocks)

    @property
    def last(self) -> BlockTelemetry | None:
        """The latest block, None before the first."""
        with self._lock:
            return self._blocks[-1] if self._blocks else None

    def percentile(self, name: str, share: float) -> float | None:
        """The smallest value that a share of the remembered blocks does not exceed.

        Args:
            name: an attribute of `BlockTelemetry` that is a number, or None where it is unknown.
            share: 0 to 1; 0.5 is the median.

        Returns:
            None if no block has it.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"share must be in [0, 1], got {share}")
        known = (getattr(block, name) for block in self.blocks)
        values = sorted(value for value in known if value is not None)
        return values[max(math.ceil(share * len(values)) - 1, 0)] if values else None

    def summary(self) -> dict[str, float | None]:
        """Median and 95th percentile of latency (seconds), milliseconds a block, and the shares of
        patches that were computed and that moved."""
        return {
            f"{name}_p{percent}": self.percentile(name, percent / 100)
            for name in ("latency", "total_milliseconds", "kept_share", "moved_share")
            for percent in (50, 95)
        }
