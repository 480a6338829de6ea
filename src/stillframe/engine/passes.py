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
from stillframe.tokens.grid import Plan, take

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
        attention, sigmas = state.attention, self.settings.sigmas
        if state.fused is not None and state.fused.can(plan) and attention.merger is None:
            return self._fused(state.fused, source, noise, plan)
        kept = plan.kept

        def of_kept(x: Tensor) -> Tensor:
            return x if kept is None else take(x, kept.index)

        here = of_kept(source)
        x0 = here
        with self.backbone.attached():
            with self.clock("denoise"):
                attention.begin_block(plan)
                for step, sigma in enumerate(sigmas):
                    attention.step = step
                    x = (1 - sigma) * x0 + sigma * of_kept(noise[step])
                    x0 = x - sigma * self._velocity(state, x, here, sigma)
            with self.clock("context"):
                attention.step = None
                self._velocity(state, x0, here, 0.0)
                attention.end_block()
        return plan.scattered(x0)

    def _fused(
        self, fused: FusedPasses, source: Tensor, noise: Sequence[Tensor], plan: Plan
    ) -> Tensor:
        """The same in fused passes."""
        settings = self.settings
        inputs = BlockInputs(
            source[0],
            [draw[0] for draw in noise],
            settings.sigmas,
            settings.timestep_scale,
            settings.conditioning == "source",
        )
        with self.clock("denoise"):
            x0 = fused.denoise(plan, self.text, inputs)
        with self.clock("context"):
            fused.commit()
        return x0

    def _velocity(self, state: StreamState, x: Tensor, source: Tensor, sigma: float) -> Tensor:
        timestep = torch.full((x.shape[0],), sigma * self.settings.timestep_scale, device=x.device)
        tokens = x
        if self.backbone.takes_source:
            shown = source if self.settings.conditioning == "source" else torch.zeros_like(source)
            pixels = (-1, self.backbone.latent_channels)
            tokens = torch.cat([x.unflatten(2, pixels), shown.unflatten(2, pixels)], 3).flatten(2)
        return self.backbone(tokens, timestep, self.text, state.attention).float()
