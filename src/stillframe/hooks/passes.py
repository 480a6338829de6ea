"""One call of a denoiser in which not every token is computed, or keys and values are observed.

A family's adapter and attention processors ask it for everything: which rows of a tensor go on, and
what attention sees in the place of those that do not.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stillframe.hooks.pruning import ClipPlan
from stillframe.hooks.standin import Branch, Layer, StandIn

__all__ = ["Block", "KeysValues", "Pass"]

#: Keys (before rotation) and values, (B, n, heads, head_dim) each.
KeysValues = tuple[Tensor, Tensor]


class Block(NamedTuple):
    """A transformer block that is about to run, and what it was called with, before rows are cut.

    Attributes:
        number: in its stack; a stack is blocks that hand tokens to each other.
    """

    module: Any
    number: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Pass:
    """A call of a denoiser.

    Args:
        plan: of the clip, with what the pipeline puts in front of it, on the denoiser's device.
        standin: of the pipeline.
        branch: which denoiser, which branch of guidance.
        whole: every token is computed, and the stand-in sees keys and values.
        coarser: gives the plan of tokens so many times as large a side, for U-Nets.

    Attributes:
        here: the pass at the resolution that runs, see `resize`.
        inside: the module that runs with computed tokens only; None: none.
    """

    def __init__(
        self,
        plan: ClipPlan,
        standin: StandIn,
        branch: Branch,
        *,
        whole: bool,
        coarser: Callable[[int], ClipPlan],
    ) -> None:
        self.plan, self.standin, self.branch, self.whole = plan, standin, branch, whole
        self._coarser = coarser
        self._sizes: dict[int, Pass] = {1: self}
        self.here: Pass | None = None
        self.inside: Any = None
        self._seen: dict[tuple[int, str], tuple[Any, Tensor]] = {}
        self._block: Block | None = None
        self._state: Callable[[], Tensor] | None = None
        self._first: Callable[[], Tensor] | None = None
        self._shift: Tensor | None = None

    def resize(self, rows: int, columns: int) -> None:
        """Set `here` for tokens in so many rows and columns: None, and nothing is left out, where
        they are not whole multiples of the plan's or all of them change."""
        side = self.plan.keep.shape[1] // rows
        self.here = None
        if self.plan.keep.shape[1:] != (side * rows, side * columns):
            return
        if side not in self._sizes:
            self._sizes[side] = Pass(
                self._coarser(side),
                self.standin,
                self.branch,
                whole=self.whole,
                coarser=self._coarser,
            )
        if not self._sizes[side].plan.everything:
            self.here = self._sizes[side]

    @cached_property
    def _order(self) -> Tensor:
        """Token numbers of the keys that attention sees: computed ones, then the others."""
        return torch.cat([self.plan.kept, self.plan.pruned])

    @cached_property
    def _providers(self) -> Tensor:
        """Rows of the pruned tokens' providers among the computed tokens."""
        return self.plan.rows[self.plan.pruned]

    def cut(self, x: Tensor, dim: int = 1) -> Tensor:
        """The computed tokens' rows of a tensor of all tokens; of another tensor, all."""
        if self.whole or x.shape[dim] != self.plan.tokens:
            return x
        return x.index_select(dim, self.plan.kept)

    def cut_shared(self, x: Tensor, dim: int = 1) -> Tensor:
        """`cut` of what all blocks are given, such as rotary tables: done once, and kept."""
        if self.whole or x.shape[dim] != self.plan.tokens:
            return x
        return self._picked(x, self.plan.kept, dim, "kept")

    def pruned(self, x: Tensor, dim: int = 1) -> Tensor:
        """The pruned tokens' rows of a tensor of all tokens; of another tensor, all."""
        if x.shape[dim] != self.plan.tokens:
            return x
        return x.index_select(dim, self.plan.pruned)

    def of_keys(self, x: Tensor, key: Tensor, dim: int) -> Tensor:
        """Rows of a tensor of all tokens, such as a rotary table, in the order of ``key`` (B, n,
        heads, head_dim) as `complete` returned it."""
        if self.whole:
            return x
        if key.shape[1] == len(self.plan.kept):
            return self.cut_shared(x, dim)
        return self._picked(x, self._order, dim, "keys")

    def by_frame(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys or values (B, n, heads, head_dim) of each frame: of the computed tokens, or
        of all as `complete` returned them."""
        if x.shape[1] == len(self.plan.kept) and not self.whole:
            return x.split(self.plan.counts, 1)
        if not self.whole:
            x = x.index_select(1, self._order.argsort())
        return x.tensor_split(len(self.plan.keep), 1)

    def _picked(self, x: Tensor, rows: Tensor, dim: int, name: str) -> Tensor:
        at = id(x), name
        if at not in self._seen:
            self._seen[at] = x, x.index_select(dim, rows)
        return self._seen[at][1]

    def expand(self, x: Tensor) -> Tensor:
        """All tokens (B, T, D) of the computed ones (B, K, D): others are their providers."""
        return x if self.whole else x.index_select(1, self.plan.rows)

    def enter(self, block: Block, state: Callable[[], Tensor]) -> None:
        """Note a block that is about to run.

        Args:
            block: of the denoiser.
            state: gives the tokens that self-attention's input is made from: all tokens (B, T, D)
                at a stack's first block, the computed ones at others.
        """
        self._block, self._state = block, state
        if block.number == 0:
            self._first, self._shift = state, None

    def estimated(self) -> tuple[Block, Tensor]:
        """The block that runs, and the pruned tokens' states on entering it (B, P, D)."""
        assert self._block is not None
        assert self._state is not None
        if self._first is not None:
            # not before the block runs: until then its weights may be elsewhere
            full, self._first = self._first(), None
            own = full.index_select(1, self.plan.pruned)
            self._shift = own - full.index_select(1, self.plan.kept[self._providers])
            if self._block.number == 0:
                return self._block, own
        assert self._shift is not None
        return self._block, self._state().index_select(1, self._providers) + self._shift

    def complete(
        self,
        number: int,
        key: Tensor,
        value: Tensor,
        own: Callable[[], KeysValues],
    ) -> KeysValues:
        """What attention sees: keys and values of the computed tokens, then of the pruned ones.

        Args:
            number: of the self-attention in its denoiser.
            key, value: of the computed tokens, before rotation.
            own: gives the pruned tokens' own, estimated from their providers.
        """
        if self.whole:
            rows = self.plan.pruned
            self.standin.observe(
                self.branch, number, key.index_select(1, rows), value.index_select(1, rows)
            )
            return key, value
        found = self.standin(Layer(self.branch, number, key, value, self._providers, own))
        if found is None:
            return key, value
        return torch.cat([key, found[0]], 1), torch.cat([value, found[1]], 1)
