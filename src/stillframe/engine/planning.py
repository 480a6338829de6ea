"""From a mask to a block's plan: what moved, what of the source and the picture is needed, and what
is to be compared with next.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stillframe.autoencoders.activity import active
from stillframe.detection.motion import Settled
from stillframe.engine.results import drawn_lines
from stillframe.engine.state import StreamState
from stillframe.tokens.grid import Plan, plan_tokens
from stillframe.tokens.source import SourceBlock

__all__ = ["advance", "followed", "picture_wanted", "settle", "source_wanted"]


def followed(state: StreamState, block: SourceBlock, gains: Tensor) -> SourceBlock:
    """A block with what tells where its patches came from, unless that is not asked for.

    Args:
        state: of the stream.
        block: the next one, not a stream's first.
        gains: see ``StreamingAutoencoder.channel_gains``.
    """
    if state.motion is None or block.pixels is None or block.anchor is None:
        return block
    if not state.motion.due:
        state.anchors.pixels = state.motion.release(block.anchor)
        return block._replace(anchor=state.anchors.pixels)
    assert state.result is not None
    assert state.source is not None
    lines = drawn_lines(state.result, state.source, state.grid, gains)
    state.motion.begin(block, lines)
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


def source_wanted(state: StreamState, plan: Plan) -> Tensor | None:
    """Latent pixels (B, S, h, w) whose source is needed: those that are computed or come from
    elsewhere, since the edit of what moved is added to its source as it is now. None: all are."""
    if plan.everything:
        return None
    places = plan.keep.unflatten(2, state.sides)
    if state.settled is not None:
        places = places | torch.stack([found.moved for found in state.settled])
    return _latent_pixels(state, places)


def picture_wanted(state: StreamState, plan: Plan) -> Tensor | None:
    """Latent pixels (B, S, h, w) whose picture is needed: those that are computed and, of what
    comes from elsewhere, where the edit is even and what lies beside computed patches, since it is
    what their decoding sees; see ``results``. None: all are."""
    if plan.everything:
        return None
    places = plan.keep.unflatten(2, state.sides)
    if state.settled is not None:
        moved = torch.stack([found.moved for found in state.settled])
        shown = (_evenness(state.settled, state.even) > 0).view(moved.shape)
        places = places | shown | (moved & active(places))
    return _latent_pixels(state, places)


def _evenness(settled: Sequence[Settled], even: list[list[Tensor]]) -> Tensor:
    """How even edits of what moved are, (B, S, N); 0 elsewhere."""
    videos = []
    for found, rows in zip(settled, even, strict=True):
        moved = found.moved.flatten(1)
        if found.patches[0].mask is not None:
            videos.append(torch.stack(rows) * moved)
            continue
        known = torch.zeros(moved.shape, device=moved.device)
        for row, patches, values in zip(known, found.patches, rows, strict=True):
            row[patches.index] = values.to(row)
        videos.append(known)
    return torch.stack(videos)


def _latent_pixels(state: StreamState, places: Tensor) -> Tensor:
    return places.repeat_interleave(state.patch, 2).repeat_interleave(state.patch, 3)


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
