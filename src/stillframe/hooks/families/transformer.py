"""Families whose denoiser is a transformer: tokens are dropped before the first block.

They are put back before the output layer, so a pass costs in proportion to what is computed.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from stillframe.hooks.families.base import Family
from stillframe.hooks.passes import Block, KeysValues, Pass

__all__ = ["TransformerFamily"]


class TransformerFamily(Family):
    """Adapter of a family of transformers: where blocks are, and what they are called with."""

    @abstractmethod
    def stacks(self, denoiser: Any) -> list[Sequence[nn.Module]]:
        """Blocks that hand tokens to each other; every stack begins with all tokens."""

    @abstractmethod
    def attention(self, block: Any) -> nn.Module:
        """The self-attention of a block, whose ``processor`` is replaced."""

    @abstractmethod
    def head(self, denoiser: Any) -> nn.Module:
        """The module behind the last block, whose first argument must be all tokens again."""

    @abstractmethod
    def cut(self, block: Block, current: Pass) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A block's arguments with the computed tokens only."""

    @abstractmethod
    def state(self, block: Block) -> Tensor:
        """The tokens that a block's self-attention input is made from."""

    @abstractmethod
    def attention_input(self, block: Block, state: Tensor, current: Pass) -> Tensor:
        """The input of a block's self-attention at the pruned tokens, of their `state`."""

    def own(self, attn: Any, current: Pass) -> Callable[[], KeysValues]:
        """Gives keys and values of the pruned tokens' estimated `state`."""

        def made() -> KeysValues:
            block, state = current.estimated()
            return self.keys_values(attn, self.attention_input(block, state, current))

        return made

    def attentions(self, denoiser: Any) -> list[nn.Module]:
        return [self.attention(block) for stack in self.stacks(denoiser) for block in stack]

    def hang(self, denoiser: Any, running: Callable[[], Pass | None]) -> list[RemovableHandle]:
        def enter(number: int, module: nn.Module, args: Any, kwargs: Any) -> Any:
            current = running()
            if current is None:
                return None
            block = Block(module, number, args, kwargs)
            current.enter(block, functools.partial(self.state, block))
            return self.cut(block, current)

        def leave(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            current = running()
            return None if current is None else (current.expand(args[0]), *args[1:])

        handles = [self.head(denoiser).register_forward_pre_hook(leave)]
        for stack in self.stacks(denoiser):
            for number, block in enumerate(stack):
                hook = functools.partial(enter, number)
                handles.append(block.register_forward_pre_hook(hook, with_kwargs=True))
        return handles
