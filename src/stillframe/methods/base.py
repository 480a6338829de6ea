"""A method: which tokens of a block are computed, and what stands in for the others.

A method is a frozen dataclass - parameters, repr and equality in one object - that makes one
*selector* a stream. A selector is called once a block and returns the keep mask; it may remember
what it has seen, and must not look ahead. The engine sees to the rest: a stream's first block is
whole, pruned tokens are recovered and restored.

Adding one: a file in this package (or anywhere, if it is imported) with a subclass under
`register`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from stillframe.change import SourceBlock
from stillframe.recovery import find_recovery
from stillframe.registry import Registry

__all__ = ["Method", "Selector", "find_method", "methods", "register"]

#: One a stream, called once a block: (B, S, h, w) bool, true = compute this token.
Selector = Callable[[SourceBlock], Tensor]


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
        prunes: false if every token is always kept, so that nothing needs to be stored for
        recovery.

    Raises:
        ValueError: for an unknown recovery or numbers out of range.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
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

    @abstractmethod
    def selector(self) -> Selector:
        """A fresh selector for one stream."""


_REGISTRY: Registry[Method] = Registry("method")

#: Class decorator: makes a method known under a name.
register = _REGISTRY.register

#: All registered methods by name.
methods = _REGISTRY.all

#: The method of a name; ValueError if there is none.
find_method = _REGISTRY.find
