"""Self-attention outputs of one block, layer by layer and pass by pass, of streams that differ in
what they prune: the sharpest place to see what a recovery is worth.

Self-attention is the only operation in which tokens see each other, so an error of its output at
the kept tokens is all that pruning does to them. Hooks look on from outside; nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from stillframe.autoencoders.timeline import Timeline
from stillframe.engine.settings import StreamSettings
from stillframe.engine.state import StreamState
from stillframe.engine.stream import BlockStats, EditStream
from stillframe.errors import ModelError
from stillframe.methods import Method, Selector
from stillframe.methods.prune import InterFramePruning
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.recovery import Recovery
from stillframe.tokens.source import SourceBlock

__all__ = ["LatentRecorder", "LayerProbe", "Outputs", "PruneFrom", "Reading", "relative_error"]


class Reading(NamedTuple):
    """One error.

    Attributes:
        step: denoising pass, from 0; the context pass comes last.
        layer: transformer layer, from 0.
        error: relative, of self-attention's output at the kept tokens.
    """

    step: int
    layer: int
    error: float


class Outputs(NamedTuple):
    """What self-attention gave in a block.

    Attributes:
        calls: in order of the passes, and of the layers within a pass: (1, K, D) each.
        keep: (S*N,) bool of each block of the stream, the tokens that were computed.
        latents: of each block, (1, C, S, h, w), what would be decoded.
    """

    calls: list[Tensor]
    keep: list[Tensor]
    latents: list[Tensor]

    @property
    def pruned(self) -> dict[int, Tensor]:
        """Tokens that were not, by number of the block; blocks of which all were left out."""
        return {block: ~keep for block, keep in enumerate(self.keep) if not bool(keep.all())}


def relative_error(found: Tensor, expected: Tensor) -> float:
    """``|found - expected| / |expected|``, Euclidean norms over everything; 0 where both are 0."""
    gap, size = (float(x.double().norm()) for x in (found - expected, expected))
    return gap / size if size else gap


@dataclass(frozen=True)
class PruneFrom(Method):
    """Inter-frame pruning that keeps everything before a block: its history is the dense one.

    Attributes:
        first: number of the first block that may be pruned.
    """

    name: ClassVar[str] = "prune-from"
    summary: ClassVar[str] = "prune from a block on"

    first: int = 1

    def selector(self) -> Selector:
        select, blocks = InterFramePruning(detector="latent").selector(), count(1)

        def masked(source: SourceBlock) -> Tensor:
            keep = select(source)  # asked about every block, since it remembers them
            return keep if next(blocks) >= self.first else torch.ones_like(keep)

        return masked


class _Probed(EditStream):
    """A stream in which some tokens' noise may be another draw, and the recovery another kind."""

    redrawn: dict[int, Tensor]  # by block: (S*N,) bool
    other: torch.Generator
    kind: type[Recovery] | None = None

    def edit_block(self, latents: Tensor, pixels: Tensor | None = None) -> Tensor:
        if self._state is None and self.kind is not None:
            state = StreamState(self._backbone, self.settings, self.method, latents, 1)
            state.recovery = state.attention.recovery = self.kind(state.recovery.setup)
            self._state = state
        return super().edit_block(latents, pixels)

    def _noise(self, latents: Tensor) -> list[Tensor]:
        own, mask = super()._noise(latents), self.redrawn.get(self.blocks)
        if mask is None:
            return own
        draws = [torch.randn(x.shape, generator=self.other).to(x) for x in own]
        chosen = mask.view(1, -1, 1)
        return [torch.where(chosen, draw, x) for x, draw in zip(own, draws, strict=True)]


