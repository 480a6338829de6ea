"""Rollouts of a recipe by definition: diffusers' model under masks, schedules by their formulas.

Nothing of the engine is used: no cache, no loop, no schedule of its. Every pass is a forward of the
stock transformer over the whole sequence so far, in which finished blocks stand as their context
passes saw them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from tests import tiny
from tests.tiny import Masked, Saturating, causal_mask, set_self_attention, stock, visible_frames
from torch import Tensor

from stillframe.loading.recipes import Recipe
from stillframe.tokens.grid import Grid, patchify

__all__ = [
    "LATENT",
    "Level",
    "Rollout",
    "Rules",
    "blocks",
    "of_editing",
    "of_generating",
    "reference",
]

LATENT = (4, 6)
TINY_POSITIONS = 64
FRAMES = 36


class Level(NamedTuple):
    """A pass: where its prediction is read, what the model is told, what its input is mixed at."""

    sigma: float
    told: float
    noise: float


@dataclass(frozen=True)
class Rules:
    """What a rollout has to keep to.

    Attributes:
        levels: of each denoising pass; ``first`` of those of the first block.
        block, window, sink: in latent frames.
        blocks: how many to run.
        limit: temporal positions in use.
        context_sink, average: see `Saturating`.
        normalised: whether the model starts from normalised source latents.
        context: sigma at which finished frames are seen.
    """

    levels: tuple[Level, ...]
    first: tuple[Level, ...]
    block: int
    window: int
    sink: int
    blocks: int
    limit: int
    context_sink: bool = True
    average: float | None = None
    normalised: bool = True
    context: float = 0.0

    @property
    def evicting(self) -> int:
        """How many blocks do not see all that came before them."""
        seen = [visible_frames(n, self.block, self.sink, self.window) for n in range(self.blocks)]
        return sum(len(frames) < (n + 1) * self.block for n, frames in enumerate(seen))

    def of(self, block: int) -> tuple[Level, ...]:
        """The denoising passes of a block."""
        return self.levels if block else self.first


def levels(steps: Sequence[float], *, warp: bool, shift: float, nearest: bool) -> tuple[Level, ...]:
    """Passes of timesteps of 1000: warped as Wan's sampler does, sigmas of the scheduler's grid."""
    shares = np.array(steps) / 1000
    told = np.divide(shift, shift + 1 / shares.clip(1e-9) - 1) if warp else shares
    sigmas = told
    if nearest:
        grid = np.arange(1000, 0, -1) / 1000
        grid = shift / (shift + 1 / grid - 1)
        sigmas = grid[np.abs(grid - told[:, None]).argmin(1)]
    return tuple(Level(float(s), float(t), float(s)) for s, t in zip(sigmas, told, strict=True))


def _rules(
    recipe: Recipe, passes: tuple[Level, ...], block: int, window: int, sink: int, **more: Any
) -> Rules:
    """As many blocks as make 36 frames, and as let at least the last two not see all others."""
    blocks = max(-(-FRAMES // block), (window + sink) // block + 2)
    limit = max(min(recipe.positions, TINY_POSITIONS), window + sink)
    traits = {"context_sink": recipe.context_sink, "average": recipe.sink_average}
    more = {"first": passes, **traits, **more}
    return Rules(passes, block=block, window=window, sink=sink, blocks=blocks, limit=limit, **more)


def of_generating(recipe: Recipe) -> Rules:
    """Text-to-video's."""

    def passes(steps: Sequence[float]) -> tuple[Level, ...]:
        return levels(steps, warp=recipe.warp, shift=recipe.shift, nearest=recipe.nearest)

    first = passes(recipe.first_steps or recipe.steps)
    return _rules(
        recipe, passes(recipe.steps), recipe.block, recipe.window, recipe.sink, first=first
    )


def of_editing(recipe: Recipe) -> Rules:
    """Video-to-video's; the pruning papers' steps are warped where there are no others."""
    steps: tuple[float, ...] = (400, 350, 250)
    warp = True
    if recipe.edit_steps is not None:
        steps, warp = recipe.edit_steps, recipe.warp
    passes = levels(steps, warp=warp, shift=recipe.shift, nearest=recipe.nearest)
    if recipe.edit_noise is not None:
        passes = (passes[0]._replace(noise=recipe.edit_noise / 1000), *passes[1:])
    block = recipe.edit_block or recipe.block
    seen = recipe.edit_window, recipe.edit_sink
    return _rules(recipe, passes, block, *seen, normalised=recipe.edit_normalised)


