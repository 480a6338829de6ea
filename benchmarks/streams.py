"""What streams of one model cost beside their blocks: the first, those after it, several at once.

Prints, of streams after each other, seconds of each block, what was captured in it, what was asked
of the device's allocator, and the clip from its first frame in to its last frame out; then the same
of streams that take turns block by block, with memory. The first clip's stages are printed block by
block, and ``--profile`` says what the process did in it.

    python -m benchmarks.streams                  # 1.3B, random weights, on a GPU
    python -m benchmarks.streams --model tiny --size 208x112 --device cpu
    python -m benchmarks.streams --warm           # as `stillframe serve --warm` leaves it
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import nullcontext
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks import say
from stillframe.config import EditConfig
from stillframe.engine.stages import BlockStats
from stillframe.engine.stream import EditStream
from stillframe.jobs.warm import warm
from stillframe.kernels.graphs import Graphs
from stillframe.kernels.shared import idle_bytes
from stillframe.loading.ahead import compile_ahead
from stillframe.loading.assemble import Task
from stillframe.loading.load import find_source, load_pipeline
from stillframe.loading.random_model import SHAPES, random_pipeline
from stillframe.pipelines.causal_wan import CausalWanPipeline

_STAGES = ("encode", "mask", "denoise", "context", "decode")


class Block(NamedTuple):
    """One block of a stream.

    Attributes:
        seconds: from its frames in the host's memory to its edited ones there.
        captured: graphs.
        kept: share of the tokens that was computed.
        stages: seconds of each.
        allocations: calls of the device's allocator, none on a CPU.
        reserved: bytes more than before the block.
    """

    seconds: float
    captured: int
    kept: float
    stages: dict[str, float]
    allocations: int
    reserved: int


class Driven:
    """A stream that is fed a made clip, block by block."""

    def __init__(self, pipe: CausalWanPipeline, options: argparse.Namespace, seed: int) -> None:
        self._device, self._stats = pipe.compute_device, list[BlockStats]()
        width, length = pipe.transformer.config.text_dim, pipe.config.text_length
        embeds = torch.randn(1, length, width, generator=torch.Generator().manual_seed(seed))
        self.stream: EditStream = pipe.stream(
            prompt_embeds=embeds.to(self._device, pipe.denoiser.dtype),
            method=options.method,
            generator=torch.Generator(self._device).manual_seed(seed),
            on_block=self._stats.append,
        )
        self.frames, self.blocks = 0, list[Block]()
        self._pieces = pieces(pipe, options, seed)

    def step(self) -> bool:
        """Run a block; false once the clip has ended."""
        piece = next(self._pieces, None)
        captures, before = Graphs.captures, _memory(self._device)
        self._stats.clear()
        start = time.perf_counter()
        push, flush = self.stream.push, self.stream.flush
        edited = flush() if piece is None else push(piece.to(self._device))
        if edited is not None:
            self.frames += (edited * 255).round_().to(torch.uint8).cpu().shape[1]
        seconds, after = time.perf_counter() - start, _memory(self._device)
        for stats in self._stats:
            self.blocks.append(
                Block(
                    seconds / len(self._stats),
                    Graphs.captures - captures,
                    stats.kept_share,
                    {name: stats.seconds.get(name, 0.0) for name in _STAGES},
                    after[0] - before[0],
                    after[1] - before[1],
                )
            )
        return piece is not None


def _memory(device: torch.device) -> tuple[int, int]:
    """Calls of the device's allocator so far, and bytes that are reserved."""
    if device.type != "cuda":
        return 0, 0
    known = torch.cuda.memory_stats(device)
    return known.get("num_device_alloc", 0), known.get("reserved_bytes.all.current", 0)


def pieces(pipe: CausalWanPipeline, options: argparse.Namespace, seed: int) -> Iterator[Tensor]:
    """Frames (1, T, 3, H, W) uint8 of each block: a still texture with a square of noise, which
    grows from a tenth of the picture to two thirds and shrinks again."""
    width, height = map(int, options.size.split("x"))
    generator = torch.Generator().manual_seed(seed)
    still = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    left, number = options.frames, 0
    while left > 0:
        count = min(pipe.timeline.taken_by(number), left)
        share = (0.1, 0.3, 0.5, 0.66, 0.4, 0.2)[number % 6] ** 0.5
        rows, columns = round(height * share), round(width * share)
        frames = still.repeat(count, 1, 1, 1)
        size = count, 3, rows, columns
        noise = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
        frames[:, :, :rows, :columns] = noise
        yield frames.unsqueeze(0)
        left, number = left - count, number + 1


def clip(driven: Driven) -> float:
    """Seconds from the first frame in to the last one out."""
    start = time.perf_counter()
    while driven.step():
        pass
    return time.perf_counter() - start


