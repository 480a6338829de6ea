"""Frames of one file through one or two streams, to the files that come of it.

What waits between reading and writing is bounded by what the autoencoder holds back, about a block.
Files are opened, and sizes chosen, elsewhere.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillframe.config import EditConfig
from stillframe.controls import MotionMap
from stillframe.controls.rate import RateController
from stillframe.engine.stream import BlockStats, EditStream, StageClock
from stillframe.errors import OutputClosedError
from stillframe.jobs.report import STAGES, RunReport
from stillframe.methods import as_method
from stillframe.metrics.measures import PeakSignalToNoise, StaticFlicker, WorstPatch
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.video import Frame, VideoWriter
from stillframe.video.fit import Fit
from stillframe.video.overlay import MaskTrack, draw_map

__all__ = ["Comparison", "EditRun", "FileLoop", "MapVideo"]

Pixels = NDArray[np.uint8]


class Waiting(NamedTuple):
    """A frame between reading and writing; ``source`` only where someone will look at it."""

    pts: int
    duration: int | None
    source: Pixels | None


class EditRun:
    """One way of editing the clip: a stream, and what it costs.

    Args:
        pipe: the model.
        embeds: the prompt's embeddings.
        config: how to edit.
        on_block: called after every block.
        blocks_before: of the same video, that another stream edits; see `EditStream`.

    Attributes:
        shares, moved: share of the tokens computed, and reused from another place, of each block
            so far.
    """

    def __init__(
        self,
        pipe: CausalWanPipeline,
        embeds: Tensor,
        config: EditConfig,
        on_block: Callable[[BlockStats], None] | None = None,
        blocks_before: int = 0,
    ) -> None:
        self.method = as_method(config.method)
        self.shares: list[float] = []
        self.moved: list[float] = []
        self._kept = self._tokens = 0
        self._moved = 0.0
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._on_block = on_block
        self.stream: EditStream = pipe.stream(
            prompt_embeds=embeds, config=config, on_block=self._note, blocks_before=blocks_before
        )

    @property
    def kept_share(self) -> float:
        """Computed tokens / all tokens so far, 0 to 1."""
        return self._kept / self._tokens if self._tokens else 0.0

    @property
    def moved_share(self) -> float:
        """Tokens reused from another place / all tokens so far, 0 to 1."""
        return self._moved / self._tokens if self._tokens else 0.0

    def _note(self, stats: BlockStats) -> None:
        moved = stats.moved_share
        self.shares.append(stats.kept_share)
        self.moved.append(moved)
        self._kept += stats.kept
        self._moved += moved * stats.tokens
        self._tokens += stats.tokens
        self._count(stats.seconds)
        if self._on_block is not None:
            self._on_block(stats)

    def _count(self, seconds: dict[str, float]) -> None:
        for stage, spent in seconds.items():
            self._seconds[stage] += spent

    def control_report(self) -> dict[str, Any] | None:
        """What controls were asked for and what they did, None without any."""
        state = self.stream.control_state
        return None if state is None else state.report()

    def write_rate_trace(self, path: str | PathLike[str]) -> None:
        """Write the times that a rate went by, if there is one.

        Raises:
            OutputError: they cannot be written.
        """
        state = self.stream.control_state
        rate = None if state is None else state.find(RateController)
        if rate is not None:
            rate.recorded().write(path)

    def report(self, files: dict[str, float], frames: int, flicker: float | None) -> RunReport:
        """What it cost.

        Args:
            files: seconds of reading and writing, which all runs have in common.
            frames: frames that came out.
            flicker: of static regions, if measured.
        """
        self._count(self.stream.clock.lap())
        seconds = {stage: self._seconds[stage] + files.get(stage, 0.0) for stage in STAGES}
        seconds["total"] = sum(seconds.values())
        memory = self.stream.memory
        method, prunes = self.method, self.method.prunes
        return RunReport(
            method=method.name,
            recovery=method.recovery if prunes else "none",
            tolerance=getattr(method, "tolerance", None) if method.visible else None,
            motion=method.motion,
            tau1=getattr(method, "tau1", None) if prunes else None,
            tau2=method.tau2 if prunes and not method.visible else None,
            kept_share=self.kept_share,
            kept_share_blocks=tuple(self.shares),
            moved_share=self.moved_share,
            moved_share_blocks=tuple(self.moved),
            seconds=seconds,
            fps=frames / seconds["total"] if seconds["total"] else 0.0,
            cache_bytes=memory["cache"],
            recovery_bytes=memory["recovery"],
            staleness=self.stream.staleness.told(),
            flicker=flicker,
        )


class MapVideo:
    """The map as a video: masks come from the engine, source frames from the loop.

    Args:
        pipe: the model, for its numbers.
        writer: where to write; frames have the size of the output.
    """

    def __init__(self, pipe: CausalWanPipeline, writer: VideoWriter) -> None:
        self.writer = writer
        self._patch = pipe.frame_multiple
        self._track = MaskTrack(pipe.timeline)

    def note(self, stats: BlockStats) -> None:
        """Take the mask of a finished block, and what moved in it."""
        self._track.add(*stats.patches())

    def write(self, waiting: Waiting) -> None:
        """Draw and write the map of the next frame."""
        assert waiting.source is not None
        keep, moved, motion = self._track.at(self.writer.frames_written)
        drawn = draw_map(waiting.source, keep, self._patch, moved, motion)
        self.writer.write(drawn, waiting.pts, waiting.duration)


class Comparison:
    """Measures of the first run, which may prune, against the second, which does not, and of that
    against a third, if there is one: the same with another seed.

    Args:
        first: pixel frames of the first block, which is always whole.
    """

    def __init__(self, first: int = 0) -> None:
        self.likeness = PeakSignalToNoise()
        self.flicker = StaticFlicker(videos=2)
        self.patches = WorstPatch(first)
        self.seeds = WorstPatch(first)

    def add(self, source: Pixels | None, edited: Pixels, full: Pixels, *others: Pixels) -> None:
        """Take the next frame of all, uint8 (H, W, 3)."""
        assert source is not None
        self.likeness.add(edited, full)
        self.flicker.add(source, edited, full)
        self.patches.add(edited, full)
        for other in others:
            self.seeds.add(other, full)


class FileLoop:
    """The loop over one file: ``runs[0]`` is written, the others compared to it.

    Args:
        fit: from the file's frames to the model's and back.
        device: of the model.
        runs: one, or two or three if there is a ``comparison``.
        writer: the output.
        map_video, comparison: what else to make, if anything.

    Attributes:
        frames_in: frames read so far.
        interrupted: whether ``stop`` said so, or nobody reads the output any more.
        closed: the error of the output in that case, else None.
        clock: seconds of ``decode_video`` (with fitting) and ``write``.
    """

    def __init__(
        self,
        fit: Fit,
        device: torch.device,
        runs: Sequence[EditRun],
        writer: VideoWriter,
        map_video: MapVideo | None = None,
        comparison: Comparison | None = None,
    ) -> None:
        self.frames_in = 0
        self.interrupted = False
        self.closed: OutputClosedError | None = None
        self.clock = StageClock()
        self.writer = writer
        self.runs = runs
        self._fit, self._device = fit, device
        self._map, self._comparison = map_video, comparison
        self._waiting: deque[Waiting] = deque()
        self._outside = 0.0
        self._watched = map_video is not None or comparison is not None

    def run(
        self,
        frames: Iterator[Frame],
        stop: Callable[[], bool] | None = None,
        on_output: Callable[[], None] | None = None,
    ) -> None:
        """Edit frames until they end or ``stop`` says so, which leaves unfinished blocks out."""
        try:
            self._run(frames, stop, on_output)
        except OutputClosedError as error:
            self.interrupted, self.closed = True, error

    def _run(
        self,
        frames: Iterator[Frame],
        stop: Callable[[], bool] | None,
        on_output: Callable[[], None] | None,
    ) -> None:
        while not self.interrupted:
            with self.clock("decode_video"):
                frame = next(frames, None)
                picture = None if frame is None else self._picture(frame)
            if frame is not None and picture is not None:
                self._wait(frame, picture)
            elif stop is not None and stop():
                # nothing more is read from a pipe then
                self.interrupted = True
                return
            edited = self._advance(picture)
            if edited is not None:
                self._output(edited)
                self._count_outside()
                if on_output is not None:
                    on_output()
            if picture is None:
                return
            self.interrupted = stop is not None and stop()

    def _count_outside(self) -> None:
        """Reading and writing count towards a target rate."""
        controls = self.runs[0].stream.control_state
        spent = sum(self.clock.seconds.values())
        if controls is not None:
            controls.outside(spent - self._outside)
        self._outside = spent

    def _picture(self, frame: Frame) -> Tensor:
        """A frame on the model's grid, (1, 1, 3, H, W) in [0, 1]."""
        pixels = torch.from_numpy(frame.pixels).to(self._device)
        return self._fit.to_grid(pixels.unsqueeze(0)).unsqueeze(0)

    def _wait(self, frame: Frame, picture: Tensor) -> None:
        """Put a frame on the list of those whose edit has yet to come out."""
        self.frames_in += 1
        source = self._pixels(picture)[0] if self._watched else None
        self._waiting.append(Waiting(frame.pts, frame.duration, source))
        for run in self.runs:
            controls = run.stream.control_state
            if controls is not None:
                controls.frame(None if frame.motion is None else MotionMap(*frame.motion))

    def _advance(self, picture: Tensor | None) -> list[Tensor] | None:
        """Push a frame (None: the end) through every run; what came out, None if nothing did."""
        order = list(range(len(self.runs)))
        # files are encoded in the background: no run shall always be the one beside that
        if len(self.runs[0].shares) % 2:
            # of the two that are compared; a third one comes last
            order[:2] = order[1::-1]
        edited: dict[int, Tensor | None] = {}
        for i in order:
            stream = self.runs[i].stream
            edited[i] = stream.flush() if picture is None else stream.push(picture)
        done = [x for _, x in sorted(edited.items()) if x is not None]
        return done or None

    def _output(self, edited: Sequence[Tensor]) -> None:
        """Write the frames of the first run, (1, T, 3, H, W), and compare the others'."""
        with self.clock("write"):
            frames = self._pixels(edited[0])
        others = [] if self._comparison is None else [self._pixels(x) for x in edited[1:]]
        for number, pixels in enumerate(frames):
            waiting = self._waiting.popleft()
            with self.clock("write"):
                self.writer.write(pixels, waiting.pts, waiting.duration)
            if self._map is not None:
                self._map.write(waiting)
            if self._comparison is not None:
                self._comparison.add(waiting.source, pixels, *(x[number] for x in others))

    def _pixels(self, edited: Tensor) -> Pixels:
        return np.asarray(self._fit.from_grid(edited[0]).cpu().numpy())

    def close(self) -> None:
        """Complete the files, or delete them if there is not one frame because of an interruption.

        Raises:
            OutputError: they cannot be completed.
        """
        keep = self.writer.frames_written > 0 or not self.interrupted
        if self._map is not None:
            self._map.writer.close(keep=keep)
        try:
            with self.clock("write"):
                self.writer.close(keep=keep)
        except OutputClosedError as error:
            self.interrupted, self.closed = True, error