@dataclass
class Rollout:
    """Predictions (1, S*N, P) of every pass, context passes included; clean latents by block."""

    passes: list[Tensor] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)

    def difference(self, other: Rollout) -> float:
        """The largest difference between two rollouts of the same length."""
        return max(self._differences(other, "passes") + self._differences(other, "latents"))

    def is_apart(self, others: Iterator[Tensor], least: float) -> bool:
        """Whether latents are further apart in any block; no more are made than that takes."""
        pairs = zip(self.latents, others, strict=True)
        return any((ours - theirs).abs().max().item() > least for ours, theirs in pairs)

    def _differences(self, other: Rollout, kind: str) -> list[float]:
        pairs = zip(getattr(self, kind), getattr(other, kind), strict=True)
        return [(ours - theirs).abs().max().item() for ours, theirs in pairs]


def prompt(seed: int = 5) -> Tensor:
    """Embeddings of a prompt."""
    return torch.randn(1, 5, tiny.TEXT_DIM, generator=torch.Generator().manual_seed(seed))


def source(rules: Rules) -> list[Tensor]:
    """Random source latents of every block."""
    shape = (rules.blocks, 1, tiny.CHANNELS, rules.block, *LATENT)
    return list(torch.randn(shape, generator=torch.Generator().manual_seed(6)))


def _attention(model: Any, rules: Rules, blocks: int, finished: bool) -> Any:
    """The reference's self-attention over so many blocks: under a mask where that says it all."""
    grid = Grid(rules.block, LATENT[0] // 2, LATENT[1] // 2)
    seen = rules.sink, rules.window
    saturates = rules.sink > 0 and blocks * rules.block > rules.limit
    if not saturates and rules.context_sink and rules.average is None:
        return Masked(causal_mask(blocks, rules.block, grid.frame_tokens, *seen))
    return Saturating(
        model.rope,
        grid,
        *seen,
        rules.limit,
        context_sink=rules.context_sink,
        average=rules.average,
        finished=finished,
    )


def reference(
    model: Any,
    rules: Rules,
    given: Sequence[Tensor] | None = None,
    scale: tuple[Tensor, Tensor] | None = None,
) -> Rollout:
    """The rollout by definition.

    Args:
        model: the stock transformer.
        rules: to keep to.
        given: source latents by block; None makes video from the prompt alone.
        scale: mean and deviation (C, 1, 1, 1) by which the source was normalised.
    """
    made = Rollout()
    for _ in blocks(model, rules, given, scale, made):
        pass
    return made


def blocks(
    model: Any,
    rules: Rules,
    given: Sequence[Tensor] | None = None,
    scale: tuple[Tensor, Tensor] | None = None,
    made: Rollout | None = None,
) -> Iterator[Tensor]:
    """Latents of `reference`, block by block; ``made`` is what they are added to."""
    text, generator = prompt(), torch.Generator().manual_seed(0)
    made = Rollout() if made is None else made
    nothing = torch.zeros(1, tiny.CHANNELS, rules.block, *LATENT)
    for number in range(rules.blocks):
        passes = rules.of(number)
        # all noise of a block is drawn first, one pass after the other
        noise = [torch.randn(nothing.shape, generator=generator) for _ in passes]
        x0 = nothing if given is None else given[number]
        if given is not None and not rules.normalised:
            assert scale is not None
            x0 = x0 * scale[1] + scale[0]
        set_self_attention(model, _attention(model, rules, number + 1, finished=False))
        for eps, (sigma, told, level) in zip(noise, passes, strict=True):
            x = (1 - level) * x0 + level * eps
            x0 = x - sigma * newest(model, rules, made, x, told, text)
        set_self_attention(model, _attention(model, rules, number + 1, finished=True))
        newest(model, rules, made, x0, 0.0, text)
        made.latents.append(x0)
        yield x0


def newest(model: Any, rules: Rules, made: Rollout, x: Tensor, told: float, text: Tensor) -> Tensor:
    """What the model predicts for the newest block, with clean frames before it; noted."""
    sequence = torch.cat([*made.latents, x], 2)
    sigma = torch.full((sequence.shape[2],), rules.context, dtype=torch.float64)
    sigma[-rules.block :] = told
    v = stock(model, sequence, sigma, text)[:, :, -rules.block :]
    made.passes.append(patchify(v, 2))
    return v
