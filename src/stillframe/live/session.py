"""A live session: frames in from one thread, edited frames out to another, the model on a third.

    ready --first push--> running --close, error, or the last frame after `end`--> closed

Which frames wait and which are dropped is decided in ``input_queue``, how they are edited in
``editor``, and whose turn it is in ``worker``. One lock guards the session, and is never held while
the model runs.
"""

from __future__ import annotations

import math
import threading
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stillframe.config import EditConfig
from stillframe.errors import StillframeError
from stillframe.live.editor import EditedBlock, EditedFrame, Editor, FrameSize
from stillframe.live.input_queue import InputQueue, Policy
from stillframe.live.output_queue import OutputQueue
from stillframe.live.request import EditRequest
from stillframe.live.session_state import SessionState
from stillframe.live.telemetry import Clock, SystemClock, Telemetry
from stillframe.live.worker import SessionError, Worker
from stillframe.pipelines.causal_wan import CausalWanPipeline

__all__ = ["LiveSession"]

Pixels = NDArray[np.uint8]


class LiveSession(SessionState):
    """One stream of live editing. All methods may be called from any thread.

    A block is not begun while a block of edited frames waits to be read, so a consumer that stops
    reading costs nothing and holds less than two blocks.

    Args:
        pipe: the model; sessions share it.
        prompt: what it should look like.
        prompt_embeds: (1, L, text_dim), instead of a prompt.
        policy: "latest" drops input frames so that latency stays bounded, "all" keeps every frame;
            see ``live.input_queue``.
        bound: under "all", how many frames may wait before `push` does; default two blocks.
        max_wait: under "latest", seconds after which a frame goes if more than a block wait.
        config: how to edit.
        height, width: of the edited frames, see ``edit.edit_file``.
        worker: shared with other sessions; without one the session has a thread of its own.
        clock: what latency is measured with.
        blend: see `change`.
        options: fields of ``config`` that take the place of its own, such as ``method``,
            ``control``, ``seed`` and ``strength``.

    Attributes:
        telemetry: of the latest blocks.
        patch: side of a patch of the keep masks, in pixels.
        block_frames: frames of a block; a stream's first one may take fewer.
        device: where the model computes.

    Raises:
        ValueError: for arguments out of range.
        SessionError: if the worker takes no more sessions.
    """

    def __init__(
        self,
        pipe: CausalWanPipeline,
        prompt: str | None = None,
        *,
        prompt_embeds: Tensor | None = None,
        policy: Policy = "latest",
        bound: int | None = None,
        max_wait: float = 4.0,
        config: EditConfig | None = None,
        height: int | None = None,
        width: int | None = None,
        worker: Worker | None = None,
        clock: Clock | None = None,
        blend: int = 0,
        **options: Any,
    ) -> None:
        self.telemetry = Telemetry()
        size = FrameSize(pipe.frame_multiple, height, width, pipe.config.default_height)
        editor = Editor(pipe, size)
        self.patch, self.block_frames = editor.patch, editor.later
        self._pipe, self._size, self.device = pipe, size, str(pipe.compute_device)
        config = EditConfig.of(config, options).seeded
        request = EditRequest.first(pipe, prompt, prompt_embeds, config, blend)
        input_queue = InputQueue(policy, editor.first, editor.later, bound, max_wait)
        super().__init__(request, editor, input_queue, OutputQueue(editor.later, self.telemetry))
        self._clock = clock or SystemClock()
        self._changing = threading.Lock()
        self._newest = -math.inf
        self._serving: int | None = None
        self._next_block = 0  # the number of the next one to be begun
        self._own_worker = worker is None
        self._worker = Worker() if worker is None else worker
        self._worker.add(self)

    def __enter__(self) -> LiveSession:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def push(self, frame: Pixels, timestamp: float, timeout: float | None = None) -> bool:
        """Give a frame. It is copied; one of another size begins another stream.

        Args:
            frame: uint8 (H, W, 3).
            timestamp: in seconds, later than those before; the edited frame comes back with it.
            timeout: under policy "all", how many seconds to wait if there is no room; None waits as
                long as it takes. "latest" never waits.

        Returns:
            whether it was taken: not if the session is paused, ended or closed, or there was no
            room in time. Under "latest" a frame that was taken may still have to go later.

        Raises:
            ValueError: the frame or timestamp cannot be used. The session goes on.
            SessionError: the session has failed.
        """
        if not math.isfinite(timestamp):
            raise ValueError(f"a timestamp is a finite number, got {timestamp}")
        pixels, arrived = self._size.checked(frame), self._clock.now()
        with self._changed:
            done = self._changed.wait_for(lambda: self._offer(pixels, timestamp, arrived), timeout)
            self._raise_error()
            if done == "taken" and self._state == "ready":
                self._state = "running"
                if self._own_worker:
                    self._worker.start()
        self._worker.notify()
        return done == "taken"

    def _offer(self, pixels: Pixels, timestamp: float, arrived: float) -> str:
        """What became of a frame: "taken", "refused", or "" if there is no room for it yet."""
        if self._paused or self._input.ended or self._state == "closed":
            self._refused += 1
            return "refused"
        if timestamp <= self._newest:
            raise ValueError(f"timestamps must rise, got {timestamp} after {self._newest}")
        if not self._input.offer(pixels, timestamp, arrived):
            return ""
        self._newest = timestamp
        return "taken"

    def get(self, timeout: float | None = None) -> EditedFrame | None:
        """The next edited frame, in order; None once the session is closed and all were read.

        Args:
            timeout: seconds to wait; None waits as long as it takes.

        Raises:
            TimeoutError: there was none in time.
            SessionError: the session has failed, and all frames before that were read.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._out or self._state == "closed", timeout):
                raise TimeoutError(f"no edited frame within {timeout} s, {self.waiting} wait")
            if not self._out:
                self._raise_error()
                return None
            frame = self._out.pop()
        self._worker.notify()
        return frame

    def __iter__(self) -> Iterator[EditedFrame]:
        """Edited frames until the session is closed."""
        while (frame := self.get()) is not None:
            yield frame

    def change(
        self,
        *,
        prompt: str | None = None,
        prompt_embeds: Tensor | None = None,
        config: EditConfig | None = None,
        blend: int | None = None,
        **changes: Any,
    ) -> int:
        """Change what is given, from the next block on. No frame is lost.

        What needs a whole block gets one, see ``EditStream.set_text`` and ``EditStream.update``; a
        block that is running is not affected. A prompt is encoded in a turn of its own, by the
        worker and before the next block: this does not wait for it, and other sessions wait for no
        more than that.

        Args:
            config: takes the place of the one before.
            blend: how many blocks another prompt takes to come in, 0 to 64; each of them is whole.
            changes: fields of the configuration, such as ``method``, ``strength`` or ``sigmas``,
                and of the method, such as ``recovery`` or ``tolerance``; the others stay. A
                ``control`` takes the place of the one before and counts blocks from there on; None
                takes it away. What a stream is set up with (``store``, ``execution``, ``products``,
                ``seed``) cannot change.

        Returns:
            the number of the first block that is made so. Where a stream is being ended at that
            moment, which takes any number of blocks, one is counted for it.

        Raises:
            ValueError: for anything out of range; nothing is changed then.
            SessionError: the session is closed.
        """
        with self._changing:
            request = self._request.changed(
                self._pipe, prompt, prompt_embeds, config, changes, blend
            )
            with self._changed:
                self._raise_error()
                if self._state == "closed":
                    raise SessionError("the session is closed: nothing can be changed")
                self._request = request
                return self._next_block

    def pause(self) -> None:
        """Turn frames away until `resume`; the stream is kept.

        Of frames that wait, "latest" drops all and "all" none: full blocks of them are edited.
        """
        with self._changed:
            self._paused = True
            if self._input.policy == "latest":
                self._input.drop()
            self._changed.notify_all()

    def resume(self) -> None:
        """Take frames again."""
        with self._changed:
            self._paused = False

    def reset(self) -> None:
        """Forget the past: the next frame begins a stream as that of a new session.

        Under "all" the stream in progress is finished first; "latest" drops what waits.
        """
        with self._changed:
            self._input.cut()
        self._worker.notify()

    def end(self) -> None:
        """No more frames will come: edit those that wait, then close. Does not wait for that."""
        with self._changed:
            self._input.ended = True
            self._changed.notify_all()
            if self._serving is None and self._input.done:
                self._finish()
        self._worker.notify()

    def close(self) -> None:
        """End at once and free the stream's memory; waits for a block that is running.

        Frames not read yet are gone. May be called again, and after an error.
        """
        with self._changed:
            self._finish()
            self._out.clear()
            if self._serving != threading.get_ident():
                self._changed.wait_for(lambda: self._serving is None)
        if self._own_worker:
            self._worker.stop()

    def _finish(self) -> None:
        """Closed from now on; a block that is running sees to the stream when it is done."""
        self._state = "closed"
        self._input.drop()
        if self._serving is None:
            self._editor = None
        self._worker.remove(self)
        if self._own_worker:
            self._worker.dismiss()
        self._changed.notify_all()

    @property
    def has_work(self) -> bool:
        """Whether a block could be run now, or a prompt encoded; for the worker."""
        with self._changed:
            free = self._state == "running" and self._serving is None
            waits = self._request.embeds is None
            return free and (waits or (self._out.has_room and self._input.ready))

    def serve(self) -> None:
        """Encode the prompt if there is a new one, else run a block; for the worker."""
        with self._changed:
            editor, request = self._editor, self._request
            if self._state == "closed" or editor is None:
                return
            encodes = request.embeds is None
            batch = None if encodes else self._input.take()
            if batch is None and not encodes:
                return
            self._serving = threading.get_ident()
            self._next_block += batch is not None
            self._changed.notify_all()
        blocks: list[EditedBlock] = []
        what = "the prompt" if encodes else f"block {editor.blocks}"
        try:
            if batch is None:
                self._encoded(request, editor.encode(request))
            else:
                blocks = editor.run(batch, request)
        except Exception as error:
            # of our own errors the sentence says it all
            kind = "" if isinstance(error, StillframeError) else f" with {type(error).__name__}"
            message = f"{what} failed{kind}: {error}"
            self.fail(message, traceback.format_exc())
        finally:
            with self._changed:
                self._serving, self._next_block = None, editor.blocks
                self._deliver(blocks, editor.lost)
                self._changed.notify_all()

    def _encoded(self, before: EditRequest, after: EditRequest) -> None:
        """Take the embeddings of a prompt, unless another one is wanted by now."""
        with self._changed:
            if self._request.embeds is None and self._request.prompt == before.prompt:
                self._request = replace(self._request, embeds=after.embeds)

    def _deliver(self, blocks: Sequence[EditedBlock], lost: int) -> None:
        """Hand out what is done, unless the session was closed meanwhile."""
        self._lost = lost
        if self._state == "closed":
            self._editor = None
            return
        for block in blocks:
            self._out.add(block, self._clock.now(), len(self._input), self.dropped)
        if self._input.done:
            self._finish()

    def fail(self, message: str, trace: str = "") -> None:
        """End with an error, which `get` raises after the frames before it; for the worker."""
        with self._changed:
            if self._state != "closed":
                self._error = message, trace
                self._finish()
