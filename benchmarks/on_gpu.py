"""Details of the fast path on a GPU, with random weights of Wan 1.3B's shape at 832x480.

``equality``: results of reference, fused and graph execution against each other after six blocks.
``kernels``: where a block's GPU time goes, at 100%, 68% and 10% kept, and the autoencoder's.
``mask``: the detectors of change, by latents eagerly and as a graph, by pixels in torch and as
kernels, there with what goes with it: what places look like, plan, anchors, staleness.
``flow``: optical flow of a block's three latent frames of four pictures, eagerly and as a graph.
``motion``: what motion adds to a block, in all and part by part, eagerly and as graphs; how far
kernels, graphs and the reference differ; how often a block waits for the device; its kernels.
``methods``: frames a second of every method, transformer and decoding.
``soak``: memory and graphs over 2,000 blocks, with masks of real clips.

Run as ``python -m benchmarks.on_gpu equality|kernels|mask|flow|motion|methods``, or ``soak
MASKS.npy`` with what ``python -m benchmarks.padding CLIP... --masks MASKS.npy`` wrote; needs 12 GB
of a CUDA device.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, ClassVar, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks import say
from benchmarks.motion_on_gpu import milliseconds as _milliseconds
from benchmarks.motion_on_gpu import motion
from stillframe.autoencoders.streaming import open_autoencoder
from stillframe.detection.capture import captured
from stillframe.detection.latents import CausalMask
from stillframe.detection.pixels import TOLERANCE, Anchors, VisibleMask, appearance
from stillframe.detection.staleness import Staleness
from stillframe.engine.compose import ShownPictures
from stillframe.engine.stream import EditStream
from stillframe.jobs.bench import Share
from stillframe.kernels import visible as visible_kernels
from stillframe.kernels.flow import dense_flow, dense_flow_reference
from stillframe.kernels.graphs import Graphs
from stillframe.kernels.shared import own_workplaces
from stillframe.loading.random_model import random_pipeline
from stillframe.methods import Method, Selector, find_method
from stillframe.methods.full import Full
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.tokens.grid import Grid, plan_tokens
from stillframe.tokens.source import SourceBlock

_SIGMAS = (0.769, 0.729, 0.625)


def open_stream(
    pipe: CausalWanPipeline,
    method: Method,
    execution: str = "auto",
    sigmas: Any = _SIGMAS,
    products: str = "exact",
) -> EditStream:
    """A stream with a random prompt."""
    device, config = pipe.compute_device, pipe.transformer.config
    embeds = torch.randn(
        (1, pipe.config.text_length, config.text_dim),
        device=device,
        dtype=pipe.transformer.dtype,
        generator=torch.Generator(device).manual_seed(2),
    )
    return pipe.stream(
        prompt_embeds=embeds,
        method=method,
        generator=torch.Generator(device).manual_seed(0),
        execution=execution,
        sigmas=sigmas,
        products=products,
    )


def drifting(
    blocks: int, device: torch.device | str = "cuda", size: Sequence[int] = (16, 3, 60, 104)
) -> list[Tensor]:
    """Latents that change a little from block to block."""
    generator = torch.Generator(device).manual_seed(1)
    shape = (1, *size)
    latents = [torch.randn(shape, device=device, generator=generator)]
    for _ in range(blocks - 1):
        step = torch.randn(shape, device=device, generator=generator)
        latents.append(latents[-1] + 0.05 * step)
    return latents


class Run(NamedTuple):
    """A way of running blocks: latents of all, and the mask of each."""

    latents: Tensor
    masks: list[Tensor]


def equality(
    pipe: CausalWanPipeline, size: Sequence[int] = (16, 3, 60, 104)
) -> dict[tuple[str, str, str], float]:
    """Relative difference of latents between ways of running the same blocks with the same masks.

    Args:
        pipe: on any device; without CUDA there are no graphs, and fused passes stand in for them.
        size: of a block's latents, (C, S, h, w).

    Returns:
        by method, recovery and what was compared.

    Raises:
        ValueError: the masks were not the same.
    """
    found = {}
    graphs = "graphs" if pipe.compute_device.type == "cuda" else "fused"
    ways = (("reference", "exact"), ("fused", "exact"), (graphs, "exact"), (graphs, "fp8"))
    # the published scale leaves gates near zero, where attention would hardly count
    for block in pipe.transformer.blocks:
        nn.init.normal_(block.scale_shift_table, std=0.3)
    for method in (Share(share=0.6), Share(share=0.6, recovery="clean"), Full()):
        reference, fused, graph, fp8 = (_run(pipe, method, *way, size) for way in ways)
        pairs = {
            "fused, reference": (fused, reference),
            "graphs, fused": (graph, fused),
            "fp8, exact": (fp8, graph),
        }
        for name, (a, b) in pairs.items():
            if not all(map(torch.equal, a.masks, b.masks)):
                raise ValueError(f"{method.name}: {name} kept different tokens")
            difference = ((a.latents - b.latents).norm() / b.latents.norm()).item()
            found[type(method).__name__, method.recovery, name] = difference
            say(f"{type(method).__name__:<8}{method.recovery:<9}{name:<18}{difference:.5f}")
    return found


def _run(
    pipe: CausalWanPipeline, method: Method, execution: str, products: str, size: Sequence[int]
) -> Run:
    """Six blocks."""
    edited: list[Tensor] = []
    masks: list[Tensor] = []

    def keep(grid: Tensor, *_: Any) -> Tensor:
        edited.append(grid)
        return grid

    stream = open_stream(pipe, method, execution, (0.769, 0.625), products)
    stream._on_block = lambda stats: masks.append(stats.keep)
    # random decoders may be black whatever they decode
    with patch.object(stream, "_decoded", keep):
        for latents in drifting(6, pipe.compute_device, size):
            stream.edit_block(latents)
    run = Run(torch.cat(edited, 2).float(), masks)
    if not run.latents.isfinite().all():
        say(f"{execution}, {products}: not finite")
    return run


def _profiled(what: str, work: Callable[[], object]) -> None:
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        work()
        torch.cuda.synchronize()
    say(f"== {what}")
    events = [e for e in seen.key_averages() if not e.key.startswith("aten::")]
    for e in sorted(events, key=lambda e: -e.self_device_time_total)[:20]:
        say(f"{e.self_device_time_total / 1e3:9.2f} ms {e.count:5d}  {e.key[:90]}")


def kernels(pipe: CausalWanPipeline) -> None:
    """Time by kernel of a block of three denoising passes and a context pass, and of the coder."""
    for share in (1.0, 0.68, 0.1):
        stream = open_stream(pipe, Share(share=share), "fused")
        latents = drifting(1)[0]
        for _ in range(4):
            stream.edit_block(latents)
        _profiled(f"{share:.0%} kept", lambda s=stream, x=latents: s.edit_block(x))  # type: ignore[misc]
    coder = open_autoencoder(pipe.vae, 3)
    frames = torch.rand(1, 12, 3, 480, 832, device="cuda", dtype=torch.bfloat16)
    for _ in range(3):
        block = coder.encode(frames)[0]
        coder.decode(block)
    _profiled("encode", lambda: coder.encode(frames))
    _profiled("decode", lambda: coder.decode(block))


def mask() -> None:
    """Milliseconds of the change detectors; ways of the same one must keep the same tokens."""
    tokens = torch.randn(1, 3, 1560, 64, device="cuda")
    moving = (torch.arange(1560, device="cuda") > 700)[None, None, :, None]
    for name, select in (
        ("latents, eager", CausalMask(0.15, 0.3, 0.2)),
        ("latents, graph", captured(CausalMask(0.15, 0.3, 0.2))),
    ):
        torch.manual_seed(0)
        times: list[float] = []
        for _block in range(14):
            now = tokens + 0.2 * torch.randn(tokens.shape, device="cuda") * moving
            block = SourceBlock(now, tokens[:, 0], tokens[:, 0], Grid(3, 30, 52))
            keep = _milliseconds(lambda s=select, x=block: s(x), times)  # type: ignore[misc]
        say(f"{name}: {median(times[4:]):.2f} ms, {int(keep.sum())} tokens kept in the last block")
    with patch.object(visible_kernels, "supported", lambda *_: False):
        in_torch = _seen("torch, graph", captured(VisibleMask(TOLERANCE)))
    kernels = _seen("kernels", captured(VisibleMask(TOLERANCE)))
    say(f"{int((kernels != in_torch).sum())} of {kernels.numel()} tokens judged differently")
    _hold(kernels)


def _hold(masks: Tensor) -> None:
    """Time the composing of what is decoded with what was shown, eager and as a graph."""
    ways: dict[str, tuple[ShownPictures, list[float]]] = {
        "eager": (ShownPictures(4, 3), []),
        "graph": (ShownPictures(4, 3, own_workplaces(captures=True)), []),
    }
    apart = 0.0
    for number, keep in enumerate(masks):
        frames = torch.rand(1, 12, 3, 480, 832, device="cuda", dtype=torch.float16)
        one, other = (
            _milliseconds(lambda h=held, x=frames, k=keep, n=number: h.compose(x, k, n == 0), times)  # type: ignore[misc]
            for held, times in ways.values()
        )
        apart = max(apart, float((one - other).abs().max()))
    for name, (_, times) in ways.items():
        say(f"hold, {name}: {median(times[5:]):.3f} ms")
    say(f"hold, eager against graph: largest difference {apart:g}")


def _filmed(blocks: int) -> Iterator[Tensor]:
    """``SourceBlock.pixels`` at 832x480, noise of one level; in each latent frame a third of the
    places become lighter or darker."""
    generator = torch.Generator("cuda").manual_seed(3)
    drawn: dict[str, Any] = {"device": "cuda", "generator": generator}
    picture = torch.rand(1, 1, 3, 480, 832, **drawn)
    for _ in range(blocks):
        steps = torch.randn(1, 3, 1, 30, 52, **drawn) * (
            torch.rand(1, 3, 1, 30, 52, **drawn) < 1 / 3
        )
        light = (0.1 * steps).cumsum(1).repeat_interleave(16, 3).repeat_interleave(16, 4)
        changing = torch.cat([torch.zeros_like(light[:, :1]), light], 1).repeat_interleave(4, 1)
        frames = picture + changing
        yield frames + torch.randn((*frames.shape[:2], 3, 480, 832), **drawn) / 255
        picture = frames[:, -1:]


def _seen(name: str, select: Selector) -> Tensor:
    """Time what a block's pixels are looked at for; returns the masks of all blocks."""
    grid, anchors, staleness = Grid(3, 30, 52), Anchors(), Staleness()
    tokens = torch.zeros(1, 3, 1560, 64, device="cuda")
    parts: dict[str, list[float]] = {
        part: [] for part in ("mask", "appearance", "plan", "advance", "staleness")
    }
    keep, masks = torch.ones(1, 3, 30, 52, dtype=torch.bool, device="cuda"), []
    for number, pixels in enumerate(_filmed(40)):
        block = SourceBlock(tokens, tokens[:, 0], tokens[:, 0], grid, pixels, anchors.pixels)

        def timed(part: str, work: Callable[[], Any]) -> Any:
            return _milliseconds(work, parts[part])

        timed("appearance", lambda x=pixels, b=block: appearance(x, b))  # type: ignore[misc]
        if number:
            keep = timed("mask", lambda b=block: select(b))  # type: ignore[misc]
        timed("plan", lambda k=keep: plan_tokens(k.flatten(2)))  # type: ignore[misc]
        stale = timed("advance", lambda x=pixels, k=keep: anchors.advance(x, k))  # type: ignore[misc]
        timed("staleness", lambda s=stale, k=keep: staleness.add(s, k))  # type: ignore[misc]
        masks.append(keep)
    medians = {part: median(times[5:]) for part, times in parts.items()}
    each = ", ".join(f"{part} {found:.3f}" for part, found in medians.items())
    kept = float(torch.stack(masks[5:]).float().mean())
    say(f"pixels, {name}: {sum(medians.values()):.3f} ms ({each}), {kept:.0%} kept")
    return torch.stack(masks)


