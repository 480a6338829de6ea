"""Latency against kept tokens: blocks of prescribed shares, timed one by one."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, ClassVar

import torch
from torch import Tensor

from stillframe.engine.stream import BlockStats
from stillframe.evaluation.editing import denoising_seconds
from stillframe.evaluation.experiments.base import Bench, Experiment, Job, register
from stillframe.evaluation.findings import Findings, Plot, Point, Series, Table, number
from stillframe.evaluation.latents import encode
from stillframe.evaluation.sources import Clip
from stillframe.evaluation.statistics import pearson
from stillframe.methods import Method, Selector
from stillframe.tokens.source import SourceBlock

__all__ = ["Latency", "PrescribedShares"]

_SHARES = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 1.0)
_REPEATS = 4
_WARM = 3  # whole blocks, after which the window is full


@dataclass(frozen=True)
class PrescribedShares(Method):
    """Keeps a prescribed share of each block after the first, drawn at random. For timing only.

    Attributes:
        shares: of the second block, the third, ...; the last one is that of all later ones.
    """

    name: ClassVar[str] = "prescribed"
    summary: ClassVar[str] = "keep prescribed shares, at random"

    shares: tuple[float, ...] = (1.0,)

    def selector(self) -> Selector:
        shares, generator = iter(self.shares), torch.Generator().manual_seed(0)

        def masked(source: SourceBlock) -> Tensor:
            batch, tokens = len(source.tokens), source.grid.tokens
            order = torch.randperm(tokens, generator=generator)
            keep = torch.zeros(tokens, dtype=torch.bool)
            keep[order[: max(1, round(next(shares, self.shares[-1]) * tokens))]] = True
            keep = keep.view(1, source.grid.frames, source.grid.height, source.grid.width)
            return keep.expand(batch, -1, -1, -1).to(source.tokens.device)

        return masked


def time_blocks(bench: Bench, clip: Clip) -> list[tuple[int, int, float]]:
    """Kept tokens, all tokens and seconds of denoising of each block, in the order they ran."""
    latents = encode(bench.pipe, bench.matrix.source(clip.name).frames).blocks
    shares = list(_SHARES) * _REPEATS
    # at random, so that no share meets one state of the machine only
    random.Random(0).shuffle(shares)
    found: list[tuple[int, int, float]] = []

    def note(stats: BlockStats) -> None:
        found.append((stats.kept, stats.tokens, denoising_seconds(stats)))

    method = PrescribedShares(shares=(*[1.0] * (_WARM - 1), *shares))
    stream = bench.pipe.stream(
        prompt_embeds=bench.matrix.embeds(bench.prompt(clip)),
        method=method,
        generator=torch.Generator().manual_seed(0),
        on_block=note,
    )
    for index in range(_WARM + len(shares)):
        stream.edit_block(latents[index % len(latents)])
    return found[_WARM:]


@register("latency")
class Latency(Experiment):
    """Seconds of a block's denoising over the tokens it computes."""

    summary = "seconds of a block against the tokens it computes"
    title = "Latency against kept tokens"
    place = 7
    question = "Does the time of a block fall in proportion to the tokens that are left out?"
    papers = "Linear, Pearson r = 0.999."
    caveats = (
        "Denoising and context pass; the autoencoder is not in it. Times are wall times of this "
        "machine, so what else ran on it is in them.",
    )

    def run(self, bench: Bench) -> Findings:
        """Do it."""
        jobs = [
            Job(clip, {"prompt": bench.prompt(clip)}, partial(time_blocks, bench, clip))
            for clip in bench.some(1)
        ]
        done, missing = bench.each(self.name, jobs)
        if not done:
            return self.findings("No clip is long enough.", missing=missing)
        found = done[0][1]
        groups: dict[int, list[float]] = defaultdict(list)
        for kept, _, seconds in found:
            groups[kept].append(1000 * seconds)
        middle = {kept: median(times) for kept, times in sorted(groups.items())}
        tokens, least = found[0][1], min(middle)
        single = pearson([f[0] for f in found], [f[2] for f in found])
        r = pearson(list(middle), list(middle.values()))
        step = (middle[max(middle)] - middle[least]) / (max(middle) - least)
        fixed = middle[least] - step * least
        return self.findings(
            f"Medians of {_REPEATS} blocks a share: Pearson r = {r:.4f}; single blocks: "
            f"{single:.3f}.",
            words=[
                f"From {least} to {tokens} tokens a block, each token costs {1000 * step:.0f} "
                f"microseconds; the line would meet zero tokens at {fixed:.1f} ms, which is what "
                "a block costs whatever is pruned."
            ],
            caveats=self.limits(bench),
            plots=[_plot(found, middle)],
            tables=[_table(middle, tokens)],
            rows=[{"kept": k, "tokens": n, "seconds": s} for k, n, s in found],
        )


def _plot(found: Sequence[Any], middle: dict[int, float]) -> Plot:
    return Plot(
        "Milliseconds of a block's denoising passes and context pass over the tokens it computes, "
        "after the window is full. Points on a straight line mean that pruning pays in proportion.",
        "tokens computed in a block",
        "milliseconds",
        [
            Series("single blocks", [Point(kept, 1000 * s) for kept, _, s in found]),
            Series("median of a share", [Point(k, t) for k, t in middle.items()], line=True),
        ],
    )


def _table(middle: dict[int, float], tokens: int) -> Table:
    whole = middle[max(middle)]
    body = [
        [f"{kept / tokens:.0%}", str(kept), number(time, 1), f"{whole / time:.2f}x"]
        for kept, time in middle.items()
    ]
    return Table(
        "Medians. Were there no fixed costs, 10% of the tokens would be 10 times as fast.",
        ("share", "tokens", "milliseconds", "speedup"),
        body,
    )
