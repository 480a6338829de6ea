"""Inter-frame pruning: compute the tokens whose patch changed.

By default a patch counts as changed when its source pixels look different from those it was last
computed from (``visible``), by one tolerance in grey levels, and what is not computed shows the
picture that was shown. With ``detector="latent"`` it is the papers' latent inter-frame pruning
(arXiv 2604.23858 and 2603.05811, LIPAR): the mask is ``change.CausalMask``, and latents are decoded
anew. The papers' attention recovery is ``recovery="clean"``, ours ``"aligned"``. With a ``rate`` a
fixed share is pruned, for comparisons at equal cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from stillframe.detection.latents import CausalMask, ChangeScore, RankedMask, keep_most
from stillframe.detection.pixels import TOLERANCE, VisibleMask, VisibleScore
from stillframe.methods.base import Method, Score, Selector, check_rate, register
from stillframe.tokens.source import SourceBlock

__all__ = ["DETECTORS", "MOTIONS", "TAU1", "TAU2", "InterFramePruning"]

#: What `InterFramePruning.detector` may be.
DETECTORS = ("pixels", "latent")

#: What `InterFramePruning.motion` may be, each more than the one before.
MOTIONS = ("off", "global", "full")

#: The papers' thresholds of the detector "latent".
TAU1, TAU2 = 0.15, 0.30


@register("prune")
@dataclass(frozen=True)
class InterFramePruning(Method):
    """Prune patches that look as they did when they were last computed, also at another place.

    Attributes:
        tolerance: of the detector "pixels": root mean square difference, in grey levels of 255,
            that a patch may have from its source and still be reused. 0 keeps everything that
            changes at all.
        detector: "pixels", or "latent" for the papers'; by default pixels, unless ``tau1`` or
            ``tau2`` is given.
        tau1, tau2: short- and long-term threshold of the detector "latent", in latent standard
            deviations; 0.15 and 0.30 are the papers'. A ``tau1`` of 0 keeps everything.
        hold: whether what is reused shows the picture that was shown, with the detector "pixels".
        rate: share of a block's tokens to prune whatever changes, those that changed least; None
            leaves it to the detector.
        motion: "full" reuses patches wherever they moved, "global" by one motion of the whole
            picture, "off" only at their place. By default "full" where what is reused shows the
            picture that was shown (`holds`), and "off" elsewhere, where it can be nothing else.

    Raises:
        ValueError: thresholds of one detector are given to the other, motion is given where nothing
            can move, or numbers are out of range.
    """

    summary = "compute the patches that changed, reuse those that moved (inter-frame pruning)"
    paper = "2603.05811"

    tau2: float = TAU2
    tau1: float | None = None
    tolerance: float = TOLERANCE
    detector: str | None = None
    hold: bool = True
    rate: float | None = None
    motion: str = None  # type: ignore[assignment] # of what is not given; a text once it is made

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.tau1 is not None or self.tau2 != TAU2
        detector = self.detector or ("latent" if given else "pixels")
        if detector not in DETECTORS:
            raise ValueError(f"detectors are {' and '.join(DETECTORS)}, got {self.detector!r}")
        if detector == "pixels" and given:
            raise ValueError("tau1 and tau2 are thresholds of the detector 'latent', not 'pixels'")
        if detector == "latent" and self.tolerance != TOLERANCE:
            raise ValueError("tolerance is the limit of the detector 'pixels', not 'latent'")
        object.__setattr__(self, "detector", detector)
        if detector == "latent" and self.tau1 is None:
            object.__setattr__(self, "tau1", TAU1)
        if self.tau1 is not None and not self.tau1 >= 0:
            raise ValueError(f"tau1 must not be negative, got {self.tau1}")
        if not 0 <= self.tolerance <= 255:
            raise ValueError(f"tolerance must be in [0, 255] grey levels, got {self.tolerance}")
        if self.rate is not None:
            check_rate(self.rate)
        self._resolve_motion()

    def _resolve_motion(self) -> None:
        if self.motion is None:
            object.__setattr__(self, "motion", "full" if self.holds else "off")
        if self.motion not in MOTIONS:
            *most, last = MOTIONS
            raise ValueError(f"motion is {', '.join(most)} or {last}, got {self.motion!r}")
        if self.motion != "off" and not self.holds:
            raise ValueError(
                f"motion {self.motion!r} needs the detector 'pixels' and hold=True, got "
                f"{self.detector!r} and hold={self.hold}"
            )

    def changed(self, **given: Any) -> Self:
        detector, hold = given.get("detector", self.detector), given.get("hold", self.hold)
        if (detector == "pixels" and hold) != self.holds:
            # what was the default of the one is none of the other
            given = {"motion": None, **given}
        return super().changed(**given)

    @property
    def visible(self) -> bool:
        return self.detector == "pixels"

    @property
    def holds(self) -> bool:
        return self.visible and self.hold

    @property
    def match(self) -> tuple[float, float]:
        return (self.tolerance, 0.0) if self.visible else (self.tau2, self.trim)

    @property
    def thresholds(self) -> tuple[float, float]:
        """``tau1`` and ``tau2``, the papers' where they are not given."""
        return TAU1 if self.tau1 is None else self.tau1, self.tau2

    def selector(self) -> Selector:
        if self.visible:
            if self.rate is not None:
                return _Ranked(self.rate, self.tolerance)
            return VisibleMask(self.tolerance)
        if self.rate is not None:
            return RankedMask(self.rate, *self.thresholds, self.trim)
        return CausalMask(*self.thresholds, self.trim)

    def score(self) -> Score:
        if self.visible:
            return VisibleScore(self.tolerance)
        return ChangeScore(*self.thresholds, self.trim)


class _Ranked:
    """Prunes a fixed share: the tokens that changed least."""

    def __init__(self, rate: float, tolerance: float) -> None:
        self.score, self.rate = VisibleScore(tolerance), rate

    def __call__(self, block: SourceBlock) -> Tensor:
        return keep_most(self.score(block), self.rate)