def flow() -> None:
    """Milliseconds of the flow of three latent frames, one after the other, at 832x480; where the
    time goes; and whether graph and reference agree."""
    generator = torch.Generator("cuda").manual_seed(4)
    coarse = torch.rand(1, 1, 130, 220, device="cuda", generator=generator)
    texture = 255 * F.interpolate(coarse, scale_factor=4, mode="bicubic")[0, 0]
    texture += torch.randn(texture.shape, device="cuda", generator=generator)
    texture = texture.clamp(0, 255).byte()
    reference = texture[16:496, 16:848].contiguous()
    frames = torch.stack([texture[14 - i :, 17 + 3 * i :][:480, :832] for i in range(4)])

    def block() -> Tensor:
        return torch.stack([dense_flow(frames, reference) for _ in range(3)])

    graphs = Graphs()
    ways: dict[str, Callable[[], Tensor]] = {
        "eager": block,
        "graph": lambda: graphs.run("flow", block),
    }
    for name, work in ways.items():
        times: list[float] = []
        for _ in range(40):
            found = _milliseconds(work, times)
        say(f"flow, {name}: {median(times[5:]):.3f} ms for 3 latent frames of 4 pictures")
    apart = (found[0] - dense_flow_reference(frames, reference)).abs().amax(-1)
    say(f"flow, graph against reference: {float((apart > 0.01).float().mean()):.3%} 0.01 px apart")
    _profiled("flow", block)


