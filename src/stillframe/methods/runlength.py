"""Run-length tokenisation: drop patches whose pixels did not change, a baseline.

Source: Choudhury et al., Don't Look Twice (RLT, arXiv 2411.05222). A tubelet is what one latent
frame stands for. A patch is static if the last frame of its tubelet differs from the first frame of
the tubelet before by less than a threshold (mean absolute difference over its pixels and colours),
and static patches are dropped before the model. Nothing is smoothed, and consecutive tubelets are
all that is compared, so a slow drift is never noticed.

Different here: the paper learns an encoding of run lengths, which takes training, so lengths are
not told to the model; dropped tokens are absent from attention (recovery "none", others can be
asked for); patches are the pixels of a token. The threshold is for pixels in [0, 1] and ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from stillframe.detection.latents import keep_most
from stillframe.methods.base import Method, Score, Selector, check_rate, register
from stillframe.tokens.source import SourceBlock

__all__ = ["RunLengthTokenisation", "tubelet_distance"]

# where the threshold is 0: of this score is what did not change, in units of that distance the rest
_EVERYTHING, _LEAST_THRESHOLD = 2.0, 1e-6


def tubelet_distance(source: SourceBlock) -> Tensor:
    """Mean absolute difference of each patch's pixels over two tubelets, (B, S, h, w) in [0, 1].

    Raises:
        ValueError: the block has no pixels.
    """
    grid, pixels = source.grid, source.pixels
    if pixels is None:
        raise ValueError("run-length tokenisation needs source frames, got a block of latents only")
    tubelets = pixels.float().unflatten(1, (grid.frames + 1, -1))
    change = (tubelets[:, 1:, -1] - tubelets[:, :-1, 0]).abs().mean(2)
    patch = (change.shape[2] // grid.height, change.shape[3] // grid.width)
    return F.avg_pool2d(change, patch).to(source.tokens.device)


@register("runlength")
@dataclass(frozen=True)
class RunLengthTokenisation(Method):
    """Drop patches whose source pixels stay the same.

    Attributes:
        threshold: smallest mean absolute difference that counts as change, of pixels in [0, 1].
        rate: share of a block's tokens to drop instead, those that changed least; None leaves it to
            the threshold.
    """

    summary = "drop patches whose pixels stay the same (run-length tokenisation)"
    paper = "2411.05222"

    recovery: str = "none"
    threshold: float = 0.025
    rate: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.threshold >= 0:
            raise ValueError(f"threshold must not be negative, got {self.threshold}")
        if self.rate is not None:
            check_rate(self.rate)

    @property
    def needs_pixels(self) -> bool:
        return True

    def selector(self) -> Selector:
        return self._select

    def score(self) -> Score:
        return self._score

    def _score(self, source: SourceBlock) -> Tensor:
        """Distance in thresholds. With a threshold of 0 everything counts as changed."""
        distance = tubelet_distance(source)
        if self.threshold > 0:
            return distance / self.threshold
        return _EVERYTHING + distance / _LEAST_THRESHOLD

    def _select(self, source: SourceBlock) -> Tensor:
        distance = tubelet_distance(source)
        if self.rate is not None:
            return keep_most(distance, self.rate)
        return distance >= self.threshold * source.leniency
