"""Latency against kept tokens: blocks of prescribed shares, timed one by one."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, ClassVar

import torch
from torch import Tensor

from stillframe.engine.stream import BlockStats
from stillframe.evaluation.experiments.base import Bench, Experiment, register
from stillframe.evaluation.findings import Findings, Plot, Point, Series, Table, number
from stillframe.evaluation.latents import encode
from stillframe.evaluation.sources import Clip
from stillframe.evaluation.statistics import pearson
from stillframe.jobs.report import DENOISING_STAGES
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
        return _Prescription(iter(self.shares), torch.Generator().manual_seed(0))


class _Prescription:
    def __init__(self, shares: Iterator[float], generator: torch.Generator) -> None:
        self._shares, self._generator, self._share = shares, generator, 1.0

    def __call__(self, source: SourceBlock) -> Tensor:
        grid = source.grid
        self._share = next(self._shares, self._share)
        order = torch.randperm(grid.tokens, generator=self._generator)
        keep = torch.zeros(grid.tokens, dtype=torch.bool)
        keep[order[: max(1, round(self._share * grid.tokens))]] = True
        shape = (len(source.tokens), grid.frames, grid.height, grid.width)
        view = keep.view(1, *shape[1:]).expand(shape)
        return view.to(source.tokens.device)


def time_blocks(bench: Bench, clip: Clip) -> list[tuple[int, int, float]]:
    """Kept tokens, all tokens and seconds of denoising of each block, in the order they ran."""
    latents = encode(bench.pipe, bench.matrix.source(clip.name).frames).blocks
    shares = list(_SHARES) * _REPEATS
    # at random, so that no share meets one state of the machine only
    random.Random(0).shuffle(shares)
    found: list[tuple[int, int, float]] = []

    def note(stats: BlockStats) -> None:
        seconds = sum(stats.seconds.get(stage, 0.0) for stage in DENOISING_STAGES)
        found.append((stats.kept, stats.tokens, seconds))

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

    def run(self, bench: Bench) -> Findings:
        """Do it."""
        (clip,) = bench.steps(self.name, bench.some(1))
        given = {"clip": clip.name, "prompt": bench.prompt(clip)}
        found = bench.once(self.name, given, lambda: time_blocks(bench, clip))
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
            caveats=[
                "Denoising and context pass; the autoencoder is not in it. Times are wall times of "
                "this machine, so what else ran on it is in them."
            ],
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
