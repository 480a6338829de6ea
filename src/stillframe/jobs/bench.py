"""How fast the engine is, stage by stage, against the share of tokens that is kept.

The engine's own block loop runs on random latents, or on random frames, with masks of a given
share; nothing is read from disk or the network. Warm-up is apart. After it come rounds of one block
a share, so that whatever else the machine does meanwhile meets all shares alike; figures are
medians over rounds, and gains those of blocks of the same round.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from stillframe.engine.stream import BlockStats, EditStream
from stillframe.jobs.bench_result import BenchResult, Row
from stillframe.methods import Method, Selector
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.tokens.source import SourceBlock

__all__ = [
    "Share",
    "bench_settings",
    "device_name",
    "matmul_ceiling",
    "pass_flops",
    "run_bench",
]


@dataclass(frozen=True)
class Share(Method):
    """Keep a given share of tokens, anywhere; for timing only, so it is not registered.

    Every stream of the same share has the same masks, whatever else draws random numbers.
    """

    name: ClassVar[str] = "share"
    summary: ClassVar[str] = "keep a given share of the tokens, at random places"

    share: float = 1.0

    def selector(self) -> Selector:
        generators: dict[torch.device, torch.Generator] = {}

        def select(source: SourceBlock) -> Tensor:
            grid, batch, device = source.grid, source.tokens.shape[0], source.tokens.device
            if device not in generators:
                generators[device] = torch.Generator(device).manual_seed(0)
            # drawn where the masks of real methods are made: a copy from the host would be timed
            drawn = torch.rand(batch, grid.tokens, device=device, generator=generators[device])
            ranks = drawn.argsort(1)
            keep = ranks < round(self.share * grid.tokens)
            return keep.view(batch, grid.frames, grid.height, grid.width)

        return select


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


@dataclass
class _Measured:
    """A share's blocks, a round each: wall seconds and stages; and the most memory in use."""

    share: float
    seconds: list[float] = field(default_factory=list)
    blocks: list[BlockStats] = field(default_factory=list)
    peak: int = 0


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
        options: Mapping[str, Any],
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
        """Fill the window, and run every share, at its own length from then on."""
        for _ in range(4):
            self.block()
        for share in shares:
            self.use(share)
            self.block()
            for _ in self.stream.warm([self.blocks[-1].kept]):
                pass
            self.block()

    @property
    def graphs(self) -> int:
        """CUDA graphs of the transformer so far."""
        return self.stream.graphs

    def measure(self, shares: Sequence[float], rounds: int) -> list[_Measured]:
        """A block of every share in every round, there and back, so that a drift of the machine
        favours none."""
        measured = [_Measured(share) for share in shares]
        for number in range(rounds):
            for one in measured if number % 2 == 0 else reversed(measured):
                self._add(one)
        return measured

    def _add(self, to: _Measured) -> None:
        self.use(to.share)
        self.blocks.clear()
        gpu = self.device.type == "cuda"
        if gpu:
            torch.cuda.reset_peak_memory_stats()
        to.seconds.append(self.block())
        to.blocks.extend(self.blocks)
        if gpu:
            to.peak = max(to.peak, torch.cuda.max_memory_allocated())


