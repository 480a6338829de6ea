"""From a mask to a block's plan: what moved, what of the source and the picture is needed, and what
is to be compared with next.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stillframe.engine.state import StreamState
from stillframe.tokens.grid import Plan, plan_tokens
from stillframe.tokens.source import SourceBlock

__all__ = ["advance", "followed", "settle", "wanted"]


def followed(state: StreamState, block: SourceBlock) -> SourceBlock:
    """A block with what tells where its patches came from, unless that is not asked for."""
    if state.motion is None or block.pixels is None or block.anchor is None:
        return block
    if not state.motion.due:
        state.anchors.pixels = state.motion.release(block.anchor)
        return block._replace(anchor=state.anchors.pixels)
    state.motion.begin(block)
    return block._replace(motion=state.motion)


def settle(state: StreamState, block: SourceBlock, keep: Tensor) -> Plan:
    """The plan of a block of which (B, S, N) are computed; the state learns where the others came
    from."""
    state.settled = None
    if block.motion is None:
        plan = plan_tokens(keep)
        if state.motion is not None and plan.everything:
            state.motion.restart(block)
        if state.motion is not None:
            state.motion.rested(plan.kept_share)
        return plan
    assert state.motion is not None
    settled, plan = state.motion.planned(keep)
    if plan.everything:
        state.motion.restart(block)
    else:
        state.settled = settled
    return plan


def wanted(state: StreamState, plan: Plan) -> Tensor | None:
    """Latent pixels (B, S, h, w) whose source and picture are needed: those that are computed or
    come from elsewhere. None: all are.

    The edit of what moved is added to its source as it is now, and the picture of that is shown
    where the edit is even, see ``results``.
    """
    if plan.everything:
        return None
    side, places = state.patch, plan.keep.unflatten(2, state.sides)
    if state.settled is not None:
        places = places | torch.stack([found.moved for found in state.settled])
    return places.repeat_interleave(side, 2).repeat_interleave(side, 3)


def advance(state: StreamState, pixels: Tensor, plan: Plan) -> Tensor:
    """Keep the pixels that tokens were computed from.

    Args:
        state: of the stream.
        pixels: ``SourceBlock.pixels``.
        plan: of the block.

    Returns:
        staleness (B, S, h, w), see `Anchors.advance`.
    """
    stale = state.anchors.advance(pixels, plan.keep.unflatten(2, state.sides))
    settled = state.settled
    if settled is None:
        return stale
    assert state.motion is not None
    assert state.anchors.pixels is not None
    away = torch.stack([found.moved | found.stuck for found in settled])
    # on a GPU it is not worth waiting for whether there is anything
    if away.is_cuda or bool(torch.stack([found.stuck[-1] for found in settled]).any()):
        state.anchors.pixels = state.motion.anchored(settled, state.anchors.pixels)
    return torch.where(away, torch.stack([found.stale for found in settled]), stale)