def steady(blocks: list[Block], frames: int) -> float:
    """Frames a second of the second half of the blocks."""
    return frames / median(block.seconds for block in blocks[len(blocks) // 2 :])


def after_each_other(pipe: CausalWanPipeline, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A clip each; the first one's blocks in full."""
    found = []
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    for number in range(options.streams):
        driven = Driven(pipe, options, number)
        profiled = options.profile and number == 0
        with profile(activities=activities) if profiled else nullcontext() as recorded:
            seconds = clip(driven)
        if number == 0:
            _show_blocks(driven.blocks)
        if recorded is not None:
            table = recorded.key_averages().table("self_cpu_time_total", row_limit=25)
            say(table)
        captured = [block.captured for block in driven.blocks]
        row: dict[str, Any] = {
            "stream": number,
            "clip_fps": driven.frames / seconds,
            "steady_fps": steady(driven.blocks, pipe.timeline.later_frames),
            "first_block_s": driven.blocks[0].seconds,
            "block_s": [round(block.seconds, 4) for block in driven.blocks],
            "captured": captured,
            "kept": [round(block.kept, 3) for block in driven.blocks],
            "memory": driven.stream.memory,
        }
        found.append(row)
        say(
            f"stream {number}: {driven.frames} frames in {seconds:.2f} s, "
            f"{row['clip_fps']:.1f} FPS; first block {row['first_block_s']:.3f} s, "
            f"{sum(captured)} captures, then {row['steady_fps']:.1f} FPS"
        )
    return found


def _show_blocks(blocks: list[Block]) -> None:
    """Milliseconds of the first clip, and what was captured and allocated."""
    say(f"{'block':<6}{'kept':>6}{'ms':>9}" + "".join(f"{x:>9}" for x in _STAGES) + "   rest")
    for number, block in enumerate(blocks):
        stages = [1e3 * block.stages[name] for name in _STAGES]
        rest = 1e3 * block.seconds - sum(stages)
        say(
            f"{number:<6}{block.kept:>6.0%}{1e3 * block.seconds:>9.1f}"
            + "".join(f"{x:>9.1f}" for x in stages)
            + f"{rest:>7.1f}   {block.captured} captured, {block.allocations} allocations, "
            f"{block.reserved / 2**20:+.0f} MiB"
        )


def at_once(pipe: CausalWanPipeline, options: argparse.Namespace) -> dict[str, Any]:
    """Streams that take turns, a block each."""
    captures = Graphs.captures
    if pipe.compute_device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    driven = [Driven(pipe, options, 100 + number) for number in range(options.together)]
    start, going = time.perf_counter(), list(driven)
    while going:
        going = [one for one in going if one.step()]
    seconds = time.perf_counter() - start
    rates = [steady(one.blocks, pipe.timeline.later_frames) for one in driven]
    found = {
        "streams": options.together,
        "total_fps": sum(one.frames for one in driven) / seconds,
        "alone_fps": rates,
        "first_block_s": [one.blocks[0].seconds for one in driven],
        "captured": Graphs.captures - captures,
        "memory": [one.stream.memory for one in driven],
        "peak_bytes": _peak(pipe.compute_device),
    }
    slowest, fastest = min(rates), max(rates)
    say(
        f"{options.together} at once: {found['total_fps']:.1f} FPS together, "
        f"{found['captured']} captures, a block at {slowest:.1f} to {fastest:.1f} FPS; at most "
        f"{found['peak_bytes'] / 1e9:.2f} GB"
    )
    return found


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else 0


def opened(options: argparse.Namespace) -> CausalWanPipeline:
    """The model."""
    if options.model is not None:
        return load_pipeline(options.model, device=options.device)
    width, height = map(int, options.size.split("x"))
    source, device = find_source("self-forcing", options.vae), torch.device(options.device)
    if options.shape == "1.3b":  # whose shape that model has
        compile_ahead(source, torch.bfloat16, Task(height, width), device)
    return random_pipeline(options.shape, options.device, torch.bfloat16, vae=options.vae)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description="What streams of one model cost.")
    parser.add_argument("--model", help="by default random weights")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="1.3b", help="of random weights")
    parser.add_argument("--vae", choices=("tiny", "full"), default="tiny", help="of random weights")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", default="832x480")
    parser.add_argument("--method", default="prune")
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--streams", type=int, default=3, help="after each other")
    parser.add_argument("--together", type=int, default=8, help="streams that take turns")
    parser.add_argument("--warm", action="store_true", help="make the model ready before")
    parser.add_argument("--profile", action="store_true", help="of the first clip")
    options = parser.parse_args()
    pipe = opened(options)
    found: dict[str, Any] = {"what": "streams", **vars(options)}
    if options.device.startswith("cuda"):
        found["device"] = torch.cuda.get_device_name()
    if options.warm:
        width, height = map(int, options.size.split("x"))
        config = EditConfig(method=options.method)
        found["warm"] = warm(pipe, config, height=height, width=width)._asdict()
        say(f"warm: {found['warm']}")
    found["streams"] = after_each_other(pipe, options)
    found["together"] = at_once(pipe, options)
    found["idle_bytes"] = idle_bytes()
    say(json.dumps(found))


if __name__ == "__main__":
    main()
