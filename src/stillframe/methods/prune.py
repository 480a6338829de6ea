"""Latent inter-frame pruning: compute the tokens whose latent patch changed.

Source: arXiv 2604.23858 and 2603.05811 (LIPAR). The mask is ``change.CausalMask``; the papers'
attention recovery is ``recovery="clean"``, ours ``"aligned"``. With a ``rate``,
``change.RankedMask`` keeps a fixed share instead, for comparisons at equal cost.
"""

from __future__ import annotations

from dataclasses import dataclass

from stillframe.change import CausalMask, RankedMask
from stillframe.methods.base import Method, Selector, check_rate, register

__all__ = ["InterFramePruning"]


@register("prune")
@dataclass(frozen=True)
class InterFramePruning(Method):
    """Prune patches unchanged over a short and a long interval.

    Attributes:
        tau1: short-term threshold, latent standard deviations; the papers use 0.15 (and 0.30 for
            ``tau2``). 0 keeps everything.
        rate: share of a block's tokens to prune whatever changes, those that changed least; None
            leaves it to the thresholds, which with a rate only weigh short against long term.
    """

    summary = "compute the latent patches that changed (latent inter-frame pruning)"
    paper = "2603.05811"

    tau1: float = 0.15
    rate: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tau1 >= 0:
            raise ValueError(f"tau1 must not be negative, got {self.tau1}")
        if self.rate is not None:
            check_rate(self.rate)

    def selector(self) -> Selector:
        if self.rate is not None:
            return RankedMask(self.rate, self.tau1, self.tau2, self.trim)
        return CausalMask(self.tau1, self.tau2, self.trim)
