"""One stream on several cards against one card: time of a block, and how far results differ.

Random weights of a known shape, random latents; masks of a given share. One card runs it as it does
by default (`auto`: fused passes as CUDA graphs) and the plain way (`reference`); several cards run
fused passes eagerly, or as graphs with ``--graphs``, which no card has tried yet.

Prints a row for each shape, share and number of cards: milliseconds of denoising, context pass and
whole block, medians; how many times as fast as one card either way; the most that a pixel differs
from the plain way on one card, in grey levels; and bytes of keys and values that a card keeps.

    python -m benchmarks.parallel                                  # 1.3B and 14B, 2 and 4 H100s
    python -m benchmarks.parallel --shapes tiny --device cpu --cards 2 --size 96x64
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

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
    """A stream's blocks: milliseconds, medians; its frames, and bytes of keys and values."""

    denoise: float
    context: float
    block: float
    frames: Tensor
    memory: int


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
    times_usual: float
    times_plain: float
    grey_levels: float
    kept_bytes: int


def pipeline(shape: str, device: str) -> CausalWanPipeline:
    """The bundled model, or one with random weights, the same in every process."""
    if shape == "tiny":
        return load_pipeline("tiny", device=device)
    where = torch.device(device)
    return random_pipeline(shape, device, pick_dtype("auto", where), edit_sigmas=_SIGMAS)


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
    spatial = pipe.timeline.spatial
    sides = pipe.timeline.block_frames, height // spatial, width // spatial
    frames = []
    for _ in range(options.warm + options.blocks):
        latents = torch.randn(1, pipe.denoiser.latent_channels, *sides, generator=generator)
        latents = latents.to(device)
        _wait(device)
        start = time.perf_counter()
        edited = stream.edit_block(latents)
        _wait(device)
        seconds.append(time.perf_counter() - start)
        frames.append((255 * edited).float().cpu())
    of = blocks[options.warm :]
    return Measured(
        1e3 * median([x.seconds["denoise"] for x in of]),
        1e3 * median([x.seconds["context"] for x in of]),
        1e3 * median(seconds[options.warm :]),
        torch.cat(frames, 1),
        sum(stream.memory.values()),
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def spread(shape: str, devices: list[str], graphs: bool) -> Iterator[CausalWanPipeline]:
    """The pipeline on several cards, in processes of their own."""
    with Followers(devices, partial(transformer, shape)) as followers:
        pipe = pipeline(shape, devices[0])
        with followers.leading(pipe, graphs=graphs):
            yield pipe


def rows(shape: str, options: argparse.Namespace) -> Iterator[Row]:
    """One card both ways, then several."""
    device = pick_device(options.device)
    names = [f"cuda:{n}" if device.type == "cuda" else "cpu" for n in range(max(options.cards))]
    alone = pipeline(shape, names[0])
    usual = {share: measure(alone, share, "auto", options) for share in options.kept}
    plain = {share: measure(alone, share, "reference", options) for share in options.kept}
    del alone
    for share in options.kept:
        for execution, found in (("auto", usual[share]), ("reference", plain[share])):
            yield _row((shape, share, 1, execution), found, usual[share], plain[share])
    for count in options.cards:
        with spread(shape, names[:count], options.graphs) as pipe:
            for share in options.kept:
                found = measure(pipe, share, "auto", options)
                yield _row((shape, share, count, "parallel"), found, usual[share], plain[share])


def _row(
    what: tuple[str, float, int, str], found: Measured, usual: Measured, plain: Measured
) -> Row:
    return Row(
        *what,
        *(found.denoise, found.context, found.block),
        usual.block / found.block,
        plain.block / found.block,
        float((found.frames - plain.frames).abs().max()),
        found.memory,
    )


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
    parser.add_argument("--graphs", action="store_true", help="capture what cards exchange, too")
    options = parser.parse_args()
    say(f"{device_name(pick_device(options.device))}, {options.size[0]}x{options.size[1]}")
    say("model  kept cards        denoise context   block  x usual x plain  grey  kept MB")
    found = []
    for shape in options.shapes:
        for row in rows(shape, options):
            found.append(asdict(row))
            say(
                f"{row.shape:6} {row.share:4.0%} {row.cards:2} {row.execution:10} "
                f"{row.denoise_ms:7.1f} {row.context_ms:7.1f} {row.block_ms:7.1f} "
                f"{row.times_usual:7.2f} {row.times_plain:7.2f} {row.grey_levels:6.3f} "
                f"{row.kept_bytes / 1e6:8.1f}"
            )
    say(json.dumps({"device": device_name(pick_device(options.device)), "rows": found}))


if __name__ == "__main__":
    main()
