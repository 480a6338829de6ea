"""One stream on several cards against one card: time of a block, and how far results differ.

Random weights of a known shape, random latents; masks of a given share. One card runs it as it does
by default (`auto`: fused passes as CUDA graphs) and, with ``--plain``, through diffusers' modules
(`reference`); several cards run fused passes eagerly (`fused`), then by default as well.

Prints a row for each shape, share and number of cards: milliseconds of denoising, context pass and
whole block, medians; how many times as fast as one card by default; how far latents of all blocks
are from those of one card by default, as a share of their norm; and bytes of keys and values that a
card keeps. The processes load while one card is measured. A block that takes longer than
``--patience`` ends the run, and says where it was waiting.

    python -m benchmarks.parallel                                  # 1.3B and 14B, 2 and 4 H100s
    python -m benchmarks.parallel --shapes tiny --device cpu --cards 2 --size 96x64
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks import say
from stillframe.engine.stages import BlockStats
from stillframe.jobs.bench import Share, device_name
from stillframe.jobs.parallel import Followers
from stillframe.loading.load import load_pipeline, pick_device, pick_dtype
from stillframe.loading.random_model import SHAPES, random_pipeline
from stillframe.pipelines.causal_wan import CausalWanPipeline

# the papers' editing schedule
_SIGMAS = (0.769, 0.729, 0.625)


class Measured(NamedTuple):
    """A stream's blocks: milliseconds, medians; its latents, bytes of keys and values, graphs."""

    denoise: float
    context: float
    block: float
    latents: Tensor
    memory: int
    graphs: int


@dataclass(frozen=True)
class Row:
    """Some cards at one shape and share; times in milliseconds."""

    shape: str
    share: float
    cards: int
    execution: str
    denoise_ms: float
    context_ms: float
    block_ms: float
    times: float
    apart: float
    kept_bytes: int
    graphs: int


def pipeline(shape: str, device: str) -> CausalWanPipeline:
    """The bundled model, or one with random weights, the same in every process."""
    if shape == "tiny":
        return load_pipeline("tiny", device=device)
    where = torch.device(device)
    pipe = random_pipeline(shape, device, pick_dtype("auto", where), edit_sigmas=_SIGMAS)
    # the published scale leaves gates near zero, where attention would hardly count
    drawn = torch.Generator(where).manual_seed(1)
    for block in pipe.transformer.blocks:
        nn.init.normal_(block.scale_shift_table, std=0.3, generator=drawn)
    if where.type == "cuda":
        # weights are made in float32: NCCL cannot have what torch keeps of that
        torch.cuda.empty_cache()
    return pipe


def transformer(shape: str, device: str) -> Any:
    """Its transformer, for a process that follows."""
    return pipeline(shape, device).transformer


def measure(
    pipe: CausalWanPipeline, share: float, execution: str, options: argparse.Namespace
) -> Measured:
    """Run a stream of so many blocks beyond those that fill the window."""
    device, blocks, seconds = pipe.compute_device, list[BlockStats](), list[float]()
    width, height = options.size
    generator = torch.Generator().manual_seed(1)
    text = pipe.config.text_length, pipe.transformer.config.text_dim
    embeds = torch.randn(1, *text, generator=generator).to(device, pipe.denoiser.dtype)
    stream = pipe.stream(
        prompt_embeds=embeds,
        method=Share(share=share),
        seed=0,
        on_block=blocks.append,
        execution=execution,
    )
    spatial, decode = pipe.timeline.spatial, stream._decoded
    sides = pipe.timeline.block_frames, height // spatial, width // spatial
    edited: list[Tensor] = []

    def keep(grid: Tensor, *given: Any) -> Tensor:
        edited.append(grid.detach().float().cpu().clone())
        return decode(grid, *given)

    # random decoders may be black whatever they decode
    with patch.object(stream, "_decoded", keep):
        for _ in range(options.warm + options.blocks):
            latents = torch.randn(1, pipe.denoiser.latent_channels, *sides, generator=generator)
            latents = latents.to(device)
            _wait(device)
            _watch(options.patience)
            start = time.perf_counter()
            stream.edit_block(latents)
            _wait(device)
            seconds.append(time.perf_counter() - start)
    of = blocks[options.warm :]
    return Measured(
        1e3 * median([x.seconds["denoise"] for x in of]),
        1e3 * median([x.seconds["context"] for x in of]),
        1e3 * median(seconds[options.warm :]),
        torch.cat(edited, 2),
        sum(stream.memory.values()),
        stream.graphs,
    )


