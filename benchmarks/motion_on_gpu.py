"""What motion adds to a block at 832x480 on a GPU, and whether kernels and reference agree.

Run by `benchmarks.on_gpu motion`. A camera pans over band-limited noise, something else moves in
front of it, and the sensor has noise. A block's source is judged, planned, restored and composed as
the engine does it, with random results and pictures in place of a model's.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import say
from stillframe.detection.motion import Motion, Settled
from stillframe.detection.pixels import TOLERANCE, Anchors, VisibleChange
from stillframe.engine.compose import ShownPictures
from stillframe.engine.moved import MovedPictures
from stillframe.engine.results import Results
from stillframe.kernels import moving
from stillframe.kernels.shared import own_workplaces
from stillframe.tokens.grid import Grid, Plan, plan_tokens
from stillframe.tokens.restore import restore
from stillframe.tokens.source import SourceBlock

_GRID, _TIMES, _WIDTH = Grid(3, 30, 52), 4, 64
_ROWS, _COLUMNS = 480, 832
_PAN, _FRONT = (0.73, 0.31), (-2.2, 0.6)  # pixels a frame
_WARM = 5


class Block(NamedTuple):
    """What came of a block."""

    keep: Tensor
    plan: Plan
    settled: list[Settled] | None
    results: Tensor
    pictures: Tensor


def _texture(generator: torch.Generator, rows: int, columns: int) -> Tensor:
    """Noise of every fourth pixel, smooth between them, (1, 3, rows, columns) in [0, 1]."""
    shape = 1, 3, rows // 4, columns // 4
    small = torch.rand(shape, device="cuda", generator=generator)
    return F.interpolate(small, (rows, columns), mode="bicubic").clamp(0, 1)


def _shifted(texture: Tensor, x: float, y: float) -> Tensor:
    """A picture of the texture from (x, y) on, (3, H, W)."""
    rows, columns = texture.shape[2:]
    scale = texture.new_tensor([columns, rows])
    grid = torch.meshgrid(
        torch.arange(_ROWS, device="cuda") + y,
        torch.arange(_COLUMNS, device="cuda") + x,
        indexing="ij",
    )
    at = (2 * torch.stack(grid[::-1], -1) + 1) / scale - 1
    return F.grid_sample(texture, at[None], mode="bicubic", align_corners=False)[0]


def filmed(blocks: int) -> Tensor:
    """(1, (1 + blocks*S)*t, 3, H, W) in [0, 1], of whole grey levels, half precision."""
    generator = torch.Generator("cuda").manual_seed(5)
    count = (1 + blocks * _GRID.frames) * _TIMES
    back = _texture(generator, _ROWS + 400, _COLUMNS + 800)
    front = _texture(generator, 128, 192)[0]
    frames = []
    for number in range(count):
        frame = _shifted(back, 8 + _PAN[0] * number, 8 + _PAN[1] * number)
        x, y = int(500 + _FRONT[0] * number) % 640, int(100 + _FRONT[1] * number) % 352
        frame[:, y : y + 128, x : x + 192] = front
        noise = torch.randn(frame.shape, device="cuda", generator=generator)
        frames.append(((255 * frame + noise).round().clamp(0, 255) / 255).half())
    return torch.stack(frames)[None]


class Stream:
    """A stream's blocks, as the engine goes through them.

    Args:
        motion: see ``InterFramePruning.motion``.
        graphs: whether to make CUDA graphs.

    Attributes:
        parts: milliseconds of each part of each block, if they are timed one by one.
        whole: milliseconds of each block otherwise.
    """

    def __init__(self, motion: str, graphs: bool) -> None:
        self._change = VisibleChange(TOLERANCE)
        find = own_workplaces(captures=graphs)
        self._motion = None if motion == "off" else Motion(motion, self._change, find)
        self._generator = torch.Generator("cuda").manual_seed(6)
        self._results = Results(_GRID, 2, 4 * self._random(16, 16))
        self._shown, self._anchors = ShownPictures(_TIMES, _GRID.frames, find), Anchors()
        self._last = self._random(1, _GRID.frame_tokens, _WIDTH)
        self._source = self._random(1, _GRID.frame_tokens, _WIDTH)
        self.parts: dict[str, list[float]] = {}
        self.whole: list[float] = []

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(shape, device="cuda", generator=self._generator)

    def _timed(self, part: str, work: Callable[[], Any], each: bool) -> Any:
        return milliseconds(work, self.parts.setdefault(part, [])) if each else work()

    def start(self, pixels: Tensor) -> None:
        """A first block, computed whole."""
        tokens = self._random(1, _GRID.frames, _GRID.frame_tokens, _WIDTH)
        block = SourceBlock(tokens, self._source, self._source, _GRID, pixels)
        if self._motion is not None:
            self._motion.restart(block)
        everything = torch.ones(1, 3, 30, 52, dtype=torch.bool, device="cuda")
        self._anchors.advance(pixels, everything)
        self._shown.compose(pixels[:, _TIMES:], everything, True)

    def block(self, pixels: Tensor, each: bool) -> Block:
        """The next block; each part of it timed by itself, or all at once."""
        tokens = self._random(1, _GRID.frames, _GRID.frame_tokens, _WIDTH)
        own = self._random(1, _GRID.tokens, _WIDTH)
        decoded = (pixels[:, _TIMES:] * 0.8 + 0.1).contiguous()
        block = SourceBlock(tokens, self._source, self._source, _GRID, pixels, self._anchors.pixels)
        if each:
            return self._made(block, own, decoded, each)
        found: Block = milliseconds(lambda: self._made(block, own, decoded, each), self.whole)
        return found

    def _made(self, block: SourceBlock, own: Tensor, decoded: Tensor, each: bool) -> Block:
        keep = self._timed("mask", lambda: self._mask(block), each).flatten(2)
        settled, plan = self._timed("plan", lambda: self._planned(keep), each)
        assert block.pixels is not None
        by_place = keep.unflatten(2, (30, 52))
        self._timed("note", lambda: self._note(block, by_place, settled), each)
        results, even = self._timed(
            "restore", lambda: self._restored(block, own, plan, settled), each
        )
        moved = None if settled is None else MovedPictures(settled, even)
        pictures = self._timed(
            "compose",
            lambda: self._shown.compose(decoded, by_place, False, moved=moved),
            each,
        )
        self._last, self._source = results[:, -_GRID.frame_tokens :], block.tokens[:, -1]
        return Block(keep, plan, settled, results, pictures)

    def _mask(self, block: SourceBlock) -> Tensor:
        if self._motion is None:
            return self._change.mask(block)
        self._motion.begin(block)
        return self._motion.mask(1.0)

    def _planned(self, keep: Tensor) -> tuple[list[Settled] | None, Plan]:
        return (None, plan_tokens(keep)) if self._motion is None else self._motion.planned(keep)

    def _note(self, block: SourceBlock, keep: Tensor, settled: list[Settled] | None) -> None:
        assert block.pixels is not None
        self._anchors.advance(block.pixels, keep)
        if settled is not None and self._motion is not None:
            assert self._anchors.pixels is not None
            self._anchors.pixels = self._motion.anchored(settled, self._anchors.pixels)

    def _restored(
        self, block: SourceBlock, own: Tensor, plan: Plan, settled: list[Settled] | None
    ) -> tuple[Tensor, list[list[Tensor]]]:
        if settled is None:
            return restore(own, self._last, plan.provider), []
        before, source = (self._last, self._source), block.tokens.flatten(1, 2)
        return self._results.restore(own, before, source, plan.keep, settled)


def milliseconds(work: Callable[[], Any], times: list[float]) -> Any:
    """Do ``work`` and note how long it took, waiting for the device before and after."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    done = work()
    torch.cuda.synchronize()
    times.append(1e3 * (time.perf_counter() - start))
    return done


