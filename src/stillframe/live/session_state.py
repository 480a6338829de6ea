"""State of a live session: its parts and counts under one lock, and what may be read of them.

What changes any of it is in ``session``.
"""

from __future__ import annotations

import threading
from typing import Literal

from stillframe.live.editor import Editor
from stillframe.live.input_queue import InputQueue
from stillframe.live.output_queue import OutputQueue
from stillframe.live.request import EditRequest
from stillframe.live.worker import SessionError

__all__ = ["SessionState", "State"]

State = Literal["ready", "running", "closed"]


class SessionState:
    """Parts and counts of a session. Its properties may be read from any thread.

    Args:
        request: how blocks are edited.
        editor: the session's own, dropped when it is closed.
        input_queue: frames that wait to be edited.
        out: edited frames that wait to be read.
    """

    def __init__(
        self, request: EditRequest, editor: Editor, input_queue: InputQueue, out: OutputQueue
    ) -> None:
        self._request = request
        self._editor: Editor | None = editor
        self._input, self._out = input_queue, out
        self._changed = threading.Condition()
        self._state: State = "ready"
        self._paused = False
        self._error: tuple[str, str] | None = None
        self._refused = self._lost = 0

    @property
    def state(self) -> State:
        """Where it is in its life."""
        return self._state

    @property
    def paused(self) -> bool:
        """Whether frames are turned away, see `pause`."""
        return self._paused

    @property
    def error(self) -> str | None:
        """What ended it, if that was an error."""
        return None if self._error is None else self._error[0]

    @property
    def waiting(self) -> int:
        """Frames that came in and have not been begun."""
        return len(self._input)

    @property
    def unread(self) -> int:
        """Edited frames that wait for `get`."""
        return len(self._out)

    @property
    def dropped(self) -> int:
        """Frames dropped so far: by the policy, while paused, and when a stream was left."""
        with self._changed:
            return self._input.dropped + self._refused + self._lost

    @property
    def request(self) -> EditRequest:
        """How the next block is edited: its ``config``, ``method`` and ``settings``."""
        return self._request

    @property
    def memory(self) -> dict[str, int]:
        """Bytes that its stream holds, see ``EditStream.memory``."""
        with self._changed:
            return {"cache": 0, "recovery": 0} if self._editor is None else self._editor.memory

    def _raise_error(self) -> None:
        if self._error is not None:
            message, trace = self._error
            raise SessionError(message, trace)
