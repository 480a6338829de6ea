"""A throw-away recovery and method in one file, plain and fused; run by test_plug_ins.py, once with
kernels interpreted.

The recovery takes what no recovery of the package does: another token's row of the same pass, and
entries of a store of its own that it writes to at every slot.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from tests import tiny
from torch import Tensor

from stillframe.attention.cache import KeyValueCache
from stillframe.attention.reuse import Bank, Reuse
from stillframe.detection.latents import CausalMask, MaskShape
from stillframe.engine.stream import EditStream
from stillframe.methods import Method, Selector
from stillframe.methods import base as method_registry
from stillframe.recovery import Recovery, RecoverySetup
from stillframe.recovery import base as recovery_registry
from stillframe.recovery.aligned import AlignedRecovery
from stillframe.tokens.grid import Plan
from stillframe.tokens.source import SourceBlock

BLOCKS = 9


class Neighbour(Recovery):
    """The left neighbour's key and value if that is computed, else what stood there a block ago."""

    summary = "the neighbour to the left"

    def __init__(self, setup: RecoverySetup) -> None:
        super().__init__(setup)
        shape = setup.shape
        size = setup.steps, shape.layers, shape.batch, shape.grid.tokens + 1
        rows = *size, shape.heads, shape.head_dim
        self.bank = Bank(*(setup.zeros(name, rows) for name in ("keys", "values")))

    def reuse(self, plan: Plan, cache: KeyValueCache) -> Reuse:
        slots = torch.arange(cache.shape.grid.tokens).view(plan.keep.shape[1:])
        slots = slots.expand(plan.keep.shape)
        new = torch.where(plan.keep, plan.rows, plan.rows.roll(1, 2))
        return Reuse(new, slots, self.bank, slots)


class Apart(Neighbour):
    """With a store that it makes itself, so that its graphs are its stream's."""

    summary = "the neighbour to the left, apart"

    def __init__(self, setup: RecoverySetup) -> None:
        super().__init__(setup)
        self.bank = Bank(*(torch.zeros_like(x) for x in self.bank))


class Inherited(AlignedRecovery):
    """Overrides nothing."""

    summary = "as aligned"


class Silent(Recovery):
    """A row of zeros that all passes share."""

    summary = "zeros"

    def reuse(self, plan: Plan, cache: KeyValueCache) -> Reuse:
        shape = cache.shape
        row = torch.zeros(1, shape.layers, shape.batch, 1, shape.heads, shape.head_dim)
        return Reuse(plan.rows, torch.zeros_like(plan.rows), Bank(row, row))


RECOVERIES: dict[str, type[Recovery]] = {
    "neighbour": Neighbour, "apart": Apart, "inherited": Inherited, "silent": Silent,
}  # fmt: skip


class Alternating:
    """Wraps a detector: the first row of every other block is computed as well."""

    def __init__(self, detector: Selector) -> None:
        self.detector, self.blocks = detector, 0

    def __call__(self, source: SourceBlock) -> Tensor:
        keep = self.detector(source).clone()
        self.blocks += 1
        keep[:, :, 0] |= self.blocks % 2 == 0
        return keep


@dataclass(frozen=True)
class Wrapping(Method):
    """The papers' detector, wrapped."""

    summary = "a wrapped detector"

    def selector(self) -> Selector:
        # as small a grid as this would be computed whole if masks were cleaned
        shape = MaskShape(smoothing="none", majority=False, cleaning="none", dilation=(1, 1))
        return Alternating(CausalMask(0.15, 0.3, shape=shape))


def register() -> None:
    """Make them known."""
    method_registry.register("wrapping")(Wrapping)
    for name, kind in RECOVERIES.items():
        recovery_registry.register(name)(kind)


@contextmanager
def registered() -> Iterator[None]:
    """Known within the ``with`` block."""
    registries: list[Any] = [method_registry._REGISTRY._kinds, recovery_registry._REGISTRY._kinds]
    before = [dict(registry) for registry in registries]
    register()
    yield
    for registry, known in zip(registries, before, strict=True):
        registry.clear()
        registry.update(known)


def edited(
    method: Method, execution: str, blocks: int = BLOCKS, sides: tuple[int, int] = (8, 12)
) -> tuple[Tensor, list[float]]:
    """Frames of a stream of latents that drift and jump, and what was computed of its blocks."""
    shares: list[float] = []
    stream: EditStream = tiny.pipeline(position_limit=10).stream(
        "oil",
        method=method,
        execution=execution,
        sigmas=(0.9, 0.5),
        generator=torch.Generator().manual_seed(5),
        on_block=lambda stats: shares.append(stats.kept_share),
    )
    generator = torch.Generator().manual_seed(6)
    latents = torch.randn(1, tiny.CHANNELS, 3, *sides, generator=generator)
    frames = []
    for _ in range(blocks):
        moved = torch.rand(1, 1, 3, *sides, generator=generator) < 0.05
        latents = (
            latents[:, :, -1:]
            + 2.0 * moved
            + 0.02 * torch.randn(latents.shape, generator=generator)
        )
        frames.append(stream.edit_block(latents))
    return torch.cat(frames, 1), shares


def main() -> None:
    """Plain and fused give the same for each of them."""
    register()
    for name in RECOVERIES:
        method = Wrapping(recovery=name)
        (plain, shares), (fused, same) = (
            edited(method, x, 3, (4, 6)) for x in ("reference", "fused")
        )
        assert shares == same
        assert 0 < min(shares) < 0.9
        torch.testing.assert_close(fused, plain, atol=2e-5, rtol=0)
        sys.stdout.write(f"{name}: equal, {min(shares):.2f} to {max(shares[1:]):.2f} computed\n")


if __name__ == "__main__":
    main()