def _blocks(pixels: Tensor) -> list[Tensor]:
    size = _GRID.frames * _TIMES
    return [pixels[:, i : i + size + _TIMES] for i in range(0, pixels.shape[1] - _TIMES, size)]


def _run(name: str, stream: Stream, pixels: list[Tensor], timed: bool) -> list[Block]:
    """All blocks, every second one timed part by part; what it took is told."""
    before = torch.cuda.memory_allocated()
    stream.start(pixels[0])
    found = [stream.block(x, number % 2 == 0) for number, x in enumerate(pixels[1:])]
    held = (torch.cuda.memory_allocated() - before) / 2**20
    last = found[-1]
    moved = 0.0 if last.settled is None else float(last.settled[0].moved.float().mean())
    shares = f"{float(last.keep.float().mean()):.0%} computed, {moved:.0%} moved in the last block"
    if timed:
        parts = {part: median(times[_WARM:]) for part, times in stream.parts.items()}
        each = ", ".join(f"{part} {took:.3f}" for part, took in parts.items())
        say(f"{name}: {median(stream.whole[_WARM:]):.3f} ms a block ({each})")
        say(f"    {shares}; {held:.0f} MiB")
    return found


def _apart(name: str, mine: list[Block], other: list[Block]) -> None:
    """How far ways of the same blocks differ."""
    verdicts, moved, origins = [], [], []
    for a, b in zip(mine, other, strict=True):
        assert a.settled is not None
        assert b.settled is not None
        verdicts.append((a.keep != b.keep).float().mean())
        moved.append((a.settled[0].moved != b.settled[0].moved).float().mean())
        origins.append((a.settled[0].origin != b.settled[0].origin).float().mean())
    first = (mine[0].pictures.float() - other[0].pictures.float()).abs()
    shares = ", ".join(
        f"{what} {float(torch.stack(found).mean()):.3%}"
        for what, found in (("computed", verdicts), ("moved", moved), ("origin", origins))
    )
    say(f"{name}: patches that differ: {shares}; pictures of the first block by {first.mean():.2g}")


