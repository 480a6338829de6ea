"""A live session whose model runs in another process; used like a `LiveSession`.

Frames wait here as they would there: no more than a block of them are on their way.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol

from stillframe.live.editor import EditedFrame, check_frame
from stillframe.live.ipc import Counters, Pixels
from stillframe.live.telemetry import Telemetry
from stillframe.live.worker import SessionError

__all__ = ["RemoteSession", "Session"]


class Session(Protocol):
    """What live sessions have in common, wherever their model runs; see `LiveSession`."""

    telemetry: Telemetry
    block_frames: int
    device: str

    @property
    def state(self) -> str: ...
    @property
    def paused(self) -> bool: ...
    @property
    def dropped(self) -> int: ...
    @property
    def memory(self) -> dict[str, int]: ...
    def push(self, frame: Pixels, timestamp: float, timeout: float | None = None) -> bool: ...
    def get(self, timeout: float | None = None) -> EditedFrame | None: ...
    def __iter__(self) -> Iterator[EditedFrame]: ...
    def change(self, **changes: Any) -> int: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def reset(self) -> None: ...
    def end(self) -> None: ...
    def close(self) -> None: ...


class _Process(Protocol):
    """The process, as far as a session needs it; see ``process.WorkerProcess``."""

    def call(
        self, number: int, verb: str, options: dict[str, Any], pixels: Pixels | None = None
    ) -> Any: ...
    def tell(self, number: int, verb: str, options: dict[str, Any]) -> None: ...
    def forget(self, number: int) -> None: ...


class RemoteSession:
    """One stream of live editing, made by ``WorkerProcess.open``. Any thread may call.

    Methods and properties are those of `LiveSession`; counters are those of the last answer.

    Attributes:
        telemetry: of the latest blocks.
        patch: side of a patch of the keep masks, in pixels.
        block_frames: frames of a block.
        counters: the counters.
        device: where its model computes.
    """

    def __init__(self, number: int, process: _Process, device: str) -> None:
        self.telemetry, self.device = Telemetry(), device
        self.counters = Counters()
        self.patch = self.block_frames = 0
        self._number, self._process = number, process
        self._frames: deque[EditedFrame] = deque()
        self._changed = threading.Condition()
        self._over = self._closed = False
        self._error: tuple[str, str] | None = None

    def opened(self, patch: int, block_frames: int) -> None:
        """It is there; for the process."""
        self.patch, self.block_frames = patch, block_frames

    def handle(self, kind: str, content: list[Any], pixels: Pixels | None) -> None:
        """Take what the other process says; for the process."""
        if kind == "block":
            block, self.counters = content
            self.telemetry.add(block)
            return
        with self._changed:
            if kind == "frame" and not self._closed:
                self._frames.append(content[0]._replace(pixels=pixels))
            elif kind == "ended":
                self._over, self._error = True, self._error or content[0]
            self._changed.notify_all()

    def __enter__(self) -> RemoteSession:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def state(self) -> str:
        """Where it is in its life."""
        return "closed" if self._over or self._closed else self.counters.state

    @property
    def paused(self) -> bool:
        """Whether frames are turned away."""
        return self.counters.paused

    @property
    def error(self) -> str | None:
        """What ended it, if that was an error."""
        return None if self._error is None else self._error[0]

    @property
    def waiting(self) -> int:
        """Frames that came in and have not been begun."""
        return self.counters.waiting

    @property
    def unread(self) -> int:
        """Edited frames that wait for `get`, on this side."""
        return len(self._frames)

    @property
    def dropped(self) -> int:
        """Frames dropped so far."""
        return self.counters.dropped

    @property
    def memory(self) -> dict[str, int]:
        """Bytes that its stream holds."""
        return dict(self.counters.memory)

    def push(self, frame: Pixels, timestamp: float, timeout: float | None = None) -> bool:
        """Give a frame, see `LiveSession.push`.

        Raises:
            ValueError: the frame or timestamp cannot be used. The session goes on.
            SessionError: the session has failed.
        """
        check_frame(frame)
        self._raise_error()
        if self._closed:
            return False
        # it waits there, and so is sent once
        options = {"timestamp": timestamp, "timeout": timeout}
        return bool(self._process.call(self._number, "push", options, frame))

    def get(self, timeout: float | None = None) -> EditedFrame | None:
        """The next edited frame, in order; None once the session is closed and all were read.

        Raises:
            TimeoutError: there was none in time.
            SessionError: the session has failed, and all frames before that were read.
        """
        with self._changed:
            if not self._changed.wait_for(
                lambda: self._frames or self._over or self._closed, timeout
            ):
                raise TimeoutError(f"no edited frame within {timeout} s, {self.waiting} wait")
            if not self._frames:
                self._raise_error()
                return None
            frame = self._frames.popleft()
        self._process.tell(self._number, "read", {"frames": 1})
        return frame

    def __iter__(self) -> Iterator[EditedFrame]:
        """Edited frames until the session is closed."""
        while (frame := self.get()) is not None:
            yield frame

    def change(self, **changes: Any) -> int:
        """Change what is given, from the next block on; see `LiveSession.change`.

        Returns:
            the number of the first block that is made so.

        Raises:
            ValueError: for anything out of range; nothing is changed then.
            SessionError: the session is closed.
        """
        return int(self._do("change", changes))

    def pause(self) -> None:
        """Turn frames away until `resume`; the stream is kept."""
        self._do("pause")

    def resume(self) -> None:
        """Take frames again."""
        self._do("resume")

    def reset(self) -> None:
        """Forget the past: the next frame begins a stream as that of a new session."""
        self._do("reset")

    def end(self) -> None:
        """No more frames will come: edit those that wait, then close. Does not wait for that."""
        self._do("end")

    def close(self) -> None:
        """End at once and free the stream's memory; waits for a block that is running."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._frames.clear()
            self._changed.notify_all()
        try:
            self._process.call(self._number, "close", {})
        except SessionError:
            return  # its process has gone, and all that was in it
        finally:
            self._process.forget(self._number)

    def _do(self, verb: str, options: dict[str, Any] | None = None) -> Any:
        self._raise_error()
        if self._closed:
            raise SessionError("the session is closed: nothing can be changed")
        return self._process.call(self._number, verb, options or {})

    def _raise_error(self) -> None:
        if self._error is not None:
            message, trace = self._error
            raise SessionError(message, trace)
