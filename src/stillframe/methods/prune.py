"""Latent inter-frame pruning: compute the tokens whose latent patch changed.

Source: arXiv 2604.23858 and 2603.05811 (LIPAR). The mask is ``change.CausalMask``; the papers'
attention recovery is ``recovery="clean"``, ours ``"aligned"``.
"""

from __future__ import annotations

from dataclasses import dataclass

from stillframe.change import CausalMask
from stillframe.methods.base import Method, Selector, register

__all__ = ["InterFramePruning"]


@register("prune")
@dataclass(frozen=True)
class InterFramePruning(Method):
    """Prune patches unchanged over a short and a long interval.

    Attributes:
        tau1: short-term threshold, latent standard deviations; the papers use 0.15 (and 0.30 for
            ``tau2``). 0 keeps everything.
    """

    summary = "compute the latent patches that changed (latent inter-frame pruning)"

    tau1: float = 0.15

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tau1 >= 0:
            raise ValueError(f"tau1 must not be negative, got {self.tau1}")

    def selector(self) -> Selector:
        return CausalMask(self.tau1, self.tau2, self.trim)