def _watch(seconds: float) -> None:
    """End this process if it does not come here again in time; the others end with it."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=2)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rows(shape: str, options: argparse.Namespace) -> Iterator[Row]:
    """One card, then several."""
    device = pick_device(options.device)
    names = [f"cuda:{n}" if device.type == "cuda" else "cpu" for n in range(max(options.cards))]
    first, *later = options.cards
    with ExitStack() as stack:
        _watch(options.loading)
        # they load while one card is measured
        others = stack.enter_context(Followers(names[:first], partial(transformer, shape)))
        pipe = pipeline(shape, names[0])
        usual = {share: measure(pipe, share, "auto", options) for share in options.kept}
        for share in options.kept:
            yield _row((shape, share, 1, "auto"), usual[share], usual[share])
        for share in options.kept if options.plain else []:
            found = measure(pipe, share, "reference", options)
            yield _row((shape, share, 1, "reference"), found, usual[share])
        yield from _spread(shape, first, others, pipe, usual, options)
    for count in later:
        with Followers(names[:count], partial(transformer, shape)) as others:
            yield from _spread(shape, count, others, pipe, usual, options)


def _spread(
    shape: str,
    count: int,
    others: Followers,
    pipe: CausalWanPipeline,
    usual: dict[float, Measured],
    options: argparse.Namespace,
) -> Iterator[Row]:
    """Several cards, eagerly and then by default."""
    _watch(options.loading)
    with others.leading(pipe):
        for way in ("fused", "auto"):
            for share in options.kept:
                found = measure(pipe, share, way, options)
                yield _row((shape, share, count, way), found, usual[share])
        _watch(options.patience)


def _row(what: tuple[str, float, int, str], found: Measured, usual: Measured) -> Row:
    apart = (found.latents - usual.latents).norm() / usual.latents.norm()
    times = found.denoise, found.context, found.block
    return Row(*what, *times, usual.block / found.block, float(apart), found.memory, found.graphs)


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    return int(width), int(height)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="One stream on several cards.")
    parser.add_argument("--shapes", nargs="+", choices=["tiny", *SHAPES], default=["1.3b", "14b"])
    parser.add_argument("--size", type=_size, default=(832, 480), metavar="WIDTHxHEIGHT")
    parser.add_argument("--kept", type=float, nargs="+", default=[1.0, 0.5], metavar="SHARE")
    parser.add_argument("--cards", type=int, nargs="+", default=[2, 4], metavar="N")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--warm", type=int, default=4, help="blocks that are not measured")
    parser.add_argument("--blocks", type=int, default=10, help="blocks that are")
    parser.add_argument(
        "--plain", action="store_true", help="one card with diffusers' modules, too"
    )
    parser.add_argument("--patience", type=float, default=60.0, help="seconds for a block")
    parser.add_argument("--loading", type=float, default=300.0, help="seconds for loading a model")
    options = parser.parse_args()
    say(f"{device_name(pick_device(options.device))}, {options.size[0]}x{options.size[1]}")
    say("model  kept cards        denoise context   block  x usual   apart  kept MB graphs")
    found = []
    for shape in options.shapes:
        for row in rows(shape, options):
            found.append(asdict(row))
            say(
                f"{row.shape:6} {row.share:4.0%} {row.cards:2} {row.execution:10} "
                f"{row.denoise_ms:7.1f} {row.context_ms:7.1f} {row.block_ms:7.1f} "
                f"{row.times:8.2f} {row.apart:7.1e} {row.kept_bytes / 1e6:8.1f} {row.graphs:6}"
            )
    faulthandler.cancel_dump_traceback_later()
    say(json.dumps({"device": device_name(pick_device(options.device)), "rows": found}))


if __name__ == "__main__":
    main()