class LatentRecorder:
    """In place of a stream's autoencoder: keeps the latents, since nobody looks at the pixels.

    Args:
        latent_channels: C.

    Attributes:
        blocks: (1, C, S, h, w) each.
    """

    timeline = Timeline(temporal=1, pad=1)  # only pixels would tell
    changed_alone = False

    def __init__(self, latent_channels: int) -> None:
        self.latent_channels = latent_channels
        self.blocks: list[Tensor] = []

    def decode(self, latents: Tensor, changed: Tensor | None = None) -> Tensor:
        """Keep a block; no frames come of it."""
        self.blocks.append(latents.clone())
        return latents[:, :0]


class LayerProbe:
    """Runs streams over a clip's latents and compares self-attention in the last block.

    Args:
        pipe: the model.
        blocks: latents (1, C, S, h, w) of at least two blocks.
        embeds: the prompt's embeddings.
        settings: how to denoise.
        seed: of the noise.

    Raises:
        ValueError: there is only one block, which is always whole.
    """

    def __init__(
        self,
        pipe: CausalWanPipeline,
        blocks: Sequence[Tensor],
        embeds: Tensor,
        settings: StreamSettings,
        seed: int = 0,
    ) -> None:
        if len(blocks) < 2:
            raise ValueError(f"a stream of {len(blocks)} block is never pruned; 2 are needed")
        self._pipe, self._blocks = pipe, blocks
        self._text, self._seed = pipe.text(None, embeds), seed
        # the fast path does not run the modules that are listened to
        self._settings = replace(settings, execution="reference")
        self.last = len(blocks) - 1
        self.layers: int = pipe.denoiser.layers

    def run(
        self,
        method: Method,
        redraw: dict[int, Tensor] | None = None,
        kind: type[Recovery] | None = None,
    ) -> Outputs:
        """Self-attention in the last block of a stream.

        Args:
            method: which tokens to compute.
            redraw: by block, the tokens (S*N,) whose noise shall be another draw.
            kind: a recovery in place of the method's, which must be as complete.

        Raises:
            ModelError: self-attention cannot be listened to.
        """
        kept: list[Tensor] = []

        def note(stats: BlockStats) -> None:
            kept.append(stats.keep.flatten().cpu())

        result = LatentRecorder(self._pipe.denoiser.latent_channels)
        stream = _Probed(
            self._pipe.denoiser,
            result,  # type: ignore[arg-type]
            self._text,
            method,
            self._settings,
            torch.Generator().manual_seed(self._seed),
            note,
        )
        stream.redrawn = {b: m.to(self._blocks[0].device) for b, m in (redraw or {}).items()}
        stream.kind = kind
        stream.other = torch.Generator().manual_seed(self._seed + 1)
        for latents in self._blocks[:-1]:
            stream.edit_block(latents)
        with self._listening() as calls:
            stream.edit_block(self._blocks[-1])
        passes = len(self._settings.sigmas) + 1 if bool(kept[-1].any()) else 0
        if len(calls) != passes * self.layers:
            raise ModelError(
                f"{len(calls)} calls of self-attention were heard in {passes} passes of "
                f"{self.layers} layers: the model does not run its own modules"
            )
        return Outputs(calls, kept, result.blocks)

    def compare(self, found: Outputs, dense: Outputs, pruned: Tensor) -> list[Reading]:
        """Errors of a run against the dense one at the tokens that are not ``pruned``, (S*N,)."""
        wanted = ~pruned
        readings = []
        for index, (own, whole) in enumerate(zip(found.calls, dense.calls, strict=True)):
            # a whole run has all tokens, a pruned one those of its mask, in order
            rows = wanted[found.keep[-1]]
            error = relative_error(own[0][rows.to(own.device)], whole[0][wanted.to(own.device)])
            readings.append(Reading(index // self.layers, index % self.layers, error))
        return readings

    @contextmanager
    def _listening(self) -> Iterator[list[Tensor]]:
        calls: list[Tensor] = []

        def hear(module: Any, given: Any, output: Tensor) -> None:
            calls.append(output.detach().clone())

        hooks = [block.attn1.register_forward_hook(hear) for block in self._pipe.transformer.blocks]
        try:
            yield calls
        finally:
            for hook in hooks:
                hook.remove()