def bench_settings(
    pipe: CausalWanPipeline,
    *,
    model: str,
    height: int,
    width: int,
    sigmas: Sequence[float],
    shares: Sequence[float],
    recovery: str,
    pixels: bool,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """What a run measures: only runs of which this is the same can be compared."""
    chosen = pipe.settings(**{k: options[k] for k in ("cache", "products") if k in options})
    resolved = {"products": chosen.products} if "products" in options else {}
    # runs from before there was a choice say nothing of it
    resolved |= {"cache": chosen.cache} if chosen.cache != "exact" else {}
    return {
        "model": model,
        "height": height,
        "width": width,
        "sigmas": list(sigmas),
        "shares": list(shares),
        "recovery": recovery,
        "pixels": pixels,
        "dtype": str(pipe.transformer.dtype).removeprefix("torch."),
        **{name: value for name, value in options.items() if name != "cache"},
        **resolved,
    }


def device_name(device: torch.device) -> str:
    """A GPU's name; of a CPU its kind and the threads that are used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{platform.machine()} CPU, {threads} thread{'s' if threads > 1 else ''}"


def run_bench(
    pipe: CausalWanPipeline,
    *,
    height: int,
    width: int,
    shares: Sequence[float],
    sigmas: Sequence[float] | None = None,
    recovery: str = "aligned",
    pixels: bool = False,
    repeats: int = 10,
    options: Mapping[str, Any] | None = None,
    model: str = "",
    before: BenchResult | None = None,
) -> BenchResult:
    """Measure every share; the first block of a stream is whole, and the window fills up first.

    Args:
        pipe: the model, on its device.
        height, width: pixels, on the model's grid.
        shares: of kept tokens, 0 to 1.
        sigmas: noise levels of the denoising passes; None for the model's own.
        recovery: of pruned tokens.
        pixels: measure frames to frames; otherwise the transformer and decoding.
        repeats: rounds of a block a share.
        options: more settings of the stream, such as ``execution``.
        model: what it is called.
        before: what the result shall be compared with.

    Raises:
        ValueError: a share or another number is out of range, or ``before`` is of another model,
            device or settings; nothing has been measured then.
    """
    _check(pipe, height, width, shares)
    options = dict(options or {})
    sigmas = pipe.settings().sigmas if sigmas is None else tuple(sigmas)
    settings = bench_settings(
        pipe, model=model, height=height, width=width, sigmas=sigmas, shares=shares,
        recovery=recovery, pixels=pixels, options=options,
    )  # fmt: skip
    device = device_name(pipe.compute_device)
    if before is not None:
        before.check_same(device, settings)
    started = time.perf_counter()
    bench = _Bench(pipe, height, width, sigmas, recovery, pixels, options)
    bench.warm_up(shares)
    warm = time.perf_counter() - started
    captured = bench.graphs
    gpu = bench.device.type == "cuda"
    ceiling = matmul_ceiling(bench.device, pipe.transformer.dtype) if gpu else None
    rows = _rows(bench, bench.measure(shares, repeats), ceiling)
    return BenchResult(
        device=device,
        settings=settings,
        repeats=repeats,
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


def _rows(bench: _Bench, measured: Sequence[_Measured], ceiling: float | None) -> list[Row]:
    slowest = max(measured, key=lambda one: one.share).seconds
    return [_row(bench, one, slowest, ceiling) for one in measured]


def _row(bench: _Bench, of: _Measured, slowest: Sequence[float], ceiling: float | None) -> Row:
    passes = [1e3 * block.seconds["denoise"] / len(bench.sigmas) for block in of.blocks]
    stages = {
        name: 1e3 * median([block.seconds.get(name, 0.0) for block in of.blocks])
        for name in of.blocks[0].seconds
    }
    tokens, whole = of.blocks[0].kept, median(of.seconds)
    return Row(
        share=of.share,
        tokens=tokens,
        pass_ms=median(passes),
        pass_spread_ms=float(np.subtract(*np.percentile(passes, [75, 25]))),
        context_ms=stages.get("context", 0.0),
        stages=stages,
        block_ms=1e3 * whole,
        fps=bench.timeline.later_frames / whole,
        speedup=median([a / b for a, b in zip(slowest, of.seconds, strict=True)]),
        of_ceiling=_of_ceiling(bench, tokens, median(passes), ceiling),
        peak_bytes=of.peak,
    )


def _of_ceiling(bench: _Bench, tokens: int, ms: float, ceiling: float | None) -> float | None:
    if ceiling is None:
        return None
    config = bench.pipe.config
    height, width = (side // bench.pipe.frame_multiple for side in bench.size)
    keys = (config.sink_frames + config.window_frames) * height * width
    flops = pass_flops(bench.pipe.transformer.config, tokens, keys, config.text_length)
    return flops / (ms * 1e-3) / (ceiling * 1e12)


def _pearson(x: Sequence[float], y: Sequence[float]) -> float | None:
    if len(x) < 3 or min(len(set(x)), len(set(y))) < 2:
        return None
    return float(np.corrcoef(np.array(x), np.array(y))[0, 1])
