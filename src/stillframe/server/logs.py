"""Limits the log, so that clients cannot fill it: so many lines of a kind a minute.

A kind is a place in a program that logs: there are few of those, whatever clients send.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

__all__ = ["LogLimit", "limit_logs"]

_LINES = 5
_SECONDS = 60.0
_ROOTS = (
    "aioice",
    "aiortc",
    "asyncio",
    "stillframe.live",
    "stillframe.server",
    "stillframe.study",
    "uvicorn",
)
_LONGEST = 4000
_LEFT_OUT = "%s (%d lines like this one were left out before it)"


class LogLimit(logging.Filter):
    """Lets through so many lines of a kind in so many seconds.

    Args:
        lines, seconds: how many, in which time.
        now: seconds since some moment in the past.
    """

    def __init__(
        self,
        lines: int = _LINES,
        seconds: float = _SECONDS,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._lines, self._seconds, self._now = lines, seconds, now
        self._lock = threading.Lock()
        # of each kind: when its time began, lines since, and those left out
        self._kinds: dict[tuple[str, int], tuple[float, int, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line may pass; counted if not, and told with the next one that may."""
        if record.levelno < logging.WARNING:
            return True
        kind, now = (record.pathname, record.lineno), self._now()
        with self._lock:
            began, lines, left_out = self._kinds.get(kind, (now, 0, 0))
            if now - began >= self._seconds:
                began, lines = now, 0
            passes = lines < self._lines
            self._kinds[kind] = (began, lines + 1, 0) if passes else (began, lines, left_out + 1)
        if passes and left_out:
            record.msg, record.args = _LEFT_OUT, (record.getMessage()[:_LONGEST], left_out)
        return passes


def limit_logs() -> None:
    """Limit what the server and its libraries log; called again, counting begins anew."""
    limit = LogLimit()
    names = [name for name in logging.root.manager.loggerDict if _ours(name)]
    for logger in map(logging.getLogger, {*names, *_ROOTS, "uvicorn.error"}):
        for old in [each for each in logger.filters if isinstance(each, LogLimit)]:
            logger.removeFilter(old)
        logger.addFilter(limit)


def _ours(name: str) -> bool:
    return any(name == root or name.startswith(f"{root}.") for root in _ROOTS)
