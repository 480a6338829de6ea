"""Stand-ins: the keys and values of pruned tokens in a pass over the computed ones.

All frames of a stock pipeline are denoised at once, so there are no committed clean frames to take
keys and values from, as the papers do. What there is instead is here, to be compared; keys are
before rotation, and are rotated to the place of the pruned token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from torch import Tensor

__all__ = [
    "Branch",
    "Copy",
    "Layer",
    "Neighbour",
    "Nothing",
    "Refresh",
    "Source",
    "StandIn",
    "as_standin",
    "standins",
]

#: Which denoiser, and which branch of guidance.
Branch = tuple[int, str]


class Layer(NamedTuple):
    """A self-attention in a pass.

    Attributes:
        branch: see `Branch`.
        number: of the layer in its denoiser.
        key, value: (B, K, heads, head_dim) of the computed tokens.
        rows: (P,) int64: which of the computed tokens is the provider of a pruned one.
        own: the pruned tokens' keys and values, estimated from their providers' inputs of this
            layer and their own noise.
    """

    branch: Branch
    number: int
    key: Tensor
    value: Tensor
    rows: Tensor
    own: Callable[[], tuple[Tensor, Tensor]]


@dataclass
class StandIn:
    """Makes keys and values of pruned tokens. One object serves one pipeline.

    Attributes:
        observes: whether `observe` wants the keys and values of passes that are whole.
        stores: whether keys and values of all layers are kept from pass to pass.
    """

    name: ClassVar[str]
    observes: ClassVar[bool] = False
    stores: ClassVar[bool] = False

    def whole(self, branch: Branch, step: int) -> bool:
        """Whether a pass computes every token; ``step`` counts from 0."""
        return False

    def observe(self, branch: Branch, number: int, key: Tensor, value: Tensor) -> None:
        """See a layer's keys and values of the pruned tokens, in a pass that computes them."""

    def __call__(self, layer: Layer) -> tuple[Tensor, Tensor] | None:
        """Keys and values of the pruned tokens, (B, P, heads, head_dim) each; None: there are
        none, and attention does not see them."""
        raise NotImplementedError

    def known(self, branch: Branch) -> bool:
        """Whether a branch has been observed."""
        return True

    def reset(self) -> None:
        """Forget what was observed."""


@dataclass
class Neighbour(StandIn):
    """The provider's at the same step and layer, with the noise of the token's own place.

    What enters a layer at a pruned token is estimated by what enters it at its provider, plus the
    difference of what the two entered the first layer with: their noise, mostly. Normalisation and
    the projections to keys and values are computed of that: all that is done for a pruned token.
    """

    name = "neighbour"

    def __call__(self, layer: Layer) -> tuple[Tensor, Tensor]:
        return layer.own()


@dataclass
class Copy(StandIn):
    """The provider's own keys and values: noise and all, which biases attention towards copies."""

    name = "copy"

    def __call__(self, layer: Layer) -> tuple[Tensor, Tensor]:
        return layer.key.index_select(1, layer.rows), layer.value.index_select(1, layer.rows)


@dataclass
class Nothing(StandIn):
    """None: attention sees the computed tokens only. Pruning alone, to be compared with."""

    name = "none"

    def __call__(self, layer: Layer) -> None:
        return None


@dataclass
class _Stored(StandIn):
    stores = True

    _kept: dict[tuple[Branch, int], tuple[Tensor, Tensor]] = field(
        default_factory=dict, repr=False, init=False
    )

    def observe(self, branch: Branch, number: int, key: Tensor, value: Tensor) -> None:
        self._kept[branch, number] = key, value

    def __call__(self, layer: Layer) -> tuple[Tensor, Tensor]:
        return self._kept[layer.branch, layer.number]

    def known(self, branch: Branch) -> bool:
        return any(at == branch for at, _ in self._kept)

    def reset(self) -> None:
        self._kept.clear()

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values that are kept."""
        return sum(x.nbytes for pair in self._kept.values() for x in pair)


@dataclass
class Source(_Stored):
    """Those of the source's clean latents, which go through the network once (the papers' way).

    Keeps keys and values of the pruned tokens, of all layers and branches.

    Attributes:
        latents: the clean latents, as the denoiser takes them; encoded from the video by default.
    """

    name = "source"

    latents: Tensor | None = field(default=None, repr=False)


@dataclass
class Refresh(_Stored):
    """Those of the last pass that was whole: the first ones, and every so many.

    Keeps keys and values of the pruned tokens, of all layers and branches.

    Attributes:
        first: passes at the beginning that are whole, at least 1.
        every: of the others, each so many-th is whole, too.

    Raises:
        ValueError: one of them is below 1.
    """

    name = "refresh"
    observes = True

    first: int = 2
    every: int = 5

    def __post_init__(self) -> None:
        if min(self.first, self.every) < 1:
            raise ValueError(
                f"refresh needs first and every to be at least 1, got {self.first}, {self.every}"
            )

    def whole(self, branch: Branch, step: int) -> bool:
        late = step - self.first + 1
        return late <= 0 or late % self.every == 0 or not self.known(branch)


#: By name.
standins: dict[str, type[StandIn]] = {
    kind.name: kind for kind in (Neighbour, Copy, Source, Refresh, Nothing)
}


def as_standin(given: str | StandIn) -> StandIn:
    """A stand-in as an object, of its name or of itself.

    Raises:
        ValueError: there is none of that name.
    """
    if isinstance(given, StandIn):
        return given
    if given not in standins:
        raise ValueError(f"unknown stand-in {given!r}; known: {', '.join(sorted(standins))}")
    return standins[given]()