def _waits(stream: Stream, pixels: Tensor) -> None:
    """How often a block waits for the device."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            stream._made(*_given(stream, pixels), each=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [w for w in seen if "synchroniz" in str(w.message)]
    say(f"a block waits for the device {len(waits)} times, of which the plan does once")
    for wait in waits:
        say(f"    {wait.filename}:{wait.lineno}")


def _given(stream: Stream, pixels: Tensor) -> tuple[SourceBlock, Tensor, Tensor]:
    tokens = stream._random(1, _GRID.frames, _GRID.frame_tokens, _WIDTH)
    block = SourceBlock(
        tokens, stream._source, stream._source, _GRID, pixels, stream._anchors.pixels
    )
    return block, stream._random(1, _GRID.tokens, _WIDTH), pixels[:, _TIMES:].contiguous()


def motion(profiled: Callable[[str, Callable[[], object]], None]) -> None:
    """Milliseconds with and without motion, eagerly and as graphs; equality; waits; kernels."""
    pixels = _blocks(filmed(31))
    off = Stream("off", True)
    _run("motion off, graphs", off, pixels[:-1], True)
    streams = {
        f"motion {motion}, {name}": Stream(motion, name == "graphs")
        for motion in ("full", "global")
        for name in ("eager", "graphs")
    }
    found = {name: _run(name, one, pixels[:-1], True)[:12] for name, one in streams.items()}
    for motion in ("full", "global"):
        with patch.object(moving, "supported", lambda *_: False):
            reference = _run("", Stream(motion, False), pixels[:13], False)
        _apart(f"{motion}, kernels against reference", found[f"motion {motion}, eager"], reference)
        pair = (found[f"motion {motion}, {way}"] for way in ("graphs", "eager"))
        _apart(f"{motion}, graphs against eager", *pair)
    for name, one in streams.items():
        added = median(one.whole[_WARM:]) - median(off.whole[_WARM:])
        say(f"{name} adds {added:.3f} ms to a block")
    _waits(streams["motion full, graphs"], pixels[-1])
    for name in ("motion full, eager", "motion full, graphs"):
        stream = streams[name]
        given = _given(stream, pixels[-1])
        profiled(name, lambda s=stream, g=given: s._made(*g, each=False))  # type: ignore[misc]
