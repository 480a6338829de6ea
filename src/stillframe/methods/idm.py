"""Structure-then-detail merging, detail by inattentive tokens (IDM), a baseline.

Source: Fang et al., Attend to Not Attended (SDTM, arXiv 2505.11707); LIPAR calls its baseline IDM.
The first denoising passes settle structure: the 2 x 2 windows whose tokens are most alike become
one row each. Later ones settle detail: tokens merge as in ``tomesd``, but the destination of a
window is the token that has been merged away for longest, so that every token is attended to in
turn. How much is merged falls from pass to pass.

What the paper takes from attention maps ("inattentive") is counted here, in calls since a token
last had a row: fused attention gives no maps, and the authors' own later release does without them
as well. Ours, where a few distilled passes leave no room for the paper's schedules of dozens: the
first 40% of the passes, and at least one, are for structure; the rate falls linearly from 1.4 to
0.6 times the one asked for, so that its mean over the passes is exactly that. Left out: merging
around feed-forward layers, and reweighting of the prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stillframe.methods.base import register
from stillframe.methods.merging import TokenMerging
from stillframe.tokens.merge import Merger, MergeSetup, Merging, Windows, match, most_similar
from stillframe.tokens.source import SourceBlock

__all__ = ["StructureDetailMerging"]

_STRUCTURE_SHARE = 0.4
_FALL = 0.4


class _StagedMerger(Merger):
    """Whole windows first, then single tokens; both within frames."""

    def __init__(self, rate: float, setup: MergeSetup) -> None:
        grid, steps = setup.grid, setup.steps
        self._grid = grid
        self._windows = Windows(grid, setup.device)
        self._structure = max(1, round(_STRUCTURE_SHARE * steps))
        # 1 at the first pass, -1 at the last, 0 on average
        slopes = [1 - 2 * step / (steps - 1) for step in range(steps)] if steps > 1 else [0.0]
        self._remove = [round(rate * (1 + _FALL * x) * grid.frame_tokens) for x in slopes]
        self._age = torch.empty(0)

    def begin_block(self, source: SourceBlock) -> None:
        self._age = torch.zeros(source.tokens.shape[:3], device=source.tokens.device).flatten(0, 1)

    def match(self, step: int, layer: int, hidden: Tensor, keys: Callable[[], Tensor]) -> Merging:
        frames = hidden.unflatten(1, (self._grid.frames, -1)).flatten(0, 1)
        structure = step < self._structure
        targets = self._windows.first(torch.zeros_like(self._age) if structure else self._age)
        sources = self._windows.others(targets)
        if structure:
            target = self._windows.of[sources]
            score = self._likeness(frames).gather(1, target)
        else:
            score, target = most_similar(frames, sources, targets)
        merging = match(score, target, sources, targets, self._remove[step])
        self._age = (self._age + 1).scatter(1, merging.slots, 0)
        return merging.joined(self._grid.frames)

    def _likeness(self, frames: Tensor) -> Tensor:
        """Mean cosine between the tokens of each window: (R, N, D) -> (R, windows)."""
        unit = F.normalize(frames.float(), dim=-1)
        total = torch.zeros(len(unit), self._windows.count, unit.shape[2], device=unit.device)
        total.index_add_(1, self._windows.of, unit)
        # the squared norm of a sum of unit vectors is the sum of all their cosines
        return total.square().sum(2) / self._windows.size.square()


@register("idm")
@dataclass(frozen=True)
class StructureDetailMerging(TokenMerging):
    """Merge alike windows in the first passes, then the tokens least attended to."""

    summary = "merge alike windows first, neglected tokens later, less and less (IDM)"
    paper = "2505.11707"
    most = 0.5

    def merger(self, setup: MergeSetup) -> Merger:
        return _StagedMerger(self.rate, setup)
