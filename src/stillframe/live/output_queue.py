"""Edited frames that wait to be read, and the record of the blocks they came with.

Not thread-safe: its session sees to that.
"""

from __future__ import annotations

from collections import deque

from stillframe.live.editor import EditedBlock, EditedFrame
from stillframe.live.telemetry import BlockTelemetry, Telemetry

__all__ = ["OutputQueue"]


class OutputQueue:
    """Edited frames in order.

    Args:
        block_frames: frames of a block; `has_room` as long as fewer are there, so that there are
            never as many as two blocks but at the end of a stream.
        telemetry: where blocks are recorded.
    """

    def __init__(self, block_frames: int, telemetry: Telemetry) -> None:
        self._block_frames = block_frames
        self._telemetry = telemetry
        self._frames: deque[EditedFrame] = deque()

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def has_room(self) -> bool:
        """Whether another block may be begun."""
        return len(self._frames) < self._block_frames

    def pop(self) -> EditedFrame:
        """The next frame; IndexError if there is none."""
        return self._frames.popleft()

    def clear(self) -> None:
        """Forget all frames."""
        self._frames.clear()

    def add(self, block: EditedBlock, now: float, waiting: int, dropped: int) -> None:
        """Take a block's frames, which came out at ``now``, and record it.

        Args:
            waiting, dropped: input frames that wait, and that were dropped so far.
        """
        latencies = [now - frame.arrived for frame in block.frames]
        for frame, latency in zip(block.frames, latencies, strict=True):
            self._frames.append(frame._replace(latency=latency))
        self._telemetry.add(
            BlockTelemetry(
                block=block.number,
                stream=block.stream,
                time=now,
                frames=len(block.frames),
                kept=block.stats.kept,
                tokens=block.stats.tokens,
                milliseconds={stage: 1000 * spent for stage, spent in block.seconds.items()},
                waiting=waiting,
                unread=len(self._frames),
                latency=max(latencies, default=None),
                dropped=dropped,
                fps=self._telemetry.output(now, len(block.frames)),
                keep=block.keep,
                moved=block.moved,
                rate=block.rate,
                guard=block.guard,
            )
        )
