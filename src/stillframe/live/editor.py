"""Batches of frames in, edited blocks out: the streams of one session, one after the other.

Opens a stream when a batch begins one, and hands what changed - prompt, method, settings - to it
between blocks. Runs on one thread at a time.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillframe.controls import Controls
from stillframe.engine.stream import BlockStats, EditStream, StageClock
from stillframe.live.blend import PromptBlend
from stillframe.live.input_queue import Batch, InputFrame
from stillframe.live.request import EditRequest
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.video.fit import Fit, fit_to_grid
from stillframe.video.overlay import MaskTrack, PatchMap

__all__ = ["EditedBlock", "EditedFrame", "Editor", "FrameSize", "check_frame"]

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Displacements = NDArray[np.float32]


class EditedFrame(NamedTuple):
    """A frame that was edited.

    Attributes:
        pixels: uint8 (height, width, 3).
        timestamp: the one it was pushed with.
        block: number of the session's block that it came out with.
        keep: (h, w) bool, which patches were recomputed for it; see ``overlay.draw_map``.
        arrived: when it was pushed, by the session's clock.
        latency: seconds from then until it was there.
        moved, motion: what was reused from another place, and from where, see
            ``overlay.PatchMap``; None where nothing was.
    """

    pixels: Pixels
    timestamp: float
    block: int
    keep: Mask
    arrived: float
    latency: float = 0.0
    moved: Mask | None = None
    motion: Displacements | None = None


class EditedBlock(NamedTuple):
    """A block that was edited.

    Attributes:
        number: in the session, from 0.
        stream: its stream's number.
        stats: the engine's.
        keep: (S, h, w) bool, true = recomputed.
        seconds: wall time by stage, those outside of the engine included.
        frames: what came out with it.
        moved: (S, h, w) bool, reused from another place; None where nothing was.
        rate, guard: how they do after it, see ``RunningControl.telemetry``; None
            without one, and for a block that nothing came out with.
    """

    number: int
    stream: int
    stats: BlockStats
    keep: Mask
    seconds: dict[str, float]
    frames: list[EditedFrame]
    moved: Mask | None = None
    rate: dict[str, Any] | None = None
    guard: dict[str, Any] | None = None


def check_frame(frame: Pixels) -> None:
    """Raise a ValueError if a frame is not uint8 (H, W, 3), or has no pixels."""
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise ValueError(f"a frame is uint8 (H, W, 3), got {frame.dtype} {frame.shape}")
    if frame.size == 0:
        raise ValueError(f"a frame has at least 1 pixel, got {frame.shape[1]}x{frame.shape[0]}")


class FrameSize(NamedTuple):
    """What a caller wants the working size to be; see ``fit.fit_to_grid``."""

    multiple: int
    height: int | None
    width: int | None
    max_short_side: int

    def fit(self, height: int, width: int) -> Fit:
        """How frames of a size go to the model's grid and back.

        Raises:
            ValueError: if they are too small.
        """
        return fit_to_grid(
            width,
            height,
            multiple=self.multiple,
            target_height=self.height,
            target_width=self.width,
            max_short_side=self.max_short_side,
        )

    def checked(self, frame: Pixels) -> Pixels:
        """A copy of a frame, if it can be used.

        Raises:
            ValueError: it is not uint8 (H, W, 3), or too small.
        """
        check_frame(frame)
        self.fit(*frame.shape[:2])
        return np.array(frame)


class Editor:
    """Edits a session's batches.

    Args:
        pipe: the model.
        size: the working size.

    Attributes:
        first, later: frames that the first block of a stream and any later one take.
        patch: side of a token in pixels.
        lost: frames that were in a stream which was left before they came out.
    """

    def __init__(self, pipe: CausalWanPipeline, size: FrameSize) -> None:
        self._timeline = pipe.timeline
        self.first, self.later = self._timeline.first_frames, self._timeline.later_frames
        self.patch = pipe.frame_multiple
        self.lost = 0
        self._pipe, self._size = pipe, size
        self._clock = StageClock()
        self._blocks = 0
        self._number: int | None = None
        self._in_stream: deque[InputFrame] = deque()
        self._stats: list[BlockStats] = []
        self._stream: EditStream | None = None

    @property
    def blocks(self) -> int:
        """Blocks edited so far."""
        return self._blocks

    @property
    def memory(self) -> dict[str, int]:
        """Bytes that the stream holds, see ``EditStream.memory``."""
        stream = self._stream  # the model's thread may end it meanwhile
        return {"cache": 0, "recovery": 0} if stream is None else stream.memory

    def run(self, batch: Batch, request: EditRequest) -> list[EditedBlock]:
        """Edit a batch: one block, or at the end of a stream as many as there are left."""
        if self._stream is None or batch.stream != self._number:
            stream = self._open(batch, request)
        else:
            stream = self._stream
            self._follow(stream, request)
        blocks = []
        if batch.frames:
            blocks += self._collect(stream.push(self._pictures(batch.frames)))
        if batch.last:
            blocks += self._collect(stream.flush())
            self._stream = self._number = None
        return blocks

    def encode(self, request: EditRequest) -> EditRequest:
        """A request with its prompt encoded, before `run` gets them."""
        with self._clock("text"):
            return request.encoded(self._pipe)

    def _open(self, batch: Batch, request: EditRequest) -> EditStream:
        """Begin a stream; what has not come out of the one before is lost."""
        self.lost += len(self._in_stream)
        self._in_stream.clear()
        self._number = batch.stream
        self._fit = self._size.fit(*batch.frames[0].pixels.shape[:2])
        self._track = MaskTrack(self._timeline)
        self._frames_out = 0
        assert request.embeds is not None
        self._request, self._blend = request, PromptBlend(request.embeds)
        self._stream = self._pipe.stream(
            # every stream starts anew from the seed
            prompt_embeds=request.embeds,
            config=request.config,
            on_block=self._stats.append,
        )
        return self._stream

    def _follow(self, stream: EditStream, request: EditRequest) -> None:
        """Hand over what has changed since the block before."""
        assert request.embeds is not None
        if request.embeds is not self._request.embeds:
            self._blend.turn_to(request.embeds, request.blend)
        if self._blend.step():
            # the block is whole: patches that are reused would show an older mixture
            stream.set_text(self._pipe.text(None, self._blend.embeds))
        control = request.config.control
        changed = control is not self._request.config.control
        controls = (control or Controls()) if changed else None
        stream.update(method=request.method, settings=request.settings, controls=controls)
        self._request = request

    def _pictures(self, frames: list[InputFrame]) -> Tensor:
        """Frames on the model's grid, (1, T, 3, H, W) in [0, 1]."""
        self._in_stream += frames
        with self._clock("fit"):
            pixels = torch.from_numpy(np.stack([frame.pixels for frame in frames]))
            return self._fit.to_grid(pixels.to(self._pipe.compute_device)).unsqueeze(0)

    def _collect(self, edited: Tensor | None) -> list[EditedBlock]:
        """The blocks that were just done; the last of them gets the frames that came out."""
        done, numbers = list(self._stats), range(self._blocks, self._blocks + len(self._stats))
        self._stats.clear()
        self._blocks += len(done)
        if not done:
            return []
        maps = [PatchMap(*stats.patches()) for stats in done]
        for each in maps:
            self._track.add(*each)
        with self._clock("deliver"):
            frames = [] if edited is None else self._frames(edited, numbers[-1])
        number = self._number
        assert number is not None
        blocks = [
            EditedBlock(at, number, stats, each.keep, stats.seconds, [], each.moved)
            for at, stats, each in zip(numbers, done, maps, strict=True)
        ]
        own = self._clock.lap()
        rate, guard = self._control_telemetry(
            sum(spent for stage, spent in own.items() if stage != "text")
        )
        blocks[-1] = blocks[-1]._replace(
            frames=frames, seconds={**done[-1].seconds, **own}, rate=rate, guard=guard
        )
        return blocks

    def _control_telemetry(
        self, outside: float
    ) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """How rate and guard do; what was spent outside of the stream counts for the next block."""
        controls = None if self._stream is None else self._stream.control_state
        if controls is None:
            return None, None
        controls.outside(outside)
        found = controls.telemetry()
        return found.get("rate"), found.get("guard")

    def _frames(self, edited: Tensor, block: int) -> list[EditedFrame]:
        pixels = np.asarray(self._fit.from_grid(edited[0]).cpu().numpy())
        frames = []
        for picture in pixels:
            frame = self._in_stream.popleft()
            patches = self._track.at(self._frames_out)
            self._frames_out += 1
            frames.append(
                EditedFrame(
                    picture,
                    frame.timestamp,
                    block,
                    patches.keep,
                    frame.arrived,
                    moved=patches.moved,
                    motion=patches.motion,
                )
            )
        return frames
