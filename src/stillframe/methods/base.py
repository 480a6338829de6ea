"""A method: which tokens of a block are computed, and what stands in for the others.

A method is a frozen dataclass - parameters, repr and equality in one object - that makes one
*selector* a stream. A selector is called once a block and returns the keep mask; it may remember
what it has seen, and must not look ahead. The engine sees to the rest: a stream's first block is
whole, pruned tokens are recovered and restored. A method that merges tokens instead keeps them all
and gives a *merger* as well (``merging.TokenMerging``).

Adding one: a file in this package (or anywhere, if it is imported) with a subclass under
`register`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from stillframe.recovery import find_recovery
from stillframe.registry import Registry
from stillframe.tokens.merge import Merger, MergeSetup
from stillframe.tokens.source import SourceBlock

__all__ = [
    "Method",
    "Score",
    "Selector",
    "check_rate",
    "find_method",
    "keep_everything",
    "methods",
    "register",
]

#: One a stream, called once a block: (B, S, h, w) bool, true = compute this token.
Selector = Callable[[SourceBlock], Tensor]

#: One a stream, called once a block: (B, S, h, w), at least 0; above 1 a token counts as changed.
Score = Callable[[SourceBlock], Tensor]


def keep_everything(source: SourceBlock) -> Tensor:
    """A selector that prunes nothing."""
    grid = source.grid
    shape = (source.tokens.shape[0], grid.frames, grid.height, grid.width)
    return torch.ones(shape, dtype=torch.bool, device=source.tokens.device)


def check_rate(rate: float, most: float | None = None) -> None:
    """Raise a ValueError unless ``rate`` is a share of tokens: 0 to below 1, or to ``most``."""
    if not 0 <= rate < 1 or (most is not None and rate > most):
        limit = "1)" if most is None else f"{most:g}]"
        raise ValueError(f"rate must be in [0, {limit}, got {rate}")


@dataclass(frozen=True)
class Method(ABC):
    """Base of all methods.

    Attributes:
        recovery: what stands in for pruned keys and values: none, noisy, clean or aligned.
        tau2: the largest distance, in latent standard deviations, between source patches of which
            one may stand in for the other.
        trim: share of a patch's differences dropped at either end, see `change.patch_distance`.

    Class attributes:
        name: what ``--method`` takes.
        summary: one line for listings.
        paper: arXiv number of its source, if any.
        prunes: false if every token is always kept, so that nothing needs to be stored for
            recovery.

    Raises:
        ValueError: for an unknown recovery or numbers out of range.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str] = ""
    prunes: ClassVar[bool] = True

    recovery: str = "aligned"
    tau2: float = 0.30
    trim: float = 0.0

    def __post_init__(self) -> None:
        find_recovery(self.recovery)
        if not self.tau2 >= 0:
            raise ValueError(f"tau2 must not be negative, got {self.tau2}")
        if not 0 <= self.trim < 0.5:
            raise ValueError(f"trim must be in [0, 0.5), got {self.trim}")

    @property
    def needs_pixels(self) -> bool:
        """Whether its selector cannot do without the source's frames (``SourceBlock.pixels``)."""
        return False

    @property
    def visible(self) -> bool:
        """Whether it goes by what is seen, in grey levels: by pixels, or latents weighted."""
        return False

    @property
    def holds(self) -> bool:
        """Whether what is not computed shows the picture that was shown, pixel for pixel."""
        return False

    @property
    def match(self) -> tuple[float, float]:
        """How far apart source patches may be that stand in for each other in attention, and the
        trim of that distance: latent standard deviations, or grey levels of what is ``visible``."""
        return self.tau2, self.trim

    @abstractmethod
    def selector(self) -> Selector:
        """A fresh selector for one stream."""

    def score(self) -> Score | None:
        """What ranks tokens by their change for a stream, in units of its limits; None if it has
        none."""
        return None

    def merger(self, setup: MergeSetup) -> Merger | None:
        """A fresh merger for one stream, None for methods that merge nothing."""
        return None


_REGISTRY: Registry[Method] = Registry("method")

#: Class decorator: makes a method known under a name.
register = _REGISTRY.register

#: All registered methods by name.
methods = _REGISTRY.all

#: The method of a name; ValueError if there is none.
find_method = _REGISTRY.find
