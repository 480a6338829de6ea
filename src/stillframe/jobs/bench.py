"""How fast the engine is, stage by stage, against the share of tokens that is kept.

The engine's own block loop runs on random latents, or on random frames, with masks of a given
share; nothing is read from disk or the network. Warm-up is apart, figures are medians.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from stillframe.engine.stream import BlockStats, EditStream
from stillframe.methods import Method, Selector
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.tokens.source import SourceBlock

__all__ = [
    "BenchResult",
    "Row",
    "Share",
    "matmul_ceiling",
    "pass_flops",
    "run_bench",
]


@dataclass(frozen=True)
class Share(Method):
    """Keep a given share of tokens, anywhere; for timing only, so it is not registered."""

    name: ClassVar[str] = "share"
    summary: ClassVar[str] = "keep a given share of the tokens, at random places"

    share: float = 1.0

    def selector(self) -> Selector:
        def select(source: SourceBlock) -> Tensor:
            grid, batch = source.grid, source.tokens.shape[0]
            # drawn where the masks of real methods are made: a copy from the host would be timed
            ranks = torch.rand(batch, grid.tokens, device=source.tokens.device).argsort(1)
            keep = ranks < round(self.share * grid.tokens)
            return keep.view(batch, grid.frames, grid.height, grid.width)

        return select


@dataclass(frozen=True)
class Row:
    """One share of kept tokens; times are medians over blocks, in milliseconds.

    Attributes:
        share: of tokens to keep.
        tokens: kept tokens of a block.
        pass_ms, context_ms: one denoising pass, the context pass.
        pass_spread_ms: between the quartiles of ``pass_ms``.
        stages: of a block, by stage.
        block_ms: all stages together.
        fps: pixel frames a second of the stages that were run.
        speedup: against the same run's largest share.
        of_ceiling: arithmetic of a denoising pass / its time / the measured ceiling; None on CPUs.
        peak_bytes: most memory in use; 0 where it is not counted.
    """

    share: float
    tokens: int
    pass_ms: float
    pass_spread_ms: float
    context_ms: float
    stages: dict[str, float]
    block_ms: float
    fps: float
    speedup: float
    of_ceiling: float | None
    peak_bytes: int


@dataclass(frozen=True)
class BenchResult:
    """What a run found.

    Attributes:
        device: its name.
        settings: what was run.
        warm_up_seconds: until every share had been run once.
        ceiling_tflops: measured matrix product, None on CPUs.
        pearson: correlation of a block's denoising time with its kept tokens; nan below 3 shares.
        graphs: captured during warm-up, and after it.
        rows: one a share.
    """

    device: str
    settings: dict[str, Any]
    warm_up_seconds: float
    ceiling_tflops: float | None
    pearson: float
    graphs: tuple[int, int]
    rows: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def matmul_ceiling(device: torch.device, dtype: torch.dtype, size: int = 8192) -> float:
    """TFLOP/s of a square matrix product, the median of 20."""
    a = torch.randn(size, size, device=device, dtype=dtype)
    times = []
    for _ in range(23):
        torch.cuda.synchronize()
        start = time.perf_counter()
        a @ a
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / median(times[3:]) / 1e12


def pass_flops(config: Any, tokens: int, keys: int, text: int) -> int:
    """Multiplications and additions of one pass over ``tokens`` that attend to ``keys``."""
    width = config.num_attention_heads * config.attention_head_dim
    linear = 2 * tokens * width * (4 * width + 2 * width + 2 * config.ffn_dim)
    attention = 4 * tokens * width * (keys + text)
    return int(config.num_layers * (linear + attention))


class _Bench:
    """One run.

    Args:
        pipe: the model.
        height, width: of the frames.
        sigmas: the denoising passes.
        recovery: of pruned tokens.
        pixels: frames in and frames out, not only latents.
        options: more settings of the stream.
    """

    def __init__(
        self,
        pipe: CausalWanPipeline,
        height: int,
        width: int,
        sigmas: Sequence[float],
        recovery: str,
        pixels: bool,
        options: dict[str, Any],
    ) -> None:
        self.pipe, self.pixels = pipe, pixels
        self.device = pipe.compute_device
        self.sigmas, self.recovery = tuple(sigmas), recovery
        self.timeline = pipe.timeline
        self.size = height, width
        self.blocks: list[BlockStats] = []
        embeds = torch.randn(1, pipe.config.text_length, pipe.transformer.config.text_dim)
        self.stream: EditStream = pipe.stream(
            prompt_embeds=embeds.to(self.device, pipe.transformer.dtype),
            method=Share(recovery=recovery),
            generator=torch.Generator(self.device).manual_seed(0),
            on_block=self.blocks.append,
            sigmas=self.sigmas,
            **options,
        )
        shape = (self.timeline.later_frames, 3, height, width)
        generator = torch.Generator(self.device).manual_seed(1)
        self._frames = torch.randint(
            0, 256, (1, *shape), generator=generator, device=self.device, dtype=torch.uint8
        )

    def block(self) -> float:
        """Run one block; its wall time in seconds."""
        self._wait()
        start = time.perf_counter()
        if self.pixels:
            edited = self.stream.push(self._frames.to(self.pipe.vae.dtype) / 255)
            assert edited is not None
            (edited * 255).round_().to(torch.uint8)
        else:
            self.stream.edit_block(self._latents())
        self._wait()
        return time.perf_counter() - start

    def _latents(self) -> Tensor:
        height, width = (side // self.timeline.spatial for side in self.size)
        shape = (self.pipe.denoiser.latent_channels, self.timeline.block_frames, height, width)
        return torch.randn(1, *shape, device=self.device)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def use(self, share: float) -> None:
        """Keep that share from the next block on."""
        self.stream.update(method=Share(recovery=self.recovery, share=share))

    def warm_up(self, shares: Sequence[float]) -> None:
        """Fill the window, and run every share."""
        for _ in range(4):
            self.block()
        for share in shares:
            self.use(share)
            self.block()
            self.block()

    @property
    def graphs(self) -> int:
        """CUDA graphs of the transformer so far."""
        return self.stream.graphs

    def measure(self, share: float, repeats: int) -> tuple[list[float], list[BlockStats]]:
        """Wall seconds and stages of some blocks of a share, after one that does not count."""
        self.use(share)
        self.block()
        self.blocks.clear()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = [self.block() for _ in range(repeats)]
        return seconds, list(self.blocks)


def run_bench(
    pipe: CausalWanPipeline,
    *,
    height: int,
    width: int,
    sigmas: Sequence[float],
    shares: Sequence[float],
    recovery: str = "aligned",
    pixels: bool = False,
    repeats: int = 10,
    options: dict[str, Any] | None = None,
) -> BenchResult:
    """Measure every share; the first block of a stream is whole, and the window fills up first.

    Args:
        pipe: the model, on its device.
        height, width: pixels, on the model's grid.
        sigmas: noise levels of the denoising passes.
        shares: of kept tokens, 0 to 1.
        recovery: of pruned tokens.
        pixels: measure frames to frames; otherwise the transformer and decoding.
        repeats: blocks a share.
        options: more settings of the stream, such as ``execution``.

    Raises:
        ValueError: a share or another number is out of range.
    """
    _check(pipe, height, width, shares)
    options = dict(options or {})
    started = time.perf_counter()
    bench = _Bench(pipe, height, width, sigmas, recovery, pixels, options)
    bench.warm_up(shares)
    warm = time.perf_counter() - started
    captured = bench.graphs
    gpu = bench.device.type == "cuda"
    ceiling = matmul_ceiling(bench.device, pipe.transformer.dtype) if gpu else None
    measured = [(share, *bench.measure(share, repeats)) for share in shares]
    rows = _rows(bench, measured, ceiling)
    return BenchResult(
        device=torch.cuda.get_device_name(bench.device) if gpu else "cpu",
        settings={
            "height": height,
            "width": width,
            "sigmas": list(sigmas),
            "recovery": recovery,
            "pixels": pixels,
            "dtype": str(pipe.transformer.dtype).removeprefix("torch."),
            "repeats": repeats,
            **options,
        },
        warm_up_seconds=warm,
        ceiling_tflops=ceiling,
        pearson=_pearson([row.tokens for row in rows], [row.pass_ms for row in rows]),
        graphs=(captured, bench.graphs - captured),
        rows=tuple(rows),
    )


def _check(pipe: CausalWanPipeline, height: int, width: int, shares: Sequence[float]) -> None:
    if not shares or any(not 0 < share <= 1 for share in shares):
        raise ValueError(f"shares lie above 0 and up to 1, got {list(shares)}")
    multiple = pipe.frame_multiple
    if height % multiple or width % multiple:
        raise ValueError(f"height and width must be multiples of {multiple}, got {height}x{width}")


def _rows(
    bench: _Bench,
    measured: Sequence[tuple[float, list[float], list[BlockStats]]],
    ceiling: float | None,
) -> list[Row]:
    steps = len(bench.sigmas)
    frames = bench.timeline.later_frames
    slowest = median(measured[max(range(len(measured)), key=lambda i: measured[i][0])][1])
    rows = []
    for share, seconds, blocks in measured:
        passes = [1e3 * block.seconds["denoise"] / steps for block in blocks]
        stages = {
            name: 1e3 * median([block.seconds.get(name, 0.0) for block in blocks])
            for name in blocks[0].seconds
        }
        tokens = blocks[0].kept
        whole = median(seconds)
        rows.append(
            Row(
                share=share,
                tokens=tokens,
                pass_ms=median(passes),
                pass_spread_ms=float(np.subtract(*np.percentile(passes, [75, 25]))),
                context_ms=stages.get("context", 0.0),
                stages=stages,
                block_ms=1e3 * whole,
                fps=frames / whole,
                speedup=slowest / whole,
                of_ceiling=_of_ceiling(bench, tokens, median(passes), ceiling),
                peak_bytes=torch.cuda.max_memory_allocated() if ceiling else 0,
            )
        )
    return rows


def _of_ceiling(bench: _Bench, tokens: int, ms: float, ceiling: float | None) -> float | None:
    if ceiling is None:
        return None
    config = bench.pipe.config
    height, width = (side // bench.pipe.frame_multiple for side in bench.size)
    keys = (config.sink_frames + config.window_frames) * height * width
    flops = pass_flops(bench.pipe.transformer.config, tokens, keys, config.text_length)
    return flops / (ms * 1e-3) / (ceiling * 1e12)


def _pearson(x: Sequence[float], y: Sequence[float]) -> float:
    if len(x) < 3:
        return float("nan")
    return float(np.corrcoef(np.array(x), np.array(y))[0, 1])