def methods(pipe: CausalWanPipeline) -> None:
    """Frames a second: the median of the last four of sixteen blocks."""
    names = ("full", "prune", "plain", "noisy", "tomesd", "tome", "importance", "idm")
    for name in names:
        for rate in (0.1, 0.2, 0.32) if name != "full" else (None,):
            given: dict[str, Any] = {} if rate is None else {"rate": rate}
            method = find_method(name)(**given)
            stream, times = open_stream(pipe, method), []
            for latents in drifting(16):
                torch.cuda.synchronize()
                start = time.perf_counter()
                stream.edit_block(latents)
                torch.cuda.synchronize()
                times.append(time.perf_counter() - start)
            say(f"{name:<12}{rate or 0:<6}{12 / median(times[12:]):.1f} frames a second")


@dataclass(frozen=True)
class GivenMasks(Method):
    """Masks in turn, as `benchmarks.padding` writes them."""

    name: ClassVar[str] = "given"
    summary: ClassVar[str] = "for measurements"

    path: str = ""

    def selector(self) -> Selector:
        masks = itertools.cycle(torch.from_numpy(np.load(self.path)).cuda().unsqueeze(1))
        return lambda source: next(masks)


def soak(pipe: CausalWanPipeline, path: str, blocks: int) -> None:
    """Memory, graphs and time over many blocks with masks of real clips, all lengths warm."""
    stream = open_stream(pipe, Share())
    latents = drifting(8)
    for block in latents[:4]:
        stream.edit_block(block)
    for _ in stream.warm():
        pass
    stream = open_stream(pipe, GivenMasks(path=path))
    captured = stream.graphs
    started, reported = time.perf_counter(), time.perf_counter()
    for number in range(1, blocks + 1):
        stream.edit_block(latents[number % 8])
        if number in (50, 500) or number % 1000 == 0 or number == blocks:
            torch.cuda.synchronize()
            now = time.perf_counter()
            held, most = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
            say(
                f"block {number}: {held / 1e9:.4f} GB held, {most / 1e9:.4f} GB at most, "
                f"{torch.cuda.memory_reserved() / 1e9:.3f} GB reserved, "
                f"{stream.graphs - captured} of {stream.graphs} graphs since the warm-up, "
                f"{now - started:.1f} s"
            )
            reported = now
    say(f"{12 * blocks / (reported - started):.1f} frames a second")


def main() -> None:
    """Run one of them."""
    parts: dict[str, Callable[[CausalWanPipeline], object]] = {
        "equality": equality, "kernels": kernels, "methods": methods,
    }  # fmt: skip
    # need no model
    alone = {"mask": mask, "flow": flow, "motion": lambda: motion(_profiled)}
    parser = argparse.ArgumentParser(description="Details of the fast path on a GPU.")
    parser.add_argument("part", choices=[*parts, *alone, "soak"])
    parser.add_argument("masks", nargs="?", help="for soak: masks that benchmarks.padding wrote")
    parser.add_argument("--blocks", type=int, default=2000)
    options = parser.parse_args()
    if options.part in alone:
        with torch.inference_mode():
            alone[options.part]()
        return
    # weights made in inference mode could not be shared between reference and fused passes
    pipe = random_pipeline("1.3b", "cuda", torch.bfloat16)
    with torch.inference_mode():
        if options.part == "soak":
            soak(pipe, options.masks, options.blocks)
        else:
            parts[options.part](pipe)


if __name__ == "__main__":
    main()
