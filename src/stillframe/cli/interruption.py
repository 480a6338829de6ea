"""Ctrl-C and SIGTERM, from the first line of a command to its last.

Until a command has something to complete they raise KeyboardInterrupt (`interruptible`); from then
on they are a request (`Interruption`).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["INTERRUPTED", "Interruption", "exit_code", "interruptible"]

#: Exit code of a command that Ctrl-C ended.
INTERRUPTED = 128 + signal.SIGINT
_SIGNALS = signal.SIGINT, signal.SIGTERM


class _Raising:
    """Raises KeyboardInterrupt with the signal's number, and remembers it.

    Python drops an exception that leaves a callback of a weak reference, a finalizer or the garbage
    collector. An import runs such callbacks, so that a signal may be lost in any of them.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        raise KeyboardInterrupt(number)


def exit_code(error: KeyboardInterrupt) -> int:
    """What tells of it: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + next((x for x in error.args if isinstance(x, int)), int(signal.SIGINT))


@contextmanager
def interruptible() -> Iterator[None]:
    """Have both signals raise KeyboardInterrupt; one that nobody catches ends the program.

    Use it in the main thread, around a program. An `Interruption` within it hears of a signal that
    came before, where what it raised was lost.

    Raises:
        SystemExit: with the code that tells of the signal.
    """
    raising = _Raising()
    before: dict[int, Any] = {}
    for number in _SIGNALS:
        # a shell lets programs in the background ignore Ctrl-C
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, raising)
    try:
        yield
    except KeyboardInterrupt as error:
        raise SystemExit(exit_code(error)) from None
    finally:
        _put_back(before)


class Interruption:
    """Ctrl-C and SIGTERM as a request: the first one is remembered, a second one acts as usual.

    Use as a context manager in the main thread; call it to ask.

    Args:
        then: is called at once, on the main thread, between any two of its steps.

    Attributes:
        code: the exit code that tells of it, 130 for Ctrl-C.
    """

    def __init__(self, then: Callable[[], None] | None = None) -> None:
        self.code = int(INTERRUPTED)
        self._then = then
        self._requested = False
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        """Whether it happened."""
        return self._requested

    def _request(self, number: int, frame: FrameType | None = None) -> None:
        self._requested = True
        self.code = 128 + number
        _put_back(self._before)
        if self._then is not None:
            self._then()

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            # all of them first: the first signal puts them back
            self._before = {number: signal.getsignal(number) for number in _SIGNALS}
            for number in _SIGNALS:
                signal.signal(number, self._request)
            for handler in self._before.values():
                if isinstance(handler, _Raising) and handler.received and not self._requested:
                    self._request(handler.received)
        return self

    def __exit__(self, *exc: object) -> None:
        _put_back(self._before)


def _put_back(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        # None stands for a handler that Python did not install and cannot put back
        if handler is not None:
            signal.signal(number, handler)
