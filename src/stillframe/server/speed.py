"""What size this machine keeps up with: a few blocks are edited, and larger sizes judged by them.

Every patch of these blocks is computed. So a size that is fast enough here is fast enough whatever
moves in front of the camera, and mostly faster.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from stillframe.errors import StillframeError
from stillframe.live import Session
from stillframe.server.client_config import ClientConfig
from stillframe.server.state import ServerState

__all__ = ["SIZES", "SizeSpeed", "SpeedProbe", "measured_speeds"]

_log = logging.getLogger(__name__)

#: Sizes that the page offers, about 16:9: width and height in pixels.
SIZES = ((192, 112), (240, 144), (320, 192), (480, 272), (640, 368), (832, 480), (1280, 720))
TARGET_FPS = 10.0

_BLOCKS = 3
"""Of a measurement; the first one, in which kernels are compiled and captured, does not count."""
_LONGEST = 1.0
"""Seconds that a block may be expected to take for its size to be measured, too."""


@dataclass(frozen=True)
class SizeSpeed:
    """How fast a size is edited when all of it is computed.

    Attributes:
        fps: frames a second.
        measured: whether it was; else the time is in proportion to the pixels of one that was.
    """

    width: int
    height: int
    fps: float
    measured: bool


def measured_speeds(
    open_session: Callable[[int, int], Session], sizes: Sequence[tuple[int, int]]
) -> list[SizeSpeed]:
    """Speeds of sizes in rising order; the smallest is measured, and larger ones if that is quick.

    Args:
        open_session: opens one that computes everything and keeps all frames, of a width and
            height.

    Raises:
        SessionError: the model has failed.
    """
    found: list[SizeSpeed] = []
    seconds = pixels = 0.0
    for width, height in sizes:
        expected = seconds * width * height / pixels if pixels else 0.0
        if expected <= _LONGEST and all(each.measured for each in found):
            frames, seconds = _block(open_session(width, height), width, height)
            pixels, expected = width * height, seconds
        found.append(
            SizeSpeed(width, height, round(frames / expected, 1), pixels == width * height)
        )
    return found


def _block(session: Session, width: int, height: int) -> tuple[int, float]:
    """Frames of a block, and the seconds it takes."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    try:
        frames = session.block_frames
        for number in range(_BLOCKS * frames):
            session.push(noise, number / TARGET_FPS)
        session.end()
        for _ in session:
            pass
        blocks = list(session.telemetry.blocks)[1:]
        return frames, min(block.total_milliseconds for block in blocks) / 1000
    finally:
        session.close()


class SpeedProbe:
    """Measures once for all clients.

    It does not while somebody is edited for, who would notice, nor where whoever started the
    server has chosen a size.

    Args:
        state: the server's.
    """

    def __init__(self, state: ServerState) -> None:
        self._state, self._lock = state, asyncio.Lock()
        self._speeds: list[SizeSpeed] = []

    async def answer(self) -> dict[str, Any]:
        """``target_fps``, ``sizes`` with their speed, none if nothing was measured, and ``chosen``:
        the number of the largest that keeps the target, up to the model's own height, and 0 if none
        does."""
        async with self._lock:
            if not (self._speeds or self._state.has_size or self._state.sessions):
                loop = asyncio.get_running_loop()
                self._speeds = await loop.run_in_executor(self._state.pool, self._measured)
        speeds, most = self._speeds, max(self._state.supervisor.default_height, SIZES[0][1])
        fast = list(itertools.takewhile(lambda x: x.fps >= TARGET_FPS and x.height <= most, speeds))
        chosen = max(len(fast) - 1, 0) if speeds else None
        return {"target_fps": TARGET_FPS, "sizes": [asdict(x) for x in speeds], "chosen": chosen}

    def _measured(self) -> list[SizeSpeed]:
        config = ClientConfig(self._state.defaults).with_values({"method": "full"}).config
        most = self._state.limits.output_pixels

        def opened(width: int, height: int) -> Session:
            prompt = self._state.first_prompt
            return self._state.supervisor.open(
                prompt, config=config, policy="all", width=width, height=height
            )

        try:
            return measured_speeds(opened, [size for size in SIZES if size[0] * size[1] <= most])
        except (StillframeError, ValueError):
            _log.exception("the speed of this machine could not be measured")
            return []
