"""The denoising passes and the context pass of one block, over the tokens that are kept.

In fused passes where the backbone has some that can take the block, else through its own modules.
Not known here: which tokens are kept and why, or what becomes of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stillframe.backbones.base import Backbone, BlockInputs, FusedPasses, TextCache
from stillframe.engine.settings import StreamSettings
from stillframe.engine.stages import StageClock
from stillframe.engine.state import StreamState
from stillframe.tokens.grid import Plan, plan_tokens, take
from stillframe.tokens.schedule import Pass

__all__ = ["BlockPasses"]


@dataclass(frozen=True)
class BlockPasses:
    """What the passes of a block are made with.

    Attributes:
        backbone: the transformer.
        text: the prompt.
        settings: how to denoise.
        clock: of the stages ``denoise`` and ``context``.
    """

    backbone: Backbone
    text: TextCache
    settings: StreamSettings
    clock: StageClock

    def __call__(
        self, state: StreamState, source: Tensor, noise: Sequence[Tensor], plan: Plan
    ) -> Tensor:
        """Denoising passes and context pass over the kept tokens; their results at their slots.

        Pruned tokens need no restoration between passes: nothing reads them but attention, where
        the recovery stands in for them.

        Args:
            state: the stream's; keys and values of the block are committed to its cache.
            source: tokens (B, S*N, P) of the source.
            noise: for each pass, (B, S*N, P).
            plan: which tokens are kept; at least one.

        Returns:
            (B, S*N, P) float32.
        """
        attention, passes = state.attention, self.settings.passes(state.first)
        if state.fused is not None and state.fused.can(plan) and attention.merger is None:
            return self._fused(state.fused, source, noise, plan, passes)
        kept = plan.kept

        def of_kept(x: Tensor) -> Tensor:
            return x if kept is None else take(x, kept.index)

        here = of_kept(source)
        x0 = here
        # a first block's passes beyond those of the others have no place in a recovery's store
        extra = len(passes) - len(self.settings.sigmas)
        with self.backbone.attached():
            with self.clock("denoise"):
                attention.begin_block(plan)
                for step, (sigma, told, level) in enumerate(passes):
                    attention.step = max(step - extra, 0)
                    x = (1 - level) * x0 + level * of_kept(noise[step])
                    x0 = x - sigma * self._velocity(state, x, here, told)
            with self.clock("context"):
                attention.step = None
                level = self.settings.context_noise
                x = (1 - level) * x0 + level * of_kept(noise[-1])
                self._velocity(state, x, here, level)
                attention.end_block()
        return plan.scattered(x0)

    def _fused(
        self,
        fused: FusedPasses,
        source: Tensor,
        noise: Sequence[Tensor],
        plan: Plan,
        passes: Sequence[Pass],
    ) -> Tensor:
        """The same in fused passes."""
        settings = self.settings
        inputs = BlockInputs(
            source[0],
            [draw[0] for draw in noise],
            passes,
            len(settings.sigmas),
            settings.timestep_scale,
            settings.conditioning == "source",
            settings.context_noise,
        )
        with self.clock("denoise"):
            x0 = fused.denoise(plan, self.text, inputs)
        with self.clock("context"):
            fused.commit()
        return x0

    def recompute(self, state: StreamState, blocks: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Compute keys and values of the latest blocks anew, oldest first, as `StreamSettings` says
        of another prompt. Each sees the sink and those of them before it.

        Args:
            state: the stream's.
            blocks: source and result, (B, S*N, P) each, of the latest blocks.
        """
        attention = state.attention
        attention.rewind(len(blocks))
        first, grid = blocks[0][0], state.grid
        whole = torch.ones(len(first), grid.frames, grid.frame_tokens, device=first.device)
        with self.backbone.attached(), self.clock("context"):
            for source, x0 in blocks:
                attention.begin_block(plan_tokens(whole.bool()))
                attention.step = None
                self._velocity(state, x0, source, 0.0)
                attention.end_block()

    def _velocity(self, state: StreamState, x: Tensor, source: Tensor, told: float) -> Tensor:
        timestep = torch.full((x.shape[0],), told * self.settings.timestep_scale, device=x.device)
        tokens = x
        if self.backbone.takes_source:
            shown = source if self.settings.conditioning == "source" else torch.zeros_like(source)
            pixels = (-1, self.backbone.latent_channels)
            tokens = torch.cat([x.unflatten(2, pixels), shown.unflatten(2, pixels)], 3).flatten(2)
        return self.backbone(tokens, timestep, self.text, state.attention).float()
